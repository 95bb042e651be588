"""Structures in torch-sim: energies, forces and stresses in one batch, and dynamics without a thermostat."""

import ase
import torch
import torch_sim
from ase.units import fs
from torch_sim.integrators import nve
from torch_sim.quantities import calc_kinetic_energy

from foundation.interop.answers import Answer, Asked, Motion
from foundation.interop.torch_sim_model import TorchSimModel


def compute(asked: Asked, structures: list[ase.Atoms]) -> list[Answer]:
    """Return energies, forces and stresses of periodic structures."""
    model = TorchSimModel(asked.potential, theory=asked.theory, mode=asked.mode)
    found = model(torch_sim.io.atoms_to_state(structures, model.device, torch.float64))
    forces = found["forces"].double().split([len(atoms) for atoms in structures])
    rows = zip(found["energy"], forces, found["stress"].double(), strict=True)
    return [Answer(float(energy), each.numpy(), stress.numpy()) for energy, each, stress in rows]


def move(asked: Asked, atoms: ase.Atoms, motion: Motion) -> list[float]:
    """Return total energies of torch-sim's NVE [eV], its state in the model's float type as torch-sim makes it."""
    model = TorchSimModel(asked.potential, theory=asked.theory, mode=asked.mode)
    state = torch_sim.io.atoms_to_state([atoms], model.device, model.dtype)
    length = torch.tensor(motion.femtoseconds * fs, dtype=model.dtype)
    begin, step = nve(model, dt=length, kT=torch.tensor(0.0))
    moved, energies = begin(state, torch.tensor(0.0)), []
    moved.momenta = torch.as_tensor(atoms.get_momenta(), dtype=model.dtype)
    for number in range(motion.steps + 1):
        if number:
            moved = step(moved, length)
        if number % motion.every == 0:
            kinetic = calc_kinetic_energy(masses=moved.masses.double(), momenta=moved.momenta.double())
            energies.append(float(moved.energy) + float(kinetic))
    return energies
