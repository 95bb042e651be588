"""Origin of a potential: the parts of config.json's provenance and of the run's record that are read again.

Every version of the program writes both, with more than is read: other entries are for people and ignored, and entries
missing in older versions have defaults.
"""

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.store.untrusted import OpenRecord, typed

FINE_TUNING = "fine-tuning"
"""Method of a fine-tuned potential."""
Facts = dict[str, str | int | float | bool | None]
"""Facts of a data set for the card: its provenance, level of theory, counts and checksum."""


def names_of(datasets: tuple[Facts, ...]) -> list[str]:
    """Return the names of data sets."""
    return [str(dataset["name"]) for dataset in datasets]


@dataclass(frozen=True, kw_only=True)
class MovedReference:
    """Refitted reference energy of an element."""

    before: float
    """Reference before [eV]."""
    after: float
    """Reference after [eV]."""
    moved: float
    """Difference of the two [eV]."""


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Sizes of the errors of energies."""

    mean: float
    """Mean [eV per atom]."""
    mae: float
    """Mean absolute error [eV per atom]."""
    rmse: float
    """Root mean square error [eV per atom]."""


@dataclass(frozen=True, kw_only=True)
class EnergyErrors:
    """Errors of energies before and after references were refitted."""

    before: Residuals
    """Errors with the old references."""
    after: Residuals
    """Errors with the new ones."""


@dataclass(frozen=True, kw_only=True)
class MovedReferences:
    """Refitted reference energies at a level of theory."""

    num_structures: int
    """Number of structures of the fit."""
    elements: dict[str, MovedReference]
    """References by symbol of the element."""
    energy_error: EnergyErrors
    """Errors on these structures."""


@dataclass(frozen=True, kw_only=True)
class StartChanges(OpenRecord):
    """Changes of the start of a fine-tuning before the first step."""

    new_elements: dict[str, str] = field(default_factory=dict)
    """Added elements, and the element that each is copied from."""
    new_theories: tuple[str, ...] = ()
    """Levels of theory that were added."""
    same_energies: bool = True
    """True if the start's predictions at its levels of theory are kept."""
    references_of_new_elements: dict[str, MovedReferences] | None = None
    """Reference energies of the new elements by level of theory; None without new elements."""
    references: dict[str, MovedReferences] | None = None
    """Refitted reference energies by level of theory; None if they were kept."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts(OpenRecord):
    """Checkpoint of a run that gave a potential its weights."""

    step: int
    """Number of steps taken."""
    steps: int | None = None
    """Number of steps of the whole run."""
    reason: str = ""
    """Reason of the choice."""
    finished: bool = True
    """True if it is what the finished run saved."""


@dataclass(frozen=True, kw_only=True)
class StartFacts(OpenRecord):
    """Weights that a training started from."""

    folder: str = ""
    """Folder of the potential, or its published name."""
    name: str = ""
    """Name in its card, or its published name."""
    method: str | None = None
    """Method by which it was made."""
    weights_sha256: str = ""
    """Checksum of its weights."""
    checkpoint: CheckpointFacts | None = None
    """Checkpoint of the run that it was taken from; None if unknown, or not from a run."""
    datasets: tuple[Facts, ...] = ()
    """All data that its weights have seen."""


@dataclass(frozen=True, kw_only=True)
class ConvertedFrom(OpenRecord):
    """Another program's checkpoint from which a potential was read."""

    name: str = ""
    """Published name of the checkpoint, if it has one."""
    file: str = ""
    """Name of its file."""
    sha256: str = ""
    """Checksum of the file."""


@dataclass(frozen=True, kw_only=True)
class RehearsalFacts(OpenRecord):
    """Rehearsed data of the pretraining."""

    datasets: tuple[Facts, ...] = ()
    """The data sets."""


@dataclass(frozen=True, kw_only=True)
class FisherData(OpenRecord):
    """Data on which a Fisher was computed."""

    name: str
    """Name of the data set."""
    split: str
    """Split of it."""
    fingerprint: str = ""
    """Checksum of its manifest; '' in the record of an older version."""


@dataclass(frozen=True, kw_only=True)
class FisherFacts(OpenRecord):
    """The Fisher of a penalty."""

    data: tuple[FisherData, ...]
    """Data on which it was computed."""
    num_structures: int
    """Number of structures in the mean."""
    num_above_threshold: int
    """Number of structures left out for their loss."""
    loss_threshold: float | None
    """Loss above which they were left out; None if none were."""
    num_parameters: int
    """Number of weights."""
    num_unprotected: int
    """Number of weights whose Fisher is zero."""
    sha256: str = ""
    """Checksum of its file; '' in the record of an older version."""


@dataclass(frozen=True, kw_only=True)
class Interpolated(OpenRecord):
    """Position of a potential between the start and the result of a fine-tuning."""

    alpha: float
    """Fraction of the way from the start to the result."""
    weights_sha256: str
    """Checksum of the result's weights."""


@dataclass(frozen=True, kw_only=True)
class ProtectionFacts(OpenRecord):
    """Protection in fine-tunings that a potential carries."""

    num_structures: int
    """Number of generated crystals."""
    num_atoms: int
    """Number of their atoms."""
    seed: int
    """Seed of the crystals."""


@dataclass(frozen=True, kw_only=True)
class DataRecord(OpenRecord):
    """A data set in the record of a run."""

    path: str
    """Manifest, or its folder."""
    split: str | None = None
    """Split of it, if named."""


