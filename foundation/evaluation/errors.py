"""Errors of a potential on a split, beside those of predictors that know nothing but the composition."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from data_pipeline.graph import GraphBatch
from data_pipeline.manifest import Manifest
from data_pipeline.stream import sweep
from foundation.potential import Potential


@dataclass(frozen=True, kw_only=True, eq=False)
class Errors:
    """Labels and predictions for every frame of a split whose elements the potential knows."""

    ids: tuple[str, ...]
    """Names of the frames."""
    num_atoms: Int[np.ndarray, " frames"]
    """Atoms of each frame."""
    numbers: Int[np.ndarray, " atoms"]
    """Atomic numbers of the atoms with forces."""
    energy: Float64[np.ndarray, "frames 3"]
    """Energy per atom [eV]: label, prediction, composition-only prediction."""
    forces: Float64[np.ndarray, "atoms 2 3"]
    """Forces [eV/Å]: label, prediction."""
    stress: Float64[np.ndarray, "stressed 2 3 3"]
    """Stress [eV/Å³]: label, prediction."""
    force_mae: Float64[np.ndarray, " frames"]
    """Mean absolute error of each frame's force components [eV/Å]; NaN without forces."""
    has_forces: Bool[np.ndarray, " frames"]
    """Which frames have forces; their atoms follow each other in `numbers` and `forces`."""
    has_stress: Bool[np.ndarray, " frames"]
    """Which frames have a stress."""
    num_skipped: int
    """Frames left out because the potential does not know an element."""

    def summary(self) -> dict[str, float]:
        """Return the errors as JSON: eV/atom, eV/Å, eV/Å³; absent where there are no labels.

        The composition-only predictor is the sum of the potential's reference energies; the trivial force is zero.
        softening is Σ F_label·F_predicted / Σ |F_label|²: below one, the predicted surface is too soft.
        """
        error = self.energy[:, 1] - self.energy[:, 0]
        values = {
            "num_frames": float(len(self.ids)),
            "num_atoms": float(self.num_atoms.sum()),
            "num_skipped": float(self.num_skipped),
            "energy_mae": _mean(np.abs(error)),
            "energy_rmse": _mean(error**2) ** 0.5,
            "composition_energy_mae": _mean(np.abs(self.energy[:, 2] - self.energy[:, 0])),
        }
        if len(self.forces):
            label, predicted = self.forces[:, 0], self.forces[:, 1]
            values |= {
                "force_mae": _mean(np.abs(predicted - label)),
                "force_rmse": _mean((predicted - label) ** 2) ** 0.5,
                "zero_force_mae": _mean(np.abs(label)),
                "softening": float((label * predicted).sum() / max(float((label**2).sum()), 1e-300)),
            }
        if len(self.stress):
            label, predicted = self.stress[:, 0], self.stress[:, 1]
            values |= {
                "stress_mae": _mean(np.abs(predicted - label)),
                "zero_stress_mae": _mean(np.abs(label)),
            }
        return values

    def by_element(self) -> dict[int, dict[str, float | int]]:
        """Return for each atomic number the atoms, their force error and the zero predictor's [eV/Å]."""
        error = np.abs(self.forces[:, 1] - self.forces[:, 0]).mean(axis=1)
        size = np.abs(self.forces[:, 0]).mean(axis=1)
        return {
            int(z): {
                "num_atoms": int((self.numbers == z).sum()),
                "force_mae": _mean(error[self.numbers == z]),
                "zero_force_mae": _mean(size[self.numbers == z]),
            }
            for z in np.unique(self.numbers)
        }

    def worst(self, count: int = 10) -> list[dict[str, float | str | None]]:
        """Return the frames with the largest force errors (energy errors where there are no forces)."""
        energy_error = np.abs(self.energy[:, 1] - self.energy[:, 0])
        order = np.argsort(-np.where(np.isnan(self.force_mae), energy_error, self.force_mae), kind="stable")[:count]
        return [
            {
                "id": self.ids[i],
                "energy_error": float(energy_error[i]),
                "force_mae": None if np.isnan(self.force_mae[i]) else float(self.force_mae[i]),
            }
            for i in order
        ]


def compute_errors(
    potential: Potential, manifest: Manifest, split: str, *, edge_budget: int, theory: int = 0, num_workers: int = 0
) -> Errors:
    """Predict every frame of a split once, at one of the potential's levels of theory.

    Raises:
        ValueError: the split has no frames that the potential knows all elements of.
    """
    potential.eval()
    names = ("energy", "numbers", "forces", "stress", "frame_mae", "has_forces", "has_stress")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    ids: list[str] = []
    sizes: list[np.ndarray] = []
    batches = sweep(
        manifest,
        split,
        cutoff=potential.cutoff,
        edge_budget=edge_budget,
        elements=potential.elements,
        theory=theory,
        num_workers=num_workers,
    )
    for batch in batches:
        if batch.num_graphs:
            ids += batch.ids
            sizes.append(batch.num_atoms.numpy())
            for name, values in _predict(potential, batch).items():
                rows[name].append(values.double().cpu().numpy())
    if not ids:
        raise ValueError(f"{manifest.root}: split {split!r} has no frames of the potential's elements")
    arrays = {name: np.concatenate(values) for name, values in rows.items()}
    return Errors(
        ids=tuple(ids),
        num_atoms=np.concatenate(sizes),
        numbers=arrays["numbers"].astype(np.int64),
        energy=arrays["energy"],
        forces=arrays["forces"],
        stress=arrays["stress"],
        force_mae=arrays["frame_mae"],
        has_forces=arrays["has_forces"].astype(bool),
        has_stress=arrays["has_stress"].astype(bool),
        num_skipped=manifest.split(split).statistics.num_frames - len(ids),
    )


def _predict(potential: Potential, batch: GraphBatch) -> dict[str, Tensor]:
    """Return labels beside predictions for one batch."""
    batch = batch.to(potential.device)
    prediction = potential(batch)
    labelled = batch.has_forces[batch.graph_of_atom]
    error = (prediction.forces - batch.forces).abs().mean(dim=1).double()
    per_frame = torch.zeros_like(batch.energy).index_add(0, batch.graph_of_atom, error) / batch.num_atoms
    energies = torch.stack([batch.energy, prediction.energy, potential.composition_energy(batch)], dim=1)
    return {
        "energy": energies / batch.num_atoms.unsqueeze(1),
        "numbers": batch.numbers[labelled],
        "forces": torch.stack([batch.forces, prediction.forces], dim=1)[labelled],
        "stress": torch.stack([batch.stress, prediction.stress], dim=1)[batch.has_stress],
        "frame_mae": torch.where(batch.has_forces, per_frame, torch.nan),
        "has_forces": batch.has_forces,
        "has_stress": batch.has_stress,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
