"""Additions of a fine-tuning to a run: rehearsal of pretraining data, penalty and rate factors; and the step loader.

A step has a part for the target and one for the rehearsal. Each part is a separate stream with its own budget, and its
loss is a mean over its own labels: the amount of old data in a step changes the accuracy of that part's estimate, not
its weight. In one mixed stream a few large structures of the target would be lost among the many small ones of the
pretraining.
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
"""A process's micro-batches of a step by part: the target's and, with rehearsal, the rehearsal's."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Pretraining data that a fine-tuning continues to train on (experience replay)."""

    datasets: tuple[Dataset, ...]
    """The data, with numbered levels of theory."""
    ratio: float = 1.0
    """Edge budget of a rehearsal micro-batch over that of the target."""
    weight: float = 1.0
    """Weight of the rehearsal loss."""
    mode: Mode = "joint"
    """'joint' steps on both losses together; 'alternate' steps on the target and on the rehearsal in turn; 'reference'
    too, but the gradient of the target's step is kept and added to that of the rehearsal's, as in the published code of
    reEWC (Kim et al., arXiv:2506.15223)."""
    loss: LossConfig | None = None
    """Loss for rehearsal; None: the run's."""
    relabel: Callable[[GraphBatch], GraphBatch] | None = None
    """Function that replaces the labels; None keeps those of the data."""

    @property
    def work(self) -> float:
        """Mean edge budget of a step over that of the same step without rehearsal."""
        return 1.0 + self.ratio if self.mode == "joint" else 0.5 * (1.0 + self.ratio)


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Additions of a fine-tuning to a run."""

    rehearsal: Rehearsal | None = None
    """Pretraining data to train on as well."""
    penalty: Penalty | None = None
    """Term added to the loss of each step."""
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rates of parameters, by name."""
    watched: Sequence[Dataset] = ()
    """Splits that are validated as well, but excluded from the run's validation errors."""

    @property
    def parts_of_loss(self) -> tuple[str, ...]:
        """Names of the extra parts of the loss: 'rehearsal', 'penalty'."""
        parts = {"rehearsal": self.rehearsal, "penalty": self.penalty}
        return tuple(name for name, part in parts.items() if part is not None)

    @property
    def work(self) -> float:
        """Mean edge budget of a step over that of the run's own data."""
        return 1.0 if self.rehearsal is None else self.rehearsal.work


NO_ADDITIONS = Additions()
"""Empty additions, for pretraining."""


class StepLoader:
    """Loader of the steps of a run for Lightning; its length is that of the whole run, so progress and resume agree."""

    def __init__(
        self, target: Stream, first: int, last: int, *, rehearsed: Stream | None = None, mode: Mode = "joint"
    ) -> None:
        """Prepare steps first to last - 1; in modes other than joint, odd steps are the rehearsal's."""
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
        """Number of frames left out because they could not be read."""
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
        """Return {}: the trainer keeps the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the trainer keeps the step."""
