"""The stream: the same steps whatever the workers, the ranks and the step to start from; and the full pass."""

import dataclasses
import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import TENSORS, GraphBatch, collate
from data_pipeline.loading.datasets import BlockCache, Dataset, Frames
from data_pipeline.loading.stream import Stream, differences, full_pass
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.block import Block
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.store.shards import CorruptShard

Ids = list[list[tuple[str, ...]]]


@pytest.fixture(scope="module")
def make_stream(emt_manifest: Manifest) -> Callable[..., Stream]:
    def make(**options: object) -> Stream:
        defaults = {"cutoff": 5.0, "lanes": 4, "edge_budget": 800, "seed": 7}
        split = options.pop("split", "train")
        return Stream([Dataset(manifest=emt_manifest, split=split)], **{**defaults, **options})

    return make


def ids(stream: Stream, first: int, last: int) -> Ids:
    return [[batch.ids for batch in step] for step in stream.from_step(first, last)]


@pytest.fixture(scope="module")
def two_passes(make_stream: Callable[..., Stream]) -> Ids:
    stream = make_stream()
    return ids(stream, 0, 2 * stream.plan.steps_of_pass(0))


def assert_same_batch(a: GraphBatch, b: GraphBatch) -> None:
    assert a.ids == b.ids
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_pass_holds_every_frame_of_the_split_once(two_passes: Ids, emt_manifest: Manifest) -> None:
    expected = sorted(frame.id for frame in Frames(emt_manifest, "train"))
    half = len(two_passes) // 2
    assert half >= 4
    for steps in (two_passes[:half], two_passes[half:]):
        assert sorted(id for step in steps for batch in step for id in batch) == expected
    assert two_passes[:half] != two_passes[half:]


def test_batches_are_the_graphs_of_the_frames_the_plan_names(
    make_stream: Callable[..., Stream], emt_manifest: Manifest
) -> None:
    stream, frames = make_stream(), Frames(emt_manifest, "train")
    (step,) = stream.from_step(3, 4)
    for lane, batch in enumerate(step):
        numbers = stream.plan.micro_batch(3, lane)
        assert_same_batch(batch, collate([frames[int(number)] for number in numbers], 5.0))
        assert batch.num_edges == frames.index.counts(0, len(frames))[1][numbers, 0].sum()


def test_a_batch_of_any_frames_is_made_as_those_of_the_steps_are(make_stream: Callable[..., Stream]) -> None:
    stream = make_stream()
    (batches,) = stream.from_step(3, 4)
    for lane, batch in enumerate(batches):
        assert_same_batch(stream.prepare(stream.plan.micro_batch(3, lane)), batch)


def test_a_step_has_a_micro_batch_for_every_lane(make_stream: Callable[..., Stream]) -> None:
    stream = make_stream(split="val", lanes=2)
    steps = ids(stream, 0, stream.plan.steps_of_pass(0))
    assert all(len(step) == 2 for step in steps)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(make_stream: Callable[..., Stream], two_passes: Ids, num_workers: int) -> None:
    last = min(len(two_passes), 7)
    assert ids(make_stream(num_workers=num_workers), 0, last) == two_passes[:last]


