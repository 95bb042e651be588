"""The plan: every frame once per pass, a pure function of step and seed, full and balanced micro-batches."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.index import SplitIndex
from data_pipeline.plan import Plan, sweep_batches

BUDGET = 2000
PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)


def make_index(edges: Sequence[int], atoms: Sequence[int] | None = None, block_frames: int = 16) -> SplitIndex:
    """An index of one shard; planning reads its block sizes, atoms and edges only."""
    count = len(edges)
    blocks = [min(block_frames, count - start) for start in range(0, count, block_frames)]
    return SplitIndex.in_memory(
        np.array(blocks, dtype=np.int64),
        np.array(np.ones(count) if atoms is None else atoms, dtype=np.int32),
        np.array(edges, dtype=np.int32).reshape(count, -1 if count else 1),
    )


def edges_of(index: SplitIndex) -> np.ndarray:
    return index.counts(0, index.num_frames)[1][:, 0]


def random_edges(count: int, seed: int = 0, mean: float = 150.0) -> np.ndarray:
    """Log-normal, as in the public corpora; none above the budget."""
    spread = np.random.default_rng(seed).lognormal(np.log(mean), 0.8, count)
    return np.clip(spread, 0, BUDGET).astype(np.int64)


def make_plan(index: SplitIndex, **options: object) -> Plan:
    return Plan(index, **{"cutoff_number": 0, "lanes": 4, "edge_budget": BUDGET, **options})


def one_pass(plan: Plan, number: int = 0) -> list[list[np.ndarray]]:
    """Micro-batches of a pass: step by step, lane by lane."""
    steps = range(number * plan.steps_per_pass, (number + 1) * plan.steps_per_pass)
    return [[plan.micro_batch(step, lane) for lane in range(plan.lanes)] for step in steps]


def frames(batches: list[list[np.ndarray]]) -> list[int]:
    return [int(frame) for step in batches for batch in step for frame in batch]


@st.composite
def plans(draw: st.DrawFn) -> tuple[SplitIndex, dict]:
    """Corpora and options from tiny to some thousand frames, with zero-edge and oversize frames."""
    lanes = draw(st.integers(1, 8))
    count = draw(st.integers(lanes, 600))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edges = random_edges(count, int(rng.integers(2**32)), mean=draw(st.sampled_from([5.0, 100.0, 700.0])))
    edges[rng.random(count) < 0.03] = 0
    atoms = 1 + edges // draw(st.sampled_from([5, 40]))
    oversize = draw(st.sampled_from(["error", "alone"]))
    if oversize == "alone":
        edges[rng.random(count) < 0.05] = 3 * BUDGET
    atom_budget = draw(st.sampled_from([None, int(atoms.max()), 2 * int(atoms.max())]))
    options = {
        "lanes": lanes,
        "seed": draw(st.integers(0, 1000)),
        "oversize": oversize,
        "atom_budget": atom_budget,
    }
    return make_index(edges, atoms, draw(st.sampled_from([1, 7, 64, 256]))), options


@PROPERTY
@given(plans())
def test_every_frame_is_taken_exactly_once_in_every_pass(case: tuple[SplitIndex, dict]) -> None:
    index, options = case
    plan = make_plan(index, **options)
    for number in (0, 1, 2):
        assert sorted(frames(one_pass(plan, number))) == list(range(index.num_frames))


@PROPERTY
@given(plans(), st.integers(0, 2**20), st.integers(0, 7))
def test_a_step_does_not_depend_on_the_steps_before(case: tuple[SplitIndex, dict], place: int, lane: int) -> None:
    index, options = case
    visited, fresh = make_plan(index, **options), make_plan(index, **options)
    step, lane = place % (3 * visited.steps_per_pass), lane % visited.lanes
    for number in range(3):
        one_pass(visited, number)
    np.testing.assert_array_equal(visited.micro_batch(step, lane), fresh.micro_batch(step, lane))


@PROPERTY
@given(plans())
def test_skipped_frames_are_left_out_and_counted(case: tuple[SplitIndex, dict]) -> None:
    index, options = case
    kept = edges_of(index) <= BUDGET
    assume(kept.sum() >= options["lanes"])
    plan = make_plan(index, **{**options, "oversize": "skip"})
    assert plan.num_skipped == index.num_frames - kept.sum()
    for number in (0, 1):
        assert sorted(frames(one_pass(plan, number))) == np.flatnonzero(kept).tolist()


@PROPERTY
@given(plans())
def test_an_oversize_frame_is_alone_in_its_micro_batch(case: tuple[SplitIndex, dict]) -> None:
    index, options = case
    plan = make_plan(index, **{**options, "oversize": "alone"})
    too_large = edges_of(index) > BUDGET
    for batch in (batch for step in one_pass(plan) for batch in step):
        assert len(batch) == 1 or not too_large[batch].any()


def test_a_frame_with_too_many_atoms_is_alone_in_its_micro_batch() -> None:
    atoms = np.full(2000, 20)
    atoms[::50] = 500
    plan = make_plan(make_index(np.full(2000, 100), atoms), atom_budget=300, oversize="alone")
    sizes = [len(batch) for step in one_pass(plan) for batch in step if (atoms[batch] > 300).any()]
    assert sizes == [1] * 40


def test_lanes_have_steps_per_pass_steps_and_the_next_pass_begins() -> None:
    plan = make_plan(make_index(random_edges(500)))
    last_and_first = [plan.micro_batch(plan.steps_per_pass - 1, 0), plan.micro_batch(plan.steps_per_pass, 0)]
    assert all(len(batch) for batch in last_and_first)
    for lane in range(4):
        taken = [plan.micro_batch(step, lane) for step in range(plan.steps_per_pass)]
        assert min(len(batch) for batch in taken) > 0
        assert len(np.unique(np.concatenate(taken))) == sum(map(len, taken))


def test_seeds_and_passes_differ() -> None:
    index = make_index(random_edges(500))
    orders = [frames(one_pass(make_plan(index, seed=seed), number)) for seed in (0, 1) for number in (0, 1, 2)]
    for a in range(6):
        for b in range(a):
            same = np.mean(np.array(orders[a]) == np.array(orders[b]))
            assert same < 0.1


def test_lanes_share_the_corpus_differently_in_every_pass() -> None:
    plan = make_plan(make_index(random_edges(2000)))
    first, second = ({int(f) for step in one_pass(plan, n) for f in step[0]} for n in (0, 1))
    # a quarter is what independent shares have in common
    assert len(first & second) / len(first) == pytest.approx(0.25, abs=0.1)


def test_a_pass_does_not_follow_the_order_of_the_corpus() -> None:
    # long enough for several windows: within one, packing shuffles anyway
    count = 20000
    steps = one_pass(make_plan(make_index(random_edges(count)), lanes=1))
    first_half = np.array(frames(steps[: len(steps) // 2]))
    # a stretch of the corpus, one trajectory say, is spread over the pass
    for start in range(0, count, 4000):
        share = np.mean((start <= first_half) & (first_half < start + 4000))
        assert share == pytest.approx(0.2, abs=0.02)


OPTIONS = {"lanes": 8, "edge_budget": BUDGET + 1, "seed": 1, "atom_budget": 500, "oversize": "skip"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_fingerprint_changes_with(name: str) -> None:
    index = make_index(random_edges(200))
    base = make_plan(index).fingerprint
    assert base == make_plan(index).fingerprint
    assert make_plan(index, **{name: OPTIONS[name]}).fingerprint != base


def test_a_frame_over_the_budget_is_an_error_that_says_what_to_do() -> None:
    edges = random_edges(100)
    edges[[7, 70]] = 5000, 9000
    message = r"2 of 100 structures.*9000 edges.*edge_budget is 2000.*[Rr]aise the budget.*alone or skip"
    with pytest.raises(ValueError, match=message):
        make_plan(make_index(edges))


def test_a_frame_over_the_atom_budget_is_an_error_that_says_what_to_do() -> None:
    atoms = np.full(100, 10)
    atoms[5] = 333
    with pytest.raises(ValueError, match=r"1 of 100 structures.*333 atoms.*atom_budget 200.*alone or skip"):
        make_plan(make_index(random_edges(100), atoms), atom_budget=200)


def test_a_frame_of_exactly_the_budget_is_not_oversize() -> None:
    edges = np.full(100, 100)
    edges[3] = BUDGET
    assert sorted(frames(one_pass(make_plan(make_index(edges))))) == list(range(100))


@pytest.mark.parametrize("option", ["lanes", "edge_budget", "atom_budget"])
def test_nothing_of_nothing_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        make_plan(make_index(random_edges(100)), **{option: 0})


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_frames_than_lanes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} frames \(0 skipped\) cannot fill 4 lanes; use fewer lanes"):
        make_plan(make_index(random_edges(count)))


@pytest.mark.parametrize("count", [8, 9, 70])
@pytest.mark.parametrize("budget", [BUDGET, 250])
def test_a_tiny_set_fills_eight_lanes(count: int, budget: int) -> None:
    plan = make_plan(make_index(np.full(count, 100), block_frames=256), lanes=8, edge_budget=budget)
    for number in range(3):
        steps = one_pass(plan, number)
        assert sorted(frames(steps)) == list(range(count))
        by_lane = np.array([[len(batch) for batch in step] for step in steps]).sum(axis=0)
        assert by_lane.max() - by_lane.min() <= 1


def test_frames_without_edges_are_planned_too() -> None:
    assert sorted(frames(one_pass(make_plan(make_index(np.zeros(50, dtype=int)))))) == list(range(50))


def test_the_cutoff_decides_the_cost() -> None:
    edges = random_edges(400)
    both = make_index(np.stack([edges, edges // 4], axis=1))
    steps = [make_plan(both, cutoff_number=number).steps_per_pass for number in (0, 1)]
    assert steps[0] > 3 * steps[1]


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    """Twenty thousand frames of log-normal size."""
    return np.random.default_rng(0).lognormal(6.5, 0.8, 20000).astype(np.int64)


@pytest.mark.parametrize("number", [0, 1])
def test_micro_batches_of_a_large_corpus_are_full_and_balanced(corpus: np.ndarray, number: int) -> None:
    budget = int(24 * corpus.mean())
    plan = make_plan(make_index(corpus, block_frames=256), lanes=8, edge_budget=budget)
    loads = np.array([[corpus[batch].sum() for batch in step] for step in one_pass(plan, number)])
    assert np.mean(loads.max(axis=1) / loads.mean(axis=1)) <= 1.02
    assert loads.max() <= 1.05 * budget
    assert loads.mean() >= 0.97 * budget


def test_batches_hold_large_and_small_frames_alike(corpus: np.ndarray) -> None:
    plan = make_plan(make_index(corpus, block_frames=256), lanes=8, edge_budget=int(24 * corpus.mean()))
    sizes = np.array([len(batch) for step in one_pass(plan) for batch in step])
    assert sizes.mean() == pytest.approx(24, abs=1)
    assert sizes.min() > 8


def test_the_atom_budget_is_kept_within_a_tenth(corpus: np.ndarray) -> None:
    atoms = np.random.default_rng(1).integers(1, 60, len(corpus))
    budget = int(24 * corpus.mean())
    plan = make_plan(make_index(corpus, atoms, 256), lanes=8, edge_budget=budget, atom_budget=500)
    batches = [batch for step in one_pass(plan) for batch in step]
    assert max(atoms[batch].sum() for batch in batches) <= 550
    assert max(corpus[batch].sum() for batch in batches) <= 1.05 * budget
    assert sorted(frames([batches])) == list(range(len(corpus)))


@PROPERTY
@given(plans(), st.integers(1, 5))
def test_a_sweep_takes_every_frame_once_over_all_ranks(case: tuple[SplitIndex, dict], world_size: int) -> None:
    index, _ = case
    edges = edges_of(index)
    shares = [
        sweep_batches(index, cutoff_number=0, edge_budget=BUDGET, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    assert sorted(frames(shares)) == list(range(index.num_frames))
    for batch in (batch for share in shares for batch in share):
        assert edges[batch].sum() <= BUDGET or len(batch) == 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_sweep_fills_its_batches_in_the_order_of_the_data() -> None:
    index = make_index([900, 900, 300, 5000, 100, 0, 2000, 1])
    batches = sweep_batches(index, cutoff_number=0, edge_budget=BUDGET, world_size=1, rank=0)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2], [3], [4, 5], [6], [7]]


def test_a_sweep_of_nothing_has_no_batches() -> None:
    assert sweep_batches(make_index([]), cutoff_number=0, edge_budget=BUDGET, world_size=1, rank=0) == []
