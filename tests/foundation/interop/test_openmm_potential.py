"""OpenMM finds the potential by name, and has the calculator's energies and forces."""

from pathlib import Path

import ase
import numpy as np
import openmm
import pytest
import torch
from ase.build import bulk
from ase.units import kJ, mol
from openmm import app, unit
from openmmml import MLPotential

from foundation.checkpoint import save
from foundation.interop.calculator import Calculator
from foundation.models import EquivariantConfig
from foundation.potential import Potential

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
ELEMENTS = (8, 12)
KILOJOULE = kJ / mol


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    potential = Potential(MODEL.network(ELEMENTS, num_theories=2), ELEMENTS, ("one", "other"))
    save(potential, tmp_path / "potential", {})
    return tmp_path / "potential"


def state_of(atoms: ase.Atoms, potential: MLPotential) -> openmm.State:
    topology = app.Topology()
    residue = topology.addResidue("crystal", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell[:] * unit.angstrom)
    system = potential.createSystem(topology)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(atoms.positions * unit.angstrom)
    return context.getState(getEnergy=True, getForces=True)


@pytest.mark.parametrize("periodic", [True, False])
def test_energies_and_forces_are_the_calculators(periodic: bool, folder: Path) -> None:
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    # the form of a box that OpenMM demands
    atoms.set_cell(4.2 * np.array([[1.0, 0, 0], [0.05, 0.98, 0], [0.02, -0.03, 1.04]]), scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    atoms.pbc = periodic
    state = state_of(atoms, MLPotential("foundation", model=str(folder), theory="other"))
    atoms.calc = Calculator(folder, theory="other")
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KILOJOULE
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * KILOJOULE
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)


def test_what_cannot_be_used_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="one, other"):
        MLPotential("foundation", model=str(folder))
    with pytest.raises(FileNotFoundError):
        MLPotential("foundation", model=str(folder / "gone"))
