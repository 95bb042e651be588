"""Lengths of a run that its data decide: batch size, number of steps, intervals, warm-up.

A step averages the gradient over STRUCTURES_OF_ONE * n^GROWTH of n structures, the trend of published trainings: 7 of
48, 24 of 1,000, 60 of 10,000 (4 to 16 in fine-tunings by SevenNet, MACE and MatterSim, 128 to 640 for MPtrj's 1.5
million). A large structure counts as several, because each of its atoms is a label; and a step is at most a quarter of
a pass, because an optimizer needs many steps more than it needs exact ones. From some 100,000 structures on a step is
that of FitConfig's defaults, which the memory of common GPUs takes.

A step is divided into as few lanes as its memory and the number of processes allow: full micro-batches are fastest.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import HEADROOM
from data_pipeline.store.untrusted import OpenRecord, typed
from foundation.training.fit_config import FitConfig, FitOptions, with_defaults
from foundation.training.optim import OptimConfig, ema_decay_of, warmup_of

log = logging.getLogger(__name__)

STRUCTURES_OF_ONE, GROWTH = 1.5, 0.4
"""Number of structures of a step for a data set of one, and the exponent of its growth with their number."""
ATOMS_OF_STRUCTURE = 50
"""Number of atoms above which a structure counts as several: the size of those in the trainings of the rule."""
LEAST_STEPS_OF_PASS = 4
"""Smallest number of steps of a pass, if there are as many structures."""
MAX_EDGES_OF_STEP = 160_000
"""Number of directed edges above which a step does not grow with the data."""
MAX_EDGES = 20_000
"""Number of directed edges above which a micro-batch is divided; only a single structure may have more."""
PASSES, MANY = 100, 1000
"""Number of passes without `steps` and `epochs`, and the number of structures from which there are fewer."""
VALIDATIONS = 10
"""Number of validations of a run."""
MAX_BETWEEN = {"validate_every": 5000, "checkpoint_every": 1000}
"""Largest numbers of steps between validations and between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """A pass over the training data."""

    structures: float
    """Number of structures read."""
    atoms: float
    """Number of their atoms."""
    edges: float
    """Number of their directed edges."""
    largest: int
    """Number of edges of the largest structure."""

    def steps(self, fit: FitConfig) -> int:
        """Return the number of steps of a pass, as planned if no structure exceeds the budget."""
        full = self.edges / fit.edge_budget
        if fit.atom_budget is not None:
            full = max(full, self.atoms / fit.atom_budget)
        return max(1, math.ceil(full / (HEADROOM * fit.lanes)))


def sized(
    fit: FitOptions,
    optim: OptimConfig,
    datasets: Sequence[Dataset],
    *,
    cutoff: float,
    world_size: int,
    begun: object = None,
) -> tuple[FitConfig, OptimConfig, tuple[str, ...]]:
    """Return the sections fit and optim with every length, and a sentence on each one taken from the data.

    What is given stays. The result depends on nothing but the arguments, so that every process, and a run that is
    resumed, finds the same.

    Args:
        fit: Section fit, possibly without lengths.
        optim: Section optim, possibly without warm-up.
        datasets: Training data.
        cutoff: Cutoff of the model [Å].
        world_size: Number of processes, which divides the lanes.
        begun: Record of the run that is resumed, as JSON; it may get longer, and else keeps its number of
            steps, warm-up and average.

    Raises:
        ValueError: the edges of the data were not counted at this cutoff.
    """
    whole, reasons = _pass_over(datasets, cutoff), list[str]()
    record = typed(_Begun, begun, "config") if isinstance(begun, dict) else _Begun()
    if fit.steps is None and fit.epochs is None and record.fit.steps is not None:
        fit = replace(fit, steps=record.fit.steps)
        reasons.append(f"{record.fit.steps:,} steps, those of the run (--fit.epochs or --fit.steps to choose)")
    found = with_defaults(fit)
    if fit.lanes is None or fit.edge_budget is None:
        found = _with_batches(found, fit, whole, world_size)
        reasons.append(_batches_reason(found, whole))
    found = replace(found, steps=_steps(fit, found, whole))
    if fit.steps is None:
        reasons.append(_steps_reason(fit, found, whole))
    found = replace(found, **_intervals(fit, found.steps))
    if fit.validate_every is None or fit.checkpoint_every is None:
        validated, saved = _steps_of(found.validate_every), _steps_of(found.checkpoint_every)
        count = found.steps // found.validate_every
        reasons.append(f"validation every {validated} ({count:,} in the run), a checkpoint every {saved}")
    optim, why = _with_memory(optim, found.steps, record.optim)
    return found, optim, (*reasons, *why)


@dataclass(frozen=True, kw_only=True)
class _Memory(OpenRecord):
    """Lengths in section optim of the record of a run."""

    warmup_steps: int | None = None
    """Warm-up."""
    ema_decay: float | None = None
    """Decay of the average."""


@dataclass(frozen=True, kw_only=True)
class _Length(OpenRecord):
    """Length in section fit of the record of a run."""

    steps: int | None = None
    """Number of steps."""


@dataclass(frozen=True, kw_only=True)
class _Begun(OpenRecord):
    """Record of a run."""

    fit: _Length = field(default_factory=_Length)
    """Its section fit."""
    optim: _Memory = field(default_factory=_Memory)
    """Its section optim."""


