"""Example files have what a first training needs, are the same every time, and the crystal is what it is called."""

import importlib.util
from pathlib import Path

import ase.io
import numpy as np
import pytest

import foundation
from foundation.interop.example_data import ExampleDataConfig, argyrodite, example_data
from launch.__main__ import main


def written(path: Path, name: str, frames: int, **options: int) -> list:
    return ase.io.read(example_data(ExampleDataConfig(name=name, out=path, frames=frames, **options)), ":")


def test_lithium_argyrodite_has_the_bonds_of_the_crystal() -> None:
    crystal = argyrodite()
    assert crystal.get_chemical_formula("metal") == "Li24Cl4P4S20"
    distances = crystal.get_all_distances(mic=True)
    of = {symbol: np.flatnonzero(crystal.symbols == symbol) for symbol in ("Li", "P", "S", "Cl")}
    phosphorus = np.sort(distances[np.ix_(of["P"], of["S"])], axis=1)
    np.testing.assert_allclose(phosphorus[:, :4], 2.06, atol=0.02)  # PS4
    assert (phosphorus[:, 4:] > 3.9).all()
    assert (np.sort(distances[np.ix_(of["Li"], of["S"])], axis=1)[:, :3] < 2.6).all()
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 2.0


@pytest.mark.parametrize("name", ["emt-alloys", "lpsc"])
def test_frames_have_all_labels_and_are_the_same_every_time(name: str, tmp_path: Path) -> None:
    frames = written(tmp_path / "one.extxyz", name, 2)
    again = written(tmp_path / "two.xyz", name, 3)
    for one, two in zip(frames, again, strict=False):
        assert one == two
        assert one.get_potential_energy() == pytest.approx(two.get_potential_energy(), abs=1e-9)
        assert one.get_forces().shape == (len(one), 3)
        assert one.get_stress().shape == (6,)
        assert 0.01 < np.abs(one.get_forces()).max() < 20
    assert len(again) == 3
    assert written(tmp_path / "other.xyz", name, 1, seed=1)[0] != frames[0]


def test_the_labels_are_near_those_of_sevennet_0_but_leave_something_to_learn(tmp_path: Path) -> None:
    (frame,) = written(tmp_path / "lpsc.xyz", "lpsc", 1)
    labels = frame.get_forces(), frame.get_potential_energy()
    frame.calc = foundation.Calculator(foundation.load("sevennet-0"))
    assert 0.005 < np.abs(frame.get_forces() - labels[0]).mean() < 0.2
    assert abs(frame.get_potential_energy() - labels[1]) < 0.05 * len(frame)


def test_the_command_says_what_it_wrote_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["example-data", "emt-alloys", "--out", "mine.extxyz", "--frames", "4"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 frames with energy, forces and stress: mine.extxyz" in said
    assert "foundation pretrain " in said
    assert "--data mine.extxyz" in said
    before = Path("mine.extxyz").read_text()
    assert main(command) == 2
    assert "mine.extxyz already exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert Path("mine.extxyz").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "emt-aloys --out a.xyz",
            "is needed, not 'emt-aloys' (did you mean emt-alloys?)",
        ),
        ("--out a.xyz", "required: --name"),
        ("lpsc --out a.db", "out must be a file with suffix .extxyz or .xyz, not a.db"),
        ("lpsc --out a.xyz --frames 0", "frames must be at least 1, not 0"),
    ],
)
def test_a_wrong_word_is_answered(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example-data", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_the_package_sevenn_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["example-data", "lpsc", "--frames", "1", "--out", str(tmp_path / "a.xyz")]) == 0
    assert len(ase.io.read(tmp_path / "a.xyz")) == 52
