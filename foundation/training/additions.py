"""The parts of a step: the data that a run is about, and in a fine-tuning those of the pretraining beside them.

Each part is a stream of its own with its own budget, and its loss is a mean over its own labels: how much of the old
data there is in a step changes how well that part is estimated, not how much it counts. In one mixed stream a few large
structures of the target would drown among the many small ones of the pretraining.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Steps, Stream
from foundation.training.loss import LossConfig, Penalty

Mode = Literal["joint", "alternate", "reference"]
Parts = list[list[GraphBatch]]
"""A process's micro-batches of a step by part: the target's and, in a run that rehearses, those of the rehearsal."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Data of the pretraining that a fine-tuning goes on to train on: experience replay."""

    datasets: tuple[Dataset, ...]
    """The data, their levels of theory numbered."""
    ratio: float = 1.0
    """Edge budget of a micro-batch of them over that of the target's."""
    weight: float = 1.0
    """Factor of their loss."""
    mode: Mode = "joint"
    """'joint' steps on both losses together; 'alternate' steps on the target and on the rehearsal in turn; 'reference'
    does so too, but the gradient of the target's step stays and is added to that of the rehearsal's, as in the code
    published with reEWC (Kim et al., arXiv:2506.15223)."""
    loss: LossConfig | None = None
    """Their loss; the run's when absent."""
    relabel: Callable[[GraphBatch], GraphBatch] | None = None
    """Replaces the labels; None keeps those of the data."""

    @property
    def work(self) -> float:
        """Mean edge budget of a step over that of the same step without rehearsal."""
        return 1.0 + self.ratio if self.mode == "joint" else 0.5 * (1.0 + self.ratio)


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What a fine-tuning adds to a run."""

    rehearsal: Rehearsal | None = None
    """Data of the pretraining to train on besides."""
    penalty: Penalty | None = None
    """Term added to the loss of each step."""
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rates of parameters, by name."""
    watched: Sequence[Dataset] = ()
    """Splits that are validated as well, without counting in the validation errors of the run."""

    @property
    def parts_of_loss(self) -> tuple[str, ...]:
        """Which of 'rehearsal' and 'penalty' there are."""
        parts = {"rehearsal": self.rehearsal, "penalty": self.penalty}
        return tuple(name for name, part in parts.items() if part is not None)

    @property
    def work(self) -> float:
        """Mean edge budget of a step over that of the run's own data."""
        return 1.0 if self.rehearsal is None else self.rehearsal.work


NO_ADDITIONS = Additions()
"""Additions of pretraining: none."""


class StepLoader:
    """The steps of a run as Lightning wants a loader: its length is the whole run's, so progress and resume agree."""

    def __init__(
        self, target: Stream, first: int, last: int, *, rehearsed: Stream | None = None, mode: Mode = "joint"
    ) -> None:
        """Prepare steps first to last - 1; in all modes but joint, even steps are the target's and odd ones not."""
        self._first, self._last, self._mode = first, last, mode
        in_turn = rehearsed is not None and mode != "joint"
        self._target: Steps = (
            target.from_step(-(-first // 2), -(-last // 2)) if in_turn else target.from_step(first, last)
        )
        self._rehearsed: Steps | None = None
        if rehearsed is not None:
            bounds = (first // 2, last // 2) if in_turn else (first, last)
            self._rehearsed = rehearsed.from_step(*bounds)

    @property
    def waited(self) -> float:
        """Time that the training process spent waiting for batches [s]."""
        return sum(steps.waited for steps in self._streams)

    @property
    def num_quarantined_frames(self) -> int:
        """Frames that could not be read and are left out."""
        return sum(steps.num_quarantined_frames for steps in self._streams)

    @property
    def _streams(self) -> list[Steps]:
        return [self._target] if self._rehearsed is None else [self._target, self._rehearsed]

    def __len__(self) -> int:
        return self._last

    def __iter__(self) -> Iterator[Parts]:
        if self._rehearsed is None:
            return ([batches] for batches in self._target)
        return self._of_both(self._rehearsed)

    def _of_both(self, steps: Steps) -> Iterator[Parts]:
        with contextlib.closing(iter(self._target)) as target, contextlib.closing(iter(steps)) as rehearsed:
            for step in range(self._first, self._last):
                if self._mode == "joint":
                    yield [next(target), next(rehearsed)]
                else:
                    yield [next(target), []] if step % 2 == 0 else [[], next(rehearsed)]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the trainer's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the step is the trainer's."""
