"""The network of Behler and Parrinello (Phys. Rev. Lett. 98, 146401 (2007)): symmetry functions, one net per element.

The baseline without messages and without equivariance: an atom's energy depends on neighbours within the cutoff, by
distances and angles only. Symmetry functions are G2 and G4 of Behler, J. Chem. Phys. 134, 074106 (2011), with each
triple counted once:

    G2 = Σ_j exp(-η (r_ij - r_s)²) f(r_ij)
    G4 = 2^(1-ζ) Σ_j<k (1 + λ cos θ_jik)^ζ exp(-η (r_ij² + r_ik² + r_jk²)) f(r_ij) f(r_ik) f(r_jk)

It has a G2 for each neighbour element and a G4 for each pair of them, so their number grows as the square of the number
of elements: it is a network for a few elements. A level of theory is a bias of the first layer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.configuration import DECIDES
from foundation.models.energy_model import NO_FACTS, Architecture, DataFacts, EnergyModel
from foundation.models.limits import (
    CUTOFFS,
    MAX_CHANNELS,
    MAX_CUTOFF_POWER,
    MAX_LAYERS,
    MAX_PARAMETERS,
    check_elements,
)
from foundation.nn.computation import Computation, Option, refuse_options, set_layers
from foundation.nn.matmul import Matmul
from foundation.nn.matrices import Matrices
from foundation.nn.radial import polynomial_cutoff

MAX_FUNCTIONS = 1024
"""Largest number of symmetry functions of a kind, and largest value of their parameters."""
FIRST, NUM_POINTS = 0.4, 24
"""Lower end of the integrals for typical values of symmetry functions, as a fraction of the cutoff, and points."""
SMALLEST = 1e-3
"""Smallest denominator of a symmetry function that is near zero in typical environments."""


@dataclass(frozen=True, kw_only=True)
class SymmetryFunctionsConfig(Architecture):
    """Architecture of a Behler-Parrinello network."""

    architecture: ClassVar[str] = "symmetry_functions"

    radial_functions: tuple[tuple[float, float], ...] = field(metadata=DECIDES)
    """Widths η [1/Å²] and centres r_s [Å] of the G2 functions, one pair for each."""
    angular_functions: tuple[tuple[float, float, float], ...] = field(default=(), metadata=DECIDES)
    """Widths η [1/Å²], exponents ζ (1, or 2 and more) and signs λ (1 or -1) of the G4 functions, three for each."""
    cutoff: float = field(default=6.0, metadata=DECIDES)
    """Distance below which atoms are neighbours [Å]."""
    cutoff_function: Literal["cosine", "polynomial"] = field(default="cosine", metadata=DECIDES)
    """Function that takes symmetry functions to zero at the cutoff: (1 + cos(π r / r_c)) / 2, or a polynomial."""
    cutoff_power: int = field(default=6, metadata=DECIDES)
    """Power of the polynomial function."""
    hidden_sizes: tuple[int, ...] = field(default=(30, 30), metadata=DECIDES)
    """Sizes of the hidden layers of the network of each element."""

    def __post_init__(self) -> None:
        numbers = (*itertools.chain(*self.radial_functions), *itertools.chain(*self.angular_functions))
        if not 0 < len(self.radial_functions) <= MAX_FUNCTIONS or len(self.angular_functions) > MAX_FUNCTIONS:
            raise ValueError(f"need 1 to {MAX_FUNCTIONS} radial_functions and at most as many angular_functions")
        if not all(abs(number) <= MAX_FUNCTIONS for number in numbers):
            raise ValueError(f"parameters of symmetry functions must be numbers up to {MAX_FUNCTIONS}")
        for width, exponent, sign in self.angular_functions:
            if width < 0 or not (exponent == 1 or exponent >= 2) or abs(sign) != 1:
                raise ValueError(
                    f"angular_functions: η {width}, ζ {exponent}, λ {sign}: need η of at least 0, ζ of 1 or at least 2 "
                    "(between them forces have no slope) and λ of 1 or -1"
                )
        if any(width < 0 for width, _ in self.radial_functions):
            raise ValueError("radial_functions: a width η is negative")
        smallest, largest = CUTOFFS
        if not smallest <= self.cutoff <= largest:
            raise ValueError(f"cutoff must be a length from {smallest} to {largest} Å, not {self.cutoff}")
        if not 1 <= self.cutoff_power <= MAX_CUTOFF_POWER:
            raise ValueError(f"cutoff_power must be from 1 to {MAX_CUTOFF_POWER}, not {self.cutoff_power}")
        sizes = self.hidden_sizes
        if not 0 < len(sizes) <= MAX_LAYERS or not all(0 < size <= MAX_CHANNELS for size in sizes):
            raise ValueError(f"hidden_sizes: 1 to {MAX_LAYERS} of 1 to {MAX_CHANNELS}")

    def num_features(self, num_elements: int) -> int:
        """Return the number of symmetry functions of an atom."""
        pairs = num_elements * (num_elements + 1) // 2
        return num_elements * len(self.radial_functions) + pairs * len(self.angular_functions)

    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters of a network, without building it."""
        sizes = [self.num_features(num_elements), *self.hidden_sizes, 1]
        biases = num_theories * self.hidden_sizes[0] if num_theories > 1 else 0
        return biases + num_elements * sum(a * b + b for a, b in itertools.pairwise(sizes))

    def network(
        self, elements: tuple[int, ...], num_theories: int = 1, facts: DataFacts = NO_FACTS
    ) -> "SymmetryFunctionsNetwork":
        """Return a network with random weights.

        Raises:
            ValueError: an atomic number is given twice or is invalid, or there are too many parameters.
        """
        return SymmetryFunctionsNetwork(self, elements, num_theories, facts)


