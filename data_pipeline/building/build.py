"""Build: a source becomes shards and a manifest, with the same bytes for any number of processes.

Three steps: every part of the source is read and measured (staging.py), filters are applied over all frames
(filters.py), the shards are written (assembly.py). Finished parts and shards are kept in `<out>.partial`, so that a
killed build can continue; nothing appears under the target's name until everything is written. The price is that the
frames are written twice and take twice their space until the end; reading costs more in every format.

`mpirun -n N foundation build ...` divides parts and shards among N ranks that share the folder; each has its `workers`.
"""

import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from data_pipeline.building.assembly import Layout, ShardPlan, assembled, is_written, plan_shards, write_shard
from data_pipeline.building.filters import FilterConfig, check_ids, check_stress, decide, write_rejects
from data_pipeline.building.source_files import Snapshot, SourceChanged, refuse_changes, snapshot
from data_pipeline.building.splits import SPLITS, UNNAMED, SplitBy, Splits, split_name
from data_pipeline.building.staging import Reading, StagedFrames, drop_damaged, part_folder, part_folders, stage_part
from data_pipeline.building.workers import Task, assign, work
from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.sources import Part, SourceConfig
from data_pipeline.sources.ranks import each_rank_for_itself
from data_pipeline.store import durable, lock
from data_pipeline.store.block import Precision
from data_pipeline.store.json_record import Record, parse_json
from data_pipeline.store.manifest import SCHEMA_VERSION, Manifest, Provenance
from data_pipeline.store.replacing import named_paths, refuse_foreign, refuse_inside
from data_pipeline.structure import InvalidStructure

logger = logging.getLogger(__name__)
T = TypeVar("T")
PASSED_ON = 0.3
"""Time that the launcher has to pass a message on [s]: it drops what it still holds when the ranks are aborted."""
LAUNCHERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Environment variables of ranks set by MPI's process managers (MPICH and SLURM, PMIx, Open MPI)."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Options for building a data set from a source."""

    source: SourceConfig
    """Source of the frames."""
    provenance: Provenance
    """Facts that a model trained on the data must state."""
    out: Path
    """Folder to write."""
    cutoffs: tuple[float, ...] = (5.0,)
    """Cutoffs of the models to train [Å]: edges are counted at these, for planning and for the mean number of
    neighbours."""
    molecule_cutoffs: tuple[float, ...] = ()
    """The same between the centres of molecules, for models of grains; the frames must say which atoms are one."""
    val_fraction: float = 0.1
    """Fraction of the groups, or of the frames, for validation."""
    test_fraction: float = 0.1
    """Fraction of the groups, or of the frames, for the final evaluation; 1 with val_fraction 0 for data that is not
    trained on."""
    split_by: SplitBy = "group"
    """Unit of the split. group: whole groups, at random. order: the first frames of the source are train, the next val,
    the last test, for molecular dynamics, where a frame is almost its neighbour. blocks: the same within each group, so
    that every split has a part of it. random: single frames, for frames without relation. With fewer than five groups,
    group falls back to blocks, with a warning, and the manifest records blocks; groups named by the source's group_key
    stay whole, with a warning."""
    split_seed: int = 0
    """Seed of the split; that of a group, or of a frame under random, depends only on this and on its name."""
    block_frames: int = 256
    """Number of frames per block, the unit of reading."""
    shard_frames: int = 65536
    """Number of frames per shard."""
    positions: Precision = "float64"
    """Precision of the positions on disk: float32 rounds to 10⁻⁶ Å at 20 Å and saves 12 bytes an atom."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Frames to leave out."""
    workers: int = 1
    """Number of processes that read and write; under mpirun, per rank."""
    overwrite: bool = False
    """Replace an existing data set."""

    def __post_init__(self) -> None:
        if not self.cutoffs or min(*self.cutoffs, *self.molecule_cutoffs, 1.0) <= 0:
            raise ValueError(f"cutoffs must be positive lengths [Å], not {self.cutoffs} and {self.molecule_cutoffs}")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction > 1:
            raise ValueError("val_fraction and test_fraction must not be negative and together at most 1")
        if self.block_frames < 1 or self.shard_frames < self.block_frames:
            raise ValueError("block_frames must be at least 1 and shard_frames at least block_frames")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if (self.filters.min_distance or 0.0) > max(self.cutoffs):
            raise ValueError("filters.min_distance must be below the largest cutoff: distances are measured up to it")

    @property
    def planned_cutoffs(self) -> tuple[float, ...]:
        """Every cutoff at which edges are counted, those between molecules last [Å]."""
        return (*self.cutoffs, *map(MoleculeCutoff, self.molecule_cutoffs))


