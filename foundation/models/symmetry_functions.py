"""The network of Behler and Parrinello (Phys. Rev. Lett. 98, 146401 (2007)): symmetry functions, one net per element.

The baseline without messages and without equivariance: an atom's energy depends on neighbours within the cutoff, by
distances and angles only (nn/symmetry_functions.py). It has a G2 for each neighbour element and a G4 and G5 for each
pair of them, so their number grows as the square of the number of elements: it is a network for a few elements. A level
of theory is a bias of the first layer.

Inputs are shifted and scaled for each element to mean 0 and deviation 1 over a sample of the training data, and with
`whitening` rotated to their principal components. Without a sample they are divided by their values in a uniform gas.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.configuration import DECIDES
from foundation.kernels.cpu.symmetry_functions import SymmetryFunctions
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
from foundation.nn.symmetry_functions import SymmetryFunctionLayer, pair_numbers, typical_values

MAX_FUNCTIONS = 1024
"""Largest number of symmetry functions of a kind, and largest value of their parameters."""
SMALLEST = 1e-3
"""Smallest denominator of a symmetry function that is near zero in typical environments."""
LEAST_VARIATION = 0.05
"""Smallest denominator of a symmetry function that hardly varies in the sample, in units of its mean."""
WHITENING_FLOOR = 1e-4
"""Smallest variance of a principal component that is scaled to 1, in units of the largest."""
ACTIVATIONS = {
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
}
DEFAULT_RADIAL = (0.003214, 0.035711, 0.071421, 0.124987, 0.214264, 0.357106, 0.714213, 1.428426)
DEFAULT_WIDTHS, DEFAULT_EXPONENTS = (0.000357, 0.028569, 0.089277), (1.0, 2.0, 4.0)
DEFAULT_CUTOFF = 6.0
"""Parameters of the default functions, [1/Å²] at a cutoff of 6 Å: those of SIMPLE-NN (Lee et al., Comput. Phys. Commun.
242, 95 (2019)) and of many published networks."""


@dataclass(frozen=True, kw_only=True)
class SymmetryFunctionsConfig(Architecture):
    """Architecture of a Behler-Parrinello network."""

    architecture: ClassVar[str] = "symmetry_functions"

    radial_functions: tuple[tuple[float, float], ...] | Literal["default"] = field(metadata=DECIDES)
    """Widths η [1/Å²] and centres r_s [Å] of the G2 functions, one pair for each; `default`: eight at the atom."""
    angular_functions: tuple[tuple[float, float, float], ...] | Literal["default"] = field(default=(), metadata=DECIDES)
    """Widths η [1/Å²], exponents ζ (1, or 2 and more) and signs λ (1 or -1) of the G4 functions, three for each;
    `default`: eighteen."""
    wide_functions: tuple[tuple[float, float, float], ...] = field(default=(), metadata=DECIDES)
    """The same of the G5 functions, which leave out the distance between the two neighbours."""
    cutoff: float = field(default=6.0, metadata=DECIDES)
    """Distance below which atoms are neighbours [Å]."""
    cutoff_function: Literal["cosine", "polynomial"] = field(default="cosine", metadata=DECIDES)
    """Function that takes symmetry functions to zero at the cutoff: (1 + cos(π r / r_c)) / 2, or a polynomial."""
    cutoff_power: int = field(default=6, metadata=DECIDES)
    """Power of the polynomial function."""
    hidden_sizes: tuple[int, ...] = field(default=(30, 30), metadata=DECIDES)
    """Sizes of the hidden layers of the network of each element."""
    activation: Literal["tanh", "silu", "sigmoid", "softplus"] = field(default="tanh", metadata=DECIDES)
    """Activation function of the hidden layers."""
    whitening: bool = field(default=False, metadata=DECIDES)
    """Rotate the inputs of each element to their principal components, of deviation 1 each."""

    def __post_init__(self) -> None:
        smallest, largest = CUTOFFS
        if not smallest <= self.cutoff <= largest:
            raise ValueError(f"cutoff must be a length from {smallest} to {largest} Å, not {self.cutoff}")
        functions = self.functions
        triples = (*functions.near, *functions.wide)
        numbers = (*itertools.chain(*functions.radial), *itertools.chain(*triples))
        if (
            not 0 < len(functions.radial) <= MAX_FUNCTIONS
            or max(len(functions.near), len(functions.wide)) > MAX_FUNCTIONS
        ):
            raise ValueError(f"need 1 to {MAX_FUNCTIONS} radial_functions and at most as many angular ones of a kind")
        if not all(abs(number) <= MAX_FUNCTIONS for number in numbers):
            raise ValueError(f"parameters of symmetry functions must be numbers up to {MAX_FUNCTIONS}")
        for width, exponent, sign in triples:
            if width < 0 or not (exponent == 1 or exponent >= 2) or abs(sign) != 1:
                raise ValueError(
                    f"angular_functions: η {width}, ζ {exponent}, λ {sign}: need η of at least 0, ζ of 1 or at least 2 "
                    "(between them forces have no slope) and λ of 1 or -1"
                )
        if any(width < 0 for width, _ in functions.radial):
            raise ValueError("radial_functions: a width η is negative")
        if not 1 <= self.cutoff_power <= MAX_CUTOFF_POWER:
            raise ValueError(f"cutoff_power must be from 1 to {MAX_CUTOFF_POWER}, not {self.cutoff_power}")
        sizes = self.hidden_sizes
        if not 0 < len(sizes) <= MAX_LAYERS or not all(0 < size <= MAX_CHANNELS for size in sizes):
            raise ValueError(f"hidden_sizes: 1 to {MAX_LAYERS} of 1 to {MAX_CHANNELS}")

    @property
    def functions(self) -> SymmetryFunctions:
        """The symmetry functions, with the default ones written out."""
        scale = (DEFAULT_CUTOFF / self.cutoff) ** 2
        radial, near = self.radial_functions, self.angular_functions
        if radial == "default":
            radial = tuple((scale * width, 0.0) for width in DEFAULT_RADIAL)
        if near == "default":
            near = tuple(
                (scale * width, exponent, sign)
                for width, exponent, sign in itertools.product(DEFAULT_WIDTHS, DEFAULT_EXPONENTS, (1.0, -1.0))
            )
        power = self.cutoff_power if self.cutoff_function == "polynomial" else None
        return SymmetryFunctions(
            radial=tuple((width, centre) for width, centre in radial),
            near=tuple((width, exponent, sign) for width, exponent, sign in near),
            wide=tuple((width, exponent, sign) for width, exponent, sign in self.wide_functions),
            cutoff=self.cutoff,
            power=power,
        )

    def num_features(self, num_elements: int) -> int:
        """Return the number of symmetry functions of an atom."""
        return self.functions.num_functions(num_elements)

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

    standardizes = True
    reads_by_element = True

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
        self.symmetry_functions = SymmetryFunctionLayer(config.functions)
        num_features = config.num_features(len(elements))
        typical = typical_values(config.functions, facts.mean_neighbors).clamp(min=SMALLEST)
        self.register_buffer("mean", torch.zeros(len(elements), num_features))
        self.register_buffer("deviation", typical[self._columns(len(elements))].repeat(len(elements), 1))
        if config.whitening:
            self.register_buffer("rotation", torch.eye(num_features).repeat(len(elements), 1, 1))
        sizes = itertools.pairwise([num_features, *config.hidden_sizes, 1])
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
        radial, near, wide = config.functions[:3]
        return (
            f"Behler-Parrinello network, {len(radial)} radial and {len(near) + len(wide)} angular symmetry functions "
            f"for each element and pair of elements, hidden layers of {sizes}"
        )

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the hidden layers and the readout; the biases of levels of theory belong to the first layer."""
        last = len(self.config.hidden_sizes)
        blocks = {f"block {number}": (f"layers.{number}.*",) for number in range(last)}
        return blocks | {"block 0": ("layers.0.*", "theory_bias"), "readout": (f"layers.{last}.*",)}

    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Raises:
            ValueError: a radial table or recomputation is requested.
        """
        refused: dict[Option, str] = {
            "radial_table": "symmetry functions are not networks that could be tabulated",
            "recompute": "a Behler-Parrinello network has no interaction blocks",
        }
        refuse_options(computation, refused)
        set_layers(self, computation)
        self.computation = computation

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale."""
        return self.energies_and_features(batch, elements)[0]

    def energies_and_features(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms features"]]:
        """Return the energy of each atom, and the last hidden layer from which it is read."""
        features = self.features(batch, elements)
        return self.layers[-1](features, elements).squeeze(1), features

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms features"]:
        """Return the last hidden layer of each atom."""
        values, activation = self.inputs(batch, elements), ACTIVATIONS[self.config.activation]
        for number in range(len(self.config.hidden_sizes)):
            values = self.layers[number](values, elements)
            if number == 0 and self._num_theories > 1:
                values = values + self.theory_bias.index_select(0, batch.theory[batch.graph_of_atom])
            values = activation(values)
        return values

    def inputs(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms functions"]:
        """Return the symmetry functions of each atom, standardized for its element."""
        values = self._functions_of(batch, elements)
        values = (values - self.get_buffer("mean")[elements]) / self.get_buffer("deviation")[elements]
        if not self.config.whitening:
            return values
        return sum(
            (elements == kind).unsqueeze(1) * (values @ rotation)
            for kind, rotation in enumerate(self.get_buffer("rotation"))
        )  # pyright: ignore[reportReturnType]

    def _functions_of(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms functions"]:
        vectors = batch.edge_vectors().to(self.get_parameter("layers.0.weight").dtype)
        return self.symmetry_functions(batch, vectors, elements, len(self._elements))

    def standardize(self, sample: Iterable[tuple[GraphBatch, Int[Tensor, " atoms"]]]) -> None:
        """Set mean and deviation of the inputs of every element, and their rotation, to those of a sample.

        An element of which the sample has fewer than two atoms keeps what it has.
        """
        with torch.no_grad():
            values, kinds = zip(*((self._functions_of(*each).double(), each[1]) for each in sample), strict=True)
            every, kind = torch.cat(values), torch.cat(kinds)
            for number in range(len(self._elements)):
                own = every[kind == number]
                if len(own) > 1:
                    self._standardize(number, own)

    def _standardize(self, number: int, own: Float64[Tensor, "atoms functions"]) -> None:
        mean, deviation = own.mean(dim=0), own.std(dim=0)
        # other structures would be far outside of what a function that hardly varies has in the sample
        least = torch.maximum(LEAST_VARIATION * mean.abs(), torch.full_like(mean, SMALLEST))
        deviation = torch.maximum(deviation, least)
        self.get_buffer("mean")[number] = mean.to(self.get_buffer("mean"))
        self.get_buffer("deviation")[number] = deviation.to(self.get_buffer("mean"))
        if self.config.whitening:
            scaled = (own - mean) / deviation
            variances, axes = torch.linalg.eigh(scaled.T @ scaled / (len(own) - 1))
            widths = variances.clamp(min=WHITENING_FLOOR * float(variances[-1])).sqrt()
            self.get_buffer("rotation")[number] = (axes / widths).to(self.get_buffer("rotation"))

    def _columns(self, num_elements: int) -> Int[Tensor, " functions"]:
        """Return the function of each input, without its kinds of neighbours."""
        radial, near, wide = (len(each) for each in self.config.functions[:3])
        num_pairs = num_elements * (num_elements + 1) // 2
        parts = [(radial, num_elements), (near, num_pairs), (wide, num_pairs)]
        begins = itertools.accumulate((radial, near), initial=0)
        return torch.cat(
            [begin + torch.arange(size).repeat(times) for begin, (size, times) in zip(begins, parts, strict=True)]
        )

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "SymmetryFunctionsNetwork":
        """Return a network for other elements: each has the net of its source, and counts as it in the functions."""
        source = torch.tensor(sources)
        network = self.config.network(elements, self._num_theories).to(self.get_parameter("layers.0.weight"))
        columns, state = self._columns_of(source), self._unshifted()
        for name, value in state.items():
            if name.startswith(("layers.", "mean", "deviation")):
                state[name] = value[source.to(value.device)]
            if name in ("mean", "deviation", "layers.0.weight"):
                state[name] = state[name][:, columns.to(value.device)]
        network.load_state_dict(
            state | {"rotation": network.get_buffer("rotation")} if self.config.whitening else state
        )
        return network.train(self.training)

    def _unshifted(self) -> dict[str, Tensor]:
        """Return the weights of the same network whose inputs are only scaled, neither shifted nor rotated.

        A function of a new element is one of its source's that counts apart: their sum must be shifted once.
        """
        state = dict(self.state_dict())
        weight, bias = state["layers.0.weight"].double(), state["layers.0.bias"].double()
        if self.config.whitening:
            weight = state.pop("rotation").double() @ weight
        shift = (state["mean"].double() / state["deviation"].double()).unsqueeze(1) @ weight
        changed = {
            "mean": torch.zeros_like(state["mean"]),
            "layers.0.weight": weight,
            "layers.0.bias": bias - shift.squeeze(1),
        }
        return state | {name: value.to(state[name]) for name, value in changed.items()}

    def _columns_of(self, source: Int[Tensor, " new"]) -> Int[Tensor, " functions"]:
        """Return for each input of a network whose elements are copies of this one's the input that it copies."""
        radial, near, wide = (len(each) for each in self.config.functions[:3])
        rows, columns = torch.triu_indices(len(source), len(source))
        pairs = pair_numbers(source[rows], source[columns], len(self._elements))
        num_pairs = len(self._elements) * (len(self._elements) + 1) // 2
        found, begin = [], 0
        for size, kinds, num_kinds in (
            (radial, source, len(self._elements)),
            (near, pairs, num_pairs),
            (wide, pairs, num_pairs),
        ):
            found.append((begin + kinds.unsqueeze(1) * size + torch.arange(size)).flatten())
            begin += num_kinds * size
        return torch.cat(found)

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
