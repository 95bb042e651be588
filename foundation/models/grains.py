"""Grains: a coarse-grained all-atom network, in which molecules and ions exchange messages instead of atoms.

After CGAA-FF (S. Kang, arXiv:2505.01058): the nodes are grains of a fixed sequence of elements, their features the
displacements of their atoms from the centre, and edges join centres. The published network predicts the forces inside a
grain by a head of its own; here there is one energy, and all forces are its derivatives with respect to atoms.

An energy is read for each grain from its shape (inverse distances of its atoms), from messages (vectors mixed linearly
from the displacements, sent by the interaction blocks of the equivariant network), from the products of the messages'
vectors with its own, and from its contacts (sums over atoms of other grains that are close to each of its own). It is
shared among its atoms equally. Atoms of a grain are told apart by their order: permuting them changes the energy, even
if they are of one element. Grains cannot react.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from e3nn import o3
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.graphs.molecules import MoleculeCutoff
from foundation.configuration import DECIDES
from foundation.models.energy_model import NO_FACTS, Architecture, DataFacts, EnergyModel
from foundation.models.equivariant import edge_index
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
from foundation.nn.computation import Computation, Option, refuse_options, set_layers
from foundation.nn.grains import (
    Dense,
    Grains,
    Standardized,
    contacts_of,
    formula_of,
    grains_of,
    inverse_distances,
    sequence_of,
)
from foundation.nn.interaction import InteractionBlock, scale_messages
from foundation.nn.radial import BesselBasis, polynomial_cutoff, xplor_cutoff

log = logging.getLogger(__name__)

MAX_KINDS = 256
"""Largest number of kinds of grains."""
LEAST_VARIATION = 0.02
"""Smallest divisor of an input, as a fraction of the root mean square of all of its kind."""
TYPICAL_DISPLACEMENT = 1.5
"""Distance of an atom from its grain's centre by which displacements are divided [Å]."""
ONSET = 0.85
"""Fraction of the cutoff from which contacts of two grains fade."""


