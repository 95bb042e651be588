"""The plan: balance beside other ways to batch, fill, order, and the start of a run on a corpus of 10⁸ frames.

Costs are those of mptrj-1k at 5 Å, replicated; runs of eleven similar frames stand for its trajectories, of which the
file has none, being random frames. The corpus of 10⁸ frames is index files only, with sizes like OMat24's.
"""

import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import data_pipeline.loading.plan
from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.plan import Plan, PlannedSet
from data_pipeline.sources import AseFiles
from data_pipeline.store.index import BlockIndex, SplitIndex, StoredCounts, index_path, save_shard_index, summed
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=plan"
SHARD_FRAMES, BLOCK_FRAMES, RUN_FRAMES = 65536, 256, 11


START = """
import time
started = time.perf_counter()
from tests.benchmarks.bench_plan import start
start(time.perf_counter() - started)
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    frames: str = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
    """The frames whose atoms and edges are planned."""
    replicas: int = 20
    """How often the file is repeated where batching is compared."""
    structures: int = 24
    """Mean structures of a full micro-batch."""
    num_run_frames: int = 524_288
    """Frames of the corpus of trajectories."""
    corpus: Path = Path("runs/bench/corpus")
    """Where the index files of the large corpus are written, once."""
    num_frames: int = 100_000_000
    """Frames of the large corpus."""
    lanes: int = 1024
    """Lanes of the large run."""
    world_size: int = 64
    """Ranks that share them."""


def run(config: Config) -> None:
    """Measure and write runs/bench/plan.json."""
    structures = list(AseFiles(files=(config.frames,)))
    atoms = np.array([len(structure.numbers) for structure in structures], dtype=np.int32)
    edges = np.array([to_graph(structure, 5.0).num_edges for structure in structures], dtype=np.int32)
    rows = []
    for lanes in (8, 64):
        rows += balance(np.tile(atoms, config.replicas), np.tile(edges, config.replicas), lanes, config.structures)
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.choice(edges, -(-config.num_run_frames // RUN_FRAMES)), RUN_FRAMES)[: config.num_run_frames]
    # the frames of a run differ a little, or packing would keep siblings apart by their equal costs
    rows += order((runs * rng.uniform(0.97, 1.03, len(runs))).astype(np.int32), config.structures)
    write("plan", rows + starts(config))


def row(measure: str, value: float, unit: str, bar: float | None = None, *, at_most: bool = True) -> Row:
    """Return a row without a peer."""
    holds = None if bar is None else bool(value <= bar if at_most else value >= bar)
    return Row(measure=measure, value=float(value), unit=unit, bar=bar, holds=holds, command=COMMAND)


# Batching ---------------------------------------------------------------------------------------------------------


def one_set(atoms: np.ndarray, edges: np.ndarray, block_frames: int = BLOCK_FRAMES) -> list[PlannedSet]:
    """Return a data set of these frames, all costs in memory."""
    sizes = np.diff(np.append(np.arange(0, len(edges), block_frames), len(edges)))
    return [PlannedSet(SplitIndex.in_memory(sizes, atoms, edges[:, None]), 0)]


def first_pass(plan: Plan) -> list[list[np.ndarray]]:
    """Return the micro-batches of the first pass: step by step, lane by lane."""
    return [[plan.micro_batch(step, lane) for lane in range(plan.lanes)] for step in range(plan.steps_of_pass(0))]


def balance(atoms: np.ndarray, edges: np.ndarray, lanes: int, structures: int) -> list[Row]:
    """Return how evenly a step is shared by ranks of one lane, here and as others batch; and how full it is."""
    where = f"{lanes} lanes, mptrj-1k x {len(edges) // 1000}"
    sizes = f"{structures} structures, blocks of {BLOCK_FRAMES}"
    budget = int(structures * edges.mean())
    steps = first_pass(Plan(one_set(atoms, edges), lanes=lanes, edge_budget=budget, oversize="alone"))
    assert np.array_equal(np.sort(np.concatenate([frames for step in steps for frames in step])), np.arange(len(edges)))
    shuffled = np.random.default_rng(0).permutation(len(edges))
    atom_budget = int(structures * atoms.mean())
    batchings = {
        "plan": steps,
        "fixed count": in_fixed_count(shuffled, lanes, structures),
        "max-atoms, next-fit": next_fit(shuffled, atoms, lanes, atom_budget),
        "max-edges, next-fit": next_fit(shuffled, edges, lanes, budget),
        "longest first in a global batch": global_batches(shuffled, edges, lanes, structures),
    }
    loads = {
        name: np.array([[edges[frames].sum() for frames in step] for step in some]) for name, some in batchings.items()
    }
    dropped = {
        name: len(edges) - sum(len(frames) for step in some for frames in step) for name, some in batchings.items()
    }
    rows = [row(f"edges per step, max/mean; {where}, {sizes}", unevenness(loads["plan"]), "ratio", 1.01)]
    fill = loads["plan"].mean() / budget
    bar = 0.98 if len(steps) >= 100 else None
    rows.append(row(f"fill of the edge budget; {where}, {len(steps)} steps", fill, "share", bar, at_most=False))
    rows.append(row(f"largest micro-batch; {where}", loads["plan"].max() / budget, "of the edge budget"))
    measures: dict[str, tuple[str, Callable[[str], float]]] = {
        "edges per step, max/mean": ("ratio", lambda name: unevenness(loads[name])),
        "step cost, cv": ("ratio", lambda name: variation(loads[name])),
        "step cost, mean/largest": ("ratio", lambda name: loads[name].max(axis=1).mean() / loads[name].max()),
        "frames dropped": ("frames", lambda name: dropped[name]),
    }
    for measure, (unit, value) in measures.items():
        for peer in list(batchings)[1:]:
            ours, theirs = float(value("plan")), float(value(peer))
            rows.append(
                Row(
                    measure=f"{measure}; {where}",
                    value=ours,
                    unit=unit,
                    peer=peer,
                    peer_value=theirs,
                    ratio=ours / theirs if theirs else None,
                    command=COMMAND,
                )
            )
    return [*rows, small_budget(atoms, edges, lanes, where)]


def small_budget(atoms: np.ndarray, edges: np.ndarray, lanes: int, where: str) -> Row:
    """Return the balance at a budget that some frames exceed alone, which no packing can help."""
    budget = int(8 * edges.mean())
    steps = first_pass(Plan(one_set(atoms, edges), lanes=lanes, edge_budget=budget, oversize="alone"))
    loads = np.array([[edges[frames].sum() for frames in step] for step in steps])
    share = np.mean([len(frames) == 1 for step in steps for frames in step])
    return row(
        f"edges per step, max/mean; {where}, 8 structures, {share:.1%} of bins oversize", unevenness(loads), "ratio"
    )


def unevenness(loads: np.ndarray) -> float:
    """Return the mean over steps of the largest over the mean load of a lane."""
    return float(np.mean(loads.max(axis=1) / loads.mean(axis=1)))


def variation(loads: np.ndarray) -> float:
    """Return the standard deviation over the mean of the time of a step, which is its largest load."""
    cost = loads.max(axis=1)
    return float(cost.std() / cost.mean())


def in_fixed_count(frames: np.ndarray, lanes: int, count: int) -> list[list[np.ndarray]]:
    """Return batches of equal numbers of frames; the tail is dropped."""
    steps = len(frames) // (lanes * count)
    return [list(step) for step in frames[: steps * lanes * count].reshape(steps, lanes, count)]


def next_fit(frames: np.ndarray, costs: np.ndarray, lanes: int, budget: int) -> list[list[np.ndarray]]:
    """Return batches that each lane fills in turn from its share, to a budget; the surplus of lanes is dropped."""
    batches: list[list[list[int]]] = [[] for _ in range(lanes)]
    for lane, own in enumerate(batches):
        load = budget
        for frame in frames[lane::lanes].tolist():
            if load + costs[frame] > budget:
                own.append([])
                load = 0
            own[-1].append(frame)
            load += costs[frame]
    return [[np.array(batch) for batch in step] for step in zip(*batches, strict=False)]


def global_batches(frames: np.ndarray, costs: np.ndarray, lanes: int, count: int) -> list[list[np.ndarray]]:
    """Return steps of a fixed number of frames, dealt to the lanes longest first; the tail is dropped."""
    steps = []
    for start in range(0, len(frames) - lanes * count + 1, lanes * count):
        batch = frames[start : start + lanes * count]
        heap: list[tuple[int, int]] = [(0, lane) for lane in range(lanes)]
        taken: list[list[int]] = [[] for _ in range(lanes)]
        for frame in batch[np.argsort(-costs[batch], kind="stable")].tolist():
            load, lane = heap[0]
            taken[lane].append(frame)
            heapq.heapreplace(heap, (load + int(costs[frame]), lane))
        steps.append([np.array(some) for some in taken])
    return steps


# Order ------------------------------------------------------------------------------------------------------------


def order(edges: np.ndarray, structures: int) -> list[Row]:
    """Return how well a pass of trajectories is shuffled, by the frames of a window and of a unit."""
    rows, lanes = [], 8
    default = data_pipeline.loading.plan.WINDOW_FRAMES
    for window, block_frames in ((1024, 256), (4096, 64), (4096, 256), (4096, 1024), (16384, 256), (16384, 1024)):
        data_pipeline.loading.plan.WINDOW_FRAMES = window
        sets = one_set(np.ones_like(edges), edges, block_frames)
        plan = Plan(sets, lanes=lanes, edge_budget=int(structures * edges.mean()), oversize="alone")
        steps = first_pass(plan)
        unit = int(np.diff(plan._units[0].first).max())
        where = f"{lanes} lanes, {len(edges):,} frames in runs of {RUN_FRAMES}, windows of {window}, units of {unit}"
        chosen = (window, block_frames) == (default, BLOCK_FRAMES)
        rows.append(
            row(f"position in corpus and pass, |r|; {where}", correlation(steps), "r", 0.02 if chosen else None)
        )
        rows.append(row(f"structures beside a sibling; {where}", siblings(steps), "share"))
    data_pipeline.loading.plan.WINDOW_FRAMES = default
    return rows


def correlation(steps: list[list[np.ndarray]]) -> float:
    """Return the correlation of a frame's number with that of its step, without its sign."""
    frames = [np.concatenate(step) for step in steps]
    step = np.repeat(np.arange(len(frames)), [len(some) for some in frames])
    return float(abs(np.corrcoef(np.concatenate(frames), step)[0, 1]))


