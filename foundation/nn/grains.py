"""Grains: molecules and ions of a fixed sequence of elements, and the invariants that their energies are read from.

A grain's shape is given by the inverse distances of its own atoms; its contacts by sums over atoms of other grains
within a short cutoff, found among the pairs of grains that are neighbours.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.structure import SYMBOLS, InvalidStructure
from foundation.nn.matmul import Matmul
from foundation.nn.matrices import Matrices

TERM = re.compile(r"([A-Z][a-z]?)([0-9]{0,3})")
MAX_ATOMS = 1000
"""Largest number of atoms of a grain."""
PRIME = 1_000_003
"""Factor between places in the code of a sequence of elements."""


def sequence_of(name: str) -> tuple[int, ...]:
    """Return the atomic numbers of a grain written in the order of its atoms, such as CO3C2H4.

    Raises:
        ValueError: it is not such a sequence, or has too many atoms.
    """
    terms = TERM.findall(name)
    if not terms or "".join(symbol + count for symbol, count in terms) != name:
        raise ValueError(f"grain {name!r}: write its elements in the order of its atoms, such as CO3C2H4")
    unknown = [symbol for symbol, _ in terms if symbol not in SYMBOLS[1:]]
    if unknown:
        raise ValueError(f"grain {name!r}: there is no element {unknown[0]}")
    sequence = [SYMBOLS.index(symbol) for symbol, count in terms for _ in range(int(count or 1))]
    if not 0 < len(sequence) <= MAX_ATOMS:
        raise ValueError(f"grain {name!r} has {len(sequence)} atoms; need 1 to {MAX_ATOMS}")
    return tuple(sequence)


def code_of(sequence: tuple[int, ...]) -> int:
    """Return the code of a sequence of elements, a signed 64-bit integer; see codes_of."""
    code = sum(number * PRIME**place for place, number in enumerate(sequence)) % 2**64
    return code - 2**64 if code >= 2**63 else code


class Kind(NamedTuple):
    """The grains of one kind in a batch."""

    grains: Int[Tensor, " own"]
    """Their numbers among the grains of the batch."""
    atoms: Int[Tensor, "own slots"]
    """Atoms of each."""
    displacements: Float[Tensor, "own slots 3"]
    """Displacements of the atoms from their mean position [Å]."""


class Grains(NamedTuple):
    """The grains of a batch."""

    kinds: list[Kind]
    """Those of each kind, in the order of the network's kinds."""
    positions: Float64[Tensor, "atoms 3"]
    """Positions of the atoms, each beside the others of its grain [Å]."""
    centres: Float64[Tensor, "grains 3"]
    """Mean position of the atoms of each grain [Å]."""
    num_grains: int
    """Number of grains."""


def grains_of(batch: GraphBatch, sequences: list[tuple[int, ...]]) -> Grains:
    """Return the grains of a batch by kind.

    Args:
        batch: A graph of molecules.
        sequences: Elements of the atoms of each kind, in order.

    Raises:
        InvalidStructure: the batch is not a graph of molecules, or has a grain of another kind.
    """
    if batch.molecule is None or batch.images is None or batch.graph_of_molecule is None:
        raise InvalidStructure("a graph of molecules is needed; make it with the network's own cutoff")
    cells = batch.cell.index_select(0, batch.graph_of_atom)
    positions = batch.positions + torch.einsum("ai,aij->aj", batch.images.to(cells), cells)
    num_grains = len(batch.graph_of_molecule)
    order = torch.argsort(batch.molecule, stable=True)
    sizes = torch.zeros_like(batch.graph_of_molecule).index_add(0, batch.molecule, torch.ones_like(batch.molecule))
    first = torch.cumsum(sizes, 0) - sizes
    owner = batch.molecule.index_select(0, order)
    places = torch.arange(len(order), device=order.device) - first.index_select(0, owner)
    codes = codes_of(batch.numbers.index_select(0, order), owner, places, num_grains)
    kinds = []
    for sequence in sequences:
        own = torch.nonzero((codes == code_of(sequence)) & (sizes == len(sequence))).squeeze(1)
        slots = torch.arange(len(sequence), device=order.device)
        atoms = order[first.index_select(0, own).unsqueeze(1) + slots]
        found = positions.index_select(0, atoms.flatten()).view(-1, len(sequence), 3)
        kinds.append(Kind(own, atoms, found - found.mean(dim=1, keepdim=True)))
    if sum(len(kind.grains) for kind in kinds) < num_grains:
        _refuse(batch, torch.cat([kind.grains for kind in kinds]), sequences)
    sums = torch.zeros(num_grains, 3, dtype=positions.dtype, device=positions.device)
    centres = sums.index_add(0, batch.molecule, positions) / sizes.unsqueeze(1)
    return Grains(kinds, positions, centres, num_grains)


def codes_of(
    numbers: Int[Tensor, " atoms"], owner: Int[Tensor, " atoms"], places: Int[Tensor, " atoms"], num_grains: int
) -> Int[Tensor, " grains"]:
    """Return the code of each grain: Σ Z p^place over its atoms, modulo 2⁶⁴, with a prime p."""
    longest = int(places.max()) + 1 if len(places) else 1
    powers = [1]
    for _ in range(longest - 1):
        powers.append(powers[-1] * PRIME % 2**64)
    signed = torch.tensor([each - 2**64 if each >= 2**63 else each for each in powers], device=numbers.device)
    codes = torch.zeros(num_grains, dtype=torch.int64, device=numbers.device)
    return codes.index_add(0, owner, numbers * signed.index_select(0, places))