_OF_A_DATA_SET = re.compile(
    r"manifest\.json|rejects\.jsonl|(train|val|test)(-\d{6,}\.tar|(-\d{6,})?\.index\.safetensors)"
)
"""Names of the files of a data set."""


class DiskFull(OSError):
    """No space for the data set; the message says where and how much is missing."""


def build(config: BuildConfig) -> Manifest:
    """Build a data set and return its manifest; the same on every rank.

    Raises:
        InUse: another build writes to the same target.
        FileExistsError: the target exists and overwrite is False, is not a data set, or holds other files or the
            source.
        FileNotFoundError: a file of the source is missing.
        InvalidStructure: a frame or the source is refused. As after every error or kill, partial results stay in
            `<out>.partial` (if there are any) and the same call continues from there.
        SourceChanged: a file of the source was written to while it was read; the same call starts over.
        DiskFull: no space left.
        ChildProcessError: a worker was killed.
    """
    place = _Place(config.out)
    refuse_inside(named_paths(config.source, texts=True), [place.out, place.partial])
    with each_rank_for_itself(), _Ranks(place) as ranks, ranks.held(), _explained(place, alone=ranks.size == 1):
        parts = ranks.agree(lambda: _prepare(config, place))
        reading = _reading(config)
        todo = ranks.agree(lambda: [n for n in range(len(parts)) if not part_folder(place.staged, n).exists()])
        tasks: list[Task] = [(place.staged, number, parts[number], reading) for number in todo]
        ranks.work("reading", stage_part, tasks, [parts[number].size for number in todo], config.workers)
        ranks.agree(lambda: _check_source(place))
        plans, decided = ranks.agree(lambda: _decide(config, place, parts))
        layout = Layout(
            cutoffs=config.planned_cutoffs,
            block_frames=config.block_frames,
            shard_frames=config.shard_frames,
            positions=config.positions,
        )
        unwritten = ranks.agree(lambda: [p for p in plans if not is_written(place.data, place.receipts, p)])
        tasks = [(place.data, place.receipts, place.splits, plan, layout) for plan in unwritten]
        ranks.work("writing", write_shard, tasks, [plan.num_frames for plan in unwritten], config.workers)
        return ranks.agree(lambda: _finish(config, place, plans, decided))


def split_of(group: str, config: BuildConfig) -> str:
    """Return the split of a group under split_by group: a stable hash, so adding data never moves a group."""
    return split_name(group, config.split_seed, config.val_fraction, config.test_fraction)


def is_first_rank() -> bool:
    """Return whether this process is not under mpirun, or is the first rank."""
    return all(os.environ.get(name, "0") == "0" for name in LAUNCHERS)


class _Place:
    """Folders of a build: `<out>` and, until it is complete, those in `<out>.partial`."""

    def __init__(self, out: Path) -> None:
        self.lock, self.out = lock.beside(out), lock.real(out)
        self.partial = durable.partial_of(self.out)
        # also in the form of a source's paths, where links are not followed
        self._own = (self.partial, out.absolute().parent / self.partial.name)
        self.state = self.partial / "state.json"
        self.staged, self.receipts, self.data = (self.partial / name for name in ("staged", "receipts", "data"))
        self.splits, self.failed = self.partial / "splits.npy", self.partial / "failed"
        self.source: Snapshot = {}

    def is_own(self, path: Path) -> bool:
        """Return whether a file in a folder of the source belongs to this build, or is a lock."""
        return path.name.endswith(lock.NAME) or any(path.is_relative_to(own) for own in self._own)


def _reading(config: BuildConfig) -> Reading:
    return Reading(
        cutoffs=config.planned_cutoffs,
        positions=config.positions,
        split_seed=config.split_seed,
        isolated_atoms=config.filters.isolated_atoms == "reject",
        duplicates=config.filters.duplicates == "reject",
        refuse=config.filters.invalid == "error",
    )


def _prepare(config: BuildConfig, place: _Place) -> list[Part]:
    """Check the target and keep valid results of an earlier attempt; return the parts of the source."""
    durable.put_back(place.out)
    if place.out.exists() and place.partial.exists() and not place.data.exists():
        shutil.rmtree(place.partial)  # killed when everything was in its place
    _check_target(config)
    # before the parts are listed: later writes are noticed
    place.source = snapshot(config.source, place.is_own)
    parts = list(config.source.parts())
    fingerprints = _fingerprints(config, parts, place)
    earlier = _state(place.state)
    if place.partial.exists() and earlier.get("reading") != fingerprints["reading"]:
        logger.info("%s belongs to other files or settings, or is incomplete: starting over", place.partial)
        place.state.unlink(missing_ok=True)  # first, so that a half removed folder is never continued
        shutil.rmtree(place.partial)
    elif earlier:
        drop_damaged(place.staged)
        done = sum(part_folder(place.staged, number).exists() for number in range(len(parts)))
        logger.info("continuing from %s: %d of %d parts are read", place.partial, done, len(parts))
        if earlier["whole"] != fingerprints["whole"]:
            shutil.rmtree(place.receipts, ignore_errors=True)
            shutil.rmtree(place.data, ignore_errors=True)
    for folder in (place.staged, place.receipts, place.data):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*" + durable.PARTIAL):
            durable.remove(leftover)
    place.failed.unlink(missing_ok=True)
    sizes = [part.size for part in parts]
    durable.write_whole(place.state, json.dumps({**fingerprints, "sizes": sizes}))
    return parts


