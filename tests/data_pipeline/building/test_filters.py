"""Filters: every frame that is left out is listed with its reason, and what looks like a wrong unit stops the build."""

import json
from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.structure import InvalidStructure

NUM_FRAMES = 40


def labelled(atoms: ase.Atoms, energy: float, force: float = 0.1, stress: float = 0.01) -> ase.Atoms:
    forces = np.zeros((len(atoms), 3))
    forces[0, 1] = force
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=np.full(6, stress))
    return atoms


def alloys() -> list[ase.Atoms]:
    """Frames of copper and gold with energies of -3 eV an atom of copper and -4 eV an atom of gold, all different."""
    frames = []
    for number in range(NUM_FRAMES):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[: number % 4] = "Au"
        atoms.rattle(0.05, seed=number)
        frames.append(labelled(atoms, -12.0 - number % 4))
    return frames


@pytest.fixture
def built(tmp_path: Path, provenance: Provenance) -> Callable[..., Manifest]:
    """Build frames with filters."""

    def make(frames: list[ase.Atoms], filters: FilterConfig, splits: dict | None = None, **changes: object) -> Manifest:
        ase.io.write(tmp_path / "frames.extxyz", frames)
        source, out = AseFiles(files=(str(tmp_path / "frames.extxyz"),), **changes), tmp_path / "data"
        return build(BuildConfig(source=source, provenance=provenance, out=out, filters=filters, **(splits or {})))

    return make


def rejects(manifest: Manifest) -> list[dict]:
    return [json.loads(line) for line in (manifest.root / "rejects.jsonl").read_text().splitlines()]


def num_frames(manifest: Manifest) -> int:
    return sum(split.statistics.num_frames for split in manifest.splits.values())


def with_large_force(frames: list[ase.Atoms]) -> None:
    labelled(frames[17], -13.0, force=50.5)


def with_large_stress(frames: list[ase.Atoms]) -> None:
    labelled(frames[17], -13.0, stress=-2.25)


def with_odd_energy(frames: list[ase.Atoms]) -> None:
    labelled(frames[17], -13.0 + 4 * 6.0)


def with_close_atoms(frames: list[ase.Atoms]) -> None:
    frames[17].positions[1] = frames[17].positions[0] + [0.5, 0.0, 0.0]


def with_lonely_atom(frames: list[ase.Atoms]) -> None:
    atoms = frames[17] + ase.Atoms("Cu", positions=[(0, 0, 30.0)])
    atoms.pbc = False
    frames[17] = labelled(atoms, -16.0)


def with_a_copy(frames: list[ase.Atoms]) -> None:
    energy = frames[9].get_potential_energy()
    frames[17] = labelled(frames[9].copy(), energy + 0.01)


def with_an_invalid_frame(frames: list[ase.Atoms]) -> None:
    labelled(frames[17], np.nan)


def with_atoms_at_one_place(frames: list[ase.Atoms]) -> None:
    frames[17].positions[1] = frames[17].positions[0]


