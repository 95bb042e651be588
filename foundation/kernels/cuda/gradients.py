"""CUDA C source of the gradients per pair; see codegen.py."""

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda.layout import LANES, Item, Part
from foundation.kernels.cuda.pieces import Kernel, loads, weights
from foundation.kernels.entries import Entries


def gradients(kernel: Kernel, number: int, part: Part, couple: list[str], paths: TensorProductPaths) -> list[str]:
    """Return code for the gradients of all pairs whose first edge is in a row.

    Side 0 of a pair is its first edge (from the sender), side 1 the reverse, from the row's own atom.
    """
    double, edges, size = kernel.double, kernel.shape.edges[number], paths.irreps_harmonics.dim
    own = [
        (f"h{e.x}_{s}_{a}", e.x + a * e.channels + u, on)
        for item in part.items
        for e in item.entries[:1]
        for a in range(item.inputs)
        for s, u, on in item.lanes()
    ]
    lines = [f"T {name} = 0;" for name, _, _ in own]
    lines += _pair_loop(edges, couple)
    lines += [
        f"const auto mk = m + k * {kernel.shape.strides[number]};",
        "const I far = at[3 * k], pair = at[3 * k + 1];",
        "const bool both = at[3 * k + 2];",
        "const I weights = pair * NW + lane, from = far * DX + lane, to = row * DX + lane;",
        "const T *x0 = x + from, *x1 = x + to, *ws = w + weights;",
        "const T *g0 = g + row * DO + lane, *g1 = g + far * DO + lane;",
        *([f"const auto nk = mk + {part.half};"] if double else []),
        *(["const T *r0 = vx + from, *r1 = vx + to, *vs = vw + weights;"] if double else []),
        "FORGET(x1); FORGET(g0);" + (" FORGET(r1);" if double else ""),
        f"T t[{size}] = {{}};",
    ]
    for item in part.items:
        lines += ["{", *loads("x0_", item, "x0"), *loads("x1_", item, "x1")]
        lines += [*loads("r0_", item, "r0"), *loads("r1_", item, "r1")] if double else []
        lines += [f"T f{s}_{a} = 0;" for s in item.slices for a in range(item.inputs)]
        for entry in item.entries:
            lines += ["{", *weights(entry, item, double), *_path_gradient(entry, item, part, double), "}"]
        first = item.entries[0].x
        for s, u, on in item.lanes():
            guard = "" if on == "true" else f"if ({on}) "
            for a in range(item.inputs):
                lines.append(f"{guard}by_pair[pair * DX + lane + {first + a * item.channels + u}] = f{s}_{a};")
        lines.append("}")
    lines += [*_harmonics(size, number), "}", "}", "}"]
    return lines + [f"{'' if on == 'true' else f'if ({on}) '}gx[row * DX + lane + {at}] = {n};" for n, at, on in own]


def _pair_loop(edges: int, couple: list[str]) -> list[str]:
    """Return the loops over 32 edges of a row and over those that are first of their pair, some staged at a time."""
    return [
        "const I last = __ldg(rows + row + 1);",
        f"for (I base = __ldg(rows + row); base < last; base += {LANES}) {{",
        "I edge = base + lane, pair = 0, other = -1;",
        "if (edge < last) pair = __ldg(pairs + edge), other = __ldg(reverse + edge);",
        "const bool is_first = edge < last && (other < 0 || other > edge);",
        "const unsigned firsts = __ballot_sync(ALL, is_first);",
        "const int place = __popc(firsts & ((1u << lane) - 1)), all = __popc(firsts);",
        f"for (int begin = 0; begin < all; begin += {edges}) {{",
        f"const int slot = place - begin, count = all - begin < {edges} ? all - begin : {edges};",
        "__syncwarp();",
        "if (is_first && slot >= 0 && slot < count) {",
        "const T s = 1;",
        "at[3 * slot] = __ldg(senders + edge); at[3 * slot + 1] = pair; at[3 * slot + 2] = other >= 0;",
        *couple,
        "}",
        "__syncwarp();",
        "for (int k = 0; k < count; k++) {",
    ]


