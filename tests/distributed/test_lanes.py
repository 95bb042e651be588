"""Processes that never talk to each other agree: each plans its own lanes, and together they have the same steps."""

import multiprocessing
from ast import literal_eval
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loading.plan import Plan, PlannedSet
from data_pipeline.store.index import BlockIndex, SplitIndex, StoredCounts, index_path, save_shard_index, summed

LANES, STEPS = 8, (0, 1, 7, 40, 41, 200)
REPEATS = {"target": 2.5, "source": 1.0}
Taken = dict[tuple[int, int], list[int]]
"""Frames by step and lane."""


def write_set(folder: Path, name: str, num_frames: int) -> None:
    """Write the index files of a set of three shards in blocks of 64 frames."""
    rng = np.random.default_rng(num_frames)
    parts = []
    for shard in range(3):
        atoms = rng.integers(1, 60, num_frames // 3).astype(np.int32)
        edges = (30 * atoms + rng.integers(0, 30, len(atoms)).astype(np.int32)).astype(np.int32)[:, None]
        sizes = np.diff([*range(0, len(atoms), 64), len(atoms)])
        zeros = np.zeros(len(sizes), dtype=np.int64)
        sums = summed(sizes, atoms, edges)
        num_bytes = 200 * sums["num_atoms"]
        blocks = BlockIndex(
            shard=zeros.astype(np.int32),
            offset=np.cumsum(num_bytes) - num_bytes,
            size=num_bytes,
            checksum=zeros.astype(np.uint32),
            num_frames=sizes.astype(np.int32),
            **sums,
        )
        save_shard_index(index_path(folder / f"{name}-{shard}.tar"), blocks, (atoms, edges))
        parts.append(blocks)
    BlockIndex.joined(parts, 1).save(folder / f"{name}.index.safetensors")


def open_set(folder: Path, name: str) -> SplitIndex:
    blocks = BlockIndex.load(folder / f"{name}.index.safetensors")
    paths = [index_path(folder / f"{name}-{shard}.tar") for shard in range(3)]
    shard_frames = np.bincount(blocks.shard, blocks.num_frames).astype(int).tolist()
    return SplitIndex(blocks, StoredCounts(paths.__getitem__, shard_frames, 1))


def work(folder: Path, rank: int, world_size: int) -> None:
    """Plan the lanes of one rank, as a training process does, and write what they take."""
    sets = [PlannedSet(open_set(folder, name), 0, repeat) for name, repeat in REPEATS.items()]
    plan = Plan(sets, lanes=LANES, edge_budget=12_000, atom_budget=400, seed=3)
    share = LANES // world_size
    lanes = range(rank * share, (rank + 1) * share)
    taken = {(step, lane): plan.micro_batch(step, lane).tolist() for step in STEPS for lane in lanes}
    (folder / f"taken-{rank}-of-{world_size}").write_text(repr(taken))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes")
    write_set(folder, "target", 300)
    write_set(folder, "source", 9000)
    return folder


@cache
def taken_by(world_size: int, folder: Path) -> Taken:
    """What all ranks take, every rank a process of its own."""
    # a server that has imported the code already: sixteen processes would otherwise each import torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.loading.plan"])
    ranks = [context.Process(target=work, args=(folder, rank, world_size)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world_size
    shares = [literal_eval((folder / f"taken-{rank}-of-{world_size}").read_text()) for rank in range(world_size)]
    assert [len(share) for share in shares] == [len(STEPS) * LANES // world_size] * world_size
    return {place: frames for share in shares for place, frames in share.items()}


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_several_processes_take_the_micro_batches_of_one(world_size: int, folder: Path) -> None:
    alone = taken_by(1, folder)
    assert all(alone.values())
    assert {frame < 300 for frames in alone.values() for frame in frames} == {True, False}
    assert taken_by(world_size, folder) == alone