def _check_target(config: BuildConfig) -> None:
    """Refuse an existing target, unless it holds a data set and nothing else, and overwrite is True."""
    if not config.out.exists():
        return
    if not config.overwrite:
        raise FileExistsError(f"{config.out} already exists; choose another --out or set --overwrite true")
    refuse_foreign(config.out, "data set", "manifest.json", _is_of_a_data_set)


def _is_of_a_data_set(path: Path) -> bool:
    return path.is_file() and (_OF_A_DATA_SET.fullmatch(path.name) is not None or path.name.endswith(lock.NAME))


def _check_source(place: _Place) -> None:
    try:
        refuse_changes(place.source)
    except SourceChanged:
        place.state.unlink(missing_ok=True)  # so that the next call starts over
        raise


def _fingerprints(config: BuildConfig, parts: Sequence[Part], place: _Place) -> dict[str, str]:
    """Return hashes of everything that the staged parts and the shards depend on."""
    names = [[part.name, part.size] for part in parts]
    source = [SCHEMA_VERSION, type(config.source).__name__, asdict(config.source), names, place.source]
    # a build that got here refused nothing, so `refuse` may change
    reading = {key: value for key, value in asdict(_reading(config)).items() if key != "refuse"}
    values = {"reading": [source, reading], "whole": [source, _recorded(config)]}
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _recorded(config: BuildConfig) -> dict:
    """Return the configuration to record, without paths and worker counts, which do not affect the data."""
    values = json.loads(json.dumps(asdict(config), default=str))
    for name in ("out", "overwrite", "workers"):
        del values[name]
    return values


class _Decided(NamedTuple):
    """Facts for the manifest that follow from all frames."""

    rejected: dict[str, int]
    split_by: SplitBy


def _decide(config: BuildConfig, place: _Place, parts: list[Part]) -> tuple[list[ShardPlan], _Decided]:
    """Apply the filters, write the list of rejected frames, and return the frames of each shard."""
    frames = StagedFrames(place.staged, len(parts))
    check_ids(frames)
    if config.filters.stress_check:
        check_stress(frames)
    rejections = decide(frames, config.filters)
    splits = Splits(
        frames,
        rejections,
        config.val_fraction,
        config.test_fraction,
        config.split_by,
        group_key=getattr(config.source, "group_key", None),
        seed=config.split_seed,
        named=frames.of_parts([UNNAMED if part.split is None else SPLITS.index(part.split) for part in parts]),
    )
    rejected = write_rejects(place.data / "rejects.jsonl", frames, parts, rejections)
    if rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in rejected.items())
        logger.warning("%d frames are left out: %s (listed in rejects.jsonl)", sum(rejected.values()), reasons)
    plans = plan_shards(frames, splits.of_frames, config.shard_frames)
    trains = config.val_fraction + config.test_fraction < 1
    if not plans or (trains and plans[0].split != 0):
        reasons = ", ".join(f"{number:,} for {reason}" for reason, number in rejected.items())
        few = "the source has too few groups or frames; --split_by blocks divides every group"
        raise InvalidStructure(
            f"no frame fell into {'the training' if trains else 'any'} split; "
            + (f"the filters left out {reasons}, the first: {_first_reject(place)}" if rejected else f"{few}.")
        )
    buffer = io.BytesIO()
    np.save(buffer, splits.of_frames)
    durable.write_whole(place.splits, buffer.getvalue())
    for remark in splits.remarks():
        logger.warning("%s", remark)
    return plans, _Decided(rejected, splits.by)


def _first_reject(place: _Place) -> str:
    """Return the reason of the first frame that is left out."""
    with (place.data / "rejects.jsonl").open() as file:
        return Record(parse_json(file.readline().encode()), file.name).text("detail")


def _finish(config: BuildConfig, place: _Place, plans: list[ShardPlan], decided: _Decided) -> Manifest:
    """Write the manifest and rename the data to the target."""
    _check_source(place)
    manifest = Manifest(
        provenance=config.provenance,
        splits=assembled(place.data, place.receipts, plans, config.planned_cutoffs),
        build_config=_recorded(config) | {"split_by": decided.split_by},
        rejected=decided.rejected,
        root=config.out,
    )
    durable.write_whole(place.data / "manifest.json", manifest.to_text())
    durable.put_in_place(place.data, place.out)
    shutil.rmtree(place.partial)
    return manifest


