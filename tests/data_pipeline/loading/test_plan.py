"""The plan: every frame once per pass, a pure function of step and seed, full and balanced micro-batches."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.loading.plan import Plan, PlannedSet, full_pass_batches
from data_pipeline.store.index import Counts, SplitIndex

BUDGET = 2000
PROPERTY = settings(derandomize=True, deadline=None, max_examples=8)


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


def make_plan(*indexes: SplitIndex, repeats: Sequence[float] | None = None, **options: object) -> Plan:
    sets = list(map(PlannedSet, indexes, [0] * len(indexes), repeats or [1.0] * len(indexes)))
    return Plan(sets, **{"lanes": 4, "edge_budget": BUDGET, **options})


def one_pass(plan: Plan, number: int = 0) -> list[list[np.ndarray]]:
    """Micro-batches of a pass: step by step, lane by lane."""
    first = sum(plan.steps_of_pass(before) for before in range(number))
    steps = range(first, first + plan.steps_of_pass(number))
    return [[plan.micro_batch(step, lane) for lane in range(plan.lanes)] for step in steps]


def frames(batches: list[list[np.ndarray]]) -> list[int]:
    return [int(frame) for step in batches for batch in step for frame in batch]


def times_taken(plan: Plan, number: int, num_frames: int) -> np.ndarray:
    """How often a pass takes each frame."""
    return np.bincount(frames(one_pass(plan, number)), minlength=num_frames)


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


@settings(PROPERTY, max_examples=5)
@given(plans(), st.integers(0, 2**20), st.integers(0, 7))
def test_a_step_does_not_depend_on_the_steps_before(case: tuple[SplitIndex, dict], place: int, lane: int) -> None:
    index, options = case
    visited, fresh = make_plan(index, **options), make_plan(index, **options)
    step, lane = place % (3 * visited.steps_of_pass(0)), lane % visited.lanes
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


def test_every_lane_has_the_steps_of_the_pass_and_the_next_pass_begins() -> None:
    plan = make_plan(make_index(random_edges(500)))
    num_steps = plan.steps_of_pass(0)
    assert plan.locate(num_steps - 1) == (0, num_steps - 1)
    assert plan.locate(num_steps) == (1, 0)
    for lane in range(4):
        taken = [plan.micro_batch(step, lane) for step in range(num_steps)]
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


OPTIONS = {"lanes": 8, "edge_budget": BUDGET + 1, "seed": 1, "atom_budget": 500, "oversize": "skip", "repeats": [2.0]}


@pytest.mark.parametrize("name", OPTIONS)
def test_settings_say_what_decides_the_order(name: str) -> None:
    index = make_index(random_edges(200))
    plan, other = make_plan(index), make_plan(index, **{name: OPTIONS[name]})
    assert plan.settings == make_plan(index).settings
    assert {key for key in plan.settings if plan.settings[key] != other.settings[key]} == {name}
    assert json.loads(json.dumps(plan.settings)) == plan.settings


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
    with pytest.raises(
        ValueError, match=rf"{count} frames per pass \(0 skipped\) cannot fill 4 lanes; use fewer lanes"
    ):
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
    plans = [Plan([PlannedSet(both, number)], lanes=4, edge_budget=BUDGET) for number in (0, 1)]
    steps = [plan.steps_of_pass(0) for plan in plans]
    assert steps[0] > 3 * steps[1]


@pytest.mark.parametrize(
    ("repeats", "passes"), [((1.0, 1.0), 1), ((7.0, 1.0), 1), ((0.1, 1.0), 10), ((2.5, 0.3), 10), ((0.333, 1.0), 10)]
)
def test_two_tiny_sets_are_mixed_exactly(repeats: tuple[float, float], passes: int) -> None:
    sets = make_index(random_edges(70), block_frames=256), make_index(random_edges(500, seed=1), block_frames=256)
    plan = make_plan(*sets, repeats=repeats, lanes=8, edge_budget=BUDGET)
    taken = [times_taken(plan, number, 570) for number in range(passes)]
    for own, repeat in ((slice(0, 70), repeats[0]), (slice(70, 570), repeats[1])):
        assert {int(times) for some in taken for times in some[own]} <= {math.floor(repeat), math.ceil(repeat)}
        expected = {math.floor(repeat * passes + 1e-9), math.ceil(repeat * passes - 1e-9)}
        assert {int(times) for times in sum(taken)[own]} == expected


@settings(PROPERTY, max_examples=5)
@given(
    st.lists(st.tuples(st.integers(8, 60), st.sampled_from([0.1, 0.5, 1.0, 2.0, 2.5])), min_size=1, max_size=3),
    st.integers(0, 100),
    st.sampled_from(["alone", "skip"]),
)
def test_over_passes_every_frame_is_taken_as_often_as_asked(
    sets: list[tuple[int, float]], seed: int, oversize: str
) -> None:
    indexes, expected = [], []
    for place, (count, repeat) in enumerate(sets):
        edges = random_edges(count, seed + place)
        edges[::11] = 3 * BUDGET
        indexes.append(make_index(edges, block_frames=8))
        expected.append(np.where((edges > BUDGET) & (oversize == "skip"), 0, round(10 * repeat)))
    # in some pass of 0.1 of so few frames there is none at all
    assume(sum(times.sum() for times in expected) >= 30)
    repeats = [repeat for _, repeat in sets]
    plan = make_plan(*indexes, repeats=repeats, lanes=3, edge_budget=BUDGET, seed=seed, oversize=oversize)
    num_frames = sum(count for count, _ in sets)
    taken = sum(times_taken(plan, number, num_frames) for number in range(20, 30))
    np.testing.assert_array_equal(taken, np.concatenate(expected))


def test_oversize_frames_of_several_sets_are_alone() -> None:
    edges = [random_edges(300), random_edges(300, seed=1)]
    for own in edges:
        own[::30] = 3 * BUDGET
    plan = make_plan(*map(make_index, edges), repeats=[2.0, 1.0], oversize="alone")
    too_large = np.concatenate(edges) > BUDGET
    sizes = [len(batch) for step in one_pass(plan) for batch in step if too_large[batch].any()]
    assert sizes == [1] * 30


def test_sets_are_spread_evenly_over_a_pass() -> None:
    target, source = make_index(random_edges(170), block_frames=256), make_index(random_edges(20000, seed=1))
    plan = make_plan(target, source, repeats=[25.0, 1.0], lanes=8, edge_budget=4 * BUDGET)
    steps = one_pass(plan)
    share = np.array([[np.mean(batch < 170) for batch in step] for step in steps]).mean(axis=1)
    spans = np.array([some.mean() for some in np.array_split(share, 10)])
    assert share.mean() == pytest.approx(25 * 170 / (25 * 170 + 20000), rel=0.05)
    # what independent draws would have: 0.06
    assert spans.std() / spans.mean() < 0.06


@settings(PROPERTY, max_examples=5)
@given(st.lists(st.sampled_from([0.1, 0.3, 0.333, 1.0, 2.5]), min_size=1, max_size=2), st.integers(0, 10_000))
def test_any_step_is_located_as_by_counting(repeats: list[float], step: int) -> None:
    plan = make_plan(*(make_index(random_edges(900, seed)) for seed in range(len(repeats))), repeats=repeats, lanes=2)
    number = first = 0
    while first + plan.steps_of_pass(number) <= step:
        first += plan.steps_of_pass(number)
        number += 1
    assert plan.locate(step) == (number, step - first)


def test_a_step_of_pass_fifty_is_the_same_for_a_plan_that_starts_there() -> None:
    sets = [make_index(random_edges(40, seed), block_frames=64) for seed in (0, 1)]
    plan, fresh = (make_plan(*sets, repeats=[0.3, 2.5], lanes=2) for _ in range(2))
    first = sum(plan.steps_of_pass(number) for number in range(50))
    taken = [frames([[plan.micro_batch(step, lane) for lane in range(2)]]) for step in range(first + 6)]
    assert fresh.locate(first + 5) == (50, 5)
    assert frames([[fresh.micro_batch(first + 5, lane) for lane in range(2)]]) == taken[-1]


def test_no_frame_is_lost_where_a_window_is_less_than_a_step() -> None:
    plan = make_plan(make_index(np.ones(20000, dtype=int), block_frames=256), lanes=1, edge_budget=15000)
    assert plan.steps_of_pass(0) == 2
    assert sorted(frames(one_pass(plan))) == list(range(20000))


def test_a_step_of_a_large_set_reads_its_window_and_nothing_else() -> None:
    count, lanes = 1_000_000, 8
    index = make_index(np.resize(random_edges(10007), count), block_frames=256)
    read = []

    def counts(first: int, last: int) -> Counts:
        read.append(last - first)
        return index.counts(first, last)

    plan = make_plan(SplitIndex(index.blocks, counts), lanes=lanes, edge_budget=24 * 200)
    window = 4096 + 4096 // 16 + 2 * 256
    assert sum(read) <= 4 * window  # a sample, which shows that no micro-batch exceeds the budget
    read.clear()
    step = 2 * plan.steps_of_pass(0) + 1234
    plan.micro_batch(step, 5)
    assert sum(read) <= window
    plan.micro_batch(step + 1, 5)
    assert len(read) <= 20


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    """Twenty thousand frames of log-normal size."""
    return np.random.default_rng(0).lognormal(6.5, 0.8, 20000).astype(np.int64)


@pytest.mark.parametrize("repeat", [0.0, -1.0, math.inf, math.nan])
def test_a_repeat_that_is_not_positive_is_refused(repeat: float) -> None:
    with pytest.raises(ValueError, match="repeats must be positive"):
        make_plan(make_index(random_edges(100)), repeats=[repeat])


@pytest.mark.parametrize("number", [0, 1])
def test_micro_batches_of_a_large_corpus_are_full_and_balanced(corpus: np.ndarray, number: int) -> None:
    budget = int(24 * corpus.mean())
    plan = make_plan(make_index(corpus, block_frames=256), lanes=8, edge_budget=budget)
    loads = np.array([[corpus[batch].sum() for batch in step] for step in one_pass(plan, number)])
    assert np.mean(loads.max(axis=1) / loads.mean(axis=1)) <= 1.002
    assert loads.max() <= budget
    assert loads.mean() >= 0.98 * budget


@settings(PROPERTY, max_examples=5)
@given(plans(), st.integers(0, 1000))
def test_no_micro_batch_of_several_frames_exceeds_the_budget(case: tuple[SplitIndex, dict], later: int) -> None:
    index, options = case
    edges, plan = edges_of(index), make_plan(index, **options)
    first = later * plan.steps_of_pass(0)
    for step in range(first, first + plan.steps_of_pass(0)):
        for batch in (plan.micro_batch(step, lane) for lane in range(plan.lanes)):
            assert len(batch) == 1 or np.maximum(edges[batch], 1).sum() <= BUDGET


@pytest.mark.parametrize(
    ("sizes", "fill"),
    [
        ([0.94], 0.94),  # one to a micro-batch
        ([0.51], 0.51),
        ([0.45], 0.9),
        ([0.33], 0.99),
        ([0.6, 0.3], 0.9),
        ([0.7, 0.31], 0.505),  # they do not fit together
        ([0.94, 0.01], 0.95),
    ],
)
@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_large_frames_keep_the_budget_and_fill_what_they_can(sizes: list[float], fill: float, lanes: int) -> None:
    # 416 atoms with 11,000 edges each once came in pairs where the budget was 12,000
    edges = np.resize((np.array(sizes) * 10_000).astype(int), 400)
    plan = make_plan(make_index(edges), lanes=lanes, edge_budget=10_000)
    for number in range(2):
        loads = np.array([edges[batch].sum() for step in one_pass(plan, number) for batch in step])
        assert loads.max() <= 10_000
        assert loads.mean() >= 0.8 * fill * 10_000


def test_a_repeated_set_keeps_the_budget_in_every_pass() -> None:
    sets = make_index(random_edges(90, mean=700.0)), make_index(random_edges(300, seed=1, mean=300.0))
    edges = np.concatenate([edges_of(index) for index in sets])
    plan = make_plan(*sets, repeats=[0.5, 1.5], lanes=3)
    for number in range(8):
        for batch in (batch for step in one_pass(plan, number) for batch in step):
            assert len(batch) <= 1 or edges[batch].sum() <= BUDGET


def test_equal_frames_fill_no_micro_batch_above_the_budget() -> None:
    # 1,407 units of eight frames: dealt whole, some lanes would have a 64th more than others
    edges = np.full(11_250, 100)
    plan = make_plan(make_index(edges, block_frames=256), lanes=20, edge_budget=2400)
    taken = np.array([[len(batch) for batch in step] for step in one_pass(plan)])
    assert np.ptp(taken.sum(axis=0)) <= 1
    assert taken.max() == 24


@settings(PROPERTY, max_examples=4)
@given(st.floats(101, 300))
def test_a_pass_of_a_hundred_steps_fills_the_budget(num_steps: float) -> None:
    edges = random_edges(12_000)  # twenty frames and more in a micro-batch: no need for more headroom
    budget = int(np.maximum(edges, 1).sum() / (2 * num_steps))
    plan = make_plan(make_index(edges), lanes=2, edge_budget=budget, oversize="alone")
    cost = np.clip(edges, 1, budget).sum()
    assert 0.98 <= cost / (2 * plan.steps_of_pass(0) * budget) <= 0.99


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
    assert max(corpus[batch].sum() for batch in batches) <= budget
    assert sorted(frames([batches])) == list(range(len(corpus)))


@PROPERTY
@given(plans(), st.integers(1, 5))
def test_a_full_pass_takes_every_frame_once_over_all_ranks(case: tuple[SplitIndex, dict], world_size: int) -> None:
    index, _ = case
    edges = edges_of(index)
    shares = [
        full_pass_batches(index, cutoff_number=0, edge_budget=BUDGET, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    assert sorted(frames(shares)) == list(range(index.num_frames))
    for batch in (batch for share in shares for batch in share):
        assert edges[batch].sum() <= BUDGET or len(batch) == 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_full_pass_fills_its_batches_in_the_order_of_the_data() -> None:
    index = make_index([900, 900, 300, 5000, 100, 0, 2000, 1])
    batches = full_pass_batches(index, cutoff_number=0, edge_budget=BUDGET, world_size=1, rank=0)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2], [3], [4, 5], [6], [7]]


def test_a_full_pass_of_nothing_has_no_batches() -> None:
    assert full_pass_batches(make_index([]), cutoff_number=0, edge_budget=BUDGET, world_size=1, rank=0) == []
