"""Layer of symmetry functions: generated C on a processor, plain torch anywhere.

Symmetry functions are G2, G4 and G5 of Behler, J. Chem. Phys. 134, 074106 (2011), with each triple counted once:

    G2 = Σ_j exp(-η (r_ij - r_s)²) f(r_ij)
    G4 = 2^(1-ζ) Σ_j<k (1 + λ cos θ_jik)^ζ exp(-η (r_ij² + r_ik² + r_jk²)) f(r_ij) f(r_ik) f(r_jk)
    G5 = 2^(1-ζ) Σ_j<k (1 + λ cos θ_jik)^ζ exp(-η (r_ij² + r_ik²)) f(r_ij) f(r_ik)
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.kernels.backend import Backend, Implemented, check_device, say_once
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.kernels.cpu.symmetry_functions import SymmetryFunctions, library
from foundation.kernels.symmetry_functions import name_of, symmetry_functions
from foundation.nn.radial import polynomial_cutoff

FIRST, NUM_POINTS = 0.4, 24
"""Lower end of the integrals for typical values of symmetry functions, as a fraction of the cutoff, and points."""


class SymmetryFunctionLayer(Implemented):
    """Symmetry functions of the neighbours of every atom, without parameters."""

    def __init__(self, functions: SymmetryFunctions) -> None:
        super().__init__()
        self.functions, self._name = functions, name_of(functions)
        # kept outside the buffers, which a cast to float32 and back would round
        self._constants: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def forward(
        self, batch: GraphBatch, vectors: Float[Tensor, "edges 3"], kinds: Int[Tensor, " atoms"], num_kinds: int
    ) -> Float[Tensor, "atoms functions"]:
        """Return G2 by kind of neighbour, then G4 and G5 by pair of kinds, in the order of pair_numbers().

        Args:
            batch: Structures.
            vectors: Vector of every edge [Å], in the float type of the result.
            kinds: Kind of every atom, such as its element.
            num_kinds: Number of kinds.
        """
        neighbors = kinds[batch.senders]
        if self.chosen(vectors.device.type, vectors.dtype) == "c":
            return symmetry_functions(vectors, batch.row_pointers, neighbors, num_kinds, self._name)
        return self._plain(batch, vectors, neighbors, num_kinds)

    def chosen(self, device: str, dtype: torch.dtype) -> Backend:
        """Return the implementation on a kind of device, with 'auto' resolved.

        Raises:
            NoCompiler: C is asked for and cannot be compiled.
            ValueError: the requested one does not work there, or not for these functions.
        """
        return _choose(self.backend, device, dtype, self.functions)

    def _plain(
        self, batch: GraphBatch, vectors: Float[Tensor, "edges 3"], neighbors: Int[Tensor, " edges"], num_kinds: int
    ) -> Float[Tensor, "atoms functions"]:
        """Return the functions in plain torch, whose derivatives of any order exist."""
        functions, num_atoms = self.functions, len(batch.numbers)
        radial, near, wide = self._tensors(vectors)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        cutoff = cutoff_of(functions, distances)
        values = radial_terms(distances, radial) * cutoff.unsqueeze(1)
        found = [_summed(values, batch.receivers, neighbors, num_kinds, num_atoms)]
        if not len(near) + len(wide):
            return found[0]
        first, second = triples(batch, vectors)
        opposite = torch.linalg.vector_norm(vectors[second] - vectors[first], dim=1)
        sides = distances[first], distances[second], opposite
        cosines = (vectors[first] * vectors[second]).sum(dim=1) / (sides[0] * sides[1])
        smooth = cutoff[first] * cutoff[second]
        of_near = angular_terms(cosines, sides, near, near=True) * (smooth * cutoff_of(functions, opposite)).unsqueeze(
            1
        )
        of_wide = angular_terms(cosines, sides, wide, near=False) * smooth.unsqueeze(1)
        pairs = pair_numbers(neighbors[first], neighbors[second], num_kinds)
        num_pairs = num_kinds * (num_kinds + 1) // 2
        found += [_summed(terms, batch.receivers[first], pairs, num_pairs, num_atoms) for terms in (of_near, of_wide)]
        return torch.cat(found, dim=1)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parameters of the functions in the type and on the device of another tensor."""
        key = (like.dtype, like.device)
        if key not in self._constants:
            with torch.inference_mode(False):
                radial, near, wide = (
                    torch.tensor(each, dtype=like.dtype, device=like.device).view(-1, size)
                    for each, size in zip(self.functions[:3], (2, 3, 3), strict=True)
                )
                self._constants[key] = radial, near, wide
        return self._constants[key]


