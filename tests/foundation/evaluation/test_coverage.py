"""Coverage of training data: what was seen is near, and what was not is far, unseen, too close or of a new pair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from data_pipeline.store.untrusted import CorruptFile
from data_pipeline.structure import Structure
from foundation.evaluation.coverage import (
    QUANTILES,
    UNSEEN,
    Coverage,
    coverage_of,
    environments,
    farthest,
    fingerprint,
    squares,
)
from foundation.interop.calculator import to_structure
from foundation.models import EquivariantConfig
from foundation.potential import Potential

CUTOFF = 5.0
NETWORK = EquivariantConfig(
    irreps="12x0e+4x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4, cutoff=CUTOFF
)
ELEMENTS = (11, 17, 29)


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential(NETWORK.network(ELEMENTS), ELEMENTS, ("theory",)).eval()


def salt(spacing: float, seed: int, noise: float = 0.1) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=spacing, cubic=True)
    atoms.rattle(noise, seed=seed)
    return to_structure(atoms)


def frames(count: int = 40) -> list[Structure]:
    return [salt(5.6 + 0.01 * (seed % 7), seed) for seed in range(count)]


@pytest.fixture(scope="module")
def coverage(potential: Potential) -> Coverage:
    return coverage_of(potential, [_grouped(each, str(n)) for n, each in enumerate(frames())], "salt")


def _grouped(frame: Structure, group: str) -> Structure:
    import dataclasses

    return dataclasses.replace(frame, group=group)


def test_atoms_like_those_seen_are_within_and_others_beyond(potential: Potential, coverage: Coverage) -> None:
    like = coverage.distances(potential, [salt(5.62, seed) for seed in range(100, 110)])
    assert (like.features < 1.0).mean() > 0.95
    assert not like.strange.any()
    hot = coverage.distances(potential, [salt(5.62, seed, noise=0.6) for seed in range(100, 110)])
    dense = coverage.distances(potential, [salt(4.4, seed) for seed in range(100, 110)])
    assert np.median(like.features) < np.median(hot.features)
    assert (dense.features > 1.0).mean() > 0.9
    assert (dense.contact > 1.0).all()
    # the shortest distance of any pair, by hand
    assert like.contact.max() < 1.3
    alone = coverage.distances(potential, [salt(30.0, 0)])
    assert (alone.contact == 0).all()


def test_a_new_pair_and_a_new_element_are_named(potential: Potential, coverage: Coverage) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((2, 2, 2))
    atoms.symbols[0] = "Cu"
    found = coverage.distances(potential, [to_structure(atoms)])
    assert found.features[0] == UNSEEN
    assert (found.features[1:] < UNSEEN).all()
    near = atoms.get_distances(0, range(len(atoms)), mic=True) < CUTOFF
    assert np.array_equal(found.strange, near)
    assert coverage.elements.tolist() == [11, 17]


def test_ranges_of_pairs_are_those_of_all_distances(potential: Potential, coverage: Coverage) -> None:
    import ase
    from ase.neighborlist import neighbor_list

    lengths: dict[tuple[int, int], list[float]] = {}
    for frame in frames():
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        first, second, distances = neighbor_list("ijd", atoms, CUTOFF)
        for one, other, distance in zip(atoms.numbers[first], atoms.numbers[second], distances, strict=True):
            lengths.setdefault((int(one), int(other)), []).append(distance)
    for i, one in enumerate((11, 17)):
        for j, other in enumerate((11, 17)):
            assert coverage.shortest[i, j] == pytest.approx(min(lengths[one, other]), abs=1e-5)
            assert coverage.longest[i, j] == pytest.approx(max(lengths[one, other]), abs=1e-5)


def test_components_have_unit_variance_within_elements(potential: Potential, coverage: Coverage) -> None:
    places = []
    for batch, features in environments(potential, frames()):
        numbers = batch.numbers.numpy()
        for place, number in enumerate((11, 17)):
            places.append((features[numbers == number] - coverage.means[place]) @ coverage.projection)
    together = np.concatenate(places).astype(np.float64)
    spread = together.T @ together / len(together)
    assert spread == pytest.approx(np.eye(len(spread)), abs=0.02)
    assert coverage.counts.tolist() == [160, 160]


def test_training_distances_leave_the_own_group_out(potential: Potential) -> None:
    single = [_grouped(each, "one") for each in frames(4)]
    with pytest.raises(ValueError, match="no element is in two groups"):
        coverage_of(potential, single, "salt")
    # with a copy of every frame in another group, distances are zero
    twice = [_grouped(each, group) for group in ("one", "two") for each in frames(4)]
    found = coverage_of(potential, twice, "salt")
    assert found.quantiles[QUANTILES.index(0.5)] == pytest.approx(0.0, abs=1e-3)


def test_the_file_is_small_and_read_as_it_was_written(potential: Potential, coverage: Coverage, tmp_path: Path) -> None:
    coverage.save(tmp_path / "coverage.safetensors")
    again = Coverage.read(tmp_path / "coverage.safetensors")
    some = [salt(5.5, 7)]
    assert np.array_equal(again.distances(potential, some).features, coverage.distances(potential, some).features)
    assert (again.weights, again.data) == (coverage.weights, "salt")
    assert (tmp_path / "coverage.safetensors").stat().st_size < 100_000
    other = Potential(NETWORK.network(ELEMENTS), ELEMENTS, ("theory",)).eval()
    with pytest.raises(ValueError, match="belongs to other weights"):
        again.distances(other, some)
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CorruptFile, match="foundation coverage"):
        Coverage.read(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError, match="foundation coverage"):
        Coverage.read(tmp_path / "missing.safetensors")


def test_the_fingerprint_is_of_the_weights_and_not_of_their_type(potential: Potential) -> None:
    import copy

    assert fingerprint(copy.deepcopy(potential).cast(torch.float64)) == fingerprint(potential)
    other = copy.deepcopy(potential)
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(other) != fingerprint(potential)


def test_farthest_points_cover_a_line_from_its_ends() -> None:
    line = np.linspace(0.0, 8.0, 9)[:, None]
    chosen = farthest(line, 3)
    assert sorted(line[chosen, 0].tolist()) == [0.0, 4.0, 8.0]
    assert len(farthest(np.zeros((5, 2)), 3)) == 1
    random = np.random.default_rng(0)
    one, other = random.normal(size=(4, 3)), random.normal(size=(5, 3))
    assert squares(one, other) == pytest.approx(((one[:, None] - other) ** 2).sum(axis=2))
