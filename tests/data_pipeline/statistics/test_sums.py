"""Statistics: reference energies, scales and neighbour counts from sums that merge."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.statistics.histograms import BINS
from data_pipeline.statistics.sums import Statistics
from data_pipeline.structure import Structure

ELEMENT_ENERGIES = {1: -1.25, 8: -4.5, 26: -8.125, 79: -3.0}
ARRAYS = ("atoms_of_element", "frames_of_element", "composition_gram", "composition_energy")
WHOLE = (
    "num_frames",
    "num_atoms",
    "num_edges",
    "num_force_atoms",
    "num_force_frames",
    "num_zero_force_frames",
    "num_stress_frames",
    "num_zero_stress_frames",
)


def frame(numbers: np.ndarray, energy: float, forces: np.ndarray | None = None) -> Structure:
    count = len(numbers)
    positions = 3.0 * np.arange(3 * count).reshape(count, 3)
    return Structure.checked(
        numbers=numbers,
        positions=positions,
        cell=np.zeros((3, 3)),
        pbc=[False] * 3,
        energy=energy,
        forces=forces,
    )


def additive_frames(count: int = 60) -> list[Structure]:
    """Random compositions whose energy is exactly the sum over elements."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        numbers = rng.choice(list(ELEMENT_ENERGIES), int(rng.integers(1, 9)))
        frames.append(frame(numbers, sum(ELEMENT_ENERGIES[int(z)] for z in numbers)))
    return frames


def statistics(structures: list[Structure], cutoffs: tuple[float, ...] = (5.0,)) -> Statistics:
    result = Statistics(cutoffs=cutoffs)
    if structures:
        result.add(structures, np.array([[10 * s.num_atoms + n for n in range(len(cutoffs))] for s in structures]))
    return result


def test_additive_energies_give_the_exact_element_energies() -> None:
    references = statistics(additive_frames()).reference_energies()
    for number, energy in ELEMENT_ENERGIES.items():
        assert references[number] == pytest.approx(energy, abs=1e-9)


def test_a_rare_element_has_what_its_frame_says() -> None:
    sums = statistics([*additive_frames(), frame(np.array([3, 1]), -203.0 + ELEMENT_ENERGIES[1])])
    assert sums.reference_energies()[3] == pytest.approx(-203.0, abs=1e-6)
    assert sums.undetermined_elements == ()


def test_energies_of_all_electron_codes_leave_nothing() -> None:
    totals = {1: -13.6, 8: -2043.0, 26: -34566.0, 79: -518000.0}
    frames = [replace(f, energy=sum(totals[int(z)] for z in f.numbers)) for f in additive_frames()]
    references = statistics(frames).reference_energies()
    assert [references[z] for z in totals] == pytest.approx(list(totals.values()), rel=1e-12, abs=1e-7)


def test_one_compound_divides_its_energy_evenly_and_says_so() -> None:
    sums = statistics([frame(np.array([11, 17]), -7.0 - 0.1 * n) for n in range(3)])
    np.testing.assert_allclose(sums.reference_energies()[[11, 17]], -3.55, rtol=1e-12)
    assert sums.undetermined_elements == (11, 17)


def test_an_element_never_seen_has_the_mean_energy_per_atom() -> None:
    frames = additive_frames()
    mean = np.mean([f.energy / f.num_atoms for f in frames])
    references = statistics(frames).reference_energies()
    unseen = np.setdiff1d(np.arange(len(references)), list(ELEMENT_ENERGIES))
    np.testing.assert_allclose(references[unseen], mean, rtol=1e-13)


def test_no_frames_give_references_of_zero() -> None:
    assert not Statistics(cutoffs=(5.0,)).reference_energies().any()


def groupings(parts: list[Statistics]) -> Iterator[Statistics]:
    """Yield the sum of the parts for every way to set brackets."""
    if len(parts) == 1:
        yield parts[0]
    for cut in range(1, len(parts)):
        for left, right in itertools.product(groupings(parts[:cut]), groupings(parts[cut:])):
            yield left + right