def _state(path: Path) -> dict[str, Any]:
    """Return the state of an earlier call; {} if it is missing or damaged."""
    try:
        state = Record(parse_json(path.read_bytes()), str(path)).only("reading", "whole", "sizes")
        return {"reading": state.text("reading"), "whole": state.text("whole"), "sizes": state.counts("sizes")}
    except (OSError, ValueError):
        return {}


@contextmanager
def _explained(place: _Place, *, alone: bool) -> Iterator[None]:
    """Add to an error where partial results are kept, delete an empty partial folder, and explain a full disk."""
    try:
        yield
    except SourceChanged:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, InvalidStructure):
            _check_source(place)  # a file that was being written is unreadable, and that is the error to report
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error = DiskFull(_disk_full(place, error))
        if not part_folders(place.staged):
            if alone:
                shutil.rmtree(place.partial, ignore_errors=True)
            raise error from error.__cause__
        kept = f"Partial results stay in {place.partial}; the same command continues from there."
        if isinstance(error, InvalidStructure | DiskFull | ChildProcessError | KeyboardInterrupt):
            raise type(error)(f"{error} {kept}".strip()) from error
        error.add_note(kept)
        raise


def _disk_full(place: _Place, error: OSError) -> str:
    """Return a message with the missing space: staged frames and shards take the same, and both exist at the end."""
    staged, written = (sum(p.stat().st_size for p in f.rglob("*.tar")) for f in (place.staged, place.data))
    sizes = _state(place.state).get("sizes", [])
    read = [size for number, size in enumerate(sizes) if part_folder(place.staged, number).exists()]
    # before a part is complete, staged frames are taken to be as large as the source
    needed = 2 * (staged * sum(sizes) / sum(read) if sum(read) else sum(sizes)) - staged - written
    how_much = f"About {_bytes(needed)} more are needed" if needed > 0 else "A little more is needed"
    free = shutil.disk_usage(place.partial).free
    return (
        f"{place.partial}: no space to write ({error.strerror}). {how_much} (frames are "
        f"written twice, staged and in shards), {_bytes(free)} are free. Make space."
    )


def _bytes(number: int | float) -> str:
    return f"{number / 1e9:,.1f} GB" if number > 1e9 else f"{number / 1e6:,.1f} MB"


class _Ranks:
    """Processes of an MPI launch, or this one alone. An error on one ends all of them and is shown once."""

    def __init__(self, place: _Place) -> None:
        self._place, self._world = place, _world()
        self.rank, self.size = (0, 1) if self._world is None else (self._world.Get_rank(), self._world.Get_size())

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or self.size == 1:
            return
        if isinstance(error, lock.InUse) or self._speaks():
            unexpected = not isinstance(error, ValueError | OSError | KeyboardInterrupt)
            message = "".join(traceback.format_exception(error)) if unexpected else str(error)
            print(f"foundation: rank {self.rank}: {message}", file=sys.stderr, flush=True)
            time.sleep(PASSED_ON)
        self._world.Abort(2)  # the others would wait for this rank forever
        os._exit(2)  # Abort may return before it takes effect, and the caller would show the error again

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock of the target; the first rank does so for all."""
        with lock.hold(self._place.lock, self._place.out) if self.rank == 0 else nullcontext():
            yield

    def _speaks(self) -> bool:
        """Return whether this rank is the first to fail."""
        try:
            os.close(os.open(self._place.failed, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def agree(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank and return its result on all."""
        if self._world is None:
            return function()
        return self._world.bcast(function() if self.rank == 0 else None, root=0)

    def work(
        self, label: str, function: Callable[..., None], tasks: Sequence[Task], sizes: Sequence[int], workers: int
    ) -> None:
        """Do every task on one of the ranks; the first shows the progress of its own share."""
        mine = assign(sizes, self.size)[self.rank]
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
        hidden = self.rank > 0 or not sys.stderr.isatty()
        with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
            bar = progress.add_task(label, total=sum(sizes[number] for number in mine))
            for done in work(function, [tasks[number] for number in mine], workers):
                progress.advance(bar, sizes[mine[done]])
        if self._world is not None:
            self._world.Barrier()


def _world() -> Any:
    """Return MPI's communicator of all ranks, or None if this process was not launched by MPI."""
    if not any(name in os.environ for name in LAUNCHERS):
        return None
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise FileNotFoundError("launched by mpirun, but mpi4py is not installed: pip install mpi4py mpich") from error
    return MPI.COMM_WORLD
