"""Predictions for every frame of a split, with labels and predictions from compositions alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.stream import full_pass
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS
from foundation.evaluation.frame_errors import FrameErrors, LabelledPrediction, frame_errors
from foundation.evaluation.quantities import QUANTITIES, by_atoms, terms_of
from foundation.kernels.memory import keep_freed_memory
from foundation.potential import Potential


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Labels and predictions for every frame of a split whose elements the potential knows."""

    ids: tuple[str, ...]
    """Names of the frames."""
    num_atoms: Int[np.ndarray, " frames"]
    """Number of atoms of each frame."""
    numbers: Int[np.ndarray, " atoms"]
    """Atomic numbers of the atoms with forces."""
    energy: Float64[np.ndarray, "frames 3"]
    """Energy per atom [eV]: label, prediction, composition-only prediction."""
    forces: Float64[np.ndarray, "atoms 2 3"]
    """Forces [eV/Å]: label, prediction."""
    stress: Float64[np.ndarray, "stressed 2 3 3"]
    """Stress [eV/Å³]: label, prediction."""
    has_forces: Bool[np.ndarray, " frames"]
    """Frames with forces; their atoms are consecutive in `numbers` and `forces`."""
    has_stress: Bool[np.ndarray, " frames"]
    """Frames with a stress."""
    num_skipped: int
    """Number of frames left out because the potential does not know an element."""

    def errors(self) -> FrameErrors:
        """Return the sums of errors by frame for QUANTITIES and their trivial predictors."""
        frames = np.repeat(np.arange(len(self.ids)), self.num_atoms * self.has_forces)
        stress = np.zeros((len(self.ids), *self.stress.shape[1:]))
        stress[self.has_stress] = self.stress
        arrays: dict[str, Any] = {
            "num_atoms": self.num_atoms,
            "energy_error": self.energy[:, 1] - self.energy[:, 0],
            "composition_error": self.energy[:, 2] - self.energy[:, 0],
            "numbers": self.numbers,
            "frame_of_atom": frames,
            "has_forces": np.ones(len(frames), dtype=bool),
            "forces": self.forces[:, 0],
            "predicted_forces": self.forces[:, 1],
            "has_stress": self.has_stress,
            "stress": stress[:, 0],
            "predicted_stress": stress[:, 1],
        }
        labelled = LabelledPrediction(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        return frame_errors(
            labelled, self.ids, terms_of(QUANTITIES, trivial=True), of_elements=terms_of(by_atoms(), trivial=True)
        )


def predict(
    potential: Potential, manifest: Manifest, split: str, *, edge_budget: int, theory: int = 0, num_workers: int = 0
) -> Predictions:
    """Predict every frame of a split once, at one of the potential's levels of theory.

    Raises:
        ValueError: the split has no frame whose elements are all known to the potential.
    """
    keep_freed_memory()
    was_training = potential.training
    names = ("energy", "numbers", "forces", "stress", "has_forces", "has_stress")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    ids: list[str] = []
    sizes: list[np.ndarray] = []
    batches = full_pass(
        manifest,
        split,
        cutoff=potential.cutoff,
        edge_budget=edge_budget,
        elements=potential.elements,
        theory=theory,
        num_workers=num_workers,
    )
    try:
        potential.eval()
        for batch in batches:
            if batch.num_graphs:
                ids += batch.ids
                sizes.append(batch.num_atoms.numpy())
                for name, values in _predict(potential, batch).items():
                    rows[name].append(values.double().cpu().numpy())
    finally:
        potential.train(was_training)
    if not ids:
        unknown = sorted(set(manifest.split(split).statistics.elements) - set(potential.elements))
        raise ValueError(
            f"{manifest.provenance.name}: split {split!r} has no frame whose elements are all known to the potential, "
            f"which lacks {', '.join(SYMBOLS[z] for z in unknown)}"
        )
    arrays = {name: np.concatenate(values) for name, values in rows.items()}
    return Predictions(
        ids=tuple(ids),
        num_atoms=np.concatenate(sizes),
        numbers=arrays["numbers"].astype(np.int64),
        energy=arrays["energy"],
        forces=arrays["forces"],
        stress=arrays["stress"],
        has_forces=arrays["has_forces"].astype(bool),
        has_stress=arrays["has_stress"].astype(bool),
        num_skipped=manifest.split(split).statistics.num_frames - len(ids),
    )


def _predict(potential: Potential, batch: GraphBatch) -> dict[str, Tensor]:
    """Return labels and predictions for one batch."""
    batch = batch.to(potential.device)
    prediction = potential(batch)
    labelled = batch.has_forces[batch.graph_of_atom]
    energies = torch.stack([batch.energy, prediction.energy, potential.composition_energy(batch)], dim=1)
    return {
        "energy": energies / batch.num_atoms.unsqueeze(1),
        "numbers": batch.numbers[labelled],
        "forces": torch.stack([batch.forces, prediction.forces], dim=1)[labelled],
        "stress": torch.stack([batch.stress, prediction.stress], dim=1)[batch.has_stress],
        "has_forces": batch.has_forces,
        "has_stress": batch.has_stress,
    }
