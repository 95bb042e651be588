"""Settings of the training loop, apart from model, data, loss, optimizer and hardware."""

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.loading.datasets import Corrupt
from data_pipeline.loading.plan import Oversize
from foundation.configuration import COMPARED, DECIDES, MAY_CHANGE, check_numbers
from foundation.kernels.backend import Backend
from foundation.nn.computation import Computation
from foundation.nn.matmul import Precision
from foundation.training.fault_tolerance.guard import GuardConfig
from foundation.training.monitoring.metrics_file import MAX_STEP

LIMITS = {
    **dict.fromkeys(("steps", "validate_every", "checkpoint_every", "log_every"), (1, MAX_STEP)),
    **dict.fromkeys(("lanes", "keep_checkpoints"), (1, 10**6)),
    **dict.fromkeys(("edge_budget", "atom_budget"), (1, 10**8)),
    "seed": (0, 2**32 - 1),
}
"""Smallest and largest value of each number, far beyond practical ones."""
MAX_EPOCHS = 10**6
"""Largest number of passes."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Length of the run, batch composition, and intervals of validation, checkpoints and logs.

    Lengths left out are taken from the data when the run starts (lengths.py): the training itself has a FitConfig.
    """

    steps: int | None = field(default=None, metadata=COMPARED)
    """Number of optimizer steps of the whole run. None: from `epochs`, or from the number of frames. A run can be made
    longer if its learning rates so far stay the same."""
    epochs: float | None = field(default=None, metadata=COMPARED)
    """Number of passes over the training data, in place of `steps`."""
    lanes: int | None = field(default=None, metadata=COMPARED)
    """Number of micro-batches per optimizer step; the number of processes must divide it. None: from the data."""
    edge_budget: int | None = field(default=None, metadata=COMPARED)
    """Largest number of directed edges of a micro-batch, except for a structure with more; None: from the data."""
    atom_budget: int | None = field(default=None, metadata=COMPARED)
    """Number of atoms of a micro-batch; None sets no limit."""
    oversize: Oversize | None = field(default=None, metadata=COMPARED)
    """Treatment of a structure larger than the budget: an error, a micro-batch of its own, or it is left out. None: an
    error if edge_budget is given, else a micro-batch of its own."""
    corrupt: Corrupt = field(default="error", metadata=MAY_CHANGE)
    """Treatment of an unreadable block of frames: an error, or 'quarantine': its frames are left out, with a warning
    and a count."""
    seed: int = field(default=0, metadata=COMPARED)
    """Seed of the weights and of the order of the data."""
    validate_every: int | None = field(default=None, metadata=MAY_CHANGE)
    """Number of steps between validations; None: ten in the run, and more in long ones."""
    checkpoint_every: int | None = field(default=None, metadata=MAY_CHANGE)
    """Number of steps between checkpoints; None: as often as validations, and more often between distant ones."""
    keep_checkpoints: int = field(default=3, metadata=MAY_CHANGE)
    """Number of the newest checkpoints to keep."""
    best_by: str = field(default="val/force_mae", metadata=MAY_CHANGE)
    """Validation error by which the best checkpoint is chosen, which is kept as well."""
    log_every: int = field(default=10, metadata=MAY_CHANGE)
    """Number of steps between logged metrics."""
    backend: Backend = field(default="auto", metadata=COMPARED)
    """Implementation of the convolution: generated C on CPUs (c), generated CUDA C (cuda) or OpenEquivariance
    (openequivariance) on GPUs, plain torch (torch), or the best one that works (auto)."""
    radial_table: int = field(default=0, metadata=DECIDES)
    """Number of distances at which radial functions are tabulated in training, for speed; 256 give the same gradient to
    about 1e-5. 0 evaluates them at every pair of atoms. The saved potential has no table."""
    precision: Precision = field(default="float32", metadata=DECIDES)
    """Precision of matrix products in linear maps and radial networks: float32; 'tf32', factors rounded to 11 bits, on
    GPUs that support it and for all products of the process; or 'bf16', factors rounded to 8 bits, sums in float32, in
    training only. The convolution stays float32 and sums over atoms float64. `make bench BENCH=precision` measures the
    errors of forces."""
    recompute: bool = field(default=False, metadata=DECIDES)
    """Activation checkpointing: keep only inputs and outputs of each block and recompute its inside for derivatives,
    with the same result, less memory and more time (`make bench BENCH=memory`)."""
    cuda_graphs: bool = field(default=False, metadata=DECIDES)
    """Record the work on a micro-batch as a CUDA graph, once for each bucket of sizes, and replay it: on a GPU, where
    launching the many kernels of a small network takes longer than running them. Micro-batches are filled up to the
    bucket by at most an eighth, which changes results by rounding."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Guard against diverging training."""
    wandb: Literal["off", "offline", "online"] = field(default="off", metadata=MAY_CHANGE)
    """Write a Weights & Biases run as well: 'offline', for `wandb sync` to upload, or 'online', sent at once. A resumed
    run keeps its id."""
    tensorboard: bool = field(default=False, metadata=MAY_CHANGE)
    """Write TensorBoard's files as well, in logs/tensorboard of the run folder; needs the extra 'tensorboard'."""
    resume: bool | Literal["auto"] = field(default=False, metadata=MAY_CHANGE)
    """Continue from the newest checkpoint of the run folder; 'auto' does so if one exists, else starts."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)
        if self.epochs is not None and not 0 < self.epochs <= MAX_EPOCHS:
            raise ValueError(f"epochs must be above 0 and at most {MAX_EPOCHS:,}, not {self.epochs}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"steps {self.steps} and epochs {self.epochs:g} are both lengths of the run: give one")
        computation_of(self)  # refuses options impossible for any network


@dataclass(frozen=True, kw_only=True)
class FitConfig(FitOptions):
    """Section `fit` with every length: what the training takes and the record of a run has."""

    steps: int = field(metadata=COMPARED)
    """Number of optimizer steps of the whole run."""
    lanes: int = field(default=8, metadata=COMPARED)
    """Number of micro-batches per optimizer step; the number of processes must divide it."""
    edge_budget: int = field(default=20000, metadata=COMPARED)
    """Largest number of directed edges of a micro-batch, except for a structure with more."""
    oversize: Oversize = field(default="error", metadata=COMPARED)
    """Treatment of a structure larger than the budget: an error, a micro-batch of its own, or it is left out."""
    validate_every: int = field(default=500, metadata=MAY_CHANGE)
    """Number of steps between validations."""
    checkpoint_every: int = field(default=500, metadata=MAY_CHANGE)
    """Number of steps between checkpoints."""


def with_defaults(fit: FitOptions) -> FitConfig:
    """Return a section fit with FitConfig's defaults in place of what is left out, and one step."""
    given = {name: value for name, value in vars(fit).items() if value is not None and name != "epochs"}
    values: dict[str, Any] = {"steps": 1, **given}
    return FitConfig(**values)


def computation_of(config: FitOptions) -> Computation:
    """Return the network's computation options for a run."""
    return Computation(
        backend=config.backend,
        precision=config.precision,
        radial_table=config.radial_table,
        recompute=config.recompute,
    )
