"""A potential in plain torch along edges that another program found, in a form that torch can trace.

A traced program keeps what its sizes are made of, and no Python: it opens where this package is not installed.
"""

import copy

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from foundation.engine.network import Unsupported
from foundation.kernels.edges import EdgeIndex
from foundation.models import AlongEdges
from foundation.nn.computation import Computation
from foundation.potential import Potential


class AtomEnergies(torch.nn.Module):
    """Energies of atoms at one level of theory."""

    def __init__(self, potential: Potential, theory: int) -> None:
        """Take a copy of a potential, in its float type.

        Raises:
            Unsupported: its network does not compute along the edges of another program.
        """
        super().__init__()
        if not isinstance(potential.network, AlongEdges):
            raise Unsupported(
                f"a network of the architecture {potential.network.config.architecture} does not compute along edges "
                "of another program"
            )
        self.network = copy.deepcopy(potential.network)
        self.network.compute_as(Computation(backend="torch"))
        self.eval().requires_grad_(False)
        self.repulsion = copy.deepcopy(potential.repulsion)
        self.theory = theory
        self.register_buffer("scale", potential.get_buffer("scale").clone())
        self.register_buffer("references", potential.get_buffer("reference_energies")[theory].clone())
        self.register_buffer("places", potential.get_buffer("_position").clone())

    def forward(
        self,
        numbers: Int[Tensor, " atoms"],
        vectors: Float64[Tensor, "pairs 3"],
        row_pointers: Int[Tensor, " atoms_plus_one"],
        senders: Int[Tensor, " edges"],
        pairs: Int[Tensor, " edges"],
        reverse: Int[Tensor, " edges"],
    ) -> Float64[Tensor, " atoms"]:
        """Return the energy of each atom [eV].

        Args:
            numbers: Atomic numbers.
            vectors: Vector of every pair's first edge [Å].
            row_pointers: See EdgeIndex, as for the others.
            senders: Atom at the far end of each edge.
            pairs: Pair of each edge.
            reverse: Opposite edge of the same pair, or -1.
        """
        edges = EdgeIndex(row_pointers, senders, pairs, reverse, reverse, row_pointers)
        elements = self.get_buffer("places")[numbers]
        theory = torch.full_like(elements, self.theory)
        assert isinstance(self.network, AlongEdges)
        network = self.network.atom_energies_along(vectors, edges, elements, theory).to(torch.float64)
        energies = self.get_buffer("scale")[elements] * network + self.get_buffer("references")[elements]
        if self.repulsion is None:
            return energies
        lengths = torch.linalg.vector_norm(vectors, dim=1)[pairs]
        return energies + self.repulsion.along(numbers, edges.receivers(), senders, lengths)