def formula_of(sequence: Sequence[int]) -> str:
    """Return the formula of a sequence of atomic numbers, in its order; see sequence_of()."""
    runs = [(SYMBOLS[number], len(list(group))) for number, group in itertools.groupby(sequence)]
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in runs)


def _refuse(batch: GraphBatch, known: Int[Tensor, " known"], sequences: list[tuple[int, ...]]) -> None:
    assert batch.molecule is not None
    assert batch.graph_of_molecule is not None
    other = sorted(set(range(len(batch.graph_of_molecule))) - set(known.tolist()))[0]
    id = batch.ids[int(batch.graph_of_molecule[other])] if batch.ids else ""
    found = formula_of(batch.numbers[batch.molecule == other].tolist())
    raise InvalidStructure(
        f"{f'structure {id!r}: ' if id else ''}a grain {found} is none of those that the potential knows, "
        f"{', '.join(map(formula_of, sequences))}. Molecules must be whole, with their atoms in the order of the "
        "training data, each with a label of its own: number them anew where a cell was repeated or atoms were added"
    )


class Dense(Matrices):
    """A linear layer with a bias."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(max(fan_in, 1) ** -0.5 * torch.randn(fan_in, fan_out))
        self.bias = torch.nn.Parameter(torch.zeros(fan_out))
        self.matmul = Matmul()

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Input and output channels of its one matrix."""
        return [(self.weight.shape[0], self.weight.shape[1])]

    def forward(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Return the outputs of each row."""
        return self.matmul(rows, self.adapted()) + self.bias


class Standardized(torch.nn.Module):
    """Inputs shifted and scaled to those of a sample of the training data."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def forward(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows inputs"]:
        """Return the standardized inputs."""
        return (rows - self.get_buffer("mean")) / self.get_buffer("deviation")

    def fit(self, rows: Float[Tensor, "rows inputs"], split: int, least: float) -> None:
        """Take mean and deviation of a sample.

        Args:
            rows: The sample.
            split: Number of inputs of the first sort; the others are of the second.
            least: Smallest deviation, as a fraction of the root mean square of all inputs of a sort, or of a twentieth
                of their values.
        """
        if len(rows) > 1 and rows.shape[1]:
            deviation = rows.std(dim=0)
            for part in (slice(0, split), slice(split, None)):
                if deviation[part].numel():
                    values, usual = (each.square().mean().sqrt() for each in (rows[:, part], deviation[part]))
                    floor = least * torch.maximum(usual, values / 20)
                    deviation[part] = deviation[part].clamp(min=max(float(floor), 1e-6))
            self.get_buffer("mean").copy_(rows.mean(dim=0))
            self.get_buffer("deviation").copy_(deviation)


def inverse_distances(displacements: Float[Tensor, "own slots 3"]) -> Float[Tensor, "own pairs"]:
    """Return the inverse distances of the atoms of each grain [1/Å], pair by pair."""
    first, second = torch.triu_indices(displacements.shape[1], displacements.shape[1], 1, device=displacements.device)
    vectors = displacements.index_select(1, first) - displacements.index_select(1, second)
    return torch.rsqrt(vectors.square().sum(dim=2))


class Contacts(NamedTuple):
    """Pairs of close atoms of neighbouring grains, each pair once."""

    first: Int[Tensor, " contacts"]
    """One atom of each."""
    second: Int[Tensor, " contacts"]
    """The other."""
    lengths: Float[Tensor, " contacts"]
    """Distances [Å]."""
    pairs: Int[Tensor, " contacts"]
    """Pair of grains that each belongs to."""


def contacts_of(
    grains: Grains, batch: GraphBatch, vectors: Float[Tensor, "pairs 3"], slots: int, cutoff: float
) -> Contacts:
    """Return the pairs of atoms closer than a cutoff among the atoms of grains that are neighbours.

    Args:
        grains: The grains.
        batch: Their graph.
        vectors: Vector between the centres of each pair [Å].
        slots: Largest number of atoms of a grain.
        cutoff: Cutoff between atoms [Å].
    """
    edges = batch.pair_edges
    receivers, senders = batch.receivers.index_select(0, edges), batch.senders.index_select(0, edges)
    with torch.no_grad():
        # a grain's missing atoms are nowhere: a comparison with NaN is false
        places = vectors.new_full((grains.num_grains, slots, 3), torch.nan)
        atoms = batch.numbers.new_zeros(grains.num_grains, slots)
        for kind in grains.kinds:
            count = kind.atoms.shape[1]
            places[kind.grains, :count] = kind.displacements.detach()
            atoms[kind.grains, :count] = kind.atoms
        apart = places.index_select(0, senders) + vectors.detach().unsqueeze(1)
        between = apart.unsqueeze(1) - places.index_select(0, receivers).unsqueeze(2)
        pair, one, other = torch.nonzero(between.square().sum(dim=3) < cutoff**2, as_tuple=True)
        first, second = atoms[receivers[pair], one], atoms[senders[pair], other]
    cells = batch.cell.index_select(0, batch.graph_of_atom.index_select(0, first))
    shifts = batch.shifts.index_select(0, edges).index_select(0, pair)
    found = grains.positions.index_select(0, second) - grains.positions.index_select(0, first)
    found = found + torch.einsum("ei,eij->ej", shifts.to(cells), cells)
    return Contacts(first, second, torch.linalg.vector_norm(found.to(vectors.dtype), dim=1), pair)
