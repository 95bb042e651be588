"""CUDA C source of the convolution and its derivatives, from the entries that make the CPU's kernels.

As there (cpu/codegen.py), all kernels are derivatives of S(x, Y, W, g) = Σ out · g, and couplings and harmonics are
contracted into M[a, c] first. The order of the sums:

- A warp owns a row, and a lane a channel of every slice. The contraction is the same for all channels, so there a lane
  works on an edge instead: 8 to 32 edges side by side, M staged in shared memory.
- Sums over a row's edges (out, ∂/∂g) stay in registers from the first edge to the last. An edge reads the weights of
  its pair in place; the sign of odd harmonics goes into M.
- Gradients per pair (∂/∂x, ∂/∂Y, ∂/∂W) are the work of the row of the pair's first edge: weights are read once and
  their gradient is written once for both directions. The receiver's ∂/∂x stays in registers; the sender's is written
  for each pair, and added up by sender in a kernel of its own, through the index of edges by sender.

There are no atomic operations: a result has the same bits every time.
"""

from functools import cache
from importlib.resources import files
from typing import NamedTuple, get_args

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda.gradients import gradients
from foundation.kernels.cuda.layout import (
    LANES,
    Budget,
    Item,
    KernelName,
    Part,
    Shape,
    gradient_parts,
    shape_of,
    sum_parts,
)
from foundation.kernels.cuda.pieces import Kernel, loads, weights
from foundation.kernels.entries import Entries, entries_of

COLUMNS = 8 * LANES
"""Columns of ∂/∂x that a warp of the kernel `gather` adds up."""
VALUES = {False: 8, True: 12}
"""Numbers that a lane needs for a component of a pair's input, in the gradient and in that of the double backward."""
EDGES = ("rows", "senders", "pairs", "reverse")
NAMES: tuple[KernelName, ...] = get_args(KernelName)
BUDGETS = (
    Budget(sums=60, values=64, blocks=4),
    Budget(sums=60, values=64, blocks=3),
    Budget(sums=40, values=48, blocks=3),
    Budget(sums=40, values=48, blocks=2),
    Budget(sums=24, values=24, blocks=2),
)
"""Limits to try, in this order, until a kernel fits into the registers."""
REGISTERS = 1 << 16
"""Registers of 32 bits of a multiprocessor, on every device since 2014."""
MOST_REGISTERS = 255
"""Registers that a lane may have."""
OTHER_REGISTERS = 40
"""Registers for addresses, counters and values on their way."""


class Source(NamedTuple):
    """Source of a kernel, and the shape of its launch."""

    text: str
    shape: Shape


