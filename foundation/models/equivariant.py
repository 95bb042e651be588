"""The E(3)-equivariant message-passing network of the NequIP and SevenNet family.

Elements are embedded as even scalars; interaction blocks exchange messages between neighbours; the last block keeps
even scalars only, and two linear layers read an energy per atom from them. Parameter layouts are SevenNet's
(Park et al., J. Chem. Theory Comput. 20, 4857 (2024)), so its weights can be loaded by renaming.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from e3nn import o3
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.structure import MAX_ATOMIC_NUMBER
from foundation.configuration import DECIDES
from foundation.kernels.edges import EdgeIndex
from foundation.models.energy_model import NO_FACTS, Architecture, DataFacts, EnergyModel, Exchange
from foundation.models.limits import (
    CUTOFFS,
    MAX_BLOCKS,
    MAX_CHANNELS,
    MAX_CUTOFF_POWER,
    MAX_DEGREE,
    MAX_LAYERS,
    MAX_PARAMETERS,
    check_elements,
    parse_irreps,
)
from foundation.nn.computation import Computation, set_layers
from foundation.nn.embedding import periodic_features
from foundation.nn.interaction import InteractionBlock, scale_messages
from foundation.nn.linear import Linear
from foundation.nn.radial import BesselBasis, CutoffFunction, polynomial_cutoff, xplor_cutoff
from foundation.nn.radial_table import Knots, Tabulated, hermite, radial_tables
from foundation.nn.recompute import recomputed

PAIRS_PER_KNOT = 4
"""Pairs of a batch for every knot below which a training step evaluates the radial networks at every pair after all."""


@dataclass(frozen=True, kw_only=True)
class EquivariantConfig(Architecture):
    """Architecture of an equivariant network; with irreps 128x0e+64x1e+32x2e and the defaults it is SevenNet-0's."""

    architecture: ClassVar[str] = "equivariant"

    irreps: str = field(metadata=DECIDES)
    """Hidden irreps, sorted, such as 128x0e+64x1e+32x2e. With odd ones (32x0e+32x1o+32x2e) energies are
    exactly the same for mirror images; if all are marked even, as in SevenNet-0, three or more blocks can distinguish a
    chiral structure from its mirror image."""
    num_blocks: int = field(default=5, metadata=DECIDES)
    """Interaction blocks."""
    max_degree: int = field(default=2, metadata=DECIDES)
    """Highest degree of the spherical harmonics of edges."""
    unit_harmonics: bool = field(default=True, metadata=DECIDES)
    """True: spherical harmonics of an edge's direction; False: of its vector, growing with its length (as in SevenNet-0
    of 22 May 2024)."""
    cutoff: float = field(default=5.0, metadata=DECIDES)
    """Distance below which atoms are neighbours [Å]."""
    num_basis: int = field(default=8, metadata=DECIDES)
    """Number of radial basis functions."""
    radial_sizes: tuple[int, ...] = field(default=(64, 64), metadata=DECIDES)
    """Hidden sizes of the radial networks."""
    cutoff_function: CutoffFunction = field(default="xplor", metadata=DECIDES)
    """Function that takes messages to zero at the cutoff."""
    cutoff_onset: float = field(default=4.5, metadata=DECIDES)
    """Distance from which the xplor function falls [Å]."""
    cutoff_power: int = field(default=6, metadata=DECIDES)
    """Power of the polynomial function."""
    readout_channels: int = field(default=64, metadata=DECIDES)
    """Number of channels between the two layers of the readout."""
    normalization: str = field(default="mean", metadata=DECIDES)
    """Divisor of sums over neighbours: the mean number of neighbours ('mean', SevenNet) or its square root ('sqrt',
    NequIP)."""

    theory_biases: bool | None = field(default=None, metadata=DECIDES)
    """Let the network see the level of theory: a bias of the even scalars for each, in both self-interactions of every
    block and in the readout (SevenNet-MF). None: if there are several."""

    def __post_init__(self) -> None:
        irreps = parse_irreps(self.irreps)
        if irreps.simplify() != irreps or irreps.sort().irreps.simplify() != irreps:
            raise ValueError(f"irreps {self.irreps!r} are not sorted: write {irreps.sort().irreps.simplify()}")
        if o3.Irrep("0e") not in irreps:
            raise ValueError(f"irreps {self.irreps!r} need even scalars (0e)")
        if self.normalization not in ("mean", "sqrt"):
            raise ValueError(f"normalization is 'mean' or 'sqrt', not {self.normalization!r}")
        self._check_sizes()
        self._check_cutoff()
        # the largest number of elements: a limit that depends on the data would come too late
        parameters = self.num_parameters(MAX_ATOMIC_NUMBER)
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"irreps and sizes make {parameters:.2g} parameters; at most {MAX_PARAMETERS:.2g}")

    def _check_sizes(self) -> None:
        if min(self.num_blocks, self.num_basis, self.readout_channels) < 1 or self.max_degree < 0:
            raise ValueError("num_blocks, num_basis and readout_channels must be at least 1, max_degree at least 0")
        largest = {"num_blocks": MAX_BLOCKS, "max_degree": MAX_DEGREE}
        largest |= dict.fromkeys(("num_basis", "readout_channels"), MAX_CHANNELS)
        for name, limit in largest.items():
            if getattr(self, name) > limit:
                raise ValueError(f"{name} must be at most {limit}, not {getattr(self, name)}")
        if len(self.radial_sizes) > MAX_LAYERS or not all(0 < size <= MAX_CHANNELS for size in self.radial_sizes):
            raise ValueError(f"radial_sizes: at most {MAX_LAYERS} of 1 to {MAX_CHANNELS}")

    def _check_cutoff(self) -> None:
        smallest, largest = CUTOFFS
        if not smallest <= self.cutoff <= largest:
            raise ValueError(f"cutoff must be a length from {smallest} to {largest} Å, not {self.cutoff}")
        if self.cutoff_function == "xplor" and not 0 < self.cutoff_onset < self.cutoff:
            raise ValueError(f"need 0 < cutoff_onset < cutoff, not {self.cutoff_onset} and {self.cutoff} Å")
        if not 1 <= self.cutoff_power <= MAX_CUTOFF_POWER:
            raise ValueError(f"cutoff_power must be from 1 to {MAX_CUTOFF_POWER}, not {self.cutoff_power}")

    @property
    def parity(self) -> bool:
        """True if mirror symmetry is exact: some irrep is odd."""
        return any(item.ir.p == -1 for item in o3.Irreps(self.irreps))

    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters of a network, without building it."""
        biased = num_theories > 1 if self.theory_biases is None else self.theory_biases
        biases, hidden = num_theories if biased else 0, o3.Irreps(self.irreps)
        scalars = irreps = _even_scalars(hidden)
        total = self.num_basis + Linear.size(o3.Irreps([(num_elements, "0e")]), scalars)
        harmonics, radial = _harmonics(self), (self.num_basis, *self.radial_sizes)
        for number in range(self.num_blocks):
            wanted = hidden if number < self.num_blocks - 1 else scalars
            irreps, size = InteractionBlock.size(str(irreps), str(harmonics), str(wanted), radial, biases)
            total += size
        middle = o3.Irreps([(self.readout_channels, "0e")])
        return total + Linear.size(irreps, middle, biases) + Linear.size(middle, o3.Irreps("1x0e"))

    def network(
        self, elements: tuple[int, ...], num_theories: int = 1, facts: DataFacts = NO_FACTS
    ) -> "EquivariantNetwork":
        """Return a network with random weights.

        Raises:
            ValueError: an atomic number is given twice, or is not an element's.
        """
        return EquivariantNetwork(self, elements, facts.mean_neighbors, num_theories)


class EquivariantNetwork(EnergyModel):
    """Atomic energies from element embedding, interaction blocks and a linear readout."""

    recordable = True

    def __init__(
        self, config: EquivariantConfig, elements: tuple[int, ...], mean_neighbors: float, num_theories: int = 1
    ) -> None:
        """Prepare a network with random weights.

        Args:
            config: The architecture.
            elements: Atomic numbers that the network knows.
            mean_neighbors: Mean number of neighbours of an atom of the training data, at the cutoff.
            num_theories: Number of levels of theory of the data.

        Raises:
            ValueError: an element occurs twice or is invalid.
        """
        super().__init__()
        check_elements(elements)
        if config.theory_biases is None:
            config = replace(config, theory_biases=num_theories > 1)
        biases = num_theories if config.theory_biases else 0
        self._knots: Knots | None = None
        self._tables: tuple[list[Tensor], list[Tensor]] = [], []
        self._config, self._elements, self._num_theories = config, elements, num_theories
        hidden = o3.Irreps(config.irreps)
        scalars = _even_scalars(hidden)
        self.irreps_harmonics = _harmonics(config)
        self.radial_basis = BesselBasis(config.num_basis, config.cutoff)
        self.embedding = Linear(o3.Irreps([(len(elements), "0e")]), scalars)
        # the layer divides by the root of the number of inputs, of which a one-hot vector uses only one
        features = len(elements) ** 0.5 * periodic_features(elements, scalars.dim)
        self.embedding.weight.data.copy_(features.flatten())
        denominator = mean_neighbors if config.normalization == "mean" else mean_neighbors**0.5
        irreps, blocks = scalars, []
        for number in range(config.num_blocks):
            wanted = hidden if number < config.num_blocks - 1 else scalars
            radial = [config.num_basis, *config.radial_sizes]
            blocks.append(InteractionBlock(irreps, self.irreps_harmonics, wanted, radial, denominator, biases))
            irreps = blocks[-1].irreps_out
        self.blocks = torch.nn.ModuleList(blocks)
        scale_messages(blocks, self.basis, config.cutoff)
        middle = o3.Irreps([(config.readout_channels, "0e")])
        self.readout = torch.nn.ModuleList([Linear(irreps, middle, biases), Linear(middle, o3.Irreps("1x0e"))])

    @property
    def config(self) -> EquivariantConfig:
        """The architecture, with theory_biases resolved."""
        return self._config

    @property
    def reach(self) -> float:
        """Distance to the farthest atom that the energy of an atom depends on: a cutoff for each block [Å]."""
        return self.config.num_blocks * self.cutoff

    @property
    def parity(self) -> bool:
        """True if the energies of mirror images are exactly the same."""
        return self.config.parity

    def describe(self) -> str:
        """Return the architecture in one phrase."""
        config = self.config
        return (
            f"equivariant network, {config.num_blocks} blocks of {config.irreps}, spherical harmonics to degree "
            f"{config.max_degree}"
        )

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the embedding, the radial basis, the blocks and the readout."""
        blocks = {f"block {number}": (f"blocks.{number}.*",) for number in range(self.config.num_blocks)}
        start = {"embedding": ("embedding.*",), "radial basis": ("radial_basis.*",)}
        return {**start, **blocks, "readout": ("readout.*",)}

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "EquivariantNetwork":
        """Return a network for other elements: the embedding gets a row for each, a copy of its source's.

        The embedding is normalised by the number of elements, so all of its weights change by one factor. This is
        computed in float64 and rounded once: predictions change by that rounding.
        """
        network = EquivariantNetwork(self.config, elements, 1.0, self._num_theories).to(self.embedding.weight)
        rows = self.embedding.weight.detach().double().view(len(self._elements), -1)[list(sources)]
        growth = (len(elements) / len(self._elements)) ** 0.5
        network.load_state_dict(dict(self.state_dict()) | {"embedding.weight": growth * rows.flatten()})
        return network.train(self.training)

    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "EquivariantNetwork":
        """Return a network for other levels of theory: in each layer with biases, new biases are mixtures of the old.

        The layers are normalised by a fan-in that counts the levels, so all of their weights change by one factor per
        layer. This is computed in float64 and rounded once: predictions change by that rounding.
        """
        biases = bool(self.config.theory_biases) or len(mixture) > 1
        config = replace(self.config, theory_biases=biases)
        network = EquivariantNetwork(config, self._elements, 1.0, len(mixture)).to(self.embedding.weight)
        state = dict(self.state_dict())
        for name, layer in network.named_modules():
            if isinstance(layer, Linear) and layer.num_theories:
                before = self.get_submodule(name)
                assert isinstance(before, Linear)
                state |= {f"{name}.{part}": value for part, value in before.mixed_theories(mixture.cpu()).items()}
        network.load_state_dict(state)
        return network.train(self.training)

    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Outside training a radial table is made once for the current weights, and no gradient flows back into them.
        """
        config, num_knots = self.config, computation.radial_table
        set_layers(self, computation)
        self.computation = computation
        kink = config.cutoff_onset if config.cutoff_function == "xplor" else config.cutoff
        self._knots = Knots.of(num_knots, self._cutoff, kink, config.cutoff) if num_knots else None

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale.

        Args:
            batch: The structures.
            elements: Index of each atom's element among the network's elements.
        """
        return self.energies_and_features(batch, elements)[0]

    def energies_and_features(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms scalars"]]:
        """Return the energy of each atom, and the even scalars from which it is read."""
        hidden, energy = self.readout
        features = self.features(batch, elements)
        return energy(hidden(features, batch.theory[batch.graph_of_atom])).squeeze(1), features

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms scalars"]:
        """Return the even scalars of each atom after the last block, from which its energy is read."""
        return self.features_along(batch.pair_vectors(), edge_index(batch), elements, batch.theory[batch.graph_of_atom])

    def atom_energies_along(
        self,
        vectors: Float64[Tensor, "pairs 3"],
        edges: EdgeIndex,
        elements: Int[Tensor, " atoms"],
        theory: Int[Tensor, " atoms"],
        exchange: Exchange | None = None,
    ) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom along given edges; see AlongEdges."""
        hidden, energy = self.readout
        return energy(hidden(self.features_along(vectors, edges, elements, theory, exchange), theory)).squeeze(1)

    def features_along(
        self,
        vectors: Float64[Tensor, "pairs 3"],
        edges: EdgeIndex,
        elements: Int[Tensor, " atoms"],
        theory: Int[Tensor, " atoms"],
        exchange: Exchange | None = None,
    ) -> Float[Tensor, "atoms scalars"]:
        """Return the even scalars of each atom after the last block; see AlongEdges for the arguments."""
        vectors = vectors.to(self.embedding.weight.dtype)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = o3.spherical_harmonics(
            self.irreps_harmonics, vectors, normalize=self.config.unit_harmonics, normalization="component"
        )
        # rows of the unit matrix: torch's one_hot reads the values, which a traced graph cannot
        one_hot = torch.eye(len(self._elements), dtype=vectors.dtype, device=vectors.device).index_select(0, elements)
        features = self.embedding(one_hot)
        for number, (block, basis) in enumerate(zip(self.blocks, self._bases(distances), strict=True)):
            if exchange is not None and number > 0:
                features = exchange(features)
            if self.computation.recompute:
                features = self._recomputed(block, features, harmonics, basis, edges, theory)
            else:
                features = block(features, harmonics, basis, edges, theory)
        return features

    def element_vectors(self) -> Float[Tensor, "elements scalars"]:
        """Return the rows of the element embedding, a view."""
        return self.embedding.weight.detach().view(len(self._elements), -1)

    def _recomputed(
        self,
        block: torch.nn.Module,
        features: Float[Tensor, "atoms inputs"],
        harmonics: Float[Tensor, "pairs harmonics"],
        basis: Float[Tensor, "pairs basis"] | Tabulated,
        edges: EdgeIndex,
        theory: Int[Tensor, " atoms"],
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the output of a block, without keeping its intermediate results."""
        # outside training derivatives are detached, and those of the weights are not needed
        weights = list(block.parameters()) if self.training else []
        if not isinstance(basis, Tabulated):
            return recomputed(partial(block, edges=edges, theory=theory), weights, features, harmonics, basis)

        def part(features: Tensor, harmonics: Tensor, table: Tensor, coefficients: Tensor) -> Tensor:
            return block(features, harmonics, Tabulated(table, coefficients, basis.places), edges, theory)

        return recomputed(part, weights, features, harmonics, basis.table, basis.coefficients)

    def _bases(self, distances: Float[Tensor, " pairs"]) -> list[Tensor] | list[Tabulated]:
        """Return the input of each block's weights: the common radial basis, or the block's table."""
        # in training a table is made anew in every step, which costs as much as some pairs for every knot
        too_few = self._knots is not None and len(distances) < PAIRS_PER_KNOT * len(self._knots.lengths)
        if self._knots is None or (self.training and too_few):
            return [self.basis(distances)] * len(self.blocks)
        if self._knots.lengths.device != distances.device:
            self._knots = Knots(*(tensor.to(distances.device) for tensor in self._knots))
        places, coefficients = hermite(self._knots.lengths.to(distances.dtype), distances)
        return [Tabulated(table, coefficients, places) for table in self._current_tables(self._knots)]

    def _current_tables(self, knots: Knots) -> list[Tensor]:
        """Return the table of every block."""

        def make() -> list[Tensor]:
            networks = [block.radial for block in self.blocks]
            divisors = [block.get_buffer("denominator") for block in self.blocks]
            return radial_tables(networks, self.radial_basis, knots, divisors)

        if self.training:
            return make()
        tensors = [knots.lengths, self.radial_basis.wave_numbers]
        for block in self.blocks:
            tensors += [*block.radial.parameters(), block.get_buffer("denominator")]
        made_from, tables = self._tables
        if self.weights_are_kept and tables:
            return tables
        # compared by value (a megabyte): torch does not track every change of weights
        if len(made_from) != len(tensors) or not all(map(_same, made_from, tensors)):
            # normal tensors for any first caller: they serve in derivatives as well
            with torch.inference_mode(False), torch.no_grad():
                made_from, tables = [tensor.clone() for tensor in tensors], make()
            self._tables = made_from, tables
        return tables

    def basis(self, distances: Float[Tensor, " lengths"]) -> Float[Tensor, "lengths basis"]:
        """Return the radial basis of lengths [Å] times the cutoff function, the input of the radial networks."""
        return self.radial_basis(distances) * self._cutoff(distances).unsqueeze(1)

    def _cutoff(self, distances: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
        config = self.config
        if config.cutoff_function == "xplor":
            return xplor_cutoff(distances, config.cutoff, config.cutoff_onset)
        return polynomial_cutoff(distances, config.cutoff, config.cutoff_power)


def _even_scalars(irreps: o3.Irreps) -> o3.Irreps:
    return o3.Irreps([item for item in irreps if item.ir == o3.Irrep("0e")])


def _harmonics(config: EquivariantConfig) -> o3.Irreps:
    """Return the irreps of the spherical harmonics, with the parity of the degree if mirror symmetry is exact."""
    sign = -1 if config.parity else 1
    return o3.Irreps([(1, (degree, sign**degree)) for degree in range(config.max_degree + 1)])


def _same(left: Tensor, right: Tensor) -> bool:
    return (left.dtype, left.device) == (right.dtype, right.device) and torch.equal(left, right)


def edge_index(batch: GraphBatch) -> EdgeIndex:
    """Return a batch's edges for the convolution; sorted by sender, they are the reverses of the rows."""
    return EdgeIndex(
        row_pointers=batch.row_pointers,
        senders=batch.senders,
        pairs=batch.pairs,
        reverse=batch.reverse,
        sender_order=batch.reverse,
        sender_pointers=batch.row_pointers,
    )
