"""Explored structures: each part by itself, labels of their own positions, and what a driver disputes."""

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from data_pipeline.sources import Exploration
from data_pipeline.sources.exploration import read_cells, repeated
from data_pipeline.structure import InvalidStructure, Structure
from tests.foundation.pair_calculator import Morse

HERE = "tests.data_pipeline.sources.test_exploration"
SHORT = {"trajectory_temperatures": (300.0,), "frames": 4, "interval": 2, "warm_up": 2, "least_length": 5.0}


class Broken(EMT):
    """A calculator that loses its forces after some steps."""

    def calculate(self, *args: object, **options: object) -> None:
        super().calculate(*args, **options)
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 6:
            self.results["forces"] = self.results["forces"] * np.nan


def named(kind: str) -> EMT | Morse:
    """Return the calculator of a word, as of a potential's name."""
    return {"emt": EMT, "morse": Morse, "broken": Broken}[kind]()


@pytest.fixture
def copper(tmp_path: Path) -> str:
    ase.io.write(tmp_path / "metals.xyz", [bulk("Cu", cubic=True), bulk("Au", "bcc", 3.1)], format="extxyz")
    return str(tmp_path / "metals.xyz")


def explored(path: str, **options: object) -> Exploration:
    return Exploration(explored=(path,), calculator=f"{HERE}:named", arguments=("emt",), **{**SHORT, **options})


def test_there_may_be_strained_structures_alone(copper: str) -> None:
    parts = explored(copper, trajectories=0, strained=3, pair_distances=0).parts()
    assert [part.name for part in parts] == ["cell 0, strained", "cell 1, strained"]


def test_every_part_is_the_same_alone_and_has_the_labels_of_its_positions(copper: str) -> None:
    source = explored(copper, pressures=(0.0, 10.0), strained=3, pair_distances=4)
    parts = source.parts()
    assert len(parts) == 2 * 2 + 2 + 1
    frames = [
        frame for part in reversed(parts) for frame in reversed(list(part.read())) if isinstance(frame, Structure)
    ]
    whole = [frame for part in parts for frame in part.read() if isinstance(frame, Structure)]
    assert [frame.id for frame in reversed(frames)] == [frame.id for frame in whole]
    assert len({frame.id for frame in whole}) == len(whole) >= 16 + 6 + 3
    for frame in whole:
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc, calculator=EMT())
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-4)
        assert frame.has_stress == bool(frame.pbc.all())


def test_cells_are_long_enough_and_pressure_shrinks_them(copper: str) -> None:
    source = explored(copper, pressures=(0.0, 30.0), least_length=7.0, strained=0, pair_distances=0, frames=1)
    assert [len(cell) for cell in source.cells()] == [32, 64]
    assert all((1 / np.linalg.norm(np.linalg.inv(cell.cell), axis=0)).min() >= 7.0 for cell in source.cells())
    free, pressed = (next(source.parts()[number].read()) for number in (0, 1))
    # the bulk modulus of this copper is 134 GPa, so that 30 GPa take about a sixth of its volume
    assert 0.75 < pressed.volume / free.volume < 0.92


def test_labels_of_molecules_are_kept_and_an_image_is_another_molecule(tmp_path: Path) -> None:
    atoms = ase.Atoms("NaH2O", [(0, 0, 0), (3, 3, 3), (3.9, 3, 3), (3.2, 3.9, 3)], cell=[6.0] * 3, pbc=True)
    atoms.new_array("molecule-id", np.array([4, 7, 7, 7]))
    ase.io.write(tmp_path / "box.extxyz", atoms)
    (cell,) = read_cells(tmp_path / "box.extxyz")
    found = repeated(cell, 11.0)
    assert len(found) == 8 * 4
    labels = found.arrays["molecule"].reshape(8, 4)
    assert [len({*row}) for row in labels.tolist()] == [2] * 8
    assert len(np.unique(labels)) == 16
    assert (labels[:, 1:] == labels[:, 1:2]).all()