def _path_gradient(entry: Entries, item: Item, part: Part, double: bool) -> list[str]:
    """Return code for ∂/∂W, ∂/∂x and ∂/∂Y of a path from q[a] = Σ_c M[a, c] g[c] (and z of the tangents)."""
    inputs, _, outputs = entry.degrees
    lines: list[str] = []
    names = ("q", "z") if double else ("q",)
    for s in item.slices:
        for a in range(inputs):
            lines += _products(s, a, names)
    for c in range(outputs):
        if not entry.of_output(c):
            continue
        lines.append("{")
        for s, u, on in item.lanes():
            there = entry.out + c * entry.stride + u
            lines.append(f"const T g0_{s} = load(g0 + {there}, {on});")
            lines.append(f"const T g1_{s} = load_past(g1 + {there}, both && {on});")
        for a in entry.of_output(c):
            lines += ["{", *_coupling_gradient(entry, item, (a, c), part, names), "}"]
        lines.append("}")
    return [*lines, *_sums_of_path(entry, item, names)]


def _products(s: int, a: int, names: tuple[str, ...]) -> list[str]:
    """Return code for k = W x (double backward: W vx + vW x) of both sides, and for the sums that begin at zero."""
    lines = []
    for side in (0, 1):
        value = f"w{s} * x{side}_{s}_{a}"
        value = f"w{s} * r{side}_{s}_{a} + v{s} * x{side}_{s}_{a}" if "z" in names else value
        lines.append(f"const T k{side}_{s}_{a} = {value};")
        lines += [f"T {name}{side}_{s}_{a} = 0;" for name in names]
    return lines


def _sums_of_path(entry: Entries, item: Item, names: tuple[str, ...]) -> list[str]:
    """Return code for ∂/∂W, and for what a path adds to ∂/∂x."""
    inputs, double, sign, lines = entry.degrees[0], "z" in names, "-" if entry.odd else "+", []
    for s, u, on in item.lanes():
        terms = [("+", f"x0_{s}_{a} * {names[-1]}0_{s}_{a}") for a in range(inputs)]
        terms += [(sign, f"x1_{s}_{a} * {names[-1]}1_{s}_{a}") for a in range(inputs)]
        if double:
            terms += [("+", f"r0_{s}_{a} * q0_{s}_{a}") for a in range(inputs)]
            terms += [(sign, f"r1_{s}_{a} * q1_{s}_{a}") for a in range(inputs)]
        guard = "" if on == "true" else f"if ({on}) "
        total = "".join(f" {plus} {term}" for plus, term in terms).removeprefix(" + ")
        lines.append(f"{guard}gw[weights + {entry.w + u}] = {total};")
        own = f"h{entry.x}_{s}_"
        for a in range(inputs):
            lines.append(f"f{s}_{a} += w{s} * {names[-1]}0_{s}_{a}; {own}{a} {sign}= w{s} * {names[-1]}1_{s}_{a};")
            lines += [f"f{s}_{a} += v{s} * q0_{s}_{a}; {own}{a} {sign}= v{s} * q1_{s}_{a};"] if double else []
    return lines


def _coupling_gradient(
    entry: Entries, item: Item, key: tuple[int, int], part: Part, names: tuple[str, ...]
) -> list[str]:
    """Return code for one (a, c): what it adds to q and z of both sides, and to ∂/∂Y."""
    a, place = key[0], part.matrix[entry.number, *key]
    sign, lines = "-" if entry.odd else "+", []
    for name, matrix in zip(names, ("mk", "nk"), strict=False):
        lines.append(f"const T {name} = {matrix}[{place}];")
        for s in item.slices:
            lines.append(f"{name}0_{s}_{a} += {name} * g0_{s}; {name}1_{s}_{a} += {name} * g1_{s};")
    terms = [f"k0_{s}_{a} * g0_{s} {sign} k1_{s}_{a} * g1_{s}" for s in item.slices]
    lines.append(f"const T u = {' + '.join(terms)};")
    return lines + [f"t[{entry.y + b}] += (T){value!r} * u;" for b, value in entry.couplings[key]]


def _harmonics(size: int, number: int) -> list[str]:
    """Return code that adds up ∂/∂Y over the lanes, 32 components at a time."""
    lines = []
    for first in range(0, size, LANES):
        count = min(LANES, size - first)
        wide = 1 << (count - 1).bit_length()
        lines += [f"{{ T some[{wide}] = {{}};", *(f"some[{i}] = t[{first + i}];" for i in range(count))]
        lines.append(f"const T sum = total<{wide}, {LANES // 2}>(some, lane);")
        lines.append(f"const int b = lane / {LANES // wide};")
        there = f"gy[({number} * num_pairs + pair) * DY + {first} + b]"
        lines.append(f"if (lane % {LANES // wide} == 0 && b < {count}) {there} = sum; }}")
    return lines
