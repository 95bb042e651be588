"""Forces against energy on trajectories labelled by ASE's EMT: what is right, what is wrong, what says nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from ase.units import fs, kB

from data_pipeline.inspection import inspect_manifest
from data_pipeline.sources import AseFiles, MlearnJson
from data_pipeline.statistics.force_work import MAX_PAIRS, force_ratios
from data_pipeline.statistics.histograms import BINS
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.json_record import Record
from data_pipeline.store.manifest import Manifest, Provenance, Split
from data_pipeline.structure import Structure


@cache
def dynamics(kind: str = "crystal", count: int = 40) -> tuple[Structure, ...]:
    """Molecular dynamics at 800 K in a cell at rest, or of a cluster without one."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    if kind == "cluster":
        atoms = ase.Atoms(atoms.symbols, atoms.positions)
    atoms.calc = EMT()
    speed = np.sqrt(800 * kB / atoms.get_masses())[:, None]
    atoms.set_velocities(speed * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    verlet, frames = VelocityVerlet(atoms, 2 * fs), []
    for number in range(count):
        frames.append(
            Structure.checked(
                numbers=atoms.numbers,
                positions=atoms.get_positions(wrap=kind == "crystal"),
                cell=np.array(atoms.cell),
                pbc=atoms.pbc,
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                id=f"{kind}-{number}",
                group=kind,
            )
        )
        verlet.run(4)
    return tuple(frames)


def changed(frames: tuple[Structure, ...], factor: float) -> list[Structure]:
    return [replace(frame, forces=(factor * frame.forces).astype(np.float32)) for frame in frames]


@pytest.fixture
def warned(provenance: Provenance) -> Callable[..., list[str]]:
    """Sentences of inspection about the forces of frames."""

    def check(frames: list[Structure]) -> list[str]:
        statistics = Statistics(cutoffs=(5.0,))
        statistics.add(frames, np.full((len(frames), 1), 12))
        split = Split(shards=(), statistics=statistics, index_sha256="")
        found = inspect_manifest(Manifest(provenance=provenance, splits={"train": split}, build_config={})).warnings
        return [text for text in found if text.startswith("the forces contradict")]

    return check


@pytest.mark.parametrize("kind", ["crystal", "cluster"])
def test_the_right_forces_explain_the_energy(kind: str) -> None:
    ratios = force_ratios(dynamics(kind))
    assert len(ratios) >= 10
    np.testing.assert_allclose(ratios, 1.0, atol=0.2)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("factor", [-1.0, 1 / 51.4221, 27.2114, -0.529])
def test_a_wrong_sign_or_unit_is_the_ratio_whatever_it_is(factor: float) -> None:
    expected = factor * force_ratios(dynamics())
    np.testing.assert_allclose(force_ratios(changed(dynamics(), factor)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("factor", "ratio", "cause"),
    [
        (-1.0, "-1 ", "the forces have the sign of gradients"),
        (1 / 51.4221, "0.019 ", "Hartree/Bohr were taken"),
        (-1 / 51.4221, "-0.019 ", "sign of gradients, and as if forces in Hartree/Bohr"),
        (1 / 27.2114, "0.037 ", "Hartree/Å or Rydberg/Bohr"),
        (0.529177, "0.53 ", "eV/Bohr"),
        (23.06, "23 ", "kcal/mol/Å or energies in Hartree"),
        (3.3, "3.3 ", "not 1; correct"),
    ],
)
def test_a_contradiction_is_warned_of_with_the_measured_ratio(
    warned: Callable[..., list[str]], factor: float, ratio: str, cause: str
) -> None:
    (warning,) = warned(changed(dynamics(), factor))
    measured = float(warning.split("about ")[1].split(" times")[0].replace(",", ""))
    assert measured == pytest.approx(float(ratio), rel=0.04)
    assert cause in warning


def test_forces_of_other_frames_are_no_forces_of_these(warned: Callable[..., list[str]]) -> None:
    frames, others = dynamics(), np.random.default_rng(0).permutation(len(dynamics()))
    shuffled = [replace(frame, forces=frames[other].forces) for frame, other in zip(frames, others, strict=True)]
    (warning,) = warned(shuffled)
    assert "the right sign in only" in warning
    assert warned(list(frames)) == []


def test_pairs_that_say_nothing_are_left_out() -> None:
    frames = dynamics()
    one, two = next(pair for pair in pairwise(frames) if len(force_ratios(pair)))
    far = two.positions + np.where(np.arange(two.num_atoms) == 0, 1.5, 0.0)[:, None]
    for other in (
        replace(two, group="another"),
        replace(two, has_forces=False),
        replace(two, pbc=np.array([True, True, False])),
        replace(two, numbers=np.full_like(two.numbers, 79)),
        replace(two, positions=far),
        replace(two, cell=1.01 * two.cell),
        replace(one),
    ):
        assert len(force_ratios([one, other])) == 0
    assert len(force_ratios([])) == 0


def test_a_long_trajectory_is_compared_at_evenly_spaced_places() -> None:
    assert MAX_PAIRS // 4 < len(force_ratios(dynamics() * 20)) <= MAX_PAIRS


def test_published_trajectories_are_in_order(real_data: Path, warned: Callable[..., list[str]]) -> None:
    sets = [list(AseFiles(files=(str(real_data / "lpsc" / "1200K.extxyz"),)))]
    sets += [list(MlearnJson(mlearn_json=(str(real_data / "mlearn" / z / "training.json"),))) for z in ("Ge", "Mo")]
    for frames in sets:
        ratios = force_ratios(frames)
        assert len(ratios) >= 10
        assert (ratios > 0).all()
        assert 0.8 < np.median(ratios) < 1.25
        assert warned(frames) == []
        assert "sign of gradients" in warned(changed(tuple(frames), -1.0))[0]


def test_an_older_manifest_keeps_its_fingerprint_and_says_nothing_of_forces() -> None:
    statistics = Statistics(cutoffs=(5.0,))
    statistics.add(dynamics(), np.full((40, 1), 12))
    older = statistics.to_json()
    del older["histograms"]["force_ratio"]
    read = Statistics.from_record(Record(older, "manifest.json"))
    assert read.to_json() == older
    assert not read.histogram("force_ratio").any()
    together = read + statistics
    np.testing.assert_array_equal(together.histogram("force_ratio"), statistics.histogram("force_ratio"))
    assert len(together.histogram("force_ratio")) == BINS["force_ratio"].size
    assert (read + read).to_json()["histograms"].keys() == older["histograms"].keys()
