"""A subset of a split is read as if it were all there is: once per pass, on any number of ranks, workers or steps."""

import itertools
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.stream import Stream, differences, full_pass
from data_pipeline.loading.subset import Subset
from data_pipeline.store.block import Block
from data_pipeline.store.index import SplitIndex
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.store.shards import CorruptShard

CHOSEN = (1, 2, 3, 17, 20, 33, 40, 41, 42, 50, 64, 65, 70, 77, 80, 81)
"""Frames of the training split, of whose blocks of 16 the last ones have none."""
Ids = list[list[tuple[str, ...]]]


@pytest.fixture(scope="module")
def expected(emt_manifest: Manifest) -> list[str]:
    """Ids of the chosen frames."""
    frames = Frames(emt_manifest, "train")
    return [frames[number].id for number in CHOSEN]


@pytest.fixture(scope="module")
def make_stream(emt_manifest: Manifest) -> Callable[..., Stream]:
    def make(chosen: Sequence[int] = CHOSEN, repeat: float = 1.0, **options: object) -> Stream:
        dataset = Dataset(manifest=emt_manifest, subset=Subset(chosen), repeat=repeat)
        return Stream([dataset], **{"cutoff": 5.0, "lanes": 4, "edge_budget": 400, "seed": 7, **options})

    return make


def ids(stream: Stream, first: int, last: int) -> Ids:
    return [[batch.ids for batch in step] for step in stream.from_step(first, last)]


def flat(steps: Ids) -> list[str]:
    return [id for step in steps for batch in step for id in batch]


def test_a_pass_reads_exactly_the_subset_as_often_as_asked(
    make_stream: Callable[..., Stream], expected: list[str]
) -> None:
    for repeat in (1.0, 2.0):
        stream = make_stream(repeat=repeat)
        last = stream.plan.steps_of_pass(0)
        for number in range(2):
            found = Counter(flat(ids(stream, number * last, (number + 1) * last)))
            assert found == dict.fromkeys(expected, int(repeat))


def test_a_fraction_of_a_subset_is_all_of_it_in_time(make_stream: Callable[..., Stream], expected: list[str]) -> None:
    stream = make_stream(repeat=0.25, lanes=2)
    last = sum(stream.plan.steps_of_pass(number) for number in range(4))
    assert sorted(flat(ids(stream, 0, last))) == sorted(expected)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_serve_the_subset(
    make_stream: Callable[..., Stream], expected: list[str], world_size: int
) -> None:
    alone = make_stream()
    last = alone.plan.steps_of_pass(0)
    ranks = [ids(make_stream(rank=rank, world_size=world_size), 0, last) for rank in range(world_size)]
    assert sorted(itertools.chain.from_iterable(map(flat, ranks))) == sorted(expected)
    assert [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)] == ids(alone, 0, last)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_the_first_step_change_nothing(make_stream: Callable[..., Stream], num_workers: int) -> None:
    last = 2 * make_stream().plan.steps_of_pass(0)
    whole = ids(make_stream(), 0, last)
    assert ids(make_stream(num_workers=num_workers), 0, last) == whole
    assert ids(make_stream(num_workers=num_workers), last - 1, last) == whole[last - 1 :]
    assert ids(pickle.loads(pickle.dumps(make_stream())), 1, 2) == whole[1:2]


def test_all_frames_as_a_subset_are_the_steps_of_the_split(
    make_stream: Callable[..., Stream], emt_manifest: Manifest
) -> None:
    everything = make_stream(range(len(Frames(emt_manifest, "train"))), edge_budget=800)
    plain = Stream([Dataset(manifest=emt_manifest)], cutoff=5.0, lanes=4, edge_budget=800, seed=7)
    assert ids(everything, 0, 4) == ids(plain, 0, 4)


def test_the_fingerprint_names_the_subset_and_nothing_where_there_is_none(
    make_stream: Callable[..., Stream], emt_manifest: Manifest
) -> None:
    ours = make_stream().fingerprint
    assert differences(make_stream(CHOSEN[::-1]).fingerprint, ours) == []
    (difference,) = differences(make_stream((0, *CHOSEN[1:])).fingerprint, ours)
    checksums = [Subset(numbers).fingerprint[:12] for numbers in (CHOSEN, (0, *CHOSEN[1:]))]
    assert difference == f"subset of data set 1: {checksums[0]}… in the checkpoint, {checksums[1]}… now"
    plain = Stream([Dataset(manifest=emt_manifest)], cutoff=5.0, lanes=4, edge_budget=400, seed=7)
    assert not any("subset" in name for name in plain.fingerprint)
    # the same on every machine
    assert Subset([3, 1]).fingerprint == "8e8f6841378f772c40db2f07e876776d50c481ed7329ebcab75312e3b1fa7807"


