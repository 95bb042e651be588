"""Checks of a run before its first step: folder, lanes, data and micro-batches."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import Plan
from data_pipeline.loading.stream import Stream
from data_pipeline.store.index import SplitIndex
from data_pipeline.store.lock import InUse
from data_pipeline.store.manifest import Split
from foundation.finetuning.config import FinetuneConfig
from foundation.kernels.convolution import cuda_verdicts
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig
from foundation.run_folder import found_checkpoint, refuse_in_use
from foundation.training.additions import Rehearsal
from foundation.training.fit import check_processes
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig
from foundation.training.strategy import make_strategy

Verdict = Literal["ok", "warn", "fail"]
SAMPLED_BATCHES = 1024
"""Number of micro-batches from the beginning of a run to examine."""
SAMPLED_BLOCKS = 32
"""Number of evenly spaced blocks of a split whose checksums are compared; with verify, every file is."""
FEW_STRUCTURES = 8
"""Number of structures in the mean micro-batch below which micro-batches are uneven."""
UNEVEN = 1.05
"""Ratio of the largest to the mean work of a process in a step above which waiting is noticeable."""
STEPS_OF_LADDER = (0.25, 0.5, 1.0)
"""Sizes of the micro-batches to which lines are fitted, as fractions of the largest."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    """Subject of the check."""
    verdict: Verdict
    """ok; warn: needs attention; fail: the run would not finish."""
    finding: str
    """Finding."""
    advice: str = ""
    """Advice."""


def check_folder(config: PretrainConfig | FinetuneConfig, *, settled: bool = True) -> Check:
    """Check that the run folder can be made or resumed.

    Args:
        config: Configuration of the run.
        settled: False if its data are still to decide what it leaves out, which is then not compared.
    """
    out = config.out
    if out.exists() and not config.fit.resume and not config.overwrite:
        return Check(
            name="run folder",
            verdict="fail",
            finding=f"{out} already exists",
            advice="continue it with --fit.resume true, replace it with --overwrite true, or choose another --out",
        )
    try:
        refuse_in_use(out)
        checkpoint = found_checkpoint(config, settled=settled)
    except (FileNotFoundError, InUse, ValueError) as error:
        return Check(name="run folder", verdict="fail", finding=str(error))
    if not os.access(existing_parent(out), os.W_OK):
        return Check(
            name="run folder",
            verdict="fail",
            finding=f"{existing_parent(out)} cannot be written to",
            advice="choose another --out",
        )
    return Check(name="run folder", verdict="ok", finding=f"{out}, {'resumes' if checkpoint else 'new'}")


def existing_parent(path: Path) -> Path:
    """Return the nearest existing folder of a path."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def check_lanes(fit: FitConfig, machine: MachineConfig) -> Check:
    """Return the division of lanes; the config itself refuses a number of processes that does not divide them."""
    world_size = machine.world_size
    sizes = ", ".join(str(size) for size in range(1, fit.lanes + 1) if fit.lanes % size == 0)
    return Check(
        name="lanes",
        verdict="ok",
        finding=f"{fit.lanes} lanes over {world_size} processes ({machine.num_nodes} nodes x {machine.devices}), "
        f"{fit.lanes // world_size} each; also possible: {sizes}",
    )


def check_strategy(machine: MachineConfig, optim: OptimConfig, rehearsal: Rehearsal | None = None) -> Check:
    """Check that the strategy works with the number of processes, the installed packages, optimizer and rehearsal."""
    try:
        make_strategy(machine.strategy, machine.world_size, optim.clip_norm)
        check_processes(machine, optim, rehearsal)
    except ValueError as error:
        return Check(name="strategy", verdict="fail", finding=str(error))
    return Check(name="strategy", verdict="ok", finding=machine.strategy)


