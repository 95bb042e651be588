"""Inspection: facts from the manifest, and a warning for each thing that looks wrong and for nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.inspection import PERIODIC_TABLE, WorkCheck, inspect_manifest
from data_pipeline.sources import AseFiles
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, Provenance, Split
from data_pipeline.structure import SYMBOLS, Structure


@pytest.fixture
def make_manifest(provenance: Provenance) -> Callable[..., Manifest]:
    """A manifest of frames that are nowhere on disk: inspection reads only the manifest."""

    def make(train: Sequence[Structure], **others: Sequence[Structure]) -> Manifest:
        splits = {}
        for name, frames in {"train": train, **others}.items():
            statistics = Statistics(cutoffs=(5.0,))
            if frames:
                statistics.add(frames, np.full((len(frames), 1), 12))
            splits[name] = Split(shards=(), statistics=statistics, index_sha256="")
        return Manifest(provenance=provenance, splits=splits, build_config={})

    return make


def crystal(number: int, *, size: float = 1.01, atomic_number: int = 29, force: float = 1.0) -> Structure:
    """Frame of a trajectory in which a crystal with energy 50 (size³ - 1)² breathes; its stress follows exactly."""
    volume = 64.0 * size**3
    pressure = 100.0 * (size**3 - 1.0) / 64.0
    return Structure.checked(
        numbers=[atomic_number] * 4,
        positions=2.0 * size * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]),
        cell=4.0 * size * np.eye(3),
        pbc=[True] * 3,
        energy=50.0 * (volume / 64.0 - 1.0) ** 2,
        forces=force * np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]]),
        stress=pressure * np.eye(3),
        id=str(number),
        group="crystal",
    )


def breathing(count: int = 40, **settings: float) -> list[Structure]:
    sizes = 1.0 + 0.04 * np.sin(0.3 + 0.7 * np.arange(count))
    return [crystal(number, size=float(size), **settings) for number, size in enumerate(sizes)]


def changed(frames: list[Structure], factor: float) -> list[Structure]:
    return [replace(frame, stress=(factor * frame.stress).astype(np.float32)) for frame in frames]


def test_facts_are_json_and_count_what_is_there(make_manifest: Callable[..., Manifest]) -> None:
    values = inspect_manifest(make_manifest(breathing(), test=breathing(6), val=breathing(5)))
    assert json.loads(json.dumps(asdict(values))) == asdict(values)
    assert (values.num_frames, values.num_atoms) == (51, 204)
    assert list(values.splits) == ["train", "val", "test"]
    assert values.splits["val"].num_frames == 5
    assert values.frames_of_element == {"Cu": 51}
    assert values.mean_neighbors == {"5": 3.0}
    assert values.distributions["size"].quantiles["0.5"] == 4.0
    assert values.distributions["force"].count == 204


def test_data_that_are_in_order_have_no_warning_and_their_stress_is_right(
    make_manifest: Callable[..., Manifest],
) -> None:
    values = inspect_manifest(make_manifest(breathing()))
    assert values.warnings == []
    check = values.stress_check
    assert check.num_pairs > 20
    assert check.num_same_sign == check.num_same_size == check.num_pairs
    assert check.median_size == pytest.approx(1.0, abs=0.15)


def test_a_turned_sign_is_caught(make_manifest: Callable[..., Manifest]) -> None:
    (warning,) = inspect_manifest(make_manifest(changed(breathing(), -1.0))).warnings
    assert "sign of the stress contradicts how the energy depends on the volume" in warning
    assert "positive must mean tension" in warning


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (1602.18, "as if kbar were taken for eV/Å³"),
        (160.218, "as if GPa were taken for eV/Å³"),
        (10.0, "as if kbar were taken for GPa"),
        (0.1, "as if GPa were taken for kbar"),
    ],
)
def test_a_wrong_unit_is_caught_and_named(make_manifest: Callable[..., Manifest], factor: float, cause: str) -> None:
    (warning,) = inspect_manifest(make_manifest(changed(breathing(), factor))).warnings
    assert "size of the stress contradicts how the energy depends on the volume" in warning
    assert cause in warning


def test_a_factor_that_no_unit_explains_is_caught_without_a_cause(make_manifest: Callable[..., Manifest]) -> None:
    (warning,) = inspect_manifest(make_manifest(changed(breathing(), 4e4))).warnings
    assert "size of the stress" in warning
    assert "as if" not in warning


def test_kbar_with_the_sign_of_vasp_gives_both_warnings(make_manifest: Callable[..., Manifest]) -> None:
    sign, size = inspect_manifest(make_manifest(changed(breathing(), -1602.18))).warnings
    assert "sign" in sign
    assert "kbar" in size


def test_without_pairs_nothing_is_claimed_unless_the_pressure_is_extreme(
    make_manifest: Callable[..., Manifest],
) -> None:
    alone = [replace(frame, group=frame.id) for frame in breathing()]
    values = inspect_manifest(make_manifest(changed(alone, -1.0)))
    assert values.stress_check == WorkCheck(num_pairs=0, num_same_sign=0, num_same_size=0, median_size=None)
    assert values.warnings == []
    (warning,) = inspect_manifest(make_manifest(changed(alone, 1602.18))).warnings
    assert "half of the frames have a mean normal stress beyond" in warning
    assert "kbar or GPa" in warning


def test_zeros_that_may_stand_for_missing_labels_are_counted(make_manifest: Callable[..., Manifest]) -> None:
    frames = [replace(frame, stress=np.zeros((3, 3), np.float32)) for frame in breathing(30, force=0.0)]
    forces, stress = inspect_manifest(make_manifest([*breathing(10), *frames])).warnings
    assert forces.startswith("30 of 40 frames with forces (75%) have forces of exactly zero")
    assert stress.startswith("30 of 40 frames with stress (75%) have stress of exactly zero")


def test_missing_labels_are_no_zeros(make_manifest: Callable[..., Manifest]) -> None:
    frames = [replace(frame, has_forces=False, has_stress=False) for frame in breathing()]
    values = inspect_manifest(make_manifest(frames))
    assert values.warnings == []
    assert values.splits["train"].force_rms is None
    assert set(values.distributions) == {"energy", "size"}


def test_large_forces_are_counted(make_manifest: Callable[..., Manifest]) -> None:
    (warning,) = inspect_manifest(make_manifest([*breathing(), crystal(99, force=60.0)])).warnings
    assert warning.startswith("4 of 164 atoms feel more than 50 eV/Å")


def test_elements_that_training_does_not_teach_are_named(make_manifest: Callable[..., Manifest]) -> None:
    train = [*breathing(), *(crystal(n, atomic_number=47) for n in range(4))]
    unseen, rare = inspect_manifest(
        make_manifest(train, val=[crystal(0, atomic_number=79)], test=breathing(5))
    ).warnings
    assert unseen == "elements in val that are not in train (frames): Au (1)"
    assert rare == "elements in fewer than 5 training frames, whose noise their reference energies follow: Ag"


def test_elements_in_one_proportion_are_named(make_manifest: Callable[..., Manifest]) -> None:
    frames = [replace(frame, numbers=np.array([11, 17, 11, 17], np.uint8)) for frame in breathing()]
    (warning,) = inspect_manifest(make_manifest(frames)).warnings
    assert "reference energies are divided arbitrarily and other compositions will be off: Na, Cl" in warning
    assert inspect_manifest(make_manifest([*frames, *breathing(10, atomic_number=17)])).warnings == []


def test_empty_splits_are_named(make_manifest: Callable[..., Manifest]) -> None:
    assert inspect_manifest(make_manifest(breathing(), val=[], test=[])).warnings == [
        "no frames in val and test; nothing can be evaluated there"
    ]


def test_data_that_are_all_for_evaluation_are_described_by_all_frames(make_manifest: Callable[..., Manifest]) -> None:
    frames = breathing()
    values = inspect_manifest(make_manifest([], val=[], test=frames))
    trained = inspect_manifest(make_manifest(frames, val=[], test=[]))
    assert values.mean_neighbors == trained.mean_neighbors
    assert values.warnings == ["no frames in train and val; nothing can be evaluated there"]


def test_a_wrong_unit_given_to_the_source_is_caught_in_what_it_builds(
    tmp_path: Path, provenance: Provenance, make_manifest: Callable[..., Manifest]
) -> None:
    images = []
    for frame in breathing():
        atoms = ase.Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True)
        kbar = -1602.1766 * frame.stress
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces, stress=kbar)
        images.append(atoms)
    ase.io.write(tmp_path / "vasp.extxyz", images)
    wrong = AseFiles(files=(str(tmp_path / "vasp.extxyz"),))
    right = replace(wrong, stress_unit="kbar", stress_positive_in="compression")
    found = {}
    for name, source in (("wrong", wrong), ("right", right)):
        config = BuildConfig(
            source=source,
            provenance=provenance,
            out=tmp_path / name,
            val_fraction=0.0,
            test_fraction=0.0,
            filters=FilterConfig(stress_check=False),  # the build itself would refuse the wrong one
        )
        found[name] = [text for text in inspect_manifest(build(config)).warnings if "stress" in text]
    assert len(found["wrong"]) == 2
    assert found["right"] == []


def test_the_periodic_table_has_every_element_once() -> None:
    found = [row[k : k + 3].strip() for row in PERIODIC_TABLE for k in range(0, len(row), 3)]
    assert sorted(symbol for symbol in found if symbol) == sorted(SYMBOLS[1:])
    assert max(map(len, PERIODIC_TABLE)) == 3 * 17 + 2