class ElementLayer(Matrices):
    """A linear layer with a weight and a bias for each element; all are applied, and each atom takes its own.

    This is one matrix product, with more operations than needed by a factor of the number of elements.
    """

    def __init__(self, num_elements: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(fan_in**-0.5 * torch.randn(num_elements, fan_in, fan_out))
        self.bias = torch.nn.Parameter(torch.zeros(num_elements, fan_out))
        self.matmul = Matmul()

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Input and output channels, the same for every element."""
        return [(self.weight.shape[1], self.weight.shape[2])] * self.weight.shape[0]

    def forward(
        self, rows: Float[Tensor, "atoms inputs"], elements: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the outputs of each atom's own matrix."""
        num_elements, fan_in, fan_out = self.weight.shape
        side_by_side = self.adapted().transpose(0, 1).reshape(fan_in, num_elements * fan_out)
        of_all = self.matmul(rows, side_by_side).view(-1, num_elements, fan_out)
        own = of_all.gather(1, elements.view(-1, 1, 1).expand(-1, 1, fan_out)).squeeze(1)
        return own + self.bias.index_select(0, elements)


class SymmetryFunctionsNetwork(EnergyModel):
    """Atomic energies from symmetry functions and a small network for each element."""

    def __init__(
        self, config: SymmetryFunctionsConfig, elements: tuple[int, ...], num_theories: int, facts: DataFacts
    ) -> None:
        """Prepare a network with random weights.

        Args:
            config: The architecture.
            elements: Atomic numbers that it knows.
            num_theories: Number of levels of theory of the data.
            facts: Facts of the training data, for the size of the symmetry functions.

        Raises:
            ValueError: an atomic number is given twice or is invalid, or there are too many parameters.
        """
        super().__init__()
        check_elements(elements)
        parameters = config.num_parameters(len(elements), num_theories)
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"symmetry functions of {len(elements)} elements make {parameters:.2g} parameters")
        self._config, self._elements, self._num_theories = config, elements, num_theories
        # kept outside the buffers, which a cast to float32 and back would round
        self._constants: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.register_buffer("denominator", typical_values(config, facts.mean_neighbors).clamp(min=SMALLEST))
        sizes = itertools.pairwise([config.num_features(len(elements)), *config.hidden_sizes, 1])
        self.layers = torch.nn.ModuleList([ElementLayer(len(elements), *size) for size in sizes])
        if num_theories > 1:
            self.theory_bias = torch.nn.Parameter(torch.zeros(num_theories, config.hidden_sizes[0]))

    @property
    def config(self) -> SymmetryFunctionsConfig:
        """The architecture."""
        return self._config

    @property
    def reach(self) -> float:
        """Distance to the farthest atom that the energy of an atom depends on [Å]."""
        return self.cutoff

    @property
    def parity(self) -> bool:
        """True: the energies of mirror images are exactly the same, as distances and angles are."""
        return True

    def describe(self) -> str:
        """Return the architecture in one phrase."""
        config = self.config
        sizes = " and ".join(str(size) for size in config.hidden_sizes)
        return (
            f"Behler-Parrinello network, {len(config.radial_functions)} radial and {len(config.angular_functions)} "
            f"angular symmetry functions for each element and pair of elements, hidden layers of {sizes}"
        )

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the hidden layers and the readout; the biases of levels of theory belong to the first layer."""
        last = len(self.config.hidden_sizes)
        blocks = {f"block {number}": (f"layers.{number}.*",) for number in range(last)}
        return blocks | {"block 0": ("layers.0.*", "theory_bias"), "readout": (f"layers.{last}.*",)}

    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Raises:
            ValueError: a radial table, recomputation or a kernel of the convolution is requested.
        """
        refused: dict[Option, str] = {
            "radial_table": "symmetry functions are not networks that could be tabulated",
            "recompute": "a Behler-Parrinello network has no interaction blocks",
        }
        if computation.backend != "torch":
            refused["backend"] = "a Behler-Parrinello network has no convolution"
        refuse_options(computation, refused)
        set_layers(self, computation)
        self.computation = computation

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale."""
        return self.layers[-1](self.features(batch, elements), elements).squeeze(1)

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms features"]:
        """Return the last hidden layer of each atom."""
        values = self.symmetry_functions(batch, elements)
        for number in range(len(self.config.hidden_sizes)):
            values = self.layers[number](values, elements)
            if number == 0 and self._num_theories > 1:
                values = values + self.theory_bias.index_select(0, batch.theory[batch.graph_of_atom])
            values = torch.tanh(values)
        return values

    def symmetry_functions(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms functions"]:
        """Return G2 by neighbour element, then G4 by pair of elements, over their typical values."""
        vectors = batch.edge_vectors().to(self.get_parameter("layers.0.weight").dtype)
        distances, neighbors = torch.linalg.vector_norm(vectors, dim=1), elements[batch.senders]
        radial, angular = self._functions(vectors)
        cutoff = self._cutoff(distances)
        values = _radial(distances, radial) * cutoff.unsqueeze(1)
        denominators = self.get_buffer("denominator").split([len(radial), len(angular)])
        found = [self._summed(values / denominators[0], batch.receivers, neighbors, len(self._elements), len(elements))]
        if len(angular):
            first, second = triples(batch, vectors, self.cutoff)
            opposite = torch.linalg.vector_norm(vectors[second] - vectors[first], dim=1)
            sides = distances[first], distances[second], opposite
            cosines = (vectors[first] * vectors[second]).sum(dim=1) / (sides[0] * sides[1])
            smooth = cutoff[first] * cutoff[second] * self._cutoff(opposite)
            values = _angular(cosines, sides, angular) * smooth.unsqueeze(1) / denominators[1]
            pairs = pair_numbers(neighbors[first], neighbors[second], len(self._elements))
            num_pairs = len(self._elements) * (len(self._elements) + 1) // 2
            found.append(self._summed(values, batch.receivers[first], pairs, num_pairs, len(elements)))
        return torch.cat(found, dim=1)

    @staticmethod
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

    def _functions(self, like: Tensor) -> tuple[Float[Tensor, "radial 2"], Float[Tensor, "angular 3"]]:
        """Return the parameters of the functions in the type and on the device of another tensor."""
        key = (like.dtype, like.device)
        if key not in self._constants:
            with torch.inference_mode(False):
                radial = torch.tensor(self.config.radial_functions, dtype=like.dtype, device=like.device)
                angular = torch.tensor(self.config.angular_functions, dtype=like.dtype, device=like.device)
                self._constants[key] = radial, angular.view(-1, 3)
        return self._constants[key]

    def _cutoff(self, distances: Float[Tensor, " lengths"]) -> Float[Tensor, " lengths"]:
        return cutoff_of(self.config, distances)

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "SymmetryFunctionsNetwork":
        """Return a network for other elements: each has the net of its source, and counts as it in the functions."""
        config, source = self.config, torch.tensor(sources)
        network = config.network(elements, self._num_theories).to(self.get_parameter("layers.0.weight"))
        num_radial, num_angular = len(config.radial_functions), len(config.angular_functions)
        of_radial = source.unsqueeze(1) * num_radial + torch.arange(num_radial)
        rows, columns = torch.triu_indices(len(elements), len(elements))
        pairs = pair_numbers(source[rows], source[columns], len(self._elements))
        of_angular = pairs.unsqueeze(1) * num_angular + torch.arange(num_angular)
        columns_before = torch.cat([of_radial.flatten(), len(self._elements) * num_radial + of_angular.flatten()])
        state = {
            name: value[source.to(value.device)] if name.startswith("layers.") else value
            for name, value in self.state_dict().items()
        }
        first = state["layers.0.weight"]
        network.load_state_dict(state | {"layers.0.weight": first[:, columns_before.to(first.device)]})
        return network.train(self.training)

    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "SymmetryFunctionsNetwork":
        """Return a network for other levels of theory; the bias of a single one becomes part of the first layer's."""
        first = self.get_parameter("layers.0.weight")
        network = self.config.network(self._elements, len(mixture)).to(first)
        state = dict(self.state_dict())
        before = state.pop("theory_bias", first.new_zeros(mixture.shape[1], self.config.hidden_sizes[0])).double()
        biases = mixture.to(before) @ before
        if len(mixture) > 1:
            state["theory_bias"] = biases
        else:
            state["layers.0.bias"] = state["layers.0.bias"].double() + biases
        network.load_state_dict(state)
        return network.train(self.training)