def _with_memory(optim: OptimConfig, num_steps: int, record: _Memory) -> tuple[OptimConfig, list[str]]:
    """Return the section optim with warm-up and decay of the average, and a sentence on each one left out."""
    warmup, decay, reasons = optim.warmup_steps, optim.ema_decay, list[str]()
    if warmup is None:
        warmup = warmup_of(num_steps) if record.warmup_steps is None else record.warmup_steps
        reasons.append(f"warm-up of {warmup:,} step{'s' if warmup > 1 else ''}, {warmup / num_steps:.1%} of the run")
    if decay is None:
        decay = ema_decay_of(num_steps) if record.ema_decay is None else record.ema_decay
        reasons.append(f"average of the weights over some {1 / (1 - decay):,.0f} steps")
    return replace(optim, warmup_steps=warmup, ema_decay=decay), reasons


def announce(reasons: Sequence[str]) -> None:
    """Log what was taken from the data, one line each."""
    for reason in reasons:
        log.info("from the data: %s", reason)


def _pass_over(datasets: Sequence[Dataset], cutoff: float) -> _Pass:
    """Return the sums of a pass over data sets."""
    structures = atoms = edges = 0.0
    largest = 1
    for dataset in datasets:
        sums, index = dataset.manifest.split(dataset.split).statistics, dataset.index()
        structures += dataset.repeat * sums.num_frames
        atoms += dataset.repeat * sums.num_atoms
        edges += dataset.repeat * sums.num_atoms * sums.mean_neighbors(cutoff)
        largest = max(largest, int(index.blocks.max_edges[:, sums.cutoff_number(cutoff)].max(initial=0)))
    return _Pass(structures=structures, atoms=atoms, edges=max(edges, structures), largest=largest)


def structures_of_step(structures: float, atoms: float) -> float:
    """Return the number of structures of a step, from the numbers of structures and atoms of a pass; at least one."""
    share = STRUCTURES_OF_ONE * structures**GROWTH / max(1.0, atoms / structures / ATOMS_OF_STRUCTURE)
    return max(1.0, min(share, structures / LEAST_STEPS_OF_PASS))


def _with_batches(found: FitConfig, fit: FitOptions, whole: _Pass, world_size: int) -> FitConfig:
    """Return the section with lanes and edge budget, whichever are not given, and structures above it alone."""
    mean = whole.edges / whole.structures
    step = min(structures_of_step(whole.structures, whole.atoms) * mean, max(MAX_EDGES_OF_STEP, mean))
    most = fit.edge_budget or max(MAX_EDGES, whole.largest)
    lanes = fit.lanes or world_size * max(1, round(step / most / world_size))
    budget = fit.edge_budget
    if budget is None:
        share = min(step / lanes, most)
        # a whole number of structures where these are few, so that no micro-batch gets one more
        share = max(share if share > 8 * mean else max(1, round(share / mean)) * mean, whole.largest)
        budget = _rounded_up(share / HEADROOM)
        found = replace(found, oversize=fit.oversize or "alone")
    return replace(found, lanes=lanes, edge_budget=budget)


def _rounded_up(number: float) -> int:
    """Return a number rounded up to three digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 2)
    return unit * math.ceil(number / unit)


def _steps(fit: FitOptions, found: FitConfig, whole: _Pass) -> int:
    """Return the number of steps of a run."""
    if fit.steps is not None:
        return fit.steps
    return max(1, round(_passes(fit, whole) * whole.steps(found)))


def _passes(fit: FitOptions, whole: _Pass) -> float:
    """Return the number of passes of a run whose steps are not given: fewer over many structures, at least one."""
    if fit.epochs is not None:
        return fit.epochs
    return max(1.0, PASSES * min(1.0, (MANY / whole.structures) ** GROWTH))


def _intervals(fit: FitOptions, steps: int) -> dict[str, int]:
    """Return the intervals of validations and checkpoints; without one given, the best step has a checkpoint."""
    validate = fit.validate_every or min(math.ceil(steps / VALIDATIONS), MAX_BETWEEN["validate_every"])
    between = min(validate, steps)
    checkpoint = fit.checkpoint_every or between // math.ceil(between / MAX_BETWEEN["checkpoint_every"])
    return {"validate_every": validate, "checkpoint_every": checkpoint}


def _batches_reason(fit: FitConfig, whole: _Pass) -> str:
    lanes = f"{fit.lanes:,} lane{'s' if fit.lanes > 1 else ''} of {fit.edge_budget:,} edges"
    steps = whole.steps(fit)
    pass_over = f"{whole.structures:,.6g} frames, {steps:,} step{'s' if steps > 1 else ''} a pass"
    return f"{lanes}: {pass_over}, {whole.structures / steps:.3g} structures a step; the largest has {whole.largest:,}"


def _steps_of(number: int) -> str:
    return "step" if number == 1 else f"{number:,} steps"


def _steps_reason(fit: FitOptions, found: FitConfig, whole: _Pass) -> str:
    why = "as given" if fit.epochs is not None else "fewer for more frames; --fit.epochs or --fit.steps to choose"
    return f"{found.steps:,} steps: {found.steps / whole.steps(found):.3g} passes ({why})"
