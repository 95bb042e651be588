"""Errors of predictions as sums over atoms and frames, computed here and added up by the callers.

A validation adds them up over batches and processes, a report over the frames of a split, a bootstrap over the frames
of each resample. Missing labels are multiplied by zero rather than left out: a selection would make an accelerator wait
for its number of rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.structure import MAX_ATOMIC_NUMBER, SYMBOLS
from foundation.potential import Prediction


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPrediction:
    """Predictions and labels of the same frames."""

    num_atoms: Int[Tensor, " frames"]
    """Number of atoms of each frame."""
    energy_error: Float64[Tensor, " frames"]
    """Prediction minus label, per atom [eV]."""
    composition_error: Float64[Tensor, " frames"] | None
    """The same for the sum of the potential's reference energies [eV]; None in training, where it is not needed."""
    numbers: Int[Tensor, " atoms"]
    """Atomic numbers."""
    frame_of_atom: Int[Tensor, " atoms"]
    """Index of each atom's frame."""
    has_forces: Bool[Tensor, " atoms"]
    """Atoms with a labelled force."""
    forces: Float[Tensor, "atoms 3"]
    """Labels [eV/Å]; arbitrary where missing."""
    predicted_forces: Float[Tensor, "atoms 3"]
    """Predictions [eV/Å]."""
    has_stress: Bool[Tensor, " frames"]
    """Frames with a labelled stress."""
    stress: Float[Tensor, "frames 3 3"]
    """Labels [eV/Å³]; arbitrary where missing."""
    predicted_stress: Float[Tensor, "frames 3 3"]
    """Predictions [eV/Å³]."""

    @classmethod
    def of_batch(cls, prediction: Prediction, batch: GraphBatch) -> "LabelledPrediction":
        """Return predictions and labels of a batch, without gradients."""
        return cls(
            num_atoms=batch.num_atoms,
            energy_error=(prediction.energy.detach() - batch.energy) / batch.num_atoms,
            composition_error=None,
            numbers=batch.numbers,
            frame_of_atom=batch.graph_of_atom,
            has_forces=batch.has_forces[batch.graph_of_atom],
            forces=batch.forces,
            predicted_forces=prediction.forces.detach(),
            has_stress=batch.has_stress,
            stress=batch.stress,
            predicted_stress=prediction.stress.detach(),
        )

    @cached_property
    def force_error(self) -> Float64[Tensor, "atoms 3"]:
        """Prediction minus label [eV/Å]; zero without a label."""
        return torch.where(self.has_forces[:, None], self.predicted_forces - self.forces, 0.0).double()

    @cached_property
    def labelled_forces(self) -> Float64[Tensor, "atoms 3"]:
        """Labels [eV/Å]; zero where missing."""
        return torch.where(self.has_forces[:, None], self.forces, 0.0).double()

    @cached_property
    def stress_error(self) -> Float64[Tensor, "frames 3 3"]:
        """Prediction minus label [eV/Å³]; zero without a label."""
        return torch.where(self.has_stress[:, None, None], self.predicted_stress - self.stress, 0.0).double()

    @cached_property
    def labelled_stress(self) -> Float64[Tensor, "frames 3 3"]:
        """Labels [eV/Å³]; zero where missing."""
        return torch.where(self.has_stress[:, None, None], self.stress, 0.0).double()


@dataclass(frozen=True, kw_only=True)
class Term:
    """A summand per atom or per frame, such as an absolute error or a count of labels."""

    name: str
    """Name of its sums, also in measurement files."""
    per: Literal["atom", "frame"]
    """Kind of the rows."""
    of: Callable[[LabelledPrediction], Float64[Tensor, " rows"]]
    """Values of the rows; zero without a label."""


def unique(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return each term once, in the order of first occurrence."""
    return tuple({term.name: term for term in terms}.values())


def totals(terms: Sequence[Term], labelled: LabelledPrediction) -> Float64[Tensor, " terms"]:
    """Return the sum of each term over all rows."""
    return torch.stack([term.of(labelled).sum() for term in terms])


def totals_of_elements(terms: Sequence[Term], labelled: LabelledPrediction) -> Float64[Tensor, "elements terms"]:
    """Return the sums by atomic number: atom terms over its atoms, frame terms over frames that contain it."""
    rows = MAX_ATOMIC_NUMBER + 1
    holds = labelled.energy_error.new_zeros(len(labelled.num_atoms), rows)
    holds[labelled.frame_of_atom, labelled.numbers] = 1.0
    columns = []
    for term in terms:
        values = term.of(labelled)
        if term.per == "atom":
            columns.append(values.new_zeros(rows).index_add_(0, labelled.numbers, values))
        else:
            columns.append(values @ holds)
    return torch.stack(columns, dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameErrors:
    """Sums of errors by frame, from which statistics, intervals and comparisons of a set of frames are computed."""

    ids: tuple[str, ...]
    """Names of the frames."""
    num_atoms: Float64[np.ndarray, " frames"]
    """Number of atoms of each frame."""
    elements: tuple[str, ...]
    """Symbols of the elements with forces, in order of atomic number."""
    sums: dict[str, Float64[np.ndarray, " frames"]]
    """Sum of each term in each frame, by the term's name."""
    of_elements: dict[str, Float64[np.ndarray, "frames elements"]]
    """Sum of each term over each element's atoms in each frame."""


def frame_errors(
    labelled: LabelledPrediction, ids: tuple[str, ...], terms: Sequence[Term], of_elements: Sequence[Term]
) -> FrameErrors:
    """Return the sums of terms by frame, and of some also by element, with frames in order of their names.

    Raises:
        ValueError: a term by element is per frame.
    """
    if wrong := [term.name for term in of_elements if term.per == "frame"]:
        raise ValueError(f"{', '.join(wrong)}: a term per frame has no sums by element")
    order = np.argsort(np.array(ids), kind="stable")
    known, column = torch.unique(labelled.numbers, return_inverse=True)
    size = len(ids), len(known)
    places = labelled.frame_of_atom * len(known) + column

    def added(values: Tensor, rows: Tensor, length: int) -> np.ndarray:
        return values.new_zeros(length).index_add_(0, rows, values).numpy()

    by_frame, by_element = {}, {}
    for term in terms:
        values = term.of(labelled)
        sums = added(values, labelled.frame_of_atom, size[0]) if term.per == "atom" else values.numpy()
        by_frame[term.name] = sums[order]
    for term in of_elements:
        by_element[term.name] = added(term.of(labelled), places, size[0] * size[1]).reshape(size)[order]
    return FrameErrors(
        ids=tuple(ids[place] for place in order.tolist()),
        num_atoms=labelled.num_atoms.double().numpy()[order],
        elements=tuple(SYMBOLS[z] for z in known.tolist()),
        sums=by_frame,
        of_elements=by_element,
    )