def triples(
    batch: GraphBatch, vectors: Float[Tensor, "edges 3"], cutoff: float
) -> tuple[Int[Tensor, " triples"], Int[Tensor, " triples"]]:
    """Return all pairs of an atom's edges whose far ends are neighbours too, once: earlier and later edge."""
    edges = torch.arange(batch.num_edges, device=vectors.device)
    counts = batch.row_pointers[batch.receivers + 1] - edges - 1
    first = edges.repeat_interleave(counts)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    second = first + 1 + torch.arange(len(first), device=vectors.device) - before
    with torch.no_grad():
        near = torch.linalg.vector_norm(vectors[second] - vectors[first], dim=1) < cutoff
    return first[near], second[near]


def pair_numbers(left: Int[Tensor, " pairs"], right: Int[Tensor, " pairs"], num_elements: int) -> Int[Tensor, " pairs"]:
    """Return the index of each unordered pair of elements, in the order of torch.triu_indices()."""
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    return low * (2 * num_elements - low + 1) // 2 + high - low


def cutoff_of(config: SymmetryFunctionsConfig, distances: Float[Tensor, "*lengths"]) -> Float[Tensor, "*lengths"]:
    """Return the cutoff function of lengths [Å]."""
    if config.cutoff_function == "polynomial":
        return polynomial_cutoff(distances.flatten(), config.cutoff, config.cutoff_power).view_as(distances)
    value = 0.5 * (1.0 + torch.cos(math.pi * distances / config.cutoff))
    return torch.where(distances < config.cutoff, value, torch.zeros_like(value))