@dataclass(frozen=True, kw_only=True)
class GrainsConfig(Architecture):
    """Architecture of a network of grains."""

    architecture: ClassVar[str] = "grains"

    grains: tuple[str, ...] = field(metadata=DECIDES)
    """Kinds of grains, each as its elements in the order of its atoms, such as Li, PF6, CO3C2H4."""
    cutoff: float = field(default=10.0, metadata=DECIDES)
    """Distance of centres below which grains are neighbours [Å]; the data count edges there (molecule_cutoffs)."""
    grain_irreps: str = field(default="64x0e+32x1o+16x2e", metadata=DECIDES)
    """Irreps of the messages, sorted, with 0e and 1o among them."""
    num_blocks: int = field(default=2, metadata=DECIDES)
    """Interaction blocks."""
    max_degree: int = field(default=2, metadata=DECIDES)
    """Highest degree of the spherical harmonics of edges."""
    num_basis: int = field(default=8, metadata=DECIDES)
    """Number of radial basis functions of centres."""
    radial_sizes: tuple[int, ...] = field(default=(32, 32), metadata=DECIDES)
    """Hidden sizes of the radial networks."""
    cutoff_power: int = field(default=6, metadata=DECIDES)
    """Power of the polynomial that takes messages and contacts to zero at their cutoffs."""
    hidden_sizes: tuple[int, ...] = field(default=(64, 64), metadata=DECIDES)
    """Sizes of the hidden layers of each kind's network from shape and contacts, and of that of its energy."""
    contact_cutoff: float = field(default=5.0, metadata=DECIDES)
    """Distance below which atoms of two neighbouring grains are in contact [Å]; 0: there are no contacts."""
    contact_basis: int = field(default=8, metadata=DECIDES)
    """Number of radial basis functions of contacts."""
    contact_channels: int = field(default=16, metadata=DECIDES)
    """Number of sums over the contacts of an atom."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoff", MoleculeCutoff(self.cutoff))  # whoever makes a graph gets one of molecules
        if not 0 < len(self.grains) <= MAX_KINDS or len(set(map(sequence_of, self.grains))) < len(self.grains):
            raise ValueError(f"grains: give 1 to {MAX_KINDS} kinds, each once")
        irreps = parse_irreps(self.grain_irreps)
        if irreps.sort().irreps.simplify() != irreps:
            raise ValueError(
                f"grain_irreps {self.grain_irreps!r} are not sorted: write {irreps.sort().irreps.simplify()}"
            )
        if not {o3.Irrep("0e"), o3.Irrep("1o")} <= {item.ir for item in irreps}:
            raise ValueError(f"grain_irreps {self.grain_irreps!r} need scalars and vectors (0e and 1o)")
        smallest, largest = CUTOFFS
        if not smallest <= self.cutoff <= largest or not 0 <= self.contact_cutoff <= largest:
            raise ValueError(f"cutoff must be from {smallest} to {largest} Å, contact_cutoff at most that, or 0")
        limits = {"num_blocks": MAX_BLOCKS, "max_degree": MAX_DEGREE, "cutoff_power": MAX_CUTOFF_POWER}
        limits |= dict.fromkeys(("num_basis", "contact_basis", "contact_channels"), MAX_CHANNELS)
        for name, limit in limits.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be from 1 to {limit}, not {getattr(self, name)}")
        for name in ("radial_sizes", "hidden_sizes"):
            sizes = getattr(self, name)
            if not 0 < len(sizes) <= MAX_LAYERS or not all(0 < size <= MAX_CHANNELS for size in sizes):
                raise ValueError(f"{name}: 1 to {MAX_LAYERS} of 1 to {MAX_CHANNELS}")
        if self.num_parameters(1) > MAX_PARAMETERS:
            raise ValueError(f"grains and sizes make more than {MAX_PARAMETERS:.2g} parameters")

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Atomic numbers of each kind of grain."""
        return [sequence_of(name) for name in self.grains]

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of scalars and of vectors of a message."""
        counts = {item.ir: item.mul for item in o3.Irreps(self.grain_irreps)}
        return counts[o3.Irrep("0e")], counts[o3.Irrep("1o")]

    def shape_inputs(self, slots: int) -> int:
        """Return the number of inputs of the network of a grain's shape and contacts."""
        return slots * (slots - 1) // 2 + slots * self.contact_channels * (self.contact_cutoff > 0)

    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters of a network, without building it."""
        scalars, vectors = self.channels
        sizes, total = self.hidden_sizes, self.num_basis
        for sequence in self.sequences:
            inner = [self.shape_inputs(len(sequence)), *sizes, scalars]
            outer = [2 * scalars + vectors, *sizes, 1]
            total += sum(a * b + b for layers in (inner, outer) for a, b in itertools.pairwise(layers))
            total += len(sequence) * vectors
        if self.contact_cutoff > 0:
            slots = sum(map(len, self.sequences))
            total += self.contact_basis + self.contact_basis * self.contact_channels + slots * self.contact_channels
        radial, irreps = (self.num_basis, *self.radial_sizes), _inputs(self)
        for wanted in _outputs(self):
            irreps, size = InteractionBlock.size(str(irreps), str(_harmonics(self)), str(wanted), radial, 0)
            total += size
        return total + num_theories * len(self.grains) * sizes[0] * (num_theories > 1)

    def network(self, elements: tuple[int, ...], num_theories: int = 1, facts: DataFacts = NO_FACTS) -> "GrainsNetwork":
        """Return a network with random weights.

        Raises:
            ValueError: an atomic number is given twice or is invalid.
        """
        return GrainsNetwork(self, elements, num_theories)


class Layers(torch.nn.ModuleList):
    """Linear layers with SiLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__([Dense(*size) for size in itertools.pairwise(sizes)])

    def forward(self, rows: Float[Tensor, "rows inputs"], bias: Tensor | float = 0.0) -> Float[Tensor, "rows outputs"]:
        """Return the outputs; a bias is added after the first layer."""
        rows = self[0](rows) + bias
        for layer in itertools.islice(self, 1, None):
            rows = layer(torch.nn.functional.silu(rows))
        return rows


