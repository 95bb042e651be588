"""A potential in every engine: energies and forces of crystals, computed by each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import ase
import numpy as np
from ase.calculators.lammps import Prism
from ase.units import kJ, mol
from jaxtyping import Float64

from data_pipeline.structure import Structure
from foundation.interop.calculator import Calculator, to_atoms
from foundation.interop.in_lammps import computed_in_lammps
from foundation.potential import Potential

EXACT, ROUNDED = 1e-9, 1e-4
"""Largest differences in float64 and in float32."""
Results = list[tuple[float, Float64[np.ndarray, "_ 3"]]]
"""Energy [eV] and forces [eV/Å] of every crystal."""


class Way(NamedTuple):
    """A way to compute crystals."""

    engine: str
    options: str
    tolerance: float
    """Largest difference of energies per atom and forces, relative to 1 + |value|, that still is rounding."""
    compute: Callable[[], Results]


def ways_to_compute(potential: Potential, theory: int, structures: Sequence[Structure]) -> list[Way]:
    """Return all ways to compute structures by a potential in float64 at one of its levels of theory."""
    name, crystals = potential.theories[theory], [to_atoms(each) for each in structures]
    return [
        *(
            Way(
                "ASE",
                f"mode {mode}, engine {engine}",
                tolerance,
                partial(_by_ase, potential, name, mode, engine, crystals),
            )
            for engine in ("torch", "compiled")
            for mode, tolerance in (("precise", EXACT), ("md", ROUNDED))
        ),
        *(
            Way("LAMMPS", way, EXACT, partial(computed_in_lammps, potential, theory, crystals, processes))
            for processes, way in ((1, "1 process, float64"), (2, "2 processes, float64"))
        ),
        Way("torch-sim", "mode precise", EXACT, partial(_by_torch_sim, potential, name, crystals)),
        Way("OpenMM", "mode precise", EXACT, partial(_by_openmm, potential, name, crystals)),
    ]


def _by_ase(potential: Potential, theory: str, mode: str, engine: str, crystals: list[ase.Atoms]) -> Results:
    calculator, found = Calculator(potential, theory=theory, mode=mode, engine=engine), []
    for atoms in crystals:
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    return found


def _by_torch_sim(potential: Potential, theory: str, crystals: list[ase.Atoms]) -> Results:
    import torch_sim

    from foundation.interop.torch_sim_model import TorchSimModel

    model = TorchSimModel(potential, theory=theory)
    found = model(torch_sim.io.atoms_to_state(crystals, model.device, model.dtype))
    forces = found["forces"].split([len(atoms) for atoms in crystals])
    return [(float(e), f.numpy()) for e, f in zip(found["energy"], forces, strict=True)]


def _by_openmm(potential: Potential, theory: str, crystals: list[ase.Atoms]) -> Results:
    import openmm
    from openmm import app, unit
    from openmm.app.internal.unitcell import reducePeriodicBoxVectors

    from foundation.interop.openmm_potential import FoundationPotential

    door = FoundationPotential("foundation", Calculator(potential, theory=theory))
    platform, found = openmm.Platform.getPlatformByName("Reference"), []
    for atoms in crystals:
        # OpenMM wants the box of LAMMPS, with short vectors
        prism, topology, system = Prism(np.asarray(atoms.cell)), app.Topology(), openmm.System()
        residue = topology.addResidue("crystal", topology.addChain())
        for symbol in atoms.symbols:
            topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
            system.addParticle(1.0)
        x, y, z, xy, xz, yz = prism.get_lammps_prism()
        box = reducePeriodicBoxVectors(unit.Quantity([[x, 0, 0], [xy, y, 0], [xz, yz, z]], unit.angstrom))
        topology.setPeriodicBoxVectors(box)
        system.setDefaultPeriodicBoxVectors(*box)
        door.addForces(topology, system, None, 0)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        context.setPositions(prism.vector_to_lammps(atoms.positions) * unit.angstrom)
        state = context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * kJ / mol
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * kJ / mol
        found.append((energy, prism.vector_to_ase(forces)))
    return found