def test_a_molecule_that_a_face_cuts_is_whole_in_every_image() -> None:
    atoms = ase.Atoms("NaH2O", [(1, 1, 1), (5.9, 3, 3), (0.8, 3, 3), (0.1, 3.9, 3)], cell=[6.0] * 3, pbc=True)
    atoms.new_array("molecule", np.array([0, 1, 1, 1]))
    found = repeated(atoms, 17.0)
    assert len(found) == 27 * 4
    for label in np.unique(found.arrays["molecule"]):
        own = found[found.arrays["molecule"] == label]
        assert len(own) in (1, 3)
        # measured without the boundaries of the cell
        assert np.linalg.norm(own.positions - own.positions[0], axis=1).max() < 1.5
    assert repeated(atoms, 5.0) == atoms


def test_strained_cells_have_the_volumes_and_vacancies_that_were_asked_for(copper: str) -> None:
    source = explored(copper, strained=40, volumes=(0.8, 1.1), vacancies=0.5, largest_rattle=0.05)
    (part,) = [each for each in source.parts() if each.name == "cell 0, strained"]
    frames = [frame for frame in part.read() if isinstance(frame, Structure)]
    (whole,) = {frame.num_atoms for frame in frames} - {31}
    lacking = np.mean([frame.num_atoms == whole - 1 for frame in frames])
    assert 0.3 < lacking < 0.7
    volumes = np.array([frame.volume for frame in frames])
    assert volumes.max() / volumes.min() <= 1.1 / 0.8 + 1e-9
    assert volumes.max() / volumes.min() > 1.2


def test_pairs_reach_from_the_wall_to_no_force_and_hard_ones_are_refused(copper: str) -> None:
    source = explored(copper, pair_distances=8)
    frames = list(source.parts()[-1].read())
    assert len(frames) == 3 * 8
    kept = [frame for frame in frames if isinstance(frame, Structure)]
    assert {frozenset(frame.numbers.tolist()) for frame in kept} == {
        frozenset({29}),
        frozenset({79}),
        frozenset({29, 79}),
    }
    assert max(np.abs(frame.forces).max() for frame in kept) <= 40
    refused = [frame for frame in frames if isinstance(frame, InvalidStructure)]
    assert all("is above 40" in str(frame) for frame in refused)


def test_a_driver_moves_and_the_teacher_labels_what_they_dispute_most(copper: str) -> None:
    every = explored(copper, driver="morse", frames=6, keep=6, strained=0)
    few = explored(copper, driver="morse", frames=6, keep=2)
    assert len(few.parts()) == 2
    frames = [frame for frame in every.parts()[0].read() if isinstance(frame, Structure)]
    disputes = []
    for frame in frames:
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True, calculator=EMT())
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-4)
        atoms.calc = Morse()
        disputes.append(np.square(frame.forces - atoms.get_forces()).mean())
    most = sorted(np.argsort(disputes)[-2:].tolist())
    assert [frame.id for frame in few.parts()[0].read()] == [frames[number].id for number in most]
    assert "driven by morse" in frames[0].id


def test_a_lost_trajectory_ends_with_the_reason(copper: str) -> None:
    frames = list(explored(copper, driver="broken", frames=20).parts()[0].read())
    assert sum(isinstance(frame, InvalidStructure) for frame in frames) == 1
    assert "the trajectory is lost" in str(next(each for each in frames if isinstance(each, InvalidStructure)))
    assert 1 <= len(frames) < 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory_temperatures": ()}, "trajectory_temperatures must be positive"),
        ({"volumes": (1.2, 0.8)}, "volumes must be positive and rise"),
        ({"keep": 0}, "keep, frames"),
        ({"trajectories": 0, "driver": "emt"}, "trajectories must be at least 1 if there is a driver"),
        ({"trajectories": 0, "strained": 0, "pair_distances": 0}, "or nothing else"),
        ({"strained": -1}, "strained, pair_distances"),
        ({"largest_rattle": -0.1}, "largest_strain"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explored("cells.xyz", **options)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.xyz: no such file \(source.explored"):
        explored(str(tmp_path / "nowhere.xyz")).parts()
    (tmp_path / "bad.xyz").write_text("3\n\nCu 0 0\n")
    with pytest.raises(InvalidStructure, match=r"bad.xyz, its cells"):
        explored(str(tmp_path / "bad.xyz")).parts()
