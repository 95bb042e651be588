"""Potentials as models of torch-sim, which moves many structures at once.

torch-sim is an optional package: pip install 'foundation[torch-sim]'.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_sim
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.interop.calculator import Mode, float_type_of, tabulate
from foundation.kernels.memory import keep_freed_memory
from foundation.naming import resolve
from foundation.potential import Potential


class TorchSimModel(ModelInterface):
    """A potential at one of its levels of theory; energies [eV], forces [eV/Å] and stresses [eV/Å³, as ASE's]."""

    def __init__(
        self,
        potential: Potential | Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        theory: str | None = None,
        mode: Mode | str = "precise",
        zbl: bool = False,
    ) -> None:
        """Wrap a copy of a potential; the arguments are those of `foundation.Calculator`.

        States are in float64 unless a float type is named: rounded positions would let the energy drift in mode "md".

        Raises:
            FileNotFoundError: the word names no potential.
            ValueError: the level of theory is unknown, or one of several must be named; or the mode or float type
                cannot be used.
        """
        super().__init__()
        given = copy.deepcopy(potential) if isinstance(potential, Potential) else resolve(potential).load()
        self._theory = given.theory_number(theory)
        float_type = float_type_of(dtype, mode)
        self._device, self._dtype = torch.device(device), torch.float64 if dtype is None else float_type
        self._compute_stress = self._compute_forces = True
        self.potential = given.to(self._device).cast(float_type).eval()
        if zbl:
            self.potential.repel()
        if mode == "md":
            tabulate(self.potential)
        keep_freed_memory()

    def forward(self, state: "torch_sim.SimState | dict", **_: object) -> dict[str, Tensor]:
        """Return energies (systems), forces (atoms, 3) and stresses (systems, 3, 3) of a state.

        Raises:
            InvalidStructure: two atoms at the same place, or a periodic cell without volume.
            UnknownElement: an element that the potential was not trained for.
        """
        if isinstance(state, dict):
            given: dict[str, Any] = {"masses": torch.ones_like(state["positions"][:, 0])} | state
            state = torch_sim.SimState(**given)
        structures = structures_of(state)
        batch = collate(structures, self.potential.cutoff, torch.float64, [self._theory] * len(structures))
        prediction = self.potential(batch.to(self._device))
        found = {"energy": prediction.energy, "forces": prediction.forces, "stress": prediction.stress}
        return {name: tensor.to(self._dtype) for name, tensor in found.items()}


def structures_of(state: torch_sim.SimState) -> list[Structure]:
    """Return the structures of a state, without labels.

    Raises:
        InvalidStructure: Structure.checked refuses one.
    """
    positions, cells = (each.detach().double().cpu().numpy() for each in (state.positions, state.row_vector_cell))
    numbers, owners = state.atomic_numbers.cpu().numpy(), state.system_idx.cpu().numpy()
    pbc = np.broadcast_to(np.asarray(torch.as_tensor(state.pbc).cpu(), bool), 3)
    return [
        Structure.checked(
            numbers=numbers[owners == number], positions=positions[owners == number], cell=cell, pbc=pbc, energy=0.0
        )
        for number, cell in enumerate(cells)
    ]