def siblings(steps: list[list[np.ndarray]]) -> float:
    """Return the share of structures that meet one of their own run in their micro-batch."""
    meeting = total = 0
    for frames in (frames for step in steps for frames in step):
        _, place, counts = np.unique(frames // RUN_FRAMES, return_inverse=True, return_counts=True)
        meeting += int((counts[place] > 1).sum())
        total += len(frames)
    return meeting / total


# Start ------------------------------------------------------------------------------------------------------------


def starts(config: Config) -> list[Row]:
    """Return what one rank needs before its first step of the large corpus is planned, fresh and in the third pass."""
    folder = write_corpus(config)
    where = f"{config.num_frames:,} frames, 1 of {config.world_size} ranks of {config.lanes} lanes"
    rows = []
    for name, passes in (("fresh start", 0.0), ("resume in pass 3", 2 + np.random.default_rng(0).random())):
        cold = drop_cache(folder)
        arguments = [str(folder), str(config.num_frames), str(config.lanes), str(config.world_size), str(passes)]
        command = [sys.executable, "-c", START, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        rows += [
            row(f"{name}: index read and first step planned; {where}, {cold}", found["planned"], "s", 2.0),
            row(f"{name}: of which until the budgets are checked", found["checked"], "s"),
            row(f"{name}: peak memory of the process", found["memory"], "MiB", 512.0),
            row(f"{name}: importing the code, before that", found["imported"], "s"),
            row(f"{name}: peak memory when it is imported", found["imported_memory"], "MiB"),
        ]
    return rows


def write_corpus(config: Config) -> Path:
    """Write the index files of log-normal frames, once; return their folder."""
    folder = config.corpus / str(config.num_frames)
    if (folder / "train.index.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for shard, count in enumerate(shard_frames(config.num_frames)):
        rng = np.random.default_rng([1, shard])
        atoms = np.clip(rng.lognormal(np.log(19) - 0.18, 0.6, count), 1, 500).astype(np.int32)
        edges = (atoms * rng.lognormal(np.log(36) - 0.045, 0.3, count)).astype(np.int32)[:, None]
        sizes = np.diff(np.append(np.arange(0, count, BLOCK_FRAMES), count))
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
        save_shard_index(index_path(folder / f"train-{shard:06d}.tar"), blocks, (atoms, edges))
        parts.append(blocks)
    BlockIndex.joined(parts, 1).save(folder / "train.index.safetensors")
    return folder


def shard_frames(num_frames: int) -> list[int]:
    """Return the frames of each shard."""
    return [min(SHARD_FRAMES, num_frames - start) for start in range(0, num_frames, SHARD_FRAMES)]


def drop_cache(folder: Path) -> str:
    """Forget what is cached of the files; return in what state that leaves them."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "page cache dropped"
    except OSError:
        pass
    if not hasattr(os, "posix_fadvise"):
        return "page cache warm"
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    return "pages of the files dropped by posix_fadvise"


def start(imported: float) -> None:
    """Plan the first step that a rank takes, in a process of its own; print seconds and memory as JSON."""
    imported_memory = peak_memory()
    folder, (num_frames, lanes, world_size), passes = Path(sys.argv[1]), map(int, sys.argv[2:5]), float(sys.argv[5])
    counts = shard_frames(num_frames)
    started = time.perf_counter()
    paths = [index_path(folder / f"train-{shard:06d}.tar") for shard in range(len(counts))]
    index = SplitIndex(BlockIndex.load(folder / "train.index.safetensors"), StoredCounts(paths.__getitem__, counts, 1))
    plan = Plan([PlannedSet(index, 0)], lanes=lanes, edge_budget=24 * 19 * 36, oversize="alone")
    checked = time.perf_counter() - started
    step, share = int(passes * plan.steps_of_pass(0)), lanes // world_size
    for lane in range(share, 2 * share):
        plan.micro_batch(step, lane)
    found = {"planned": time.perf_counter() - started, "checked": checked, "memory": peak_memory()}
    print(json.dumps({**found, "imported": imported, "imported_memory": imported_memory}))


def peak_memory() -> float:
    """Return the peak resident memory of this program [MiB]; getrusage would count the parent before exec."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
