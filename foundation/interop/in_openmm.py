"""Structures in OpenMM: energies and forces, and dynamics without a thermostat, on its platform Reference."""

import ase
import numpy as np
import openmm
from ase.calculators.lammps import Prism
from ase.units import fs, kJ, mol, nm
from openmm import app, unit
from openmm.app.internal.unitcell import reducePeriodicBoxVectors

from foundation.interop.answers import Answer, Asked, Motion
from foundation.interop.calculator import Calculator
from foundation.interop.openmm_potential import FoundationPotential

PICOSECOND = 1000 * fs
"""Picosecond in ASE's unit of time."""


def compute(asked: Asked, structures: list[ase.Atoms]) -> list[Answer]:
    """Return energies and forces of periodic structures."""
    calculator, found = _calculator(asked), []
    for atoms in structures:
        context, prism = _context(calculator, atoms, openmm.VerletIntegrator(0.001))
        state = context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * kJ / mol
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * kJ / mol
        found.append(Answer(energy, prism.vector_to_ase(forces)))
    return found


def move(asked: Asked, atoms: ase.Atoms, motion: Motion) -> list[float]:
    """Return total energies of OpenMM's leapfrog [eV]; it takes the velocities back to the time of the positions."""
    integrator = openmm.VerletIntegrator(motion.femtoseconds / 1000)
    context, prism = _context(_calculator(asked), atoms, integrator)
    context.setVelocities(prism.vector_to_lammps(atoms.get_velocities()) * PICOSECOND / nm)
    energies = []
    for number in range(motion.steps // motion.every + 1):
        if number:
            integrator.step(motion.every)
        state = context.getState(getEnergy=True)
        energy = state.getPotentialEnergy() + state.getKineticEnergy()
        energies.append(energy.value_in_unit(unit.kilojoule_per_mole) * kJ / mol)
    return energies


def _calculator(asked: Asked) -> Calculator:
    return Calculator(asked.potential, theory=asked.theory, mode=asked.mode)


def _context(calculator: Calculator, atoms: ase.Atoms, integrator: openmm.Integrator) -> tuple[openmm.Context, Prism]:
    """Return a structure in OpenMM, which wants the box of LAMMPS with short vectors, and the rotation to it."""
    prism, topology, system = Prism(np.asarray(atoms.cell)), app.Topology(), openmm.System()
    residue = topology.addResidue("crystal", topology.addChain())
    for symbol, mass in zip(atoms.symbols, atoms.get_masses(), strict=True):
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        system.addParticle(mass)
    x, y, z, xy, xz, yz = prism.get_lammps_prism()
    box = reducePeriodicBoxVectors(unit.Quantity([[x, 0, 0], [xy, y, 0], [xz, yz, z]], unit.angstrom))
    topology.setPeriodicBoxVectors(box)
    system.setDefaultPeriodicBoxVectors(*box)
    FoundationPotential("foundation", calculator).addForces(topology, system, None, 0)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(prism.vector_to_lammps(atoms.positions) * unit.angstrom)
    return context, prism
