"""Export of a potential as a compiled library, for LAMMPS and for programs without Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources.random_crystals import RADII
from data_pipeline.store import lock
from data_pipeline.store.replacing import refuse_foreign
from data_pipeline.structure import Structure
from foundation.engine.folder import FACTS, belongs, write_library
from foundation.engine.library import CompiledPotential
from foundation.export import generated
from foundation.interop.calculator import DTYPES
from foundation.naming import Choice, resolve
from foundation.nn.repulsion import INNER, OUTER
from foundation.potential import Potential

TOLERANCES = {("float64", False): 1e-10, ("float64", True): 1e-5, ("float32", False): 1e-4, ("float32", True): 1e-4}
"""Largest difference of energies per atom, forces and stresses from the potential in float64, relative to 1 + |value|,
by float type and use of a table."""
CHECKED = 4
"""Number of crystals on which the library is compared with the potential."""


class LibraryMismatch(ValueError):
    """A library that does not compute what its potential does."""


@dataclass(frozen=True, kw_only=True)
class ExportLibraryConfig:
    """Potential to compile, and options."""

    for_: Literal["library"]
    """A compiled library (--for on the command line)."""
    model: Path
    """Potential: its folder, run or published name."""
    out: Path
    """Folder to write; an older library there is replaced."""
    theory: str | None = None
    """Level of theory, one of the potential's; None: its only one."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Float type; geometry and sums are in float64 in both."""
    table: bool = True
    """Take radial functions from a table of polynomials: much faster, and exact to the rounding of float32."""
    zbl: bool = False
    """Add a repulsion between atoms much closer than a bond; nothing changes at the distances of bonds."""


def export_library(config: ExportLibraryConfig) -> Path:
    """Write the library of a potential, compare it with the potential and return its folder.

    Raises:
        FileExistsError: the folder exists and is no library, or holds other files too.
        FileNotFoundError: there is no such potential.
        LibraryMismatch: the library computes something else; nothing is left behind.
        NoCompiler: there is no C compiler, or it fails.
        ValueError: the network cannot be compiled, or the level of theory is unknown.
        InUse: another process writes there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        refuse_foreign(config.out, "library", FACTS, belongs)
        potential, described = resolve(config.model, config.checkpoint).read()
        theory = potential.theory_number(config.theory)
        if config.zbl:
            potential.repel()
        verify(potential.cast(torch.float64).eval(), theory, config)
        cast = potential.cast(DTYPES[config.dtype])
        write_library(cast, theory, described.weights_sha256, config.out, table=config.table)
    return config.out


def verify(potential: Potential, theory: int, config: ExportLibraryConfig) -> None:
    """Compare a library with its potential on small crystals and, if there is a repulsion, on atoms that collide.

    Raises:
        LibraryMismatch: the message names the quantity.
    """
    structures = generated(potential.elements, CHECKED)
    if potential.repulsion is not None:
        structures.append(_colliding(potential.elements[-1]))
    graphs = [to_graph(each, potential.cutoff, torch.float64, theory) for each in structures]
    expected = [potential(graph) for graph in graphs]
    compiled = CompiledPotential(potential.cast(DTYPES[config.dtype]), theory, table=config.table)
    tolerance = TOLERANCES[config.dtype, config.table]
    for structure, graph, right in zip(structures, graphs, expected, strict=True):
        found = compiled(graph)
        for name, value, wanted in (
            ("energies", found.atom_energies, right.atom_energies.numpy()),
            ("forces", found.forces, right.forces.numpy()),
            ("stress", found.virial / structure.volume, right.stress[0].numpy()),
        ):
            difference = np.abs(value - wanted) / (1 + np.abs(wanted))
            if not difference.max() <= tolerance:
                raise LibraryMismatch(
                    f"the library's {name} differ from the potential's by {difference.max():.2g} on {structure.id}; "
                    "report this with the potential"
                )


def _colliding(element: int) -> Structure:
    """Return two atoms of an element in a cell, in the middle of where the repulsion is switched on."""
    distance = float(RADII[element]) * (INNER + OUTER)
    return Structure.checked(
        numbers=[element] * 2,
        positions=np.array([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]) * distance,
        cell=20 * np.eye(3),
        pbc=[True] * 3,
        energy=0.0,
        id="two atoms that collide",
    )