class KindNetwork(torch.nn.Module):
    """Networks of one kind of grain: its message from its shape and contacts, and its energy."""

    def __init__(self, config: GrainsConfig, slots: int) -> None:
        super().__init__()
        scalars, vectors = config.channels
        sizes = config.hidden_sizes
        self.inputs = Standardized(config.shape_inputs(slots))
        self.shape = Layers(config.shape_inputs(slots), *sizes, scalars)
        # an atom without contacts has no other input
        torch.nn.init.normal_(self.shape[-1].bias)
        self.mixing = torch.nn.Parameter(torch.randn(slots, vectors) / (TYPICAL_DISPLACEMENT * slots**0.5))
        self.energy = Layers(2 * scalars + vectors, *sizes, 1)


class GrainsNetwork(EnergyModel):
    """Energies of grains from their shapes, contacts and messages."""

    standardizes = True

    def __init__(self, config: GrainsConfig, elements: tuple[int, ...], num_theories: int) -> None:
        """Prepare a network with random weights.

        Args:
            config: The architecture.
            elements: Atomic numbers that may occur; grains decide what is known.
            num_theories: Number of levels of theory of the data.

        Raises:
            ValueError: an atomic number is given twice or is invalid.
        """
        super().__init__()
        check_elements(elements)
        self._config, self._elements, self._num_theories = config, elements, num_theories
        self._sequences = config.sequences
        self._slots = list(itertools.accumulate(map(len, self._sequences), initial=0))
        self.irreps_harmonics = _harmonics(config)
        self.radial_basis = BesselBasis(config.num_basis, config.cutoff)
        irreps, blocks = _inputs(config), []
        for wanted in _outputs(config):
            radial = [config.num_basis, *config.radial_sizes]
            blocks.append(InteractionBlock(irreps, self.irreps_harmonics, wanted, radial, 1.0))
            irreps = blocks[-1].irreps_out
        self.blocks = torch.nn.ModuleList(blocks)
        scale_messages(blocks, self._basis, config.cutoff)
        self.kinds = torch.nn.ModuleList([KindNetwork(config, len(sequence)) for sequence in self._sequences])
        if config.contact_cutoff > 0:
            self.contact_basis = BesselBasis(config.contact_basis, config.contact_cutoff)
            self.contact_filter = torch.nn.Parameter(torch.randn(config.contact_basis, config.contact_channels))
            self.contact_slots = torch.nn.Parameter(torch.randn(self._slots[-1], config.contact_channels))
        if num_theories > 1:
            self.theory_bias = torch.nn.Parameter(
                torch.zeros(num_theories, len(self._sequences), config.hidden_sizes[0])
            )

    @property
    def config(self) -> GrainsConfig:
        """The architecture."""
        return self._config

    @property
    def reach(self) -> float:
        """Distance between the centres of a grain and the farthest one that its energy depends on [Å]."""
        return self.config.num_blocks * self.cutoff

    @property
    def parity(self) -> bool:
        """True: the energies of mirror images are exactly the same."""
        return True

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Sequences of atomic numbers of the grains that it knows."""
        return tuple(self._sequences)

    def describe(self) -> str:
        """Return the architecture in one phrase."""
        config = self.config
        contacts = f", contacts of atoms within {config.contact_cutoff:g} Å" if config.contact_cutoff else ""
        return (
            f"network of grains ({', '.join(config.grains)}), {config.num_blocks} blocks of {config.grain_irreps} "
            f"between their centres{contacts}"
        )

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the embedding of shapes and contacts, the blocks and the readout."""
        start = ("kinds.*.shape.*", "kinds.*.mixing", "contact_*", "radial_basis.*")
        blocks = {f"block {number}": (f"blocks.{number}.*",) for number in range(self.config.num_blocks)}
        return {"embedding": start, **blocks, "readout": ("kinds.*.energy.*", "theory_bias")}

    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Raises:
            ValueError: a radial table or recomputation is requested.
        """
        refused: dict[Option, str] = {
            "radial_table": "edges between grains are few",
            "recompute": "edges between grains are few",
        }
        refuse_options(computation, refused)
        set_layers(self, computation)
        self.computation = computation

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, an equal share of its grain's, in units of the potential's scale."""
        return self.energies_and_features(batch, elements)[0]

    def energies_and_features(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms features"]]:
        """Return the energy of each atom, and the features of its grain from which a small network reads it."""
        grains, features = self._features(batch)
        assert batch.molecule is not None
        energies = features.new_zeros(len(elements))
        for number, (kind, network) in enumerate(zip(grains.kinds, self.kinds, strict=True)):
            assert isinstance(network, KindNetwork)
            assert batch.graph_of_molecule is not None
            bias = 0.0
            if self._num_theories > 1:
                theory = batch.theory[batch.graph_of_molecule.index_select(0, kind.grains)]
                bias = self.theory_bias[theory, number]
            own = network.energy(features.index_select(0, kind.grains), bias)
            share = own.expand(-1, kind.atoms.shape[1])
            energies = energies.index_add(0, kind.atoms.flatten(), share.flatten())
        return energies, features.index_select(0, batch.molecule)

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms features"]:
        """Return the inputs of the network of its grain's energy for each atom."""
        assert batch.molecule is not None
        return self._features(batch)[1].index_select(0, batch.molecule)

    def _features(self, batch: GraphBatch) -> tuple[Grains, Float[Tensor, "grains features"]]:
        """Return the grains, and of each the scalars of its messages, its shape and the products of vectors."""
        grains, vectors = self._grains(batch)
        scalars, count = self.config.channels
        hidden, own, order = list[Tensor](), list[Tensor](), torch.cat([kind.grains for kind in grains.kinds])
        inputs = self._inputs_of(grains, batch, vectors)
        for kind, network, rows in zip(grains.kinds, self.kinds, inputs, strict=True):
            assert isinstance(network, KindNetwork)
            hidden.append(network.shape(network.inputs(rows)))
            own.append(torch.einsum("gsi,sv->giv", kind.displacements, network.mixing))
        place = torch.argsort(order)
        shapes, mixed = torch.cat(hidden).index_select(0, place), torch.cat(own).index_select(0, place)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = o3.spherical_harmonics(self.irreps_harmonics, vectors, normalize=True, normalization="component")
        features = torch.cat([torch.nn.functional.silu(shapes), mixed.flatten(1)], dim=1)
        edges, basis = edge_index(batch), self._basis(lengths)
        for block in self.blocks:
            features = block(features, harmonics, basis, edges)
        messages = features[:, scalars : scalars + 3 * count].view(-1, 3, count)
        return grains, torch.cat([features[:, :scalars], shapes, (messages * mixed).sum(dim=1)], dim=1)

    def _grains(self, batch: GraphBatch) -> tuple[Grains, Float[Tensor, "pairs 3"]]:
        """Return the grains, and the vectors between centres of neighbours in the network's float type."""
        grains, dtype = grains_of(batch, self._sequences), self.radial_basis.wave_numbers.dtype
        grains = grains._replace(
            kinds=[kind._replace(displacements=kind.displacements.to(dtype)) for kind in grains.kinds]
        )
        first = batch.pair_edges
        receivers, senders = batch.receivers.index_select(0, first), batch.senders.index_select(0, first)
        assert batch.graph_of_molecule is not None
        cells = batch.cell.index_select(0, batch.graph_of_molecule.index_select(0, receivers))
        shifts = batch.shifts.index_select(0, first).to(cells)
        vectors = grains.centres.index_select(0, senders) - grains.centres.index_select(0, receivers)
        return grains, (vectors + torch.einsum("ei,eij->ej", shifts, cells)).to(dtype)

    def _inputs_of(
        self, grains: Grains, batch: GraphBatch, vectors: Float[Tensor, "pairs 3"]
    ) -> list[Float[Tensor, "own inputs"]]:
        """Return the inverse distances inside each grain and the sums over its contacts, by kind."""
        rows = [inverse_distances(kind.displacements) for kind in grains.kinds]
        if self.config.contact_cutoff == 0:
            return rows
        sums = self._contacts(grains, batch, vectors)
        around = [
            sums.index_select(0, kind.atoms.flatten()).view(len(kind.grains), kind.atoms.shape[1] * sums.shape[1])
            for kind in grains.kinds
        ]
        return [torch.cat(both, dim=1) for both in zip(rows, around, strict=True)]

    def _contacts(
        self, grains: Grains, batch: GraphBatch, vectors: Float[Tensor, "pairs 3"]
    ) -> Float[Tensor, "atoms channels"]:
        """Return the sums over the contacts of each atom: a function of the length times a weight of the other atom."""
        config, slot = self.config, torch.zeros_like(batch.numbers)
        for kind, first in zip(grains.kinds, self._slots, strict=False):
            slot[kind.atoms] = first + torch.arange(kind.atoms.shape[1], device=slot.device)
        contacts = contacts_of(grains, batch, vectors, max(map(len, self._sequences)), config.contact_cutoff)
        fading = xplor_cutoff(
            torch.linalg.vector_norm(vectors, dim=1), config.cutoff, ONSET * config.cutoff
        ).index_select(0, contacts.pairs)
        fading = fading * polynomial_cutoff(contacts.lengths, config.contact_cutoff, config.cutoff_power)
        filters = (self.contact_basis(contacts.lengths) * fading.unsqueeze(1)) @ self.contact_filter
        weights = self.contact_slots.index_select(0, slot)
        sums = filters.new_zeros(len(slot), config.contact_channels)
        sums = sums.index_add(0, contacts.first, filters * weights.index_select(0, contacts.second))
        return sums.index_add(0, contacts.second, filters * weights.index_select(0, contacts.first))

    def _basis(self, lengths: Float[Tensor, " lengths"]) -> Float[Tensor, "lengths basis"]:
        fading = polynomial_cutoff(lengths, self.config.cutoff, self.config.cutoff_power)
        return self.radial_basis(lengths) * fading.unsqueeze(1)

    def standardize(self, sample: Iterable[tuple[GraphBatch, Int[Tensor, " atoms"]]]) -> None:
        """Set mean and deviation of the inputs of every kind, and the divisor of messages, to those of a sample."""
        found: list[list[Tensor]] = [[] for _ in self._sequences]
        edges, count = 0, 0
        with torch.no_grad():
            for batch, _ in sample:
                grains, vectors = self._grains(batch)
                edges, count = edges + batch.num_edges, count + grains.num_grains
                for rows, inputs in zip(found, self._inputs_of(grains, batch, vectors), strict=True):
                    rows.append(inputs)
            for (sequence, network), rows in zip(zip(self._sequences, self.kinds, strict=True), found, strict=True):
                assert isinstance(network, KindNetwork)
                if not sum(map(len, rows)):
                    log.warning(
                        "warning: there is no %s in the sample of the training data: what the network makes of it is "
                        "random; leave it out of model.grains",
                        formula_of(sequence),
                    )
                network.inputs.fit(torch.cat(rows), len(sequence) * (len(sequence) - 1) // 2, LEAST_VARIATION)
            for block in self.blocks:
                block.get_buffer("denominator").fill_((edges / count) ** 0.5 if edges else 1.0)

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "GrainsNetwork":
        """Return the same network under other elements; which grains it knows does not change."""
        network = self.config.network(elements, self._num_theories).to(self.radial_basis.wave_numbers)
        network.load_state_dict(self.state_dict())
        return network.train(self.training)

    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "GrainsNetwork":
        """Return a network for other levels of theory; the biases of a single one become part of the first layers'."""
        network = self.config.network(self._elements, len(mixture)).to(self.radial_basis.wave_numbers)
        state = dict(self.state_dict())
        none = torch.zeros(mixture.shape[1], len(self._sequences), self.config.hidden_sizes[0])
        before = state.pop("theory_bias", none).double()
        biases = torch.einsum("no,okh->nkh", mixture.to(before), before)
        if len(mixture) > 1:
            state["theory_bias"] = biases
        else:
            for number in range(len(self._sequences)):
                name = f"kinds.{number}.energy.0.bias"
                state[name] = state[name].double() + biases[0, number].to(state[name].device)
        network.load_state_dict(state)
        return network.train(self.training)


def _harmonics(config: GrainsConfig) -> o3.Irreps:
    return o3.Irreps([(1, (degree, (-1) ** degree)) for degree in range(config.max_degree + 1)])


def _outputs(config: GrainsConfig) -> list[o3.Irreps]:
    """Return the irreps of the messages of each block; from the last one only scalars and vectors are read."""
    return [o3.Irreps(config.grain_irreps)] * (config.num_blocks - 1) + [_inputs(config)]


def _inputs(config: GrainsConfig) -> o3.Irreps:
    scalars, vectors = config.channels
    return o3.Irreps([(scalars, "0e"), (vectors, "1o")])
