"""The convert command, as its users write it."""

from pathlib import Path

import pytest

import foundation
from foundation.interop.sevennet import to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from launch.__main__ import main

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)


@pytest.mark.parametrize("option", [["--from", "sevennet"], ["--from=sevennet"]], ids=["two words", "one word"])
def test_there_and_back(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder, again = tmp_path / "x.pth", tmp_path / "x", tmp_path / "again.pth"
    to_sevennet(Potential(EquivariantNetwork(CONFIG, (13, 29), 12.0), (13, 29), ("EMT",)), file)
    assert main(["convert", *option, "--checkpoint", str(file), "--out", str(folder)]) == 0
    assert "Calculator(" in capsys.readouterr().out
    assert main(["convert", "--to", "sevennet", "--model", str(folder), "--out", str(again)]) == 0
    assert "sevenn get_model" in capsys.readouterr().out
    assert foundation.load(again).elements == foundation.load(folder).elements == (13, 29)


def test_a_wrong_use_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--out", str(tmp_path / "x")]) == 2
    assert "give either --from or --to" in capsys.readouterr().err
    assert main(["convert", "--from", "sevennet", "--checkpoint", "gone.pth", "--out", str(tmp_path / "x")]) == 2
    assert "gone.pth: no potential there" in capsys.readouterr().err
