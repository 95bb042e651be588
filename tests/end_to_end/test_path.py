"""The whole path on 50 frames of real DFT data, through the command line; and what it says of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

import foundation
from launch.__main__ import main

PROVENANCE = {
    "name": "mptrj-50",
    "licence": "MIT",
    "level_of_theory": "PBE",
    "energy_convention": "uncorrected",
    "citation": "Deng et al. 2023",
    "source": "a test",
}
CARD = ("name", "description", "authors", "licence", "intended_use", "limitations", "citation")


def flags(prefix: str, values: dict[str, str]) -> list[str]:
    return [item for name, value in values.items() for item in (f"--{prefix}.{name}", value)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("path")


@pytest.fixture(scope="module")
def release(folder: Path, real_data: Path) -> Path:
    """Fifty frames through build, pretrain, evaluate and export."""
    frames = read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":50")
    small = folder / "fifty.extxyz"
    for atoms in frames:
        atoms.write(small, append=True)
    build = ["build", "--source.files", json.dumps([str(small)]), "--source.group_key", "mptrj_traj_id"]
    assert main([*build, "--out", str(folder / "data"), *flags("provenance", PROVENANCE)]) == 0
    tiny = ["--model.irreps", "4x0e+2x1e", "--model.num_blocks", "1", "--model.max_degree", "1"]
    tiny += ["--model.radial_sizes", "[8]", "--model.readout_channels", "4"]
    fit = ["--fit.steps", "4", "--fit.lanes", "2", "--machine.num_workers", "0", "--machine.accelerator", "cpu"]
    fit += ["--fit.validate_every", "2", "--fit.checkpoint_every", "2", "--fit.log_every", "2"]
    card = flags("card", dict.fromkeys(CARD, "a fact"))
    run = folder / "run"
    assert main(["pretrain", "--data", str(folder / "data"), "--out", str(run), *tiny, *fit, *card]) == 0
    # before the export there is no release folder yet: the run's potential is evaluated
    assert main(["evaluate", "--model", str(run / "release"), "--data", str(folder / "data")]) == 0
    assert main(["export", "--run", str(run), "--out", str(run / "release")]) == 0
    return run / "release"


def test_a_release_holds_what_people_need(release: Path) -> None:
    names = sorted(path.name for path in release.iterdir())
    assert names == ["README.md", "SHA256SUMS", "config.json", "evaluation.json", "golden.json", "model.safetensors"]
    assert sorted(path.name for path in (release.parent / "report").iterdir()) == [
        "evaluation.json",
        "index.html",
        "parity.png",
    ]


def test_the_provenance_says_what_computed_the_convolution(release: Path) -> None:
    provenance = json.loads((release.parent / "potential" / "config.json").read_text())["provenance"]
    assert provenance["convolution"].startswith("C, ")
    assert "bit vectors" in provenance["convolution"]


def test_ase_gives_the_golden_energies(release: Path) -> None:
    calculator = foundation.Calculator(foundation.load(release))
    import ase

    for record in json.loads((release / "golden.json").read_text()):
        atoms = ase.Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=record["pbc"])
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(record["energy"], rel=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), record["forces"], atol=1e-9)


def test_evaluating_the_release_gives_the_report_of_the_run(release: Path, folder: Path) -> None:
    before = json.loads((release.parent / "report" / "evaluation.json").read_text())
    assert (
        main(["evaluate", "--model", str(release), "--data", str(folder / "data"), "--out", str(folder / "again")]) == 0
    )
    assert json.loads((folder / "again" / "evaluation.json").read_text()) == before


def test_a_misspelt_key_is_refused_by_its_dotted_path(
    folder: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "bad.yaml"
    bad.write_text(
        f"data: {folder / 'data'}\nout: {folder / 'never'}\nfit: {{steps: 1}}\nmodel: {{irreps: 4x0e, cutof: 4.0}}\n"
    )
    assert main(["pretrain", "--config", str(bad)]) == 2
    assert "model.cutof" in capsys.readouterr().err.replace("'", "")
    assert not (folder / "never").exists()


def test_a_wrong_type_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--data", "x", "--out", "y", "--fit.steps", "many"]) == 2
    assert "fit.steps" in capsys.readouterr().err


def test_errors_are_sentences_without_a_traceback(
    folder: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", str(folder / "nowhere"), "--data", str(folder / "data")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("foundation: ")
    assert "no potential there" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("verb", ["build", "inspect", "pretrain", "evaluate", "export", "quickstart"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_print_config_prints_a_config_that_parses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--data", "a", "--out", "b", "--fit.steps", "3", "--model.irreps", "4x0e", "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "edge_budget: null" in printed
