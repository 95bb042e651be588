"""Potentials for OpenMM, by the name `foundation` of its package openmmml.

    system = MLPotential("foundation", model="sevennet-0").createSystem(topology)

openmm and openmmml are optional packages: pip install 'foundation[openmm]'.
"""

from collections.abc import Iterable

from openmm import System
from openmm.app import Topology
from openmmml.models.asepotential import ASEPotentialImpl

from foundation.interop.calculator import Calculator


class FoundationPotential(ASEPotentialImpl):
    """One of this project's potentials, computed by its ASE calculator."""

    def __init__(self, name: str, calculator: Calculator) -> None:
        """Take a calculator."""
        super().__init__(name)
        self._calculator = calculator

    def addForces(
        self, topology: Topology, system: System, atoms: Iterable[int] | None, forceGroup: int, **_: object
    ) -> None:
        """Add the potential's force on the atoms, or on all, to a system.

        Raises:
            ValueError: an atom has no element.
        """
        super().addForces(topology, system, atoms, forceGroup, calculator=self._calculator)
