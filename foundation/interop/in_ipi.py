"""Structures in i-PI, by a socket: energies and forces, and dynamics without a thermostat."""

import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import ase
import numpy as np
from ase.calculators.lammps import Prism
from ase.calculators.socketio import SocketClient

from data_pipeline.graphs.molecules import MOLECULE_ARRAYS, molecule_labels
from foundation.interop.answers import Answer, Asked, Motion
from foundation.interop.calculator import Calculator

INPUT = """<simulation verbosity="quiet" floatformat="%23.15e">
  <output prefix="out">
    <properties stride="{every}" filename="table"> [ {properties} ] </properties>
  </output>
  <total_steps> {steps} </total_steps>
  <ffsocket mode="unix" name="potential"> <address> {name} </address> <latency> 1e-4 </latency> </ffsocket>
  <system>
    <initialize nbeads="1">
      <file mode="xyz"> start.xyz </file>
      <velocities mode="thermal" units="kelvin"> {temperature} </velocities>
    </initialize>
    <forces> <force forcefield="potential"> </force> </forces>
    <motion mode="dynamics">
      <dynamics mode="nve"> <timestep units="femtosecond"> {femtoseconds} </timestep> </dynamics>
    </motion>
    <ensemble> <temperature units="kelvin"> {temperature} </temperature> </ensemble>
  </system>
</simulation>
"""
STARTS = 60
"""Time in which i-PI must open its socket [s]."""


def compute(asked: Asked, structures: list[ase.Atoms]) -> list[Answer]:
    """Return energies and forces of periodic structures.

    Raises:
        RuntimeError: i-PI fails; the message is its own.
    """
    found = []
    for atoms in structures:
        forces = ", ".join(f"atom_f{{ev/ang}}({number})" for number in range(len(atoms)))
        properties = f"potential{{electronvolt}}, {forces}"
        rows, prism = _run(asked, atoms, Motion(steps=1, every=1, femtoseconds=1.0), properties)
        found.append(Answer(float(rows[0, 0]), prism.vector_to_ase(rows[0, 1:].reshape(-1, 3))))
    return found


def move(asked: Asked, atoms: ase.Atoms, motion: Motion) -> list[float]:
    """Return total energies of i-PI's NVE [eV]; it draws velocities of the structure's temperature.

    Raises:
        RuntimeError: i-PI fails; the message is its own.
    """
    return _run(asked, atoms, motion, "conserved{electronvolt}")[0][:, 0].tolist()


def _run(asked: Asked, atoms: ase.Atoms, motion: Motion, properties: str) -> tuple[np.ndarray, Prism]:
    """Return the rows of i-PI's table, and the rotation to its axes, those of LAMMPS."""
    prism, name = Prism(np.asarray(atoms.cell)), f"foundation-{uuid.uuid4().hex[:8]}"
    x, y, z, xy, xz, yz = prism.get_lammps_prism()
    box = [[x, 0, 0], [xy, y, 0], [xz, yz, z]]
    moved = ase.Atoms(atoms.numbers, prism.vector_to_lammps(atoms.positions), cell=box, pbc=True)
    if (labels := molecule_labels(atoms.arrays)) is not None:
        moved.new_array(MOLECULE_ARRAYS[0], labels)
    moved.calc = Calculator(asked.potential, theory=asked.theory, mode=asked.mode)
    cell = " ".join(map(repr, moved.cell.cellpar().tolist()))
    head = f"{len(moved)}\n# CELL(abcABC): {cell} cell{{angstrom}} positions{{angstrom}}\n"
    lines = [f"{atom.symbol} {atom.x:.17g} {atom.y:.17g} {atom.z:.17g}\n" for atom in moved]
    options = motion._asdict() | {"name": name, "properties": properties}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "start.xyz").write_text(head + "".join(lines))
        temperature = atoms.get_temperature() or 300.0
        Path(folder, "input.xml").write_text(INPUT.format(temperature=temperature, **options))
        program = [str(Path(sys.executable).with_name("i-pi")), "input.xml"]
        with subprocess.Popen(
            program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as server:
            try:
                _client(server, name).run(moved, use_stress=True)
                printed, _ = server.communicate(timeout=STARTS)
            finally:
                server.kill()
        if server.returncode:
            raise RuntimeError(f"i-PI fails: {printed.strip()[-500:]}")
        return np.loadtxt(Path(folder, "out.table"), ndmin=2), prism


def _client(server: "subprocess.Popen[str]", name: str) -> SocketClient:
    """Return a client of i-PI, which may not yet listen when its socket appears."""
    began = time.monotonic()
    with warnings.catch_warnings():
        # of the sockets that found nobody
        warnings.simplefilter("ignore", ResourceWarning)
        while server.poll() is None and time.monotonic() - began < STARTS:
            try:
                return SocketClient(unixsocket=name)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.05)
    server.kill()
    raise RuntimeError(f"i-PI fails: {server.communicate()[0].strip()[-500:]}")