def generate(paths: TensorProductPaths, name: KernelName, real: str, budget: Budget) -> Source:
    """Return the CUDA C source of a kernel for "float" or "double".

    Raises:
        TooLarge: one edge's couplings do not fit into shared memory.
    """
    dimensions = {
        "DX": paths.irreps_in.dim,
        "DY": paths.irreps_harmonics.dim,
        "DO": paths.irreps_out.dim,
        "NW": paths.num_weights,
    }
    lines = [f"#define REAL {real}", text_of("prologue.cu")]
    lines.append("enum { " + ", ".join(f"{key} = {value}" for key, value in dimensions.items()) + " };")
    if name == "gather":
        shape = Shape(-(-paths.irreps_in.dim // COLUMNS), 4, (), (), 1)
        return Source("\n".join([*lines, text_of("gather.cu")]), shape)
    kernel = kernel_of(paths, name, real, budget)
    for number, part in enumerate(kernel.parts):
        lines += [*_couple(kernel, number, part), *_function(kernel, number, part, paths)]
    lines += _entry_point(kernel)
    return Source("\n".join(lines) + "\n", kernel.shape)


def first_budget(paths: TensorProductPaths, name: KernelName, real: str) -> int:
    """Return the number of the first budget with which a kernel should fit into the registers, by a count of values."""
    if name == "gather":
        return 0
    size = {"float": 4, "double": 8}[real]
    for number, budget in enumerate(BUDGETS):
        kernel = kernel_of(paths, name, real, budget)
        most = max(_values(kernel, part, paths) for part in kernel.parts)
        room = min(MOST_REGISTERS, REGISTERS // (LANES * kernel.shape.warps * budget.blocks))
        if most * size // 4 + OTHER_REGISTERS <= room:
            return number
    return len(BUDGETS) - 1


def _values(kernel: Kernel, part: Part, paths: TensorProductPaths) -> int:
    """Return the number of values that a lane has at a time."""
    widest = max(item.inputs * len(item.slices) for item in part.items)
    if kernel.name.endswith("sum"):
        return sum(item.outputs for item in part.items) + (4 if kernel.double else 2) * widest
    own = sum(item.inputs * len(item.slices) for item in part.items)
    return own + VALUES[kernel.double] * widest + paths.irreps_harmonics.dim


@cache
def text_of(name: str) -> str:
    """Return the text of a file of CUDA source in this folder."""
    return files("foundation.kernels.cuda").joinpath(name).read_text()


def kernel_of(paths: TensorProductPaths, name: KernelName, real: str, budget: Budget) -> Kernel:
    """Return how a kernel divides its work; `gather` has no division of this kind.

    Raises:
        TooLarge: one edge's couplings do not fit into shared memory.
    """
    groups, size = entries_of(paths), {"float": 4, "double": 8}[real]
    double, words = name.startswith("double"), size // 4
    tangents = ("vx", "vy", "vw") if double else ()
    if name.endswith("sum"):
        parts = sum_parts(groups, budget, words)
        inputs, results = ("x", "y", "w", *tangents), ("out",)
    else:
        parts = gradient_parts(groups, budget, words, VALUES[double])
        inputs, results = ("x", "y", "w", "g", *tangents), ("gx", "gy", "gw", "by_pair")
    shape = shape_of(parts, size, 2 if double else 1, budget.blocks)
    return Kernel(name, tuple(parts), shape, inputs, results, double)


def _couple(kernel: Kernel, number: int, part: Part) -> list[str]:
    """Return a function that writes M of one edge from its harmonics, of which odd ones have the sign s."""
    used = {b for e in part.entries for terms in e.couplings.values() for b, _ in terms for b in [e.y + b]}
    odd = {e.y + b for e in part.entries if e.odd for b in range(e.degrees[1])}
    lines = [f"INLINE void couple_{kernel.name}_{number}(const T *y, T s, SHARED_OF(T) m) {{"]
    lines += [f"const T y{b} = {'s * ' if b in odd else ''}__ldg(y + {b});" for b in sorted(used)]
    for entry in part.entries:
        for (a, c), terms in entry.couplings.items():
            total = " + ".join(f"(T){value!r} * y{entry.y + b}" for b, value in terms)
            lines.append(f"m[{part.matrix[entry.number, a, c]}] = {total};")
    return [*lines, "}"]


def _parameters(kernel: Kernel, *, typed: bool) -> str:
    edges = [f"const I *__restrict__ {name}" if typed else name for name in EDGES]
    inputs = [f"const T *__restrict__ {name}" if typed else name for name in kernel.inputs]
    results = [f"OUTPUT {name}" if typed else name for name in kernel.results]
    sizes = [f"I {name}" if typed else name for name in ("num_atoms", "num_pairs")]
    return ", ".join([*edges, *inputs, *results, *sizes])


def _entry_point(kernel: Kernel) -> list[str]:
    """Return the kernel: every warp finds its row and its part."""
    shape, most = kernel.shape, max(kernel.shape.edges)
    calls = (
        f"case {n}: {kernel.name}_{n}({_parameters(kernel, typed=False)}, row, lane, m + warp * {shape.staged()}, "
        f"at + warp * {3 * most}); break;"
        for n in range(shape.parts)
    )
    return [
        f'extern "C" __global__ void __launch_bounds__({LANES * shape.warps}, {shape.blocks})',
        f"{kernel.name}({_parameters(kernel, typed=True)}) {{",
        f"SHARED(T, m, {shape.warps * shape.staged()});",
        f"SHARED(I, at, {shape.warps * most * 3});",
        f"const int warp = threadIdx.x / {LANES}, lane = threadIdx.x % {LANES};",
        f"const I row = (I)blockIdx.x * {shape.warps} + warp;",
        "if (row >= num_atoms) return;",
        *["switch (blockIdx.y) {", *calls, "}", "}"],
    ]


def _function(kernel: Kernel, number: int, part: Part, paths: TensorProductPaths) -> list[str]:
    lines = [
        f"INLINE void {kernel.name}_{number}({_parameters(kernel, typed=True)}, I row, int lane, "
        "SHARED_OF(T) m, SHARED_OF(I) at) {"
    ]
    couple = [f"couple_{kernel.name}_{number}(y + pair * DY, s, m + slot * {kernel.shape.strides[number]});"]
    if kernel.double:
        there = f"m + slot * {kernel.shape.strides[number]} + {part.half}"
        couple.append(f"couple_{kernel.name}_{number}(vy + pair * DY, s, {there});")
    body = _sums if kernel.name.endswith("sum") else gradients
    return [*lines, *body(kernel, number, part, couple, paths), "}"]


def _sums(kernel: Kernel, number: int, part: Part, couple: list[str], paths: TensorProductPaths) -> list[str]:
    """Return code for a row of out (∂/∂g in the double backward)."""
    stride, edges = kernel.shape.strides[number], kernel.shape.edges[number]
    sums = [
        (f"o{e.number}_{c}_{s}", e.out + c * e.stride + u, on)
        for item in part.items
        for e in item.entries
        for c in range(e.degrees[2])
        for s, u, on in item.lanes()
    ]
    lines = [f"T {name} = 0;" for name, _, _ in sums]
    lines += [
        "const I last = __ldg(rows + row + 1);",
        f"for (I base = __ldg(rows + row); base < last; base += {edges}) {{",
        f"const int slot = lane, count = last - base < {edges} ? (int)(last - base) : {edges};",
        "__syncwarp();",
        "if (slot < count) {",
        "const I edge = base + slot, pair = __ldg(pairs + edge), other = __ldg(reverse + edge);",
        "const T s = other >= 0 && other < edge ? -1 : 1;",
        "at[3 * slot] = __ldg(senders + edge) * DX; at[3 * slot + 1] = pair * NW;",
        *couple,
        "}",
        "__syncwarp();",
        "for (int k = 0; k < count; k++) {",
        f"const auto mk = m + k * {stride};",
        "const I from = at[3 * k] + lane, weights = at[3 * k + 1] + lane;",
        "const T *xs = x + from, *ws = w + weights;",
        *([f"const auto nk = mk + {part.half};"] if kernel.double else []),
        *(["const T *rs = vx + from, *vs = vw + weights;"] if kernel.double else []),
    ]
    for item in part.items:
        lines += ["{", *loads("x", item, "xs"), *(loads("r", item, "rs") if kernel.double else [])]
        for entry in item.entries:
            terms = _double_sum_terms if kernel.double else _sum_terms
            lines += ["{", *weights(entry, item, kernel.double), *terms(entry, item, part), "}"]
        lines.append("}")
    stores = [f"{'' if on == 'true' else f'if ({on}) '}out[row * DO + lane + {at}] = {name};" for name, at, on in sums]
    return [*lines, "}", "}", *stores]


def _sum_terms(entry: Entries, item: Item, part: Part) -> list[str]:
    inputs, _, outputs = entry.degrees
    p, lines = entry.number, []
    if inputs <= outputs:
        lines += [f"const T t{s}_{a} = w{s} * x{s}_{a};" for s in item.slices for a in range(inputs)]
        for a, c in entry.couplings:
            lines.append(f"{{ const T q = mk[{part.matrix[p, a, c]}];")
            lines += [f"o{p}_{c}_{s} += q * t{s}_{a};" for s in item.slices]
            lines.append("}")
        return lines
    for c in range(outputs):
        if not entry.of_output(c):
            continue
        lines += ["{", *(f"T t{s} = 0;" for s in item.slices)]
        for a in entry.of_output(c):
            lines.append(f"{{ const T q = mk[{part.matrix[p, a, c]}];")
            lines += [f"t{s} += q * x{s}_{a};" for s in item.slices]
            lines.append("}")
        lines += [*(f"o{p}_{c}_{s} += w{s} * t{s};" for s in item.slices), "}"]
    return lines


def _double_sum_terms(entry: Entries, item: Item, part: Part) -> list[str]:
    p, lines = entry.number, []
    for s in item.slices:
        for a in range(entry.degrees[0]):
            lines.append(f"const T s{s}_{a} = w{s} * x{s}_{a}, t{s}_{a} = w{s} * r{s}_{a} + v{s} * x{s}_{a};")
    for a, c in entry.couplings:
        place = part.matrix[p, a, c]
        lines.append(f"{{ const T q = mk[{place}], z = nk[{place}];")
        lines += [f"o{p}_{c}_{s} += q * t{s}_{a}; o{p}_{c}_{s} += z * s{s}_{a};" for s in item.slices]
        lines.append("}")
    return lines
