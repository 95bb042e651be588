"""Errors in training and validation as sums over any number of batches and processes.

Everything goes into one reduction, in which a process without batches takes part like the others.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.structure import MAX_ATOMIC_NUMBER, SYMBOLS
from foundation.evaluation.frame_errors import LabelledPrediction, totals, totals_of_elements, unique
from foundation.evaluation.quantities import FORCE_COUNT, FRAMES, QUANTITIES, followed, terms_of, values_of
from foundation.potential import Prediction


def reduced(parts: Mapping[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return float64 tensors summed over processes in one reduction, on the device of the result.

    Args:
        parts: The tensors of this process by name, of the same shapes in all processes.
        reduce: Function that sums a vector over processes.
    """
    sums = reduce(torch.cat([part.flatten() for part in parts.values()]))
    pieces = sums.split([part.numel() for part in parts.values()])
    return {name: piece.view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)}


class ErrorSums:
    """Sums of the terms of the quantities logged in training, over any number of batches."""

    def __init__(self) -> None:
        self._terms = unique([FRAMES, *terms_of(followed())])
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums: Float64[Tensor, " terms"] = torch.zeros(len(self._terms), dtype=torch.float64)
        """Sum of each term."""

    def update(self, prediction: Prediction, batch: GraphBatch) -> None:
        """Add a batch."""
        new = totals(self._terms, LabelledPrediction.of_batch(prediction, batch))
        self.sums = self.sums.to(new.device) + new

    def add(self, other: "ErrorSums") -> None:
        """Add the sums of another object."""
        self.sums = self.sums.to(other.sums.device) + other.sums

    def compute(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the quantities with labels, and the number of frames.

        Args:
            reduce: Function that sums a tensor over processes.
        """
        return self.values(reduce(self.sums))

    def values(self, sums: Float64[Tensor, " terms"]) -> dict[str, float]:
        """Return the quantities with labels from such sums, and the number of frames."""
        named = dict(zip((term.name for term in self._terms), sums.tolist(), strict=True))
        return values_of(named) | {"frames": named[FRAMES.name]}


class ElementSums:
    """Sums by element of the terms of quantities by element: over its atoms, or structures that contain it."""

    def __init__(self) -> None:
        self._followed = {key: ratio for key, ratio in followed().items() if QUANTITIES[key].by_element}
        self._terms = unique([FRAMES, FORCE_COUNT, *terms_of(self._followed)])
        rows = MAX_ATOMIC_NUMBER + 1
        self.sums: Float64[Tensor, "elements terms"] = torch.zeros(rows, len(self._terms), dtype=torch.float64)
        """Sum of each term by atomic number."""

    def update(self, prediction: Prediction, batch: GraphBatch) -> None:
        """Add a batch."""
        new = totals_of_elements(self._terms, LabelledPrediction.of_batch(prediction, batch))
        self.sums = self.sums.to(new.device) + new

    def values(self, sums: Float64[Tensor, "elements terms"]) -> dict[str, dict[str, float]]:
        """Return the quantities of each element, and the numbers of its atoms with forces and of its structures."""
        found: dict[str, dict[str, float]] = {}
        for symbol, row in zip(SYMBOLS, sums.tolist(), strict=True):
            named = dict(zip((term.name for term in self._terms), row, strict=True))
            if named[FRAMES.name]:
                errors = {key: ratio.of(named) for key, ratio in self._followed.items() if named[ratio.bottom.name]}
                counts = {"atoms": named[FORCE_COUNT.name] / 3, "frames": named[FRAMES.name]}
                found[symbol] = errors | counts
        return found


class ValidationErrors:
    """Errors of a validation: in total, by data set and by element."""

    def __init__(self, datasets: Sequence[str], *, num_watched: int = 0) -> None:
        """Prepare for data sets of these names; the last num_watched ones are excluded from sums over sets."""
        self.datasets, self._num_own = tuple(datasets), len(datasets) - num_watched
        self._of_dataset, self._of_element = [ErrorSums() for _ in datasets], ElementSums()

    def update(self, prediction: Prediction, batch: GraphBatch, dataset: int) -> None:
        """Add a batch of a data set, given by number."""
        self._of_dataset[dataset].update(prediction, batch)
        if dataset < self._num_own:
            self._of_element.update(prediction, batch)

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the errors and those of each element, over all processes.

        The first have names such as 'force_mae' and, with several data sets or only watched ones, 'NAME/force_mae' as
        well. An element has the error of forces on its atoms, the energy error of the structures that contain it, and
        the numbers of its atoms (with labelled forces) and structures.

        Args:
            reduce: Function that sums a tensor over processes; called once.
        """
        elements, of_everything = self._of_element.sums, ErrorSums()
        of_datasets = [errors.sums.to(elements.device) for errors in self._of_dataset]
        sums = reduced({"datasets": torch.stack(of_datasets), "elements": elements}, reduce)
        values = of_everything.values(sums["datasets"][: self._num_own].sum(dim=0))
        if self.datasets[1:] or not self._num_own:
            for name, part in zip(self.datasets, sums["datasets"], strict=True):
                values |= {f"{name}/{error}": value for error, value in of_everything.values(part).items()}
        return values, self._of_element.values(sums["elements"])