@dataclass(frozen=True, kw_only=True)
class FitRecord(OpenRecord):
    """Section `fit` in the record of a run."""

    steps: int | None = None
    """Number of optimizer steps."""
    seed: int = 0
    """Seed of the run."""


@dataclass(frozen=True, kw_only=True)
class RehearsalRecord(OpenRecord):
    """Section `rehearsal` in the record of a run."""

    data: str | tuple[DataRecord | str, ...] | None = None
    """Manifest of the data, or several data sets; None for those that the start carries."""
    split: str
    """Split of them."""
    ratio: float
    """Edge budget over the target's."""
    weight: float
    """Factor of the loss."""
    mode: str
    """Order of steps on target and rehearsal."""
    labels: str = "data"
    """Labels: `data` for their own, `start` for the start's predictions."""
    loss: dict[str, Any] | None = None
    """Separate loss, or None."""
    elements: tuple[str, ...] = ()
    """Symbols of elements, one of which a structure must contain."""
    fraction: float = 1.0
    """Fraction of the structures."""
    method: str = "random"
    """Method of choice."""


@dataclass(frozen=True, kw_only=True)
class ForgettingRecord(OpenRecord):
    """Section `forgetting` in the record of a run."""

    retained: tuple[DataRecord, ...] = ()
    """Held-out data of the pretraining."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(OpenRecord):
    """Configuration of a run, resolved: the content of its run.json."""

    data: str | tuple[DataRecord | str, ...] | None = None
    """Manifest of the data, or several data sets."""
    fit: FitRecord = FitRecord()
    """Length and seed."""
    rehearsal: RehearsalRecord | None = None
    """Rehearsal of a fine-tuning."""
    forgetting: ForgettingRecord = ForgettingRecord()
    """Held-out sets of a fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class OptimRecord(OpenRecord):
    """Section `optim` in the record of a run."""

    optimizer: str
    """Name of the optimizer."""
    learning_rate: float
    """Largest learning rate."""
    schedule: str
    """Name of the schedule."""
    warmup_steps: int
    """Number of steps of warm-up."""


@dataclass(frozen=True, kw_only=True)
class PenaltyRecord(OpenRecord):
    """Section `penalty` in the record of a run."""

    weight: float
    """Factor lambda."""
    power: float = 1.0
    """Exponent of the Fisher."""
    normalization: str = "none"
    """Divisor of the Fisher."""
    damping: float = 0.0
    """Fraction of its mean that was added to the Fisher."""


@dataclass(frozen=True, kw_only=True)
class AdapterRecord(OpenRecord):
    """Section `adapters` in the record of a run."""

    rank: int
    """Rank of each adapter."""
    alpha: float
    """Scale of each adapter."""
    patterns: tuple[str, ...]
    """Patterns of the adapted weights."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRecord(RunRecord):
    """Configuration of a fine-tuning, resolved."""

    optim: OptimRecord
    """Optimizer and schedule."""
    rate_factors: dict[str, float] = field(default_factory=dict)
    """Factors of learning rates by pattern."""
    penalty: PenaltyRecord | None = None
    """Penalty on leaving the start."""
    freeze: tuple[str, ...] = ()
    """Patterns of frozen parameters."""
    adapters: AdapterRecord | None = None
    """Low-rank adapters."""


@dataclass(frozen=True, kw_only=True)
class Provenance(StartChanges):
    """Origin of a potential."""

    method: str = ""
    """Method by which it was made."""
    private: bool = False
    """True in a private release, whose card states no licence."""
    datasets: tuple[Facts, ...] = ()
    """Training data."""
    num_parameters: int | None = None
    """Number of parameters."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of each relevant package."""
    hardware: str = ""
    """Machine on which it was made."""
    wall_time_s: float | None = None
    """Duration of the run [s]."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of the run, resolved."""
    checkpoint: CheckpointFacts | None = None
    """Checkpoint of its run that gave it its weights; None if unknown, or not from a run."""
    start: StartFacts = StartFacts()
    """Weights that the run started from."""
    converted_from: ConvertedFrom = ConvertedFrom()
    """Checkpoint of another program."""
    rehearsal: RehearsalFacts | None = None
    """Rehearsed data of a fine-tuning."""
    fisher: FisherFacts | None = None
    """Fisher of a fine-tuning's penalty."""
    num_trained: int | None = None
    """Number of weights that a fine-tuning trained."""
    interpolated: Interpolated | None = None
    """Position between the start and the result of a fine-tuning; None at the result."""
    protection: ProtectionFacts | None = None
    """Protection in fine-tunings that it carries."""
    repulsion: bool = False
    """True if a repulsion between close atoms is added to its network."""

    def __post_init__(self) -> None:
        _ = self.card

    @property
    def name(self) -> str:
        """Name in its card, or its published name."""
        return self.card.get("name", "") or self.converted_from.name

    @property
    def card(self) -> dict[str, str]:
        """Facts for the card in the configuration of the run."""
        return typed(dict[str, str] | None, self.config.get("card"), "config.card") or {}

    @property
    def run(self) -> RunRecord:
        """Configuration of the run.

        Raises:
            ValueError: it is not one; the message has the dotted name of an entry.
        """
        return typed(RunRecord, self.config, "config")

    @property
    def finetuning(self) -> FinetuneRecord:
        """Configuration of the fine-tuning.

        Raises:
            ValueError: it is not one; the message has the dotted name of an entry.
        """
        return typed(FinetuneRecord, self.config, "config")

    @property
    def rehearsed(self) -> tuple[Facts, ...]:
        """Rehearsed data sets, if any."""
        return self.rehearsal.datasets if self.rehearsal else ()
