"""Words that name a potential: the same wherever one is taken, and helpful where they are wrong."""

import json
from dataclasses import replace
from pathlib import Path

import ase
import pytest
import torch
from ase.build import bulk

import foundation
from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.convert import ConvertConfig, convert
from foundation.datasets import DatasetConfig
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.finetune import FinetuneConfig, finetune
from foundation.interop.sevennet import to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.naming import resolve
from foundation.potential import Potential
from foundation.surgery.start import start_facts
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
CPU = MachineConfig(accelerator="cpu")


def small() -> Potential:
    torch.manual_seed(0)
    return Potential(EquivariantNetwork(CONFIG, (13, 29), 12.0), (13, 29), ("EMT",))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A potential as a folder, as a run, and as a file of SevenNet."""
    checkpoint.save(small(), tmp_path / "mine", {"config": {}, "method": "test", "datasets": []})
    checkpoint.save(small(), tmp_path / "run" / "potential", {"config": {}, "method": "test", "datasets": []})
    to_sevennet(small(), tmp_path / "mine.pth")
    return tmp_path


@pytest.mark.parametrize("word", ["mine", "run", "mine.pth"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_folder_a_run_and_a_file_are_the_same_potential(own: Path, word: str, as_text: bool) -> None:
    found = foundation.load(str(own / word) if as_text else own / word)
    assert checkpoint.weights_sha256(found) == checkpoint.weights_sha256(small())
    assert resolve(own / word).describe().weights_sha256 == checkpoint.weights_sha256(small())


def test_relative_folders_come_before_published_names(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    assert foundation.load("mine").elements == (13, 29)
    (own / "mine").rename("sevennet-0")
    assert foundation.load("sevennet-0").elements == (13, 29)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sevennet0", r"sevennet0: no potential there.*did you mean sevennet-0\?"),
        ("SevenNet0@1", r"did you mean sevennet-0\?"),
        ("sevennet-mf0", r"did you mean sevennet-mf-0\?"),
        ("miine", r"did you mean mine\?"),
        ("rnu", r"did you mean run\?"),
        ("mina.pth", r"did you mean mine\.pth\?"),
        (
            "nothing-like-it",
            r"nothing-like-it: no potential there: neither .* potential\. Names: sevennet-0",
        ),
        ("far/away", r"far/away: no potential there: neither .* potential\. Names: "),
        (".", r"no potential there .*; did you mean (mine or run|run or mine)\?"),
        ("mine/config.json", r"mine/config\.json: a potential is named by its folder: give mine"),
    ],
)
def test_a_wrong_word_says_what_may_be_meant(
    own: Path, word: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    with pytest.raises((FileNotFoundError, IsADirectoryError), match=message):
        foundation.load(word)


def test_a_misspelt_folder_inside_another_is_found(own: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"did you mean {own}/run/potential\?"):
        foundation.load(own / "rum" / "potental")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name = "sevennet-0-22may2024"
    with pytest.raises(FileNotFoundError, match=rf"{name}: a model of the sevenn package, .* pip install sevenn=="):
        foundation.load(name)


def test_a_name_describes_what_its_converted_folder_does(tmp_path: Path) -> None:
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=Path("sevennet-0"), out=tmp_path / "converted"))
    there, named = resolve(folder).describe(), resolve("sevennet-0").describe()
    assert there == named
    facts = start_facts(Path("sevennet-0"), named)
    assert (facts.folder, facts.name, facts.method) == ("sevennet-0", "sevennet-0", "converted from SevenNet")
    assert facts.datasets[0]["name"] == "MPtrj"
    assert replace(start_facts(folder, there), folder="sevennet-0") == facts


def test_a_fine_tuning_starts_from_a_name_and_its_lineage_says_so(tmp_path: Path, emt_manifest: Manifest) -> None:
    run = tmp_path / "run"
    data = (DatasetConfig(path=emt_manifest.root, theory="PBE"),)
    fit = FitConfig(steps=1, lanes=1, edge_budget=3000, oversize="alone", log_every=1)
    finetune(FinetuneConfig(start=Path("sevennet-0"), data=data, out=run, fit=fit, machine=CPU, references="refit"))
    assert json.loads((run / "run.json").read_text())["start"] == "sevennet-0"
    start = checkpoint.describe(run / "potential").origin.start
    assert (start.folder, start.name) == ("sevennet-0", "sevennet-0")
    assert start.weights_sha256 == resolve("sevennet-0").describe().weights_sha256
    assert start.datasets[0]["name"] == "MPtrj"


def test_an_evaluation_takes_a_name(tmp_path: Path, emt_manifest: Manifest) -> None:
    to_sevennet(small(), tmp_path / "small.pth")
    found = evaluate(EvaluateConfig(model=tmp_path / "small.pth", data=emt_manifest.root, out=tmp_path / "report"))
    assert found.weights_sha256 == checkpoint.weights_sha256(small())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_calculator_takes_a_word_and_the_name_of_a_float_type(own: Path, dtype: str) -> None:
    atoms: ase.Atoms = bulk("Cu", cubic=True)
    energies = []
    for potential, kind in ((own / "mine", dtype), (foundation.load(own / "mine"), getattr(torch, dtype))):
        atoms.calc = foundation.Calculator(potential, device="cpu", dtype=kind)
        energies.append(atoms.get_potential_energy())
        assert atoms.calc.potential.dtype == getattr(torch, dtype)
    assert energies[0] == energies[1]


@pytest.mark.parametrize("dtype", ["double", "float16", torch.int64])
def test_other_float_types_are_refused_by_name(own: Path, dtype: torch.dtype | str) -> None:
    with pytest.raises(ValueError, match=rf"dtype must be float64 or float32, not {dtype}"):
        foundation.Calculator(own / "mine", dtype=dtype)