CASES = {
    "max_force": (with_large_force, {"max_force": 50.0}, "the largest force is 50.5 eV/Å; the limit is 50"),
    "max_stress": (with_large_stress, {"max_stress": 2.0}, "stress component is 2.25 eV/Å³; the limit is 2"),
    "max_energy_residual": (with_odd_energy, {"max_energy_residual": 1.0}, "energy is 6.0"),
    "min_distance": (with_close_atoms, {"min_distance": 0.8}, "two atoms are 0.5000 Å apart; the limit is 0.8"),
    "isolated_atoms": (with_lonely_atom, {"isolated_atoms": "reject"}, "1 atoms have no neighbour"),
    "duplicate": (with_a_copy, {"duplicates": "reject"}, "as 'frames.extxyz:9' to 0.001 Å"),
    "invalid": (with_an_invalid_frame, {"invalid": "reject"}, "frames.extxyz, frame 17: the energy is nan"),
    "invalid-place": (with_atoms_at_one_place, {"invalid": "reject"}, "two atoms at the same place: atoms 0 and 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_frame_that_a_filter_leaves_out_is_listed_with_the_reason(case: str, built: Callable[..., Manifest]) -> None:
    spoil, options, detail = CASES[case]
    frames = alloys()
    spoil(frames)
    manifest = built(frames, FilterConfig(**options))
    (line,) = rejects(manifest)
    assert line["reason"] == case.split("-")[0]
    assert (line["part"], line["frame"]) == ("frames.extxyz", 17)
    assert line["id"] == (None if case == "invalid" else "frames.extxyz:17")
    assert detail in line["detail"]
    assert manifest.rejected == {line["reason"]: 1}
    assert open_manifest(manifest.root).rejected == manifest.rejected
    kept = [frame.id for split in manifest.splits for frame in Frames(manifest, split)]
    assert sorted(kept) == sorted(f"frames.extxyz:{n}" for n in range(NUM_FRAMES) if n != 17)


def test_in_order_only_the_frames_that_are_kept_are_counted(built: Callable[..., Manifest]) -> None:
    frames = alloys()
    for number in (0, 3, 20, 21):
        labelled(frames[number], -12.0, force=99.0)
    splits = {"split_by": "order", "val_fraction": 0.25, "test_fraction": 0.25}
    manifest = built(frames, FilterConfig(max_force=9.0), splits)
    found = {split: [int(f.id.split(":")[1]) for f in Frames(manifest, split)] for split in manifest.splits}
    kept = [number for number in range(NUM_FRAMES) if number not in (0, 3, 20, 21)]
    assert found == {"train": kept[:18], "val": kept[18:27], "test": kept[27:]}


def test_without_filters_nothing_is_left_out(built: Callable[..., Manifest]) -> None:
    manifest = built(alloys(), FilterConfig())
    assert (manifest.rejected, rejects(manifest), num_frames(manifest)) == ({}, [], NUM_FRAMES)


def test_reasons_are_listed_in_the_order_of_the_frames(built: Callable[..., Manifest]) -> None:
    frames = alloys()
    labelled(frames[3], -12.0, force=99.0)
    labelled(frames[5], np.nan)
    frames[7] = labelled(frames[2].copy(), -14.0)
    labelled(frames[30], -12.0, force=99.0)
    manifest = built(frames, FilterConfig(invalid="reject", max_force=9.0, duplicates="reject"))
    assert [(line["frame"], line["reason"]) for line in rejects(manifest)] == [
        (3, "max_force"),
        (5, "invalid"),
        (7, "duplicate"),
        (30, "max_force"),
    ]
    assert manifest.rejected == {"duplicate": 1, "invalid": 1, "max_force": 2}


def test_one_absurd_energy_does_not_take_its_neighbours_with_it(built: Callable[..., Manifest]) -> None:
    frames = alloys()
    labelled(frames[17], 4e6)
    labelled(frames[18], -14.0 + 4 * 1.5)
    manifest = built(frames, FilterConfig(max_energy_residual=1.0))
    assert [line["frame"] for line in rejects(manifest)] == [17, 18]


def test_a_constant_per_element_leaves_out_no_other_frames(built: Callable[..., Manifest]) -> None:
    # totals of an all-electron code instead of energies of cohesion; of zinc there is one atom in one frame
    frames, totals = alloys(), {"Cu": -45_000.0, "Au": -518_000.0, "Zn": -49_000.0}
    energies = [atoms.get_potential_energy() for atoms in frames]
    frames[30].symbols[0] = "Zn"
    energies[17], energies[18] = 4e5, -14.0 + 4 * 1.5
    for atoms, energy in zip(frames, energies, strict=True):
        labelled(atoms, energy + sum(totals[symbol] for symbol in atoms.symbols))
    manifest = built(frames, FilterConfig(max_energy_residual=1.0))
    assert [line["frame"] for line in rejects(manifest)] == [17, 18]


def test_everything_left_out_is_an_error_with_the_counts(built: Callable[..., Manifest]) -> None:
    with pytest.raises(InvalidStructure, match=r"no frame fell into the training split; .* left out 40 for max_force"):
        built(alloys(), FilterConfig(max_force=0.01))


@pytest.mark.parametrize(
    "options",
    [{"max_force": 0.0}, {"max_stress": -1.0}, {"duplicate_tolerance": 0.0}, {"max_energy_residual": float("nan")}],
)
def test_a_limit_that_is_not_positive_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        FilterConfig(**options)


def test_a_distance_that_is_not_measured_cannot_be_a_limit(built: Callable[..., Manifest]) -> None:
    with pytest.raises(ValueError, match="below the largest cutoff"):
        built(alloys(), FilterConfig(min_distance=6.0))


@pytest.mark.parametrize(("unit", "size"), [("kbar", 0.1 * ase.units.GPa), ("GPa", ase.units.GPa)])
def test_stress_in_another_unit_than_said_stops_the_build(
    unit: str, size: float, built: Callable[..., Manifest], real_data: Path
) -> None:
    frames = ase.io.read(real_data / "mpf-tp" / "mpf-TP.xyz", index=":60")
    for atoms in frames:
        atoms.info["REF_stress"] = atoms.get_stress() / size
    with pytest.raises(InvalidStructure, match=r"looks like kbar or GPa.*\d+ of 60 frames.*stress_unit kbar.*false"):
        built(frames, FilterConfig(), stress_key="REF_stress")
    right = built(frames, FilterConfig(), stress_key="REF_stress", stress_unit=unit)
    assert num_frames(right) == 60


def test_the_check_of_the_stress_can_be_switched_off(built: Callable[..., Manifest]) -> None:
    frames = [labelled(atoms, -12.0, stress=100.0) for atoms in alloys()]
    with pytest.raises(InvalidStructure, match="looks like kbar"):
        built(frames, FilterConfig())
    assert num_frames(built(frames, FilterConfig(stress_check=False))) == NUM_FRAMES
