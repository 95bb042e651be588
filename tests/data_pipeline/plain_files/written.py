"""Small files of labelled frames in the formats and with the names that programs use, written for the tests."""

from collections.abc import Mapping
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

VASP_HEAD = """ vasp.6.4.2 18Apr23 (build Jan 01 2024 00:00:00) complex
 POTCAR:    PAW_PBE Cu 22Jun2005
   LEXCH  = PE
   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps
   ENMAX  =  295.446; ENMIN  =  221.585 eV
   METAGGA=      F    non-selfconsistent MetaGGA calc.
   ENCUT  =  520.0 eV  38.22 Ry    6.18 a.u.   9.17  9.05  9.39*2*pi/ulx,y,z
   GGA     =    --    GGA type
   LEXCH   =     8    internal setting for exchange type
   LHFCALC =     F    Hartree Fock is set to
   ions per type =               2
"""
VASP_STEP = """----- Iteration {number:6d}(  12)  -----
---- aborting loop because EDIFF is reached ----
  in kB      10.00000    20.00000    30.00000     4.00000     5.00000     6.00000
      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.250000000  0.000000000  0.000000000
     0.000000000  4.000000000  0.000000000     0.000000000  0.250000000  0.000000000
     0.000000000  0.000000000  4.000000000     0.000000000  0.000000000  0.250000000
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         {force:.6f}      0.200000      0.300000
      {place:.5f}      2.00000      0.00000        -{force:.6f}     -0.200000     -0.300000
 -----------------------------------------------------------------------------------
    total drift:                                0.000000      0.000000      0.000000

  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  = {free:18.8f} eV

  energy  without entropy= {free:17.8f}  energy(sigma->0) = {zero:17.8f}

"""


def outcar(path: Path, frames: int = 3, *, smearing: float = 0.0, head: str = VASP_HEAD, first: int = 0) -> Path:
    """Write an OUTCAR of two copper atoms; `smearing` is the difference of its two energies [eV]."""
    steps = [
        VASP_STEP.format(
            number=step + 1,
            force=0.1 + 0.01 * (first + step),
            place=2.0 + 0.01 * (first + step),
            free=-7.5 + 0.01 * (first + step),
            zero=-7.5 + 0.01 * (first + step) + smearing,
        )
        for step in range(frames)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(steps))
    return path


def unlabelled(count: int, symbol: str = "Si", *, first: int = 0) -> list[ase.Atoms]:
    """Return rattled crystals of 8 (Si) or 4 atoms without labels."""
    frames = []
    for number in range(first, first + count):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.05, seed=number)
        frames.append(atoms)
    return frames


def energy_of(number: int) -> float:
    """Return the energy of a frame by its number."""
    return -43.0 + 0.01 * number


def forces_of(number: int, num_atoms: int) -> np.ndarray:
    """Return the forces of a frame by its number."""
    return np.random.default_rng(number).normal(size=(num_atoms, 3)).round(6)


STRESS = 0.01 * np.array([1.0, 2.0, 3.0, 0.4, 0.5, 0.6])
"""Stress of every frame [eV/Å³], in ASE's order."""


def labelled(count: int, symbol: str = "Si", *, first: int = 0, stress: bool = True) -> list[ase.Atoms]:
    """Return crystals with labels in ASE's calculator."""
    frames = unlabelled(count, symbol, first=first)
    for number, atoms in enumerate(frames, first):
        labels = {"energy": energy_of(number), "forces": forces_of(number, len(atoms))}
        labels |= {"stress": STRESS} if stress else {}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return frames


def named(count: int, names: Mapping[str, str], *, first: int = 0) -> list[ase.Atoms]:
    """Return crystals of silicon whose energy, forces, stress and virial have the names given, as far as given."""
    frames = unlabelled(count, first=first)
    for number, atoms in enumerate(frames, first):
        values = {"energy": energy_of(number), "stress": STRESS}
        values["virial"] = -STRESS[[0, 5, 4, 5, 1, 3, 4, 3, 2]] * atoms.get_volume()
        for kind, name in names.items():
            if kind == "forces":
                atoms.set_array(name, forces_of(number, len(atoms)))
            else:
                atoms.info[name] = values[kind]
    return frames


def xyz(path: Path, frames: list[ase.Atoms]) -> Path:
    """Write an extxyz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, frames, format="extxyz")
    return path
