"""Subjects of suites: a potential, or any ASE calculator."""

import copy
from collections.abc import Sequence

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.molecular_dynamics import calculator_of
from data_pipeline.structure import Structure
from foundation.engine.network import Unsupported
from foundation.evaluation.suites.suite import Predicted, Subject
from foundation.interop.calculator import Calculator, Engine, Mode
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.kernels.memory import keep_freed_memory
from foundation.naming import resolve
from foundation.potential import Potential
from foundation.releases.addresses import is_address


class _Named(Subject):
    def another(self, word: str) -> Subject:
        """Return the subject of a word."""
        return subject_of(word)


class PotentialSubject(_Named):
    """A potential at one of its levels of theory."""

    def __init__(self, potential: Potential, theory: int = 0, name: str = "potential") -> None:
        """Copy a potential: it is not changed."""
        keep_freed_memory()
        self.name, self.theory = name, theory
        self.potential = self._exact = copy.deepcopy(potential).cast(torch.float64).eval()
        self.elements = potential.elements

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        """Return predictions in float64, in order."""
        return [
            Predicted(energy=float(each.energy), forces=each.forces.cpu().numpy(), stress=each.stress[0].cpu().numpy())
            for each in self._exact.predict(structures, theory=self.theory)
        ]

    def calculator(self) -> AseCalculator:
        """Return a calculator in float32 with tabulated radial functions, compiled if it can be."""
        try:
            return self._wrapped("md", "compiled")
        except (Unsupported, NoCompiler):
            return self._wrapped("md")

    def exact_calculator(self) -> AseCalculator:
        """Return a calculator in float64."""
        return self._wrapped("precise")

    def _wrapped(self, mode: Mode, engine: Engine = "torch") -> AseCalculator:
        theory = self._exact.theories[self.theory]
        return Calculator(self._exact, self._exact.device.type, theory=theory, mode=mode, engine=engine)


class CalculatorSubject(_Named):
    """A calculator of any program."""

    def __init__(self, calculator: AseCalculator, name: str = "calculator") -> None:
        """Take a calculator."""
        self.name, self.potential, self.elements, self._calculator = name, None, None, calculator

    @classmethod
    def named(cls, word: str) -> "CalculatorSubject":
        """Return the subject of a word, `module:name`, whose module is imported.

        Raises:
            ValueError: there is none, or it needs arguments.
        """
        return cls(calculator_of(word), word)

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        """Return predictions in order, without stress if the calculator has none."""
        return [self._predicted(to_atoms(structure)) for structure in structures]

    def _predicted(self, atoms: ase.Atoms) -> Predicted:
        atoms.calc = self._calculator
        forces = np.asarray(atoms.get_forces(), dtype=np.float64)
        try:
            stress = np.asarray(atoms.get_stress(voigt=False), dtype=np.float64)
        except (PropertyNotImplementedError, NotImplementedError, ValueError):
            stress = np.zeros((3, 3))
        return Predicted(energy=float(atoms.get_potential_energy()), forces=forces, stress=stress)

    def calculator(self) -> AseCalculator:
        """Return the calculator itself."""
        return self._calculator

    def exact_calculator(self) -> None:
        """Return None: in what floats the calculator computes is unknown."""


def subject_of(word: str) -> Subject:
    """Return the potential of a name or folder, or the calculator of module:Class.

    Raises:
        FileNotFoundError: the word names no potential.
        ValueError: the calculator cannot be made, or the potential has several levels of theory.
    """
    if ":" in word and not is_address(word):
        return CalculatorSubject.named(word)
    potential = resolve(word).load()
    return PotentialSubject(potential, potential.theory_number(None), word)


def fast_calculator(word: str) -> AseCalculator:
    """Return the fastest calculator of a potential of a name or folder, in float32, for sources of data.

    Raises:
        FileNotFoundError: the word names no potential.
        ValueError: the potential has several levels of theory.
    """
    return subject_of(word).calculator()