def test_workers_build_the_same_tensors(make_stream: Callable[..., Stream]) -> None:
    alone, workers = (make_stream(num_workers=number).from_step(1, 3) for number in (0, 2))
    for a, b in zip(alone, workers, strict=True):
        for one, other in zip(a, b, strict=True):
            assert_same_batch(one, other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_from_step_continues_exactly(make_stream: Callable[..., Stream], two_passes: Ids, num_workers: int) -> None:
    half = len(two_passes) // 2
    for first in (1, half - 1, half, half + 1):
        last = min(first + 3, len(two_passes))
        assert ids(make_stream(num_workers=num_workers), first, last) == two_passes[first:last]


def test_without_a_last_step_the_stream_is_endless(make_stream: Callable[..., Stream], two_passes: Ids) -> None:
    steps = itertools.islice(make_stream(), len(two_passes) + 2)
    assert [[batch.ids for batch in step] for step in steps][: len(two_passes)] == two_passes
    assert len(list(itertools.islice(make_stream(), len(two_passes) + 2))) == len(two_passes) + 2


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (2, 1), (2, 3), (4, 2)])
def test_ranks_together_serve_the_stream_of_one(
    make_stream: Callable[..., Stream], two_passes: Ids, world_size: int, num_workers: int
) -> None:
    options = {"world_size": world_size, "num_workers": num_workers}
    ranks = [ids(make_stream(rank=rank, **options), 0, len(two_passes)) for rank in range(world_size)]
    for number, step in enumerate(two_passes):
        shares = [rank[number] for rank in ranks]
        assert {len(share) for share in shares} == {4 // world_size}
        assert [batch for share in shares for batch in share] == step


@pytest.mark.parametrize("world_size", [3, 8])
def test_a_world_that_does_not_divide_the_lanes_names_the_sizes_that_do(
    make_stream: Callable[..., Stream], world_size: int
) -> None:
    with pytest.raises(ValueError, match=rf"4 lanes .* {world_size} processes; use one of \[1, 2, 4\]"):
        make_stream(world_size=world_size)


@pytest.mark.parametrize("rank", [2, -1])
def test_a_rank_outside_the_world_is_refused(make_stream: Callable[..., Stream], rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        make_stream(rank=rank, world_size=2)


def test_an_unknown_cutoff_names_those_there_are(make_stream: Callable[..., Stream], emt_manifest: Manifest) -> None:
    message = r"counted at 5.0 Å, not at 6.0 Å; build the data again"
    with pytest.raises(ValueError, match=message):
        make_stream(cutoff=6.0)
    with pytest.raises(ValueError, match=message):
        full_pass(emt_manifest, "val", cutoff=6.0, edge_budget=1000)


def test_an_unknown_split_names_those_there_are(make_stream: Callable[..., Stream]) -> None:
    with pytest.raises(ValueError, match="no split 'training'; it has test, train, val"):
        make_stream(split="training")


def test_the_fingerprint_names_everything_that_decides_what_is_in_a_step(make_stream: Callable[..., Stream]) -> None:
    ours = make_stream().fingerprint
    assert json.loads(json.dumps(ours)) == ours
    assert make_stream(num_workers=2, rank=1, world_size=2, corrupt="quarantine").fingerprint == ours
    changes = {"seed": 8, "lanes": 2, "edge_budget": 900, "atom_budget": 90, "oversize": "alone"}
    for name, value in changes.items():
        (difference,) = differences(make_stream(**{name: value}).fingerprint, ours)
        assert difference == f"{name}: {ours[name]} in the checkpoint, {value} now"
    (difference,) = differences(make_stream(split="val").fingerprint, ours)
    assert difference == "split of data set 1: train in the checkpoint, val now"


def test_a_stream_can_be_sent_to_spawned_workers(make_stream: Callable[..., Stream], two_passes: Ids) -> None:
    # workers are spawned, not forked, on macOS and by default from Python 3.14 on
    stream = pickle.loads(pickle.dumps(make_stream()))
    assert ids(stream, 0, 2) == two_passes[:2]


def test_a_corrupt_block_stops_the_stream_and_is_named(emt_manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    manifest = open_manifest(tmp_path / "copy")
    (shard,) = manifest.shard_paths("train")
    content = bytearray(shard.read_bytes())
    content[int(manifest.index("train").blocks.offset[1]) + 1000] ^= 1
    shard.write_bytes(content)
    stream = Stream([Dataset(manifest=manifest)], cutoff=5.0, lanes=4, edge_budget=1200)
    with pytest.raises(CorruptShard, match=r"train-000000\.tar, block at byte \d+: the checksum"):
        ids(stream, 0, stream.plan.steps_of_pass(0))


@pytest.fixture
def damaged(emt_manifest: Manifest, tmp_path: Path) -> tuple[Manifest, set[str]]:
    """A copy whose second block has a flipped bit and whose last is cut short, and the names of their frames."""
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    manifest = open_manifest(tmp_path / "copy")
    index, (shard,) = manifest.index("train"), manifest.shard_paths("train")
    content = bytearray(shard.read_bytes())
    content[int(index.blocks.offset[1]) + 1000] ^= 1
    shard.write_bytes(content[: int(index.blocks.offset[-1]) + 100])
    frames = Frames(emt_manifest, "train")
    lost = (*range(*index.first_frame[1:3]), *range(*index.first_frame[-2:]))
    return manifest, {frames[number].id for number in lost}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_quarantined_blocks_are_left_out_counted_and_said_once(
    emt_manifest: Manifest, damaged: tuple[Manifest, set[str]], num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, lost = damaged
    options = {"cutoff": 5.0, "lanes": 4, "edge_budget": 800}
    whole = Stream([Dataset(manifest=emt_manifest)], **options)
    last = whole.plan.steps_of_pass(0)
    stream = Stream([Dataset(manifest=manifest)], corrupt="quarantine", num_workers=num_workers, **options)
    steps = stream.from_step(0, last)
    found = [[batch.ids for batch in step] for step in steps]
    assert found == [[tuple(id for id in batch if id not in lost) for batch in step] for step in ids(whole, 0, last)]
    assert (steps.num_quarantined_blocks, steps.num_quarantined_frames) == (2, len(lost))
    assert len(caplog.records) == 2
    assert "train-000000.tar, block at byte" in caplog.text
    assert f"Its {len(lost) - 16} frames are left out" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_missing_shard_is_an_error_or_quarantined(emt_manifest: Manifest, tmp_path: Path, num_workers: int) -> None:
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    manifest = open_manifest(tmp_path / "copy")
    manifest.shard_paths("val")[0].unlink()
    options = {"cutoff": 5.0, "edge_budget": 600, "num_workers": num_workers}
    with pytest.raises(FileNotFoundError, match=r"val-000000\.tar, block at byte \d+: the shard is missing"):
        list(full_pass(manifest, "val", **options))
    batches = full_pass(manifest, "val", corrupt="quarantine", **options)
    assert sum(batch.num_graphs for batch in batches) == 0
    assert batches.num_quarantined_frames == manifest.split("val").statistics.num_frames


@pytest.mark.parametrize("num_workers", [1, 2])
def test_micro_batches_larger_than_a_slot_arrive_as_well(
    make_stream: Callable[..., Stream], two_passes: Ids, num_workers: int
) -> None:
    stream = make_stream(num_workers=num_workers)
    stream._slot_bytes //= 4
    steps = stream.from_step(0, 3)
    assert [[batch.ids for batch in step] for step in steps] == two_passes[:3]
    assert steps.num_large == 12
    assert steps.waited > 0


def test_usual_micro_batches_fit_the_ring(make_stream: Callable[..., Stream], two_passes: Ids) -> None:
    steps = make_stream(num_workers=1).from_step(0, len(two_passes))
    assert len(list(steps)) == len(two_passes)
    assert steps.num_large == 0


@pytest.fixture(scope="module")
def second_manifest(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    """Other frames, at what is called another level of theory, with the cutoff in another column."""
    config = BuildConfig(
        source=EmtAlloys(num_frames=40, seed=5),
        provenance=dataclasses.replace(provenance, name="other", level_of_theory="something else"),
        out=tmp_path_factory.mktemp("second") / "data",
        cutoffs=(4.0, 5.0),
        block_frames=8,
    )
    return build(config)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixture_reads_every_set_as_often_as_asked_and_knows_each_frames_theory(
    emt_manifest: Manifest, second_manifest: Manifest, num_workers: int
) -> None:
    datasets = [Dataset(manifest=emt_manifest), Dataset(manifest=second_manifest, repeat=2.0, theory=3)]
    stream = Stream(datasets, cutoff=5.0, lanes=2, edge_budget=2000, num_workers=num_workers)
    energies: dict[int, list[float]] = {0: [], 3: []}
    for step in stream.from_step(0, stream.plan.steps_of_pass(0)):
        for batch in step:
            for theory, energy in zip(batch.theory.tolist(), batch.energy.tolist(), strict=True):
                energies[theory].append(energy)
    first, second = ([f.energy for f in Frames(manifest, "train")] for manifest in (emt_manifest, second_manifest))
    assert sorted(energies[0]) == sorted(first)
    assert sorted(energies[3]) == sorted(2 * second)


def test_levels_of_theory_are_not_mixed_without_saying_so(emt_manifest: Manifest, second_manifest: Manifest) -> None:
    datasets = [Dataset(manifest=emt_manifest), Dataset(manifest=second_manifest)]
    message = "'emt-test' has the level .* and 'other' has 'something else'.*Give each data set its own `theory`"
    with pytest.raises(ValueError, match=message):
        Stream(datasets, cutoff=5.0, lanes=2, edge_budget=2000)
    with pytest.raises(ValueError, match="no training data"):
        Stream([], cutoff=5.0, lanes=2, edge_budget=2000)


def test_the_fingerprint_names_the_data_set_that_differs(emt_manifest: Manifest, second_manifest: Manifest) -> None:
    def fingerprint(**changes: object) -> dict:
        second = Dataset(manifest=second_manifest, **{"theory": 1, **changes})
        return Stream([Dataset(manifest=emt_manifest), second], cutoff=5.0, lanes=2, edge_budget=2000).fingerprint

    ours = fingerprint()
    assert differences(ours, fingerprint()) == []
    assert differences(ours, fingerprint(theory=2)) == ["theory of data set 2: 2 in the checkpoint, 1 now"]
    (difference,) = differences(ours, fingerprint(repeat=1.5))
    assert difference == "repeats: 1, 3/2 in the checkpoint, 1, 1 now"
    alone = Stream([Dataset(manifest=emt_manifest)], cutoff=5.0, lanes=2, edge_budget=2000).fingerprint
    assert "number of data sets: 1 in the checkpoint, 2 now" in differences(ours, alone)
    manifest = second_manifest.fingerprint[:12]
    assert f"manifest of data set 2: absent in the checkpoint, {manifest}… now" in differences(ours, alone)


def test_a_cache_keeps_the_blocks_used_last_within_its_bytes(emt_manifest: Manifest) -> None:
    blocks = [emt_manifest.read_block("train", emt_manifest.index("train").blocks, number) for number in range(3)]
    read: list[int] = []

    def get(number: int) -> Block:
        return cache.get(number, lambda: read.append(number) or blocks[number])

    cache = BlockCache(max(blocks[0].num_bytes + blocks[number].num_bytes for number in (1, 2)))
    for number in (0, 1, 0, 2, 0, 1):
        assert get(number) is blocks[number]
    assert read == [0, 1, 2, 1]
    cache = BlockCache(1)
    assert [get(0), get(0), get(1)] == [blocks[0], blocks[0], blocks[1]]
    assert read == [0, 1, 2, 1, 0, 1]


@pytest.mark.parametrize(("num_workers", "lanes_each"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_a_worker_keeps_to_its_lanes(make_stream: Callable[..., Stream], num_workers: int, lanes_each: int) -> None:
    job = make_stream(num_workers=num_workers).from_step(3, 13)._job
    for worker in range(num_workers):
        assert len({task % 4 for task in job.tasks(worker, num_workers)}) == lanes_each


def test_frames_are_reached_by_number(emt_manifest: Manifest) -> None:
    frames = Frames(emt_manifest, "train")
    in_order = [frame.id for frame in frames]
    assert len(in_order) == len(frames) > 32
    for number in (len(frames) - 1, 0, 16, 15):
        assert frames[number].id == in_order[number]
    for outside in (-1, len(frames)):
        with pytest.raises(IndexError, match=f"frame {outside} of {len(frames)}"):
            frames[outside]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_full_pass_holds_every_frame_once_over_all_ranks(
    emt_manifest: Manifest, world_size: int, num_workers: int
) -> None:
    loaders = [
        full_pass(
            emt_manifest,
            "train",
            cutoff=5.0,
            edge_budget=1500,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        )
        for rank in range(world_size)
    ]
    batches = [batch for loader in loaders for batch in loader]
    assert sorted(id for batch in batches for id in batch.ids) == sorted(
        frame.id for frame in Frames(emt_manifest, "train")
    )
    assert all(batch.num_edges <= 1500 or batch.num_graphs == 1 for batch in batches)


def test_a_full_pass_keeps_the_order_of_the_data(emt_manifest: Manifest) -> None:
    expected = [frame.id for frame in Frames(emt_manifest, "val")]
    for num_workers in (0, 2):
        loader = full_pass(emt_manifest, "val", cutoff=5.0, edge_budget=600, num_workers=num_workers)
        assert [id for batch in loader for id in batch.ids] == expected


def test_a_full_pass_with_elements_leaves_out_frames_with_others(emt_manifest: Manifest) -> None:
    chosen = (13, 28, 29, 46, 47)
    batches = list(full_pass(emt_manifest, "train", cutoff=5.0, edge_budget=1000, elements=chosen))
    kept = [id for batch in batches for id in batch.ids]
    frames = list(Frames(emt_manifest, "train"))
    assert kept == [frame.id for frame in frames if np.isin(frame.numbers, chosen).all()]
    assert 0 < len(kept) < len(frames)
    assert all(torch.isin(batch.numbers, torch.tensor(chosen)).all() for batch in batches)


def test_a_full_pass_with_no_known_element_is_empty(emt_manifest: Manifest) -> None:
    batches = list(full_pass(emt_manifest, "val", cutoff=5.0, edge_budget=1000, elements=(1,)))
    assert batches
    assert sum(batch.num_graphs for batch in batches) == 0


def test_a_rank_without_frames_yields_one_empty_batch(emt_manifest: Manifest) -> None:
    options = {"cutoff": 5.0, "edge_budget": 10**6, "world_size": 2}
    first, second = (full_pass(emt_manifest, "val", rank=rank, **options) for rank in range(2))
    assert (len(first), len(second)) == (1, 1)
    assert [batch.num_graphs for batch in second] == [0]


def test_a_full_pass_of_an_empty_split_has_no_batches(provenance: Provenance, tmp_path: Path) -> None:
    source = EmtAlloys(num_frames=3)
    config = BuildConfig(source=source, provenance=provenance, out=tmp_path / "d", val_fraction=0.0, test_fraction=0.0)
    assert list(full_pass(build(config), "val", cutoff=5.0, edge_budget=1000)) == []