def test_merging_in_every_grouping_equals_adding_everything_to_one(random_structure: Callable[..., Structure]) -> None:
    frames = [random_structure(n, num_atoms=1 + n % 7, labelled=n % 3 > 0) for n in range(30)]
    frames[7] = replace(frames[7], forces=np.zeros_like(frames[7].forces), stress=np.zeros_like(frames[7].stress))
    parts = [statistics(frames[a:b], (4.0, 5.0)) for a, b in itertools.pairwise([0, 4, 4, 13, 21, 30])]
    together = statistics(frames, (4.0, 5.0))
    merged = list(groupings(parts))
    assert len(merged) == 14
    for one in merged:
        for name in WHOLE:
            assert getattr(one, name) == getattr(together, name)
        for name, counts in one.histograms.items():
            np.testing.assert_array_equal(counts, together.histograms[name])
        np.testing.assert_array_equal(one.atoms_of_element, together.atoms_of_element)
        np.testing.assert_array_equal(one.frames_of_element, together.frames_of_element)
        for name in (*ARRAYS, "force_square_sum", "energy_square_sum"):
            np.testing.assert_allclose(getattr(one, name), getattr(together, name), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(one.reference_energies(), together.reference_energies(), rtol=1e-11)


def test_histograms_and_counts_are_of_the_labels_that_there_are(random_structure: Callable[..., Structure]) -> None:
    frames = [random_structure(n, num_atoms=1 + n % 7, labelled=n % 3 > 0) for n in range(30)]
    frames[7] = replace(frames[7], forces=np.zeros_like(frames[7].forces))
    frames[8] = replace(frames[8], stress=np.zeros_like(frames[8].stress))
    labelled = [frame for frame in frames if frame.has_forces]
    sums = statistics(frames)
    expected = {
        "energy": np.array([f.energy / f.num_atoms for f in frames]),
        "size": np.array([float(f.num_atoms) for f in frames]),
        "force": np.linalg.norm(np.concatenate([f.forces for f in labelled]).astype(np.float64), axis=1),
        "stress": np.array([np.trace(f.stress.astype(np.float64)) / 3 for f in labelled]),
        "stress_ratio": np.zeros(0),
        "force_ratio": np.zeros(0),
    }
    assert sums.histograms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(sums.histograms[name], BINS[name].count(values))
    assert (sums.num_force_frames, sums.num_zero_force_frames) == (20, 1)
    assert (sums.num_stress_frames, sums.num_zero_stress_frames) == (20, 1)
    for z in sums.elements:
        assert sums.frames_of_element[z] == sum(bool((frame.numbers == z).any()) for frame in frames)


def test_neighbours_within_one_call_are_compared(random_structure: Callable[..., Structure]) -> None:
    one = replace(random_structure(0), forces=np.zeros((5, 3), np.float32), stress=np.eye(3, dtype=np.float32))
    # the cell grows by 1 %, so the work is 3 % of the mean volume [eV/Å³ × Å³]
    two = replace(one, cell=1.01 * one.cell, positions=1.01 * one.positions, id="two")
    two = replace(two, energy=one.energy + 0.03 / 1.015 * (one.volume + two.volume) / 2 * 1.01)
    together, apart = statistics([one, two]), statistics([one]) + statistics([two])
    counts = together.histograms["stress_ratio"]
    np.testing.assert_array_equal(counts, BINS["stress_ratio"].count(np.array([1.0])))
    assert apart.histograms["stress_ratio"].sum() == 0


def test_a_histogram_with_other_bins_is_an_error_that_says_what_to_do() -> None:
    values = statistics(additive_frames()).to_json()
    values["histograms"]["force"].append(0)
    with pytest.raises(ValueError, match=r"histograms.force has 83 bins, this program's 82; .* build it again"):
        Statistics.from_json(values)


def test_merging_leaves_both_as_they_were() -> None:
    first, second = statistics(additive_frames(5)), statistics(additive_frames(9))
    before = json.dumps([first.to_json(), second.to_json()])
    _ = first + second
    assert json.dumps([first.to_json(), second.to_json()]) == before


def test_statistics_at_different_cutoffs_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"\(5.0,\) Å and \(6.0,\) Å"):
        _ = Statistics(cutoffs=(5.0,)) + Statistics(cutoffs=(6.0,))


@pytest.mark.parametrize("count", [0, 1, 25])
def test_json_keeps_every_bit(random_structure: Callable[..., Structure], count: int) -> None:
    original = statistics([random_structure(n) for n in range(count)], (5.0, 6.0))
    copy = Statistics.from_json(json.loads(json.dumps(original.to_json())))
    for name in ARRAYS:
        assert getattr(copy, name).tobytes() == getattr(original, name).tobytes()
    assert copy.to_json() == original.to_json()
    assert copy.cutoffs == original.cutoffs
    assert copy.elements == original.elements


def test_elements_are_those_that_occur_ascending() -> None:
    assert statistics(additive_frames()).elements == tuple(ELEMENT_ENERGIES)


def test_force_rms_is_over_labelled_components_only() -> None:
    numbers = np.array([1, 8])
    labelled = frame(numbers, 0.0, np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
    sums = statistics([labelled, frame(numbers, 0.0)])
    assert sums.num_force_atoms == 2
    assert sums.force_rms == pytest.approx(np.sqrt(25.0 / 6.0), rel=1e-14)


def test_no_forces_give_no_force_scale() -> None:
    with pytest.raises(ValueError, match="no frame has forces"):
        _ = statistics(additive_frames()).force_rms


def test_mean_neighbors_is_edges_over_atoms() -> None:
    sums = Statistics(cutoffs=(4.0, 5.0))
    sums.add([frame(np.array([1, 1]), 0.0)], np.array([[2, 6]]))
    sums.add([frame(np.array([1, 1, 1]), 0.0)], np.array([[3, 24]]))
    assert (sums.mean_neighbors(4.0), sums.mean_neighbors(5.0)) == (1.0, 6.0)


def test_a_cutoff_that_was_not_counted_is_an_error_that_names_those_that_were() -> None:
    with pytest.raises(ValueError, match=r"counted at 4.0, 5.0 Å, not at 6.0 Å; build the data again"):
        statistics(additive_frames(2), (4.0, 5.0)).mean_neighbors(6.0)


def test_a_cutoff_converted_from_bohr_is_the_round_one_that_was_counted() -> None:
    sums = statistics(additive_frames(2), (5.0, 5.5))
    assert sums.cutoff_number(10.39349369 * 0.529177210903) == 1
    with pytest.raises(ValueError, match=r"not at 5\.49"):
        sums.cutoff_number(5.49)


def test_no_atoms_have_no_mean_of_neighbours_and_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"no (frames|atoms)"):
        Statistics(cutoffs=(5.0,)).mean_neighbors(5.0)
