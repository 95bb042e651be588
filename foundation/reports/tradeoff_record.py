"""Content of tradeoff.json: errors and changes of every fine-tuning method, and the dominated ones."""

from dataclasses import dataclass

from foundation.evaluation.comparison import Estimate, Resampling
from foundation.evaluation.held_out import Role
from foundation.reports.forgetting_record import SetPoint


@dataclass(frozen=True, kw_only=True)
class ComparedSet:
    """A held-out set on which all methods were measured."""

    role: Role
    """Role of the set in the comparison."""
    split: str
    """Split of the data set."""
    manifest_fingerprint: str
    """Fingerprint of the data set's manifest."""
    num_frames: int
    """Number of frames measured."""


@dataclass(frozen=True, kw_only=True)
class StartErrors:
    """The start of all methods."""

    weights_sha256: str
    """Checksum of its weights."""
    errors: dict[str, dict[str, Estimate]]
    """Quantities by name of the set and of the quantity."""


@dataclass(frozen=True, kw_only=True)
class RangedPoint(SetPoint):
    """Quantities of a held-out set as means over seeds."""

    range: dict[str, tuple[float, float] | None]
    """Smallest and largest of the seeds by name of the quantity; None if one of them is NaN."""


@dataclass(frozen=True, kw_only=True)
class MethodPoint:
    """A method's result, or an interpolation between the start and it."""

    alpha: float
    """Position between start and result; 1 is the result."""
    dominated_by: tuple[str, ...]
    """Labels of the points that are better on all axes."""
    sets: dict[str, RangedPoint]
    """Quantities by name of the set."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of fine-tuning, over its seeds."""

    name: str
    """Name of the run folders without the seed."""
    seeds: tuple[int, ...]
    """Seed of each run."""
    runs: tuple[str, ...]
    """Folder of each run."""
    steps: int | None
    """Number of optimizer steps."""
    seconds_per_step: float | None
    """Median time of a step [s]; None if none was logged."""
    points: tuple[MethodPoint, ...]
    """Interpolations by alpha, and the result."""

    @property
    def result(self) -> MethodPoint:
        """The point at the end of the line."""
        (point,) = (point for point in self.points if point.alpha == 1)
        return point


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of two methods: forgetting and target error of the second minus the first."""

    first: str
    """Name of the first method."""
    second: str
    """Name of the second method."""
    forgetting: dict[str, Estimate]
    """Differences of the changes by name of the retained set."""
    target: dict[str, Estimate]
    """Differences of the errors by name of the target."""


@dataclass(frozen=True, kw_only=True)
class PhysicsAxis:
    """Deviation from references of one quantity of a suite, the mean over everything that has a reference."""

    suite: str
    """Name of the suite."""
    quantity: str
    """Name of the quantity, without the crystal or temperature in front of it."""
    start: float | None
    """Mean of |value / reference - 1| for the start; None: undetermined, or not judged."""
    methods: dict[str, Estimate]
    """The same by name of the method, as means over seeds; limits are the smallest and largest of several seeds."""

    @property
    def title(self) -> str:
        """Suite and quantity."""
        return f"{self.suite}, {self.quantity}"


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A method that is better by errors and worse by physics."""

    suite: str
    """Name of the suite."""
    quantity: str
    """Name of the quantity."""
    by_errors: str
    """Method with the smaller error on every target, outside the interval of the difference."""
    by_physics: str
    """Method, or the start, all of whose seeds are nearer to the references, by 1 % of them."""


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Methods of fine-tuning from one start; numbers are means over seeds with intervals over seeds and frames."""

    bootstrap: Resampling
    """Options of the bootstrap."""
    metric: str
    """Error by which methods are compared."""
    sets: dict[str, ComparedSet]
    """Held-out sets by name."""
    start: StartErrors
    """The start."""
    methods: tuple[Method, ...]
    """The methods."""
    non_dominated: tuple[str, ...]
    """Labels of the points that no other dominates."""
    differences: tuple[Difference, ...]
    """Each two methods."""
    physics: tuple[PhysicsAxis, ...] = ()
    """Deviations of suites from their references; (): no suites were run."""
    contradictions: tuple[Contradiction, ...] = ()
    """Disagreements of errors and physics about two methods."""