@cache
def _choose(backend: Backend, device: str, dtype: torch.dtype, functions: SymmetryFunctions) -> Backend:
    check_device(backend, device, "symmetry functions")
    if backend in ("cuda", "openequivariance"):
        raise ValueError(f"the {backend} backend has no symmetry functions; leave backend at auto")
    if backend == "torch" or device != "cpu":
        return "torch"
    if not functions.in_c:
        if backend == "c":
            raise ValueError(
                "symmetry functions with fractional exponents ζ are not computed in C; leave backend at auto"
            )
        return "torch"
    try:
        library(functions, dtype)
    except NoCompiler as error:
        if backend != "auto":
            raise
        say_once(f"symmetry functions are computed by plain torch, tens of times slower: {error}")
        return "torch"
    return "c"


def _summed(
    values: Float[Tensor, "terms functions"],
    atoms: Int[Tensor, " terms"],
    kinds: Int[Tensor, " terms"],
    num_kinds: int,
    num_atoms: int,
) -> Float[Tensor, "atoms sums"]:
    """Return the sums over the terms of each atom, separately by kind."""
    zeros = values.new_zeros(num_atoms * num_kinds, values.shape[1])
    return zeros.index_add(0, atoms * num_kinds + kinds, values).view(num_atoms, -1)


def triples(batch: GraphBatch, vectors: Float[Tensor, "edges 3"]) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Return all pairs of an atom's edges, once: earlier and later edge."""
    edges = torch.arange(batch.num_edges, device=vectors.device)
    counts = batch.row_pointers[batch.receivers + 1] - edges - 1
    first = edges.repeat_interleave(counts)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return first, first + 1 + torch.arange(len(first), device=vectors.device) - before


def pair_numbers(left: Int[Tensor, " pairs"], right: Int[Tensor, " pairs"], num_kinds: int) -> Int[Tensor, " pairs"]:
    """Return the index of each unordered pair of kinds, in the order of torch.triu_indices()."""
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    return low * (2 * num_kinds - low + 1) // 2 + high - low


def cutoff_of(functions: SymmetryFunctions, distances: Float[Tensor, "*lengths"]) -> Float[Tensor, "*lengths"]:
    """Return the cutoff function of lengths [Å]."""
    if functions.power is not None:
        return polynomial_cutoff(distances.flatten(), functions.cutoff, functions.power).view_as(distances)
    value = 0.5 * (1.0 + torch.cos(math.pi * distances / functions.cutoff))
    return torch.where(distances < functions.cutoff, value, torch.zeros_like(value))


def radial_terms(distances: Float[Tensor, "*terms"], radial: Float[Tensor, "functions 2"]) -> Float[Tensor, "*terms _"]:
    """Return the terms of G2 without the cutoff."""
    width, centre = radial.unbind(1)
    return torch.exp(-width * (distances.unsqueeze(-1) - centre) ** 2)


def angular_terms(
    cosines: Float[Tensor, "*terms"],
    sides: tuple[Tensor, Tensor, Tensor],
    angular: Float[Tensor, "functions 3"],
    *,
    near: bool,
) -> Float[Tensor, "*terms _"]:
    """Return the terms of G4 (near) or G5 without the cutoffs."""
    width, exponent, sign = angular.unbind(1)
    squares = sides[0] ** 2 + sides[1] ** 2 + (sides[2] ** 2 if near else 0.0)
    # rounding may take the cosine of a straight angle beyond one
    bend = (0.5 * (1.0 + sign * cosines.unsqueeze(-1))).clamp(min=0.0) ** exponent
    return 2.0 * bend * torch.exp(-width * squares.unsqueeze(-1))


def typical_values(functions: SymmetryFunctions, mean_neighbors: float) -> Float[Tensor, " functions"]:
    """Return the values of G2, G4 and G5 in a uniform gas beyond FIRST cutoffs with mean_neighbors neighbours."""
    radial, near, wide = (
        torch.tensor(each, dtype=torch.float64).view(-1, size)
        for each, size in zip(functions[:3], (2, 3, 3), strict=True)
    )
    lengths = torch.linspace(FIRST, 1.0, NUM_POINTS + 1, dtype=torch.float64)[:-1] * functions.cutoff
    density = lengths**2 / (lengths**2).sum()
    weights = density * cutoff_of(functions, lengths)
    values = mean_neighbors * (weights.unsqueeze(1) * radial_terms(lengths, radial)).sum(dim=0)
    cosines = torch.linspace(-1.0, 1.0, NUM_POINTS, dtype=torch.float64)
    a, b, cosine = torch.meshgrid(lengths, lengths, cosines, indexing="ij")
    opposite = (a**2 + b**2 - 2 * a * b * cosine).clamp(min=0.0).sqrt()
    of_wide = (weights[:, None, None] * weights[:, None]).expand_as(a) / NUM_POINTS
    of_near = of_wide * cutoff_of(functions, opposite)
    sums = [
        (of_terms.unsqueeze(-1) * angular_terms(cosine, (a, b, opposite), each, near=is_near)).sum(dim=(0, 1, 2))
        for of_terms, each, is_near in ((of_near, near, True), (of_wide, wide, False))
    ]
    return torch.cat([values, *(0.5 * mean_neighbors**2 * each for each in sums)]).float()
