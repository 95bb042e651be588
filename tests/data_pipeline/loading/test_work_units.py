"""Units: exact sums and exact repeats, and no more frames read than it takes."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loading.work_units import Budgets, Oversize, PlannedSet, Units
from data_pipeline.store.index import Counts, SplitIndex

PROPERTY = settings(derandomize=True, deadline=None, max_examples=30)
BUDGET = 1000


def make_index(edges: np.ndarray, block_frames: int = 16) -> SplitIndex:
    sizes = np.diff(np.append(np.arange(0, len(edges), block_frames), len(edges)))
    atoms = (1 + edges // 30).astype(np.int32)
    return SplitIndex.in_memory(sizes, atoms, edges.astype(np.int32).reshape(-1, 1))


def make_units(
    index: SplitIndex, *, repeat: float = 1.0, at_least: int = 1, oversize: Oversize = "alone", atoms: int | None = None
) -> Units:
    rng = np.random.default_rng(0)
    return Units(PlannedSet(index, 0, repeat), Budgets(BUDGET, atoms, oversize), at_least, rng)


def some_edges(count: int, seed: int = 0) -> np.ndarray:
    """Mean 200; some frames without edges, none above the budget."""
    edges = np.random.default_rng(seed).lognormal(5.0, 0.8, count)
    return np.where(edges < 40, 0, np.minimum(edges, BUDGET)).astype(np.int64)


def wrapped(index: SplitIndex) -> tuple[SplitIndex, list[tuple[int, int]]]:
    """The same index, and the spans of frames that are read from it."""
    spans: list[tuple[int, int]] = []

    def counts(first: int, last: int) -> Counts:
        spans.append((first, last))
        return index.counts(first, last)

    return SplitIndex(index.blocks, counts), spans


@pytest.mark.parametrize(
    ("repeat", "passes", "reads"), [(0.1, 10, 1), (0.3, 10, 3), (2.5, 10, 25), (0.333, 1000, 333), (3.0, 1, 3)]
)
def test_repeats_are_exact_over_passes(repeat: float, passes: int, reads: int) -> None:
    units = make_units(make_index(some_edges(400)), repeat=repeat)
    start = 7
    copies = np.stack([units.copies(number) for number in range(start, start + passes)])
    assert (copies.sum(axis=0) == reads).all()
    assert copies.min() >= int(repeat)
    assert copies.max() <= int(repeat) + 1


@PROPERTY
@given(st.decimals("0.001", "20", places=3), st.integers(0, 10**9), st.integers(1, 20))
def test_any_repeat_is_kept_to_one_read_and_spread_over_the_units(repeat: Decimal, first: int, passes: int) -> None:
    units = make_units(make_index(some_edges(640)), repeat=float(repeat))
    copies = np.stack([units.copies(number) for number in range(first, first + passes)])
    expected = Fraction(repeat) * passes
    assert all(abs(int(reads) - expected) < 1 for reads in copies.sum(axis=0))
    assert all(abs(int(reads) - Fraction(repeat) * len(units.first)) < 1 for reads in copies.sum(axis=1))


@PROPERTY
@given(st.sampled_from([0.1, 0.333, 1.0, 2.5, 8.0]), st.integers(0, 10**6))
def test_totals_are_those_of_the_copies(repeat: float, number: int) -> None:
    units = make_units(make_index(some_edges(700)), repeat=repeat)
    np.testing.assert_array_equal(units.totals(number), (units.sums * units.copies(number)).sum(axis=1))


@PROPERTY
@given(
    st.integers(0, 600),
    st.integers(1, 700),
    st.sampled_from([1, 7, 64, 256]),
    st.sampled_from(["alone", "skip"]),
    st.sampled_from([None, 30]),
)
def test_units_hold_every_frame_once_and_its_cost(
    count: int, at_least: int, block_frames: int, oversize: Oversize, atom_budget: int | None
) -> None:
    edges = some_edges(count, seed=count)
    edges[::9] *= 4
    atoms, over = 1 + edges // 30, edges > BUDGET
    if atom_budget is not None:
        over |= atoms > atom_budget
    skipped = over & (oversize == "skip")
    units = make_units(make_index(edges, block_frames), at_least=at_least, oversize=oversize, atoms=atom_budget)
    held = np.array([frame for bounds in zip(units.first, units.last, strict=True) for frame in range(*bounds)], int)
    assert np.isin(np.flatnonzero(~skipped), held).all()
    assert len(np.unique(held)) == len(held)
    assert len(units.first) >= min(at_least, (~skipped).sum()) or oversize == "skip"
    expected = [
        ~skipped,
        np.where(over, BUDGET, np.maximum(edges, 1)) * ~skipped,
        (atoms if atom_budget is None else np.where(over, atom_budget, atoms)) * ~skipped,
    ]
    for row, values in zip(units.sums, expected, strict=True):
        np.testing.assert_array_equal(row, [values[slice(*b)].sum() for b in zip(units.first, units.last, strict=True)])
    assert units.num_too_large == over.sum()


def test_units_without_a_frame_left_take_no_turn_of_a_fractional_repeat() -> None:
    edges = np.full(320, 100)
    edges[:160] = 2 * BUDGET
    units = make_units(make_index(edges), repeat=0.1, oversize="skip")
    assert len(units.first) == 10
    assert [units.totals(number)[0] for number in range(10)] == [16] * 10


def test_sums_of_blocks_do_where_no_frame_is_too_large() -> None:
    index, spans = wrapped(make_index(some_edges(3200)))
    make_units(index, at_least=200)
    assert spans == []


def test_only_blocks_with_a_frame_that_is_too_large_are_read() -> None:
    edges = some_edges(160_000)
    edges[[5, 30, 100_000]] = BUDGET + 1
    index, spans = wrapped(make_index(edges))
    units = make_units(index)
    assert spans == [(0, 32), (100_000, 100_016)]
    assert units.num_too_large == 3


def test_a_set_of_parted_blocks_is_read_in_pieces() -> None:
    index, spans = wrapped(make_index(some_edges(200_000), block_frames=256))
    make_units(index, at_least=1000)
    assert [first for first, _ in spans] == [0, *(last for _, last in spans[:-1])]
    assert max(last - first for first, last in spans) < 70_000
