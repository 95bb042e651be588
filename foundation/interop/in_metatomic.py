"""Structures through a metatomic model: energies, forces and stresses, and dynamics without a thermostat, by ASE."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ase
from ase.calculators.calculator import Calculator
from metatomic_ase import MetatomicCalculator

from foundation.interop.answers import Answer, Asked, Motion, total_energies
from foundation.interop.calculator import float_type_of, to_structure
from foundation.interop.metatomic_file import write_metatomic


@contextmanager
def _calculator(asked: Asked, example: ase.Atoms) -> Iterator[Calculator]:
    """Yield metatomic's own calculator of a potential's file."""
    potential = copy.deepcopy(asked.potential).cast(float_type_of(None, asked.mode))
    theory = potential.theory_number(asked.theory)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        write_metatomic(potential, theory, "0" * 64, to_structure(example), "potential", file)
        yield MetatomicCalculator(str(file))


def compute(asked: Asked, structures: list[ase.Atoms]) -> list[Answer]:
    """Return energies, forces and stresses of periodic structures."""
    found = []
    with _calculator(asked, structures[0]) as calculator:
        for each in structures:
            atoms = each.copy()
            atoms.calc = calculator
            found.append(Answer(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)))
    return found


def move(asked: Asked, atoms: ase.Atoms, motion: Motion) -> list[float]:
    """Return total energies of ASE's NVE [eV]."""
    with _calculator(asked, atoms) as calculator:
        return total_energies(calculator, atoms, motion)
