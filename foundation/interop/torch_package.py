"""Potentials as torch packages (.pt2), which programs in Python and C++ open with torch alone.

Inductor compiles energies and their derivatives in advance. A package knows one level of theory, and any structure:

    package = torch._inductor.aoti_load_package("potential.pt2")
    atom_energies, forces, stress = package(numbers, positions, cell, edges, shifts)
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from data_pipeline.graphs.batch import GraphBatch, to_graph
from data_pipeline.structure import SYMBOLS, Structure
from foundation.interop.traced import AtomEnergies
from foundation.kernels.edges import EdgeIndex
from foundation.potential import Potential


class Derivatives(torch.nn.Module):
    """Energies, forces and stress along edges in any order."""

    def __init__(self, potential: Potential, theory: int) -> None:
        """Take a copy of a potential.

        Raises:
            Unsupported: its network does not compute along the edges of another program.
        """
        super().__init__()
        self.energies = AtomEnergies(potential, theory)

    def forward(
        self,
        numbers: Int[Tensor, " atoms"],
        positions: Float64[Tensor, "atoms 3"],
        cell: Float64[Tensor, "3 3"],
        edges: Int[Tensor, "2 edges"],
        shifts: Float[Tensor, "edges 3"],
    ) -> tuple[Float64[Tensor, " atoms"], Float64[Tensor, "atoms 3"], Float64[Tensor, "3 3"]]:
        """Return energies of the atoms [eV], forces [eV/Å] and stress [eV/Å³], positive in tension.

        Args:
            numbers: Atomic numbers.
            positions: Cartesian positions [Å].
            cell: Lattice vectors as rows [Å]; a missing one is a zero row, and the stress then is zero.
            edges: Every atom and each of its neighbours within the cutoff, both ways.
            shifts: Whole lattice vectors from the atom's cell to its neighbour's.
        """
        order = torch.argsort(edges[0], stable=True)
        receivers, senders = edges[0][order], edges[1][order]
        place, strain = positions.detach().requires_grad_(), torch.zeros_like(cell).requires_grad_()
        deformation = 0.5 * (strain + strain.T)
        moved, translations = place + place @ deformation, shifts[order] @ (cell + cell @ deformation)
        vectors = moved[senders] - moved[receivers] + translations
        atoms = torch.arange(numbers.shape[0] + 1, device=numbers.device)
        alone = torch.arange(senders.shape[0], device=senders.device)
        index = EdgeIndex(
            torch.searchsorted(receivers, atoms), senders, alone, torch.full_like(alone, -1), alone, atoms
        )
        energies = self.energies(numbers, vectors, *index[:4])
        gradient, virial = torch.autograd.grad(energies.sum(), (place, strain))
        volume = torch.linalg.vecdot(cell[0], torch.linalg.cross(cell[1], cell[2])).abs()
        stress = torch.where(volume > 0, virial / torch.where(volume > 0, volume, 1.0), 0.0)
        return energies.detach(), -gradient, stress


def arguments(graph: GraphBatch) -> tuple[Tensor, ...]:
    """Return the arguments of a package for a graph of one structure."""
    edges = torch.stack([graph.receivers, graph.senders])
    # copies: the tensors of a graph are views of one buffer
    return tuple(
        each.clone() for each in (graph.numbers, graph.positions, graph.cell[0], edges, graph.shifts.to(torch.float64))
    )


def write_package(potential: Potential, theory: int, weights_sha256: str, example: Structure, file: Path) -> None:
    """Write the package of a potential on a CPU, in its float type, at one of its levels of theory.

    Args:
        potential: The potential.
        theory: Number of the level of theory.
        weights_sha256: Checksum of its weights.
        example: Structure with which it is traced; the package then computes any.
        file: File to write.

    Raises:
        Unsupported: its network does not compute along the edges of another program.
        RuntimeError: Inductor cannot compile it, such as without a C++ compiler.
    """
    given = arguments(to_graph(example, potential.cutoff, torch.float64))
    derivatives = Derivatives(potential, theory)
    traced = make_fx(derivatives, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*given)
    atoms, edges = {0: Dim.AUTO}, {0: Dim.AUTO}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(
            traced, given, dynamic_shapes=(atoms, atoms, None, {1: Dim.AUTO}, edges), strict=False
        )
        facts = {
            "elements": json.dumps([SYMBOLS[number] for number in potential.elements]),
            "cutoff": repr(float(potential.cutoff)),
            "theory": potential.theories[theory],
            "dtype": str(potential.dtype).removeprefix("torch."),
            "weights_sha256": weights_sha256,
        }
        aoti_compile_and_package(program, package_path=str(file), inductor_configs={"aot_inductor.metadata": facts})


def opened(file: Path, cutoff: float) -> Callable[[Structure], dict[str, np.ndarray]]:
    """Return the function of a package, for structures whose neighbours are within the cutoff [Å].

    It returns energies of the atoms [eV], forces [eV/Å] and stress [eV/Å³], by name.
    """
    package: Any = aoti_load_package(str(file))

    def compute(structure: Structure) -> dict[str, np.ndarray]:
        found = package(*arguments(to_graph(structure, cutoff, torch.float64)))
        return {name: each.numpy() for name, each in zip(("energies", "forces", "stress"), found, strict=True)}

    return compute