def check_kernels(potential: Potential, number: int) -> Check | None:
    """Check that the own CUDA kernels of a potential's convolutions work on a device; None without convolutions."""
    verdicts = cuda_verdicts(potential, number)
    if not verdicts:
        return None
    wrong = [verdict.finding for verdict in verdicts if not verdict.works]
    if wrong:
        return Check(
            name="CUDA kernels",
            verdict="warn",
            finding=f"not used: {wrong[0]}",
            advice="please report this line; OpenEquivariance or plain torch computes the convolution instead",
        )
    findings = "; ".join(dict.fromkeys(verdict.finding for verdict in verdicts))
    return Check(name="CUDA kernels", verdict="ok", finding=f"self-check of {len(verdicts)} convolutions: {findings}")


def check_files(dataset: Dataset, *, verify: bool, quarantine: bool) -> Check:
    """Check that the shards of training and validation exist, and that a sample of their blocks (or all) is intact."""
    manifest, checked = dataset.manifest, 0
    name = f"shards of {manifest.provenance.name}"
    splits = {part: manifest.splits[part] for part in (dataset.split, "val") if part in manifest.splits}
    try:
        for part, split in splits.items():
            if manifest.remote is None:
                for path, shard in zip(manifest.shard_paths(part), split.shards, strict=True):
                    _check_size(path, shard.num_bytes)
            index = manifest.index(part)
            numbers = np.unique(np.linspace(0, len(index.blocks.size) - 1, SAMPLED_BLOCKS).astype(int))
            for number in numbers[: len(index.blocks.size)].tolist():
                manifest.read_block(part, index.blocks, number)
                checked += 1
        if verify:
            manifest.verify()
    except (ValueError, OSError) as error:
        advice = "copy or build them again"
        if quarantine:
            advice += "; the run would leave out the frames of these blocks (corrupt: quarantine)"
        return Check(name=name, verdict="warn" if quarantine else "fail", finding=str(error), advice=advice)
    shards, size = (sum(values) for values in zip(*((len(s.shards), _bytes(s)) for s in splits.values()), strict=True))
    intact = "every file has its checksum" if verify else f"{checked} blocks read and intact"
    return Check(name=name, verdict="ok", finding=f"{shards} shards, {size / 1e6:,.1f} MB; {intact}")


def _bytes(split: Split) -> int:
    return sum(shard.num_bytes for shard in split.shards)


def _check_size(path: Path, num_bytes: int) -> None:
    size = path.stat().st_size
    if size != num_bytes:
        raise OSError(f"{path}: {size} bytes, but {num_bytes} in the manifest")


def check_cutoff(dataset: Dataset, cutoff: float) -> Check:
    """Check that the edges of a data set were counted at the model's cutoff."""
    statistics, name = dataset.manifest.split(dataset.split).statistics, f"cutoff of {dataset.manifest.provenance.name}"
    try:
        statistics.cutoff_number(cutoff)
    except ValueError as error:
        return Check(name=name, verdict="fail", finding=str(error))
    neighbors = statistics.mean_neighbors(cutoff)
    return Check(name=name, verdict="ok", finding=f"edges counted at {cutoff} Å; {neighbors:.1f} neighbours on average")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """Micro-batches from the beginning of a run, step by step and lane by lane."""

    frames: Int64[np.ndarray, " frames"]
    """Their frames, numbered as in the plan, one micro-batch after another."""
    frame_edges: Int64[np.ndarray, " frames"]
    """Number of directed edges of each frame."""
    ends: Int64[np.ndarray, " batches_plus_one"]
    """Micro-batch i is frames ends[i] to ends[i + 1] - 1."""
    edges: Int64[np.ndarray, "steps lanes"]
    """Number of directed edges of each micro-batch."""
    atoms: Int64[np.ndarray, "steps lanes"]
    """Number of atoms of each micro-batch."""
    graphs: Int64[np.ndarray, "steps lanes"]
    """Number of structures of each micro-batch."""
    largest_frame: int
    """Number of the largest structure of the run, sampled or not."""
    largest_frame_edges: int
    """Its edges."""

    def __getitem__(self, number: int) -> Int64[np.ndarray, " frames"]:
        return self.frames[self.ends[number] : self.ends[number + 1]]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def cut(self, frames: Int64[np.ndarray, " frames"], largest: int) -> Int64[np.ndarray, " fewer"]:
        """Return the first frames of a micro-batch with up to `largest` edges, at least one."""
        if len(frames) == 1:
            return frames
        order = np.argsort(self.frames, kind="stable")
        edges = self.frame_edges[order[np.searchsorted(self.frames, frames, sorter=order)]]
        return frames[: max(1, int(np.searchsorted(np.cumsum(edges), largest, side="right")))]

    def unevenness(self, world_size: int) -> float:
        """Return the mean over steps of the largest over the mean work of a process."""
        loads = self.edges.reshape(len(self.edges), world_size, -1).sum(axis=2)
        return float((loads.max(axis=1) / np.maximum(loads.mean(axis=1), 1)).mean())

    @property
    def largest(self) -> int:
        """Number of edges of the largest sampled micro-batch, or of the largest single structure if that is larger."""
        return max(int(self.edges.max()), self.largest_frame_edges)


