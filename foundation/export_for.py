"""Export of a potential for other programs: a compiled library, a torch package or a metatomic model."""

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources.random_crystals import RADII
from data_pipeline.store import durable, lock
from data_pipeline.store.replacing import refuse_foreign
from data_pipeline.structure import Structure
from foundation.checkpoint import Description
from foundation.engine.folder import FACTS, belongs, write_library
from foundation.engine.library import CompiledPotential
from foundation.engine.network import Unsupported
from foundation.golden import generated
from foundation.interop.calculator import DTYPES
from foundation.naming import Choice, resolve
from foundation.nn.repulsion import INNER, OUTER
from foundation.potential import Potential

TOLERANCES = {("float64", False): 1e-10, ("float64", True): 1e-5, ("float32", False): 1e-4, ("float32", True): 1e-4}
"""Largest difference of energies per atom, forces and stresses from the potential in float64, relative to 1 + |value|,
by float type and use of a table."""
CHECKED = 4
"""Number of crystals on which an export is compared with the potential."""
SUFFIXES = {"torch": ".pt2", "metatomic": ".pt"}
"""Endings of the forms that are files."""
Found = dict[str, np.ndarray]
"""Energies of atoms [eV], forces [eV/Å] and stress [eV/Å³], by name."""
Compute = Callable[[Structure], Found]


class ExportMismatch(ValueError):
    """An export that does not compute what its potential does."""


@dataclass(frozen=True, kw_only=True)
class ExportForConfig:
    """Potential to export for other programs, and options."""

    for_: Literal["library", "torch", "metatomic"]
    """Form (--for on the command line): a compiled library, for LAMMPS and programs without Python; a package of torch
    alone (.pt2), for programs in Python and C++; or a model for programs that read metatomic's (.pt)."""
    model: Path
    """Potential: its folder, run or published name."""
    out: Path
    """Folder of a library, which replaces an older one there; or file of the others, which must not exist."""
    theory: str | None = None
    """Level of theory, one of the potential's; None: its only one."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Float type; geometry and sums are in float64 in both, but in a metatomic model in the same as all else."""
    table: bool | None = None
    """Take radial functions from a table of polynomials: much faster, and exact to the rounding of float32. Only a
    library can; None: it does."""
    zbl: bool = False
    """Add a repulsion between atoms much closer than a bond; nothing changes at the distances of bonds."""

    def __post_init__(self) -> None:
        suffix = SUFFIXES.get(self.for_)
        if suffix is not None and self.table:
            raise ValueError(f"table: only a library has one; leave it out for {self.for_}")
        if suffix is not None and self.out.suffix != suffix:
            raise ValueError(f"out must end in {suffix}, not {self.out.name}")
        if self.for_ == "metatomic" and importlib.util.find_spec("metatomic_ase") is None:
            raise ValueError("for metatomic needs a package: pip install 'foundation[metatomic]'")

    @property
    def tabulated(self) -> bool:
        """True if radial functions come from a table."""
        return self.for_ == "library" and self.table is not False


def export_for(config: ExportForConfig) -> Path:
    """Write a potential for other programs, compare it with the potential, and return the folder or file.

    Raises:
        FileExistsError: the folder exists and is no library, or holds other files too; or the file exists.
        FileNotFoundError: there is no such potential.
        ExportMismatch: the export computes something else; nothing is left behind.
        NoCompiler: there is no C compiler, or it fails.
        RuntimeError: torch cannot compile the package, such as without a C++ compiler.
        ValueError: the network cannot be exported so, or the level of theory is unknown.
        InUse: another process writes there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        if config.for_ == "library":
            refuse_foreign(config.out, "library", FACTS, belongs)
        elif config.out.exists():
            raise FileExistsError(f"{config.out} exists; move it away, or choose another --out")
        potential, described = resolve(config.model, config.checkpoint).read()
        theory = potential.theory_number(config.theory)
        if potential.network.units:
            raise Unsupported(
                f"{config.model} is a potential of molecules, which is not exported for other programs; it runs in "
                "ASE and by `foundation predict`, `relax` and `md`"
            )
        if config.zbl:
            potential.repel()
        structures, expected = _right(potential.cast(torch.float64).eval(), theory)
        potential.cast(DTYPES[config.dtype])
        if config.for_ == "library":
            verify(compiled(potential, theory, config.tabulated), structures, expected, config)
            write_library(potential, theory, described.weights_sha256, config.out, table=config.tabulated)
            return config.out
        writer = _torch if config.for_ == "torch" else _metatomic
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"model{config.out.suffix}"
            verify(writer(potential, theory, described, made, config), structures, expected, config)
            durable.write_whole(config.out, made.read_bytes())
    return config.out


def compiled(potential: Potential, theory: int, table: bool) -> Compute:
    """Return the function of a compiled library.

    Raises:
        NoCompiler: there is no C compiler, or it fails.
        Unsupported: its network cannot be compiled.
    """
    library = CompiledPotential(potential, theory, table=table)

    def compute(structure: Structure) -> Found:
        found = library(to_graph(structure, potential.cutoff, torch.float64))
        stress = found.virial / structure.volume
        return {"energies": found.atom_energies, "forces": found.forces, "stress": stress}

    return compute


def _torch(potential: Potential, theory: int, described: Description, file: Path, config: ExportForConfig) -> Compute:
    """Write a torch package and return its function."""
    # takes seconds to import
    package = importlib.import_module("foundation.interop.torch_package")
    package.write_package(potential, theory, described.weights_sha256, _example(potential), file)
    return package.opened(file, potential.cutoff)


def _metatomic(
    potential: Potential, theory: int, described: Description, file: Path, config: ExportForConfig
) -> Compute:
    """Write a metatomic model and return its function."""
    # an optional package
    model = importlib.import_module("foundation.interop.metatomic_file")
    name = config.model.name
    model.write_metatomic(potential, theory, described.weights_sha256, _example(potential), name, file)
    return model.opened(file)


def _example(potential: Potential) -> Structure:
    """Return a crystal with which a network is traced."""
    return max(generated(potential, CHECKED), key=lambda each: each.num_atoms)


def _right(potential: Potential, theory: int) -> tuple[list[Structure], list[Found]]:
    """Return small crystals and, if there is a repulsion, atoms that collide; and the predictions of a potential."""
    structures = generated(potential, CHECKED)
    if potential.repulsion is not None:
        structures.append(_colliding(potential.elements[-1]))
    found = potential.predict(structures, theory=theory)
    return structures, [
        {"energies": each.atom_energies.numpy(), "forces": each.forces.numpy(), "stress": each.stress[0].numpy()}
        for each in found
    ]


def verify(
    compute: Compute, structures: Sequence[Structure], expected: Sequence[Found], config: ExportForConfig
) -> None:
    """Compare what an export computes with its potential.

    Args:
        compute: Function of the export.
        structures: Structures to compare on.
        expected: Predictions of the potential in float64.
        config: The options of the export.

    Raises:
        ExportMismatch: the message names the quantity.
    """
    tolerance = TOLERANCES[config.dtype, config.tabulated]
    for structure, right in zip(structures, expected, strict=True):
        found = compute(structure)
        for name, wanted in right.items():
            difference = np.abs(found[name] - wanted) / (1 + np.abs(wanted))
            if not difference.max() <= tolerance:
                raise ExportMismatch(
                    f"the {name} of the {config.for_} differ from the potential's by {difference.max():.2g} on "
                    f"{structure.id}; report this with the potential"
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