def test_frames_of_a_subset_are_reached_by_number(emt_manifest: Manifest, expected: list[str]) -> None:
    frames = Dataset(manifest=emt_manifest, subset=Subset(CHOSEN)).frames()
    assert [frame.id for frame in frames] == expected
    assert frames[len(CHOSEN) - 1].id == expected[-1]
    with pytest.raises(IndexError, match=f"frame {len(CHOSEN)} of {len(CHOSEN)}"):
        frames[len(CHOSEN)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_full_pass_holds_the_subset_once_over_all_ranks(
    emt_manifest: Manifest, expected: list[str], world_size: int, num_workers: int
) -> None:
    options = {"cutoff": 5.0, "edge_budget": 400, "world_size": world_size, "num_workers": num_workers}
    passes = [
        full_pass(emt_manifest, "train", subset=Subset(CHOSEN), rank=rank, **options) for rank in range(world_size)
    ]
    assert sorted(id for each in passes for batch in each for id in batch.ids) == sorted(expected)


def test_a_block_is_read_once_and_only_if_a_frame_of_it_is_chosen(
    make_stream: Callable[..., Stream], emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets: list[int] = []
    read_block = Manifest.read_block

    def counted(self: Manifest, split: str, blocks: object, number: int) -> Block:
        offsets.append(int(blocks.offset[number]))
        return read_block(self, split, blocks, number)

    monkeypatch.setattr(Manifest, "read_block", counted)
    stream = make_stream()
    ids(stream, 0, stream.plan.steps_of_pass(0))
    whole = emt_manifest.index("train").blocks.offset
    assert sorted(offsets) == [whole[block] for block in sorted({number // 16 for number in CHOSEN})]


def test_a_block_that_cannot_be_read_loses_the_chosen_frames_only(
    emt_manifest: Manifest, expected: list[str], tmp_path: Path
) -> None:
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    manifest = open_manifest(tmp_path / "copy")
    (shard,) = manifest.shard_paths("train")
    content = bytearray(shard.read_bytes())
    content[int(manifest.index("train").blocks.offset[1]) + 1000] ^= 1
    shard.write_bytes(content)
    dataset, options = Dataset(manifest=manifest, subset=Subset(CHOSEN)), {"cutoff": 5.0, "lanes": 2}
    last = Stream([dataset], edge_budget=400, **options).plan.steps_of_pass(0)
    with pytest.raises(CorruptShard, match="the checksum"):
        ids(Stream([dataset], edge_budget=400, **options), 0, last)
    steps = Stream([dataset], edge_budget=400, corrupt="quarantine", **options).from_step(0, last)
    found = [id for step in steps for batch in step for id in batch.ids]
    lost = [id for id, number in zip(expected, CHOSEN, strict=True) if 16 <= number < 32]
    assert sorted(found) == sorted(set(expected) - set(lost))
    assert (steps.num_quarantined_blocks, steps.num_quarantined_frames) == (1, len(lost))
    # blocks without chosen frames do not matter
    without = Dataset(manifest=manifest, subset=Subset([0, 40, 41, 42]))
    ids(Stream([without], cutoff=5.0, lanes=1, edge_budget=400), 0, 2)


def test_the_index_of_a_subset_has_the_counts_of_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.store.index.READ_FRAMES", 50)
    rng = np.random.default_rng(0)
    atoms, edges = (rng.integers(1, 200, shape).astype(np.int32) for shape in (300, (300, 2)))
    sizes = np.array([64, 100, 1, 64, 71])
    whole = SplitIndex.in_memory(sizes, atoms, edges)
    numbers = np.sort(rng.choice(np.delete(np.arange(300), 164), 60, replace=False))
    part = whole.chosen(numbers)
    assert part.num_frames == 60
    assert np.array_equal(part.counts(0, 60)[0], atoms[numbers])
    assert np.array_equal(part.counts(7, 33)[1], edges[numbers[7:33]])
    block = np.repeat(np.arange(5), sizes)[numbers]
    assert sorted(set(block.tolist())) == [0, 1, 3, 4]
    for place, number in enumerate((0, 1, 3, 4)):
        assert part.blocks.num_frames[place] == (block == number).sum()
        assert part.blocks.num_atoms[place] == atoms[numbers[block == number]].sum()
        assert np.array_equal(part.blocks.max_edges[place], edges[numbers[block == number]].max(axis=0))


def test_subsets_that_are_none_are_refused(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="a subset without frames"):
        Subset([])
    with pytest.raises(ValueError, match="frame -1: frames are numbered from 0"):
        Subset([3, -1])
    with pytest.raises(ValueError, match="has 2 frames twice"):
        Subset([3, 3, 4, 4])
    count = len(Frames(emt_manifest, "val"))
    Dataset(manifest=emt_manifest, split="val", subset=Subset([count - 1]))
    with pytest.raises(ValueError, match=rf"emt-test, split 'val': no frame {count} .* only {count} frames"):
        Dataset(manifest=emt_manifest, split="val", subset=Subset([0, count]))


def test_subsets_of_the_same_frames_are_equal() -> None:
    assert Subset([3, 1]) == Subset(np.array([1, 3], dtype=np.int32))
    assert len({Subset([3, 1]), Subset([1, 3]), Subset([1, 4])}) == 2
    with pytest.raises(ValueError, match="read-only"):
        Subset([1, 3]).numbers[0] = 2