def sample(stream: Stream) -> Batches:
    """Return the first micro-batches of a run."""
    plan, counts = stream.plan, _Counts(stream)
    steps = max(1, min(plan.steps_of_pass(0), SAMPLED_BATCHES // plan.lanes))
    batches = [plan.micro_batch(step, lane) for step in range(steps) for lane in range(plan.lanes)]
    frames, ends = np.concatenate(batches), np.cumsum([0, *map(len, batches)])
    atoms, edges = counts(frames)
    sums = [np.diff(np.concatenate([[0], np.cumsum(values)])[ends]) for values in (edges, atoms)]
    table = [values.astype(np.int64).reshape(steps, plan.lanes) for values in (*sums, np.diff(ends))]
    largest_frame, largest_frame_edges = counts.largest(plan)
    return Batches(
        frames=frames,
        frame_edges=edges,
        ends=ends,
        edges=table[0],
        atoms=table[1],
        graphs=table[2],
        largest_frame=largest_frame,
        largest_frame_edges=largest_frame_edges,
    )


class _Counts:
    """Atoms and edges of frames by their number in a stream, read block by block."""

    def __init__(self, stream: Stream) -> None:
        self._sets: list[tuple[SplitIndex, int]] = [
            (d.index(), d.manifest.split(d.split).statistics.cutoff_number(stream.cutoff)) for d in stream.datasets
        ]
        self._first = np.cumsum([0, *(index.num_frames for index, _ in self._sets)])

    def __call__(self, numbers: Int64[np.ndarray, " frames"]) -> tuple[np.ndarray, np.ndarray]:
        """Return atoms and edges of frames."""
        atoms, edges = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
        for (index, cutoff), first, last in zip(self._sets, self._first, self._first[1:], strict=False):
            own = np.flatnonzero((first <= numbers) & (numbers < last))
            block = np.searchsorted(index.first_frame, numbers[own] - first, side="right") - 1
            for number in np.unique(block).tolist():
                start, stop = index.first_frame[number : number + 2].tolist()
                some, places = index.counts(start, stop), own[block == number]
                atoms[places] = some[0][numbers[places] - first - start]
                edges[places] = some[1][numbers[places] - first - start, cutoff]
        return atoms, edges

    def largest(self, plan: Plan) -> tuple[int, int]:
        """Return the largest structure of the plan, and its number of edges."""
        limit = int(plan.settings["edge_budget"] or 0) if plan.settings["oversize"] == "skip" else np.inf
        found = (0, 0)
        for (index, cutoff), first in zip(self._sets, self._first, strict=False):
            # a block above the limit may hold smaller frames: a sample represents them
            most = np.where(index.blocks.max_edges[:, cutoff] <= limit, index.blocks.max_edges[:, cutoff], 0)
            if len(most) and most.max() > found[1]:
                start, stop = index.first_frame[int(most.argmax()) : int(most.argmax()) + 2].tolist()
                edges = index.counts(start, stop)[1][:, cutoff]
                found = int(first + start + edges.argmax()), int(edges.max())
        return found


def check_batches(fit: FitConfig, world_size: int, plan: Plan, batches: Batches) -> list[Check]:
    """Check the filling of the plan's micro-batches, and its evenness."""
    structures = float(batches.graphs.mean())
    per_step = f"{batches.edges.sum(axis=1).mean():,.0f} edges, {batches.atoms.sum(axis=1).mean():,.0f} atoms and "
    per_step += f"{batches.graphs.sum(axis=1).mean():,.0f} structures a step"
    few = structures < FEW_STRUCTURES
    uneven = batches.unevenness(world_size)
    fill = batches.edges.mean() / fit.edge_budget
    return [
        _check_oversize(fit, plan, batches),
        Check(
            name="micro-batches",
            verdict="warn" if few else "ok",
            finding=f"{structures:.1f} structures each, {fill:.1%} of the edge budget; {per_step}",
            advice=f"with fewer than {FEW_STRUCTURES} they are uneven: raise edge_budget, and use fewer lanes"
            if few
            else "",
        ),
        Check(
            name="balance",
            verdict="warn" if uneven > UNEVEN else "ok",
            finding=f"edges of a step, largest process over mean: {uneven:.3f}",
            advice="the others wait for it: raise edge_budget, or leave the largest structures out"
            if uneven > UNEVEN
            else "",
        ),
    ]


def _check_oversize(fit: FitConfig, plan: Plan, batches: Batches) -> Check:
    if not plan.num_too_large:
        finding = f"edge_budget {fit.edge_budget:,}; the largest structure has {batches.largest_frame_edges:,} edges"
        return Check(name="edge budget", verdict="ok", finding=finding)
    what = "left out" if fit.oversize == "skip" else "each in a micro-batch of its own"
    found = f"{plan.num_too_large:,} structures are larger than edge_budget {fit.edge_budget:,}"
    if fit.oversize != "skip":
        found += f", the largest with {batches.largest_frame_edges:,} edges"
    return Check(
        name="edge budget",
        verdict="warn",
        finding=f"{found}: {what} (oversize: {fit.oversize})",
        advice="raise edge_budget if they should count like the others",
    )


def kinds_of(batches: Batches, datasets: Sequence[Dataset]) -> dict[str, Int64[np.ndarray, " _"]]:
    """Return the special micro-batches that must fit, by their property."""
    edges, atoms, graphs = (values.ravel() for values in (batches.edges, batches.atoms, batches.graphs))
    chosen = {
        "smallest": int(np.where(graphs > 0, edges, edges.max() + 1).argmin()),
        "most structures": int(graphs.argmax()),
        "most atoms": int(atoms.argmax()),
        "most edges": int(edges.argmax()),
    }
    if len(datasets) > 1:
        sizes = [dataset.manifest.split(dataset.split).statistics.num_frames for dataset in datasets]
        for first, size, dataset in zip(np.cumsum([0, *sizes]), sizes, datasets, strict=False):
            before = np.concatenate([[0], np.cumsum((first <= batches.frames) & (batches.frames < first + size))])
            chosen[f"most of {dataset.manifest.provenance.name}"] = int(np.diff(before[batches.ends]).argmax())
    names: dict[int, list[str]] = {}
    for name, place in chosen.items():
        names.setdefault(place, []).append(name)
    kinds = {", ".join(some): batches[place] for place, some in names.items()}
    if batches.largest_frame_edges > batches.edges.max():
        kinds["largest structure"] = np.array([batches.largest_frame], dtype=np.int64)
    return kinds


def ladder_of(batches: Batches, largest: int) -> list[Int64[np.ndarray, " _"]]:
    """Return the frames of micro-batches of growing size, up to a number of edges."""
    edges = batches.frame_edges
    # of small structures, because a large one could fill the smallest micro-batch
    small = edges <= max(STEPS_OF_LADDER[0] * largest / 2, edges.min())
    ends = np.cumsum(edges[small])
    counts = [max(1, int(np.searchsorted(ends, share * largest, side="right"))) for share in STEPS_OF_LADDER]
    return [batches.frames[small][:count] for count in sorted(set(counts))]
