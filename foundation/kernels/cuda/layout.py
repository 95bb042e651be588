"""Division of a convolution's work among warps: which paths and channels a warp works on, and how much it stages.

A warp works on one row of atoms, each of its lanes on channels that are 32 apart. Up to 32 channels of an irrep are a
slice. Sums that a lane keeps in registers limit the paths and slices of a warp; the rest of the row is the work of
other warps (parts), which need other couplings, weights and columns, so that little is read twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from foundation.kernels.entries import Entries

KernelName = Literal["sum", "double_sum", "gradient", "double_gradient", "gather"]
LANES = 32
"""Lanes of a warp."""
MOST_SLICES = 4
"""Slices that share a coupling read from shared memory; more would not spare much."""
STAGED = 9216
"""Bytes of couplings that a warp stages at a time, so that four blocks of four warps fit into an A100's memory."""
MOST_SHARED = 48 << 10
"""Bytes of shared memory that a block has on every device without asking."""
ADDRESSES = 24
"""Bytes of shared memory for an edge's addresses."""


class TooLarge(ValueError):
    """Irreps whose couplings do not fit into shared memory; the message says by how much."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a warp."""

    sums: int
    """Registers of 32 bits of a lane for sums over a row."""
    values: int
    """Registers of 32 bits of a lane for the values of one slice's pair."""
    blocks: int
    """Blocks of a multiprocessor that the compiler makes room for, which limits the registers of a lane."""


class Item(NamedTuple):
    """Work of a warp on some paths of one input irrep, for some slices of channels."""

    entries: tuple[Entries, ...]
    slices: tuple[int, ...]

    def lanes(self) -> Iterator[tuple[int, int, str]]:
        """Yield the number, the first channel and the condition on a lane of every slice."""
        for s in self.slices:
            rest = self.channels - LANES * s
            yield s, LANES * s, "true" if rest >= LANES else f"lane < {rest}"

    @property
    def channels(self) -> int:
        """Number of channels of the irrep."""
        return self.entries[0].channels

    @property
    def inputs(self) -> int:
        """Number of components of the input irrep."""
        return self.entries[0].degrees[0]

    @property
    def outputs(self) -> int:
        """Number of sums that a lane keeps in the forward kernel."""
        return len(self.slices) * sum(entry.degrees[2] for entry in self.entries)


@dataclass(frozen=True)
class Part:
    """Work of one warp."""

    items: tuple[Item, ...]
    matrix: dict[tuple[int, int, int], int]
    """Place of every staged coupling (path, a, c)."""

    @property
    def entries(self) -> list[Entries]:
        """The paths of which some channels are worked on, once each."""
        return list({entry.number: entry for item in self.items for entry in item.entries}.values())

    @property
    def half(self) -> int:
        """Number of staged couplings, a multiple of four."""
        return -(-len(self.matrix) // 4) * 4


class Shape(NamedTuple):
    """Dimensions of a kernel's launch and of what a warp stages."""

    parts: int
    """Warps that a row is divided among."""
    warps: int
    """Warps of a block, each on a row of its own."""
    strides: tuple[int, ...]
    """Numbers staged for an edge, for each part."""
    edges: tuple[int, ...]
    """Edges staged at a time, for each part."""
    blocks: int
    """Blocks of a multiprocessor that the compiler makes room for."""

    def staged(self) -> int:
        """Return the number of numbers that a warp stages at most."""
        return max(stride * edges for stride, edges in zip(self.strides, self.edges, strict=True))

    def shared(self, size: int) -> int:
        """Return the bytes of shared memory of a block, for numbers of a size."""
        return self.warps * (self.staged() * size + max(self.edges) * ADDRESSES)


def sum_parts(groups: Sequence[Sequence[Entries]], budget: Budget, words: int) -> list[Part]:
    """Return the parts of a kernel that sums over rows: what they keep is limited, and as even as it can be.

    Args:
        groups: The paths, by input irrep.
        budget: Limits of a warp.
        words: Registers of 32 bits that a number takes.
    """
    most, items = budget.sums // words, []
    for group in groups:
        for slices in _slices(group[0].channels, most // max(entry.degrees[2] for entry in group)):
            together: list[Entries] = []
            for entry in group:
                if together and Item((*together, entry), slices).outputs > most:
                    items.append(Item(tuple(together), slices))
                    together = []
                together.append(entry)
            items.append(Item(tuple(together), slices))
    return _packed(items, [item.outputs for item in items], most)


def gradient_parts(groups: Sequence[Sequence[Entries]], budget: Budget, words: int, values: int) -> list[Part]:
    """Return the parts of a kernel of gradients, in which all paths of an input irrep and slice are together.

    Args:
        groups: The paths, by input irrep.
        budget: Limits of a warp.
        words: Registers of 32 bits that a number takes.
        values: Numbers that a lane needs for a component of a pair's input.
    """
    items = []
    for group in groups:
        for slices in _slices(group[0].channels, budget.values // (words * values * group[0].degrees[0])):
            items.append(Item(tuple(group), slices))
    loads = [item.inputs * len(item.slices) for item in items]
    return _packed(items, loads, max(1, budget.sums // (6 * words)))


def shape_of(parts: Sequence[Part], size: int, matrices: int, blocks: int) -> Shape:
    """Return the shape of a kernel that stages some matrices of couplings for each edge.

    Raises:
        TooLarge: one edge's couplings do not fit into shared memory.
    """
    strides = tuple(_odd_quads(matrices * part.half) for part in parts)
    edges = tuple(_power_of_two(STAGED // (stride * size)) for stride in strides)
    for warps in (4, 2, 1):
        shape = Shape(len(parts), warps, strides, edges, blocks)
        if shape.shared(size) <= MOST_SHARED:
            return shape
    raise TooLarge(
        f"the couplings of an edge take {max(strides) * size:,} bytes of shared memory, of {MOST_SHARED:,}; "
        "choose fewer or lower irreps, or another backend"
    )


def _slices(channels: int, most: int) -> list[tuple[int, ...]]:
    """Return the slices of an irrep's channels, as many together as are allowed."""
    count, width = -(-channels // LANES), max(1, min(MOST_SLICES, most))
    return [tuple(range(first, min(first + width, count))) for first in range(0, count, width)]


def _packed(items: list[Item], loads: list[int], most: int) -> list[Part]:
    """Return parts of up to `most`, the largest items first, each to the part with least."""
    order = sorted(range(len(items)), key=lambda number: -loads[number])
    for count in range(min(len(items), -(-sum(loads) // most)), len(items) + 1):
        filled, chosen = [0] * count, [[] for _ in range(count)]
        for number in order:
            least = filled.index(min(filled))
            filled[least] += loads[number]
            chosen[least].append(number)
        if max(filled) <= most or count == len(items):
            return [_part([items[number] for number in sorted(numbers)]) for numbers in chosen]
    raise ValueError("a convolution without paths has no kernels")


def _part(items: list[Item]) -> Part:
    entries = {entry.number: entry for item in items for entry in item.entries}
    keys = [(number, *key) for number, entry in entries.items() for key in entry.couplings]
    return Part(tuple(items), {key: place for place, key in enumerate(keys)})


def _odd_quads(count: int) -> int:
    """Round up to an odd multiple of four: stores of four numbers by neighbouring lanes then meet all memory banks."""
    quads = -(-count // 4)
    return 4 * (quads + 1 - quads % 2)


def _power_of_two(most: int) -> int:
    return max(1, min(LANES, 1 << max(0, most.bit_length() - 1)))
