"""Reading shards beside .aselmdb, and finished batches delivered to the training process beside vesin alone.

The data are the 1,000 random MPtrj frames of mptrj-1k, replicated. What a worker does is measured as the CPU time of
the worker process, whatever else the machine is doing, and beside it the rate by the clock.
"""

import dataclasses
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import torch
import vesin
from torch.utils.data import DataLoader, IterableDataset

from data_pipeline.graphs.batch import Graphs, collate, neighbor_list
from data_pipeline.loading.datasets import Dataset, Frames, Mixture
from data_pipeline.loading.stream import Stream
from data_pipeline.sources import AseFiles
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.block import Precision
from data_pipeline.store.index import BlockIndex, index_path
from data_pipeline.store.manifest import Manifest, Provenance, Shard, Split, split_index_path
from data_pipeline.store.shards import sha256, shard_writer
from data_pipeline.structure import Structure
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=stream"
CUTOFF = 5.0
BLOCK_FRAMES = 256
LANES = 4
FIRST_WORKERS = 2
"""Workers that prepare the first step."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    copies: int = 100
    """Copies of the 1,000 frames that are decoded."""
    peer_copies: int = 5
    """Copies in the .aselmdb file, which is read in every round."""
    stream_copies: int = 20
    """Copies in the data set that is streamed."""
    steps: int = 40
    """Steps of four micro-batches that are delivered in every round."""
    edge_budget: int = 27000
    """Directed edges of a micro-batch: about 24 frames."""
    rounds: int = 5
    """Measured rounds, everything taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/stream.json."""
    torch.set_num_threads(1)
    file = Path(os.environ.get("FOUNDATION_DATA", "../shared/data")).resolve() / "mptrj-1k" / "mptrj-random-1k.xyz"
    source = AseFiles(files=(str(file),), group_key="mptrj_traj_id", id_key="mptrj_snapshot_id")
    structures = list(source)
    edges = [(len(neighbor_list(structure, CUTOFF).distances),) for structure in structures]

    def data_set(name: str, copies: int, positions: Precision = "float64") -> Manifest:
        (Path(folder) / name).mkdir()
        return _data_set(Path(folder) / name, structures, edges, copies, positions)

    with tempfile.TemporaryDirectory() as folder:
        large = data_set("large", config.copies)
        peer = Path(folder) / "peer.aselmdb"
        _write_aselmdb(peer, file, config.peer_copies)
        rows = [*_decoding(large, peer, config), _first_step(large, config)]
        per_frame = peer.stat().st_size / (config.peer_copies * len(structures))
        rows.append(_size_row("float64", large, per_frame, 0.75))
        rows.append(_size_row("float32", data_set("float32", config.peer_copies, "float32"), per_frame, 0.60))
        rows += _delivery(data_set("streamed", config.stream_copies), config)
    write("stream", rows)


def _data_set(
    folder: Path, structures: Sequence[Structure], edges: list[tuple[int]], copies: int, positions: Precision
) -> Manifest:
    """Write copies of the frames as one shard, and return its manifest."""
    frames = [dataclasses.replace(s, id=f"{s.id}-{copy}") for copy in range(copies) for s in structures]
    counts = edges * copies
    shard = folder / "train-000000.tar"
    total = Statistics(cutoffs=(CUTOFF,))
    with shard_writer(shard, 1, positions) as writer:
        for start in range(0, len(frames), BLOCK_FRAMES):
            stretch = slice(start, start + BLOCK_FRAMES)
            writer.write(frames[stretch], counts[stretch])
            total.add(frames[stretch], np.array(counts[stretch]))
    BlockIndex.joined([BlockIndex.load(index_path(shard))], 1).save(split_index_path(folder, "train"))
    entry = Shard(
        name=shard.name,
        sha256=sha256(shard),
        num_bytes=shard.stat().st_size,
        num_frames=len(frames),
        index_sha256=sha256(index_path(shard)),
    )
    split = Split(shards=(entry,), statistics=total, index_sha256=sha256(split_index_path(folder, "train")))
    facts = dict.fromkeys((field.name for field in dataclasses.fields(Provenance)), "MPtrj")
    return Manifest(provenance=Provenance(**facts), splits={"train": split}, build_config={}, root=folder)


def _write_aselmdb(path: Path, file: Path, copies: int) -> None:
    atoms = ase.io.read(file, ":")
    with ase.db.connect(path, type="aselmdb") as rows:
        for _ in range(copies):
            for frame in atoms:
                names = {"id": frame.info["mptrj_snapshot_id"], "group": frame.info["mptrj_traj_id"]}
                rows.write(frame, data=names)


def _first_step(manifest: Manifest, config: Config) -> Row:
    """Time by the clock from nothing to the first step of one rank with 16 lanes, its shard not in the page cache."""
    seconds = []
    for seed in range(config.rounds):
        for path in manifest.shard_paths("train"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        datasets = [Dataset(manifest=manifest)]
        stream = Stream(
            datasets, cutoff=CUTOFF, lanes=16, edge_budget=config.edge_budget, seed=seed, num_workers=FIRST_WORKERS
        )
        next(iter(stream.from_step(0)))
        seconds.append(time.perf_counter() - started)
    return Row(
        measure=f"time to the first step of 16 micro-batches, {FIRST_WORKERS} workers, shard not in the page cache",
        value=statistics.median(seconds),
        unit="s by the clock",
        command=COMMAND,
    )


def _decoding(manifest: Manifest, peer: Path, config: Config) -> list[Row]:
    frames = manifest.split("train").statistics.num_frames

    def ours() -> int:
        return sum(structure.num_atoms for structure in Frames(manifest, "train"))

    def theirs() -> int:
        rows = ase.db.connect(peer, type="aselmdb", readonly=True)
        return sum(len(rows.get(number).toatoms()) for number in range(1, config.peer_copies * 1000 + 1))

    assert theirs() * config.copies == ours() * config.peer_copies
    seconds = interleaved({"ours": ours, "theirs": theirs}, config.rounds)
    rate, peer_rate = frames / seconds["ours"], config.peer_copies * 1000 / seconds["theirs"]
    unit = "frames/s, one core"
    measure = f"shards to Structures, {frames:,} MPtrj frames"
    return [
        Row(measure=measure, value=rate, unit=unit, bar=60000, holds=rate >= 60000, command=COMMAND),
        Row(
            measure=measure,
            value=rate,
            unit=unit,
            peer=".aselmdb to Atoms, ase-db-backends",
            peer_value=peer_rate,
            ratio=rate / peer_rate,
            bar=15,
            holds=rate >= 15 * peer_rate,
            command=COMMAND,
        ),
    ]


def _size_row(positions: str, manifest: Manifest, peer: float, bar: float) -> Row:
    """Return the bytes of a frame, index included."""
    num_bytes = sum(path.stat().st_size for path in manifest.root.iterdir())
    ours = num_bytes / manifest.split("train").statistics.num_frames
    return Row(
        measure=f"size on disk, {positions} positions",
        value=ours,
        unit="bytes/frame",
        peer=".aselmdb of the same frames",
        peer_value=peer,
        ratio=ours / peer,
        bar=bar,
        holds=ours <= bar * peer,
        command=COMMAND,
    )


@dataclass
class _Round:
    """What one way of delivering took, of one round [s]."""

    wall: float
    worker: float
    trainer: float


class _Stock(IterableDataset):
    """The same batches for PyTorch's DataLoader."""

    def __init__(self, stream: Stream, steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __iter__(self) -> Iterator[list]:
        mixture = Mixture(self.stream.datasets, "error")
        for step in range(self.steps):
            numbers = [self.stream.plan.micro_batch(step, lane) for lane in range(LANES)]
            yield [collate(mixture.take(batch)[0], CUTOFF) for batch in numbers]


def _measured(deliver: Callable[[], int]) -> _Round:
    """Time a delivery by a worker that starts and ends with it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, own = time.perf_counter(), time.process_time()
    deliver()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worker = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Round(wall=wall, worker=worker, trainer=own)


def _delivery(manifest: Manifest, config: Config) -> list[Row]:
    datasets = [Dataset(manifest=manifest)]
    stream = Stream(datasets, cutoff=CUTOFF, lanes=LANES, edge_budget=config.edge_budget, num_workers=1)
    mixture = Mixture(datasets, "error")
    batches = [stream.plan.micro_batch(step, lane) for step in range(config.steps) for lane in range(LANES)]
    structures = [structure for batch in batches for structure in mixture.take(batch)[0]]
    atoms = sum(structure.num_atoms for structure in structures)

    def vesin_alone() -> None:
        searcher = vesin.NeighborList(cutoff=CUTOFF, full_list=True, n_threads=1)
        for s in structures:
            searcher.compute(points=s.positions, box=s.cell, periodic=s.pbc, quantities="ijS")

    def ring() -> int:
        return sum(len(batch.numbers) for step in stream.from_step(0, config.steps) for batch in step)

    def stock() -> int:
        loader = DataLoader(_Stock(stream, config.steps), batch_size=None, num_workers=1, prefetch_factor=4)
        return sum(len(batch.numbers) for step in loader for batch in step)

    assert ring() == stock() == atoms
    alone, rings, stocks, stages = [], [], [], []
    for number in range(config.rounds + 1):
        started = time.process_time()
        vesin_alone()
        alone.append(time.process_time() - started)
        rings.append(_measured(ring))
        stocks.append(_measured(stock))
        stages.append(_stages(stream, datasets, batches))
        if number == 0:
            alone, rings, stocks, stages = [], [], [], []
    return _delivery_rows(atoms, statistics.median(alone), rings, stocks, stages)


def _stages(stream: Stream, datasets: list[Dataset], batches: list[np.ndarray]) -> dict[str, float]:
    """Return the CPU seconds of each stage, all in this process."""
    seconds = dict.fromkeys(("plan", "read and decode", "neighbour lists", "collate", "copy out of the ring"), 0.0)
    mixture, clock = Mixture(datasets, "error"), time.process_time
    fresh = Stream(datasets, cutoff=CUTOFF, lanes=LANES, edge_budget=stream.plan.settings["edge_budget"])
    slot = np.zeros(stream._slot_bytes, dtype=np.uint8)
    for number in range(len(batches)):
        times = [clock()]
        frames = fresh.plan.micro_batch(*divmod(number, LANES))
        times.append(clock())
        structures, origins, _ = mixture.take(frames)
        times.append(clock())
        graphs = Graphs(structures, CUTOFF, [dataset.theory_number for dataset in origins])
        times.append(clock())
        part = slot[: graphs.layout.num_bytes]
        graphs.write(part)
        times.append(clock())
        buffer = torch.empty(graphs.layout.num_bytes, dtype=torch.uint8)
        buffer.numpy()[:] = part
        graphs.layout.batch(buffer)
        times.append(clock())
        for stage, spent in zip(seconds, np.diff(times), strict=True):
            seconds[stage] += spent
    return seconds


def _delivery_rows(
    atoms: int, alone: float, rings: list[_Round], stocks: list[_Round], stages: list[dict[str, float]]
) -> list[Row]:
    def median(rounds: list[_Round], name: str) -> float:
        return statistics.median(getattr(one, name) for one in rounds)

    rate, measure = atoms / median(rings, "worker"), f"batches delivered, {CUTOFF:g} Å"
    unit = "atoms/s per worker core"
    rows = [
        Row(measure=measure, value=rate, unit=unit, bar=60000, holds=rate >= 60000, command=COMMAND),
        Row(
            measure=measure,
            value=rate,
            unit=unit,
            peer="vesin alone, pairs unsorted",
            peer_value=atoms / alone,
            ratio=rate * alone / atoms,
            bar=0.5,
            holds=rate >= 0.5 * atoms / alone,
            command=COMMAND,
        ),
    ]
    for name, unit in (
        ("worker", "atoms/s per worker core"),
        ("wall", "atoms/s by the clock, one worker"),
        ("trainer", "atoms/s per core of the training process"),
    ):
        ours, theirs = atoms / median(rings, name), atoms / median(stocks, name)
        peer = {"peer": "the same through DataLoader", "peer_value": theirs, "ratio": ours / theirs}
        rows.append(Row(measure=measure, value=ours, unit=unit, command=COMMAND, **peer))
    spent = {stage: statistics.median(one[stage] for one in stages) for stage in stages[0]}
    rows += [
        Row(measure=f"stage: {stage}", value=value / sum(spent.values()), unit="share", command=COMMAND)
        for stage, value in spent.items()
    ]
    return rows
