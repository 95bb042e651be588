"""Subjects of suites: a potential, or any ASE calculator."""

import contextlib
import copy
from collections.abc import Sequence

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError

from data_pipeline.graphs.batch import collate
from data_pipeline.sources.molecular_dynamics import calculator_of
from data_pipeline.structure import Structure
from foundation.evaluation.suites.suite import Predicted, Subject
from foundation.interop.calculator import Calculator, to_atoms
from foundation.kernels.memory import keep_freed_memory
from foundation.naming import resolve
from foundation.nn.computation import Computation
from foundation.potential import Potential

BATCH = 64
"""Largest number of structures that are predicted together."""
BATCH_ATOMS = 2000
"""Number of atoms above which a batch ends."""
KNOTS = 256
"""Number of knots of the radial table in molecular dynamics: forces differ by about 2e-6 eV/Å."""


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
        found: list[Predicted] = []
        exact = self._exact
        for some in _batches(structures):
            batch = collate(some, exact.cutoff, torch.float64, [self.theory] * len(some)).to(exact.device)
            prediction = exact(batch)
            forces = prediction.forces.cpu().numpy()
            ends = np.cumsum([structure.num_atoms for structure in some])
            found += [
                Predicted(energy=float(energy), forces=forces[end - structure.num_atoms : end], stress=stress)
                for energy, stress, structure, end in zip(
                    prediction.energy, prediction.stress.cpu().numpy(), some, ends, strict=True
                )
            ]
        return found

    def calculator(self) -> AseCalculator:
        """Return a calculator in float32 with tabulated radial functions."""
        fast = copy.deepcopy(self._exact).cast(torch.float32)
        with contextlib.suppress(ValueError):  # a network without radial networks, fast as it is
            fast.compute_as(Computation(radial_table=KNOTS))
        return self._wrapped(fast, torch.float32)

    def exact_calculator(self) -> AseCalculator:
        """Return a calculator in float64."""
        return self._wrapped(self._exact, torch.float64)

    def _wrapped(self, potential: Potential, dtype: torch.dtype) -> AseCalculator:
        return Calculator(potential, self._exact.device.type, dtype, self._exact.theories[self.theory])


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
    if ":" in word:
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


def _batches(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Return structures in order, in batches of bounded size."""
    batches: list[list[Structure]] = []
    atoms = 0
    for structure in structures:
        if not batches or len(batches[-1]) == BATCH or atoms + structure.num_atoms > BATCH_ATOMS:
            batches.append([])
            atoms = 0
        batches[-1].append(structure)
        atoms += structure.num_atoms
    return batches
