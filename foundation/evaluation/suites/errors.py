"""Errors of energies, forces and stress on labelled frames, for any potential or calculator, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.comparison import bootstrap
from foundation.evaluation.frame_errors import FrameErrors, LabelledPrediction, frame_errors
from foundation.evaluation.quantities import QUANTITIES, terms_of
from foundation.evaluation.suites.labelled import Labelled, labelled_frames
from foundation.evaluation.suites.suite import Finding, Findings, Predicted, Subject, Suite


@dataclass(frozen=True, kw_only=True)
class Errors(Suite):
    """Errors on labelled frames, in the units in which errors are shown; intervals are a bootstrap over frames."""

    name: ClassVar[str] = "errors"

    held_out: tuple[Labelled, ...] = field(metadata=MAY_CHANGE)
    """Sets of labelled frames."""

    def elements(self) -> set[int]:
        """Return nothing: frames with unknown elements are left out."""
        return set()

    def run(self, subject: Subject) -> Findings:
        """Return the headline quantities of every set.

        Raises:
            FileNotFoundError: there is no such data set.
            ValueError: it has no such split, or no frame whose elements are all known to the subject.
        """
        found: dict[str, Finding] = {}
        for item in self.held_out:
            frames, num_unknown = labelled_frames(item.path, item.split, item.max_frames, subject)
            label = item.label
            found[f"{label}: frames"] = Finding(value=float(len(frames)))
            if num_unknown:
                found[f"{label}: frames left out with unknown elements"] = Finding(value=float(num_unknown))
            for key, statistic in bootstrap(errors_of(frames, subject.predict(frames)), elements=False).items():
                quantity = QUANTITIES[key]
                if quantity.headline:
                    factor, interval = quantity.unit.factor, statistic.interval
                    found[f"{label}: {quantity.name}"] = Finding(
                        value=factor * statistic.value,
                        unit=quantity.unit.name,
                        interval=interval and (factor * interval[0], factor * interval[1]),
                        reference=None if quantity.is_error else quantity.ideal,
                    )
        return Findings(quantities=found)


def errors_of(frames: Sequence[Structure], predicted: Sequence[Predicted]) -> FrameErrors:
    """Return the sums of errors of every frame."""
    sizes = np.array([frame.num_atoms for frame in frames])
    has_forces = np.array([frame.has_forces for frame in frames])
    arrays = {
        "num_atoms": sizes,
        "energy_error": np.array([each.energy - frame.energy for each, frame in zip(predicted, frames, strict=True)])
        / sizes,
        "numbers": np.concatenate([frame.numbers for frame in frames]).astype(np.int64),
        "frame_of_atom": np.repeat(np.arange(len(frames)), sizes),
        "has_forces": np.repeat(has_forces, sizes),
        "forces": np.concatenate([frame.forces for frame in frames]).astype(np.float64),
        "predicted_forces": np.concatenate([each.forces for each in predicted]),
        "has_stress": np.array([frame.has_stress for frame in frames]),
        "stress": np.array([frame.stress for frame in frames], dtype=np.float64),
        "predicted_stress": np.array([each.stress for each in predicted]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    labelled = LabelledPrediction(composition_error=None, **tensors)
    return frame_errors(labelled, tuple(f"{n:08d}" for n in range(len(frames))), terms_of(QUANTITIES), of_elements=())