def _radial(distances: Float[Tensor, "*terms"], radial: Float[Tensor, "functions 2"]) -> Float[Tensor, "*terms _"]:
    """Return the terms of G2 without the cutoff."""
    width, centre = radial.unbind(1)
    return torch.exp(-width * (distances.unsqueeze(-1) - centre) ** 2)


def _angular(
    cosines: Float[Tensor, "*terms"], sides: tuple[Tensor, Tensor, Tensor], angular: Float[Tensor, "functions 3"]
) -> Float[Tensor, "*terms _"]:
    """Return the terms of G4 without the cutoffs."""
    width, exponent, sign = angular.unbind(1)
    squares = sides[0] ** 2 + sides[1] ** 2 + sides[2] ** 2
    # rounding may take the cosine of a straight angle beyond one
    bend = (0.5 * (1.0 + sign * cosines.unsqueeze(-1))).clamp(min=0.0) ** exponent
    return 2.0 * bend * torch.exp(-width * squares.unsqueeze(-1))


def typical_values(config: SymmetryFunctionsConfig, mean_neighbors: float) -> Float[Tensor, " functions"]:
    """Return the values of G2 and G4 in a uniform gas beyond FIRST cutoffs with mean_neighbors neighbours."""
    radial = torch.tensor(config.radial_functions, dtype=torch.float64)
    angular = torch.tensor(config.angular_functions, dtype=torch.float64).view(-1, 3)
    lengths = torch.linspace(FIRST, 1.0, NUM_POINTS + 1, dtype=torch.float64)[:-1] * config.cutoff
    density = lengths**2 / (lengths**2).sum()
    weights = density * cutoff_of(config, lengths)
    values = mean_neighbors * (weights.unsqueeze(1) * _radial(lengths, radial)).sum(dim=0)
    cosines = torch.linspace(-1.0, 1.0, NUM_POINTS, dtype=torch.float64)
    a, b, cosine = torch.meshgrid(lengths, lengths, cosines, indexing="ij")
    opposite = (a**2 + b**2 - 2 * a * b * cosine).clamp(min=0.0).sqrt()
    weights = weights[:, None, None] * weights[:, None] * cutoff_of(config, opposite) / NUM_POINTS
    of_triples = (weights.unsqueeze(-1) * _angular(cosine, (a, b, opposite), angular)).sum(dim=(0, 1, 2))
    return torch.cat([values, 0.5 * mean_neighbors**2 * of_triples]).float()
