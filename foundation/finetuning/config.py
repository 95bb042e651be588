"""Configuration of a fine-tuning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.plain_files import ReadConfig
from foundation.configuration import COMPARED, DECIDES, MAY_CHANGE
from foundation.datasets import Data
from foundation.evaluation.suites import SuiteConfig
from foundation.finetuning.forgetting import ForgettingConfig
from foundation.finetuning.penalties import PenaltyConfig
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.naming import Choice, StartWeights
from foundation.reports.card import CardFacts
from foundation.surgery.start import References
from foundation.training.fit_config import FitOptions
from foundation.training.loss import LossConfig
from foundation.training.machine import MachineConfig, check_lanes
from foundation.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters, trained instead of the weights."""

    rank: int = field(default=8, metadata=DECIDES)
    """Rank of the addition to each matrix."""
    alpha: float = field(default=8.0, metadata=DECIDES)
    """Numerator of the scale of the addition, alpha / rank."""
    patterns: tuple[str, ...] = field(default=("*",), metadata=DECIDES)
    """Presets and patterns that select weights made of matrices."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A fine-tuning run: a potential, the data of a domain, and methods against forgetting."""

    start: Path = field(metadata=DECIDES)
    """Base potential whose weights the run starts from: its folder, run or published name, such as sevennet-0."""
    checkpoint: Choice = field(default=None, metadata=DECIDES)
    """Checkpoint, if the start is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    start_weights: StartWeights | None = field(default=None, metadata=COMPARED)
    """Weights with which the run began, written by the run into its record, so that it resumes with the same; None:
    those that the start has now."""
    data: Data = field(metadata=COMPARED)
    """The target: plain files, globs or folders of files, or data sets that are built, to train on together."""
    val: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for validation, in place of a part of the data."""
    test: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for the final evaluation, in place of a part of the data."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata=COMPARED)
    """Settings for reading plain files."""
    theory: str | None = field(default=None, metadata=DECIDES)
    """Level of theory of data given without options: one of the start's if they are compatible, or another name to add
    it; None: the one in the data's provenance."""
    out: Path = field(metadata=MAY_CHANGE)
    """Run folder to write."""
    fit: FitOptions = field(default_factory=FitOptions)
    """Length of the run and batch composition; what is left out is taken from the data."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    """Hardware."""
    loss: LossConfig | None = field(default=None, metadata=DECIDES)
    """Loss terms, the same for target and rehearsal; None: that of the Fisher's file if there is one, else weights for
    which no label of the target gets worse than it is at the start."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=7e-4, weight_decay=0.0, ema_decay=0.0))
    """Optimizer and schedule; defaults differ from pretraining: low learning rate, no weight decay, no average."""
    rehearsal: RehearsalConfig | None = field(default=None, metadata=DECIDES)
    """Pretraining data to continue training on."""
    penalty: PenaltyConfig | None = field(default=None, metadata=DECIDES)
    """Penalty on leaving the start: EWC or L2-SP."""
    freeze: tuple[str, ...] = field(default=(), metadata=DECIDES)
    """Parameters to freeze: embedding, blocks:K, all-but-readout, or patterns over their names."""
    rate_factors: dict[str, float] = field(default_factory=dict, metadata=DECIDES)
    """Factors of learning rates, by preset or pattern; if several match, the last one applies."""
    adapters: AdapterConfig | None = field(default=None, metadata=DECIDES)
    """Low-rank adapters to train instead of the weights; they are merged into the weights at the end."""
    references: References = field(default="auto", metadata=DECIDES)
    """Reference energies of the elements in the data: those of the start (keep), or refitted for data with another zero
    of energy, which moves all predictions for these elements at this level of theory. auto: refitted if the energies
    differ from the start's by more than 0.2 eV per atom, and composition explains it; labels that contradict the
    start's, by their unit or sign, are refused."""
    new_elements: Literal["refuse", "add"] = field(default="refuse", metadata=DECIDES)
    """Treatment of elements in the data that the start does not know."""
    missing_forces: Literal["refuse", "allow"] = field(default="refuse", metadata=MAY_CHANGE)
    """Treatment of a data set without forces if the loss has a term for them."""
    missing_stress: Literal["refuse", "allow"] = field(default="refuse", metadata=MAY_CHANGE)
    """Treatment of a data set without stress if the loss has a term for it."""
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    """Held-out sets evaluated before, during and after the run."""
    suites: tuple[SuiteConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Suites run for the start and for the result, at the level of theory of the target."""
    card: CardFacts = field(default_factory=CardFacts)
    """Facts for the model card of a release; may be completed at export."""
    overwrite: bool = field(default=False, metadata=MAY_CHANGE)
    """Replace an existing run."""
    sweep: Path | None = field(default=None, metadata=MAY_CHANGE)
    """YAML file of a sweep: runs that differ from this configuration, done in folders inside `out`, and compared. It
    has `runs` (options by name of the run), `grid` (values by option, all combinations), `seeds`, `jobs` (number of
    runs at a time) and `threads` (of each); `runs: {base: {}, slow: {optim.learning_rate: 1.0e-4}}` is enough."""
    run: str | None = field(default=None, metadata=MAY_CHANGE)
    """Name of the only run of the sweep to do; an entry of its `runs` means all its values and seeds."""

    def __post_init__(self) -> None:
        if self.fit.lanes is not None:
            check_lanes(self.fit.lanes, self.machine)
        if self.run is not None and self.sweep is None:
            raise ValueError("run names a run of a sweep: give the sweep's file as well")
        if self.adapters is not None and self.penalty is not None:
            raise ValueError("adapters freeze the weights that a penalty holds: leave one of the two out")
        if self.adapters is not None and self.freeze:
            raise ValueError("adapters freeze all weights: choose which to adapt with adapters.patterns, not freeze")
