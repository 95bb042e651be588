"""Operations and bytes of the CUDA kernels, counted from their division of work: what a device's limits make of them.

Bytes of memory are those of arrays that do not fit into a cache: weights, harmonics, indices and what is written for
every pair, and each atom's features once. Features of neighbours are read for every edge, from the second-level cache;
those of the row's own atom are taken to stay in the first.
Operations are those that lanes execute, with lanes beyond the last channel, which compute nothing.
"""

from typing import NamedTuple

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda.codegen import BUDGETS, first_budget, kernel_of
from foundation.kernels.cuda.layout import LANES, Item, KernelName, Part
from foundation.kernels.cuda.pieces import Kernel

INDEX = 8
"""Bytes of an index."""


class Traffic(NamedTuple):
    """Work of a kernel for each directed edge, where every edge has its reverse."""

    operations: float
    """Floating-point operations; a fused multiply-add is two."""
    memory: float
    """Bytes between memory and the caches."""
    cache: float
    """Bytes between the second-level cache and the multiprocessors, those of `memory` included."""


def traffic(paths: TensorProductPaths, name: KernelName, real: str, degree: float) -> Traffic:
    """Return the work of a kernel for each directed edge.

    Args:
        paths: Paths of the convolution.
        name: Kernel.
        real: "float" or "double".
        degree: Mean number of edges of an atom.
    """
    size = {"float": 4, "double": 8}[real]
    x, y = paths.irreps_in.dim * size, paths.irreps_harmonics.dim * size
    w, out = paths.num_weights * size, paths.irreps_out.dim * size
    if name == "gather":
        return Traffic(x / size / 2, x / 2 + 2 * x / degree + 3 * INDEX, x / 2 + 2 * x / degree + 3 * INDEX)
    kernel = kernel_of(paths, name, real, BUDGETS[first_budget(paths, name, real)])
    times = 2 if kernel.double else 1
    operations = LANES * sum(
        _operations(part, kernel) + _coupling(part, kernel, edges)
        for part, edges in zip(kernel.parts, kernel.shape.edges, strict=True)
    )
    parts = len(kernel.parts)
    if name.endswith("sum"):
        memory = times * (w + y) + 3 * INDEX + (times * x + out) / degree
        return Traffic(operations, memory, memory + times * (x * _repeats(kernel) + (parts - 1) * y))
    # a pair has two edges
    memory = (times * (w + y) + w + parts * y + x + 3 * 2 * INDEX) / 2 + ((times + 1) * x + out) / degree
    return Traffic(operations / 2, memory, memory + (times * x + out) / 2)


def _repeats(kernel: Kernel) -> float:
    """Return how often a neighbour's features are read by all parts together, on average over its columns."""
    columns: dict[tuple[int, int], int] = {}
    for part in kernel.parts:
        for column in {(item.entries[0].x, s) for item in part.items for s in item.slices}:
            columns[column] = columns.get(column, 0) + 1
    return sum(columns.values()) / len(columns)


def _coupling(part: Part, kernel: Kernel, edges: int) -> float:
    """Return the operations of a lane for an edge in the contraction of couplings and harmonics."""
    terms = sum(2 * len(values) - 1 for entry in part.entries for values in entry.couplings.values())
    return (2 if kernel.double else 1) * terms / edges


def _operations(part: Part, kernel: Kernel) -> int:
    """Return the operations of a lane for an edge, or for a pair where the kernel works on pairs."""
    count = _sum_operations if kernel.name.endswith("sum") else _gradient_operations
    return sum(count(item, kernel.double) for item in part.items)


def _sum_operations(item: Item, double: bool) -> int:
    total = 0
    for entry in item.entries:
        inputs, _, outputs = entry.degrees
        couplings = len(entry.couplings)
        if double:
            total += 4 * inputs + 4 * couplings
        else:
            total += 2 * couplings + (inputs if inputs <= outputs else 2 * outputs)
    return total * len(item.slices)


def _gradient_operations(item: Item, double: bool) -> int:
    """Return the operations for both sides of a pair: of k, q, ∂/∂W, ∂/∂x and ∂/∂Y."""
    slices, total = len(item.slices), 0
    for entry in item.entries:
        inputs, couplings = entry.degrees[0], len(entry.couplings)
        terms = sum(len(values) for values in entry.couplings.values())
        total += slices * (2 * inputs * (3 if double else 1) + (2 if double else 1) * (4 * couplings + 8 * inputs))
        total += couplings * (4 * slices - 1) + 2 * terms
    return total
