"""C source of the convolution and its derivatives, written out path by path.

All kernels are derivatives of one form, linear in each of its arguments: S(x, Y, W, g) = Σ out · g. Forward is ∂S/∂g;
backward is ∂S/∂(x, Y, W); double backward is the gradient of S(vx, Y, W, g) + S(x, vY, W, g) + S(x, Y, vW, g).

The order of the sums decides the speed:

- Per edge, couplings and harmonics are contracted first into M[a, c], 16 edges at a time. M is a hundred scalars shared
by all channels, so the rest is vectors of channels times scalars.
- Sums over a row's edges (out, ∂/∂g) run with channels outside and edges inside: the outputs stay in registers.
- Gradients per edge (∂/∂x, ∂/∂Y, ∂/∂W) run with edges outside: the receiver's gradient stays in the first-level cache.
  With q[a] = Σ_c M[a, c] g[c], both ∂/∂W = Σ_a x[a] q[a] and ∂/∂x[a] = W q[a] are cheap.

- An edge and its reverse share one row of harmonics and weights, and are worked on together: a row of weights is read
  once and its gradient written once, in order.

Rows are independent, but a pair's first edge also adds to its sender's ∂/∂x. Either one thread has all rows connected
by edges (a structure), or such sums go to one row per edge and are then added up by sender. The order of every sum is
the same both ways, so any number of threads gives the same bits.
"""

from typing import NamedTuple

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu.parts import part
from foundation.kernels.entries import Entries, entries_of

REGISTERS = 32
"""Number of vector registers of AVX-512 and NEON; with fewer (AVX2) the compiler keeps the rest in memory."""


def generate(paths: TensorProductPaths) -> str:
    """Return the C source of a set of paths; REAL (float or double) is given to the compiler."""
    groups = entries_of(paths)
    flat = [entry for group in groups for entry in group]
    return "\n".join(
        [
            part("prologue.c"),
            *sizes_source(paths, flat),
            part("batch.c"),
            *couplings_source(flat),
            *row_sums(groups, double=False),
            *row_sums(groups, double=True),
            *_pair_gradients(groups, double=False),
            *_pair_gradients(groups, double=True),
            part("loops.c"),
        ]
    )


def sizes_source(paths: TensorProductPaths, flat: list[Entries]) -> list[str]:
    """Return C constants: the sizes of the arrays, and the harmonics that change sign with an edge's direction."""
    sizes = {
        "DX": paths.irreps_in.dim,
        "DY": paths.irreps_harmonics.dim,
        "DO": paths.irreps_out.dim,
        "NW": paths.num_weights,
        "NM": sum(len(entry.matrix) for entry in flat),
    }
    odd = ", ".join(str(int(value)) for value in paths.odd_harmonics)
    return [
        "enum { " + ", ".join(f"{name} = {value}" for name, value in sizes.items()) + " };",
        f"static const unsigned char odd[DY] = {{{odd}}};",
    ]


def couplings_source(flat: list[Entries]) -> list[str]:
    """Return code for M of 16 edges from their harmonics, edges side by side."""
    lines = ["static void couple(const T *restrict y, T *restrict m) {", "for (int k = 0; k < EDGES; k += LANES) {"]
    for entry in flat:
        for key, terms in entry.couplings.items():
            total = " + ".join(f"(T){value!r} * LOAD(y + {entry.y + b} * EDGES + k, LANES)" for b, value in terms)
            lines.append(f"STORE(m + {entry.matrix[key]} * EDGES + k, {total}, LANES);")
    return [*lines, "}", "}"]


def row_sums(groups: list[list[Entries]], *, double: bool) -> list[str]:
    """Return functions that add 16 edges to a row of out (∂/∂g in the double backward), and one that calls all."""
    name = "double_sum" if double else "sum"
    arguments, passed = "const Batch *b, T *o", "b, o"
    lines, calls = [], []
    for group in groups:
        for entries in _split(group):
            function = f"{name}_{entries[0].number}"
            lines += [f"static inline FORCED void {function}({arguments}, long u, int lanes) {{"]
            lines += [*_row_sum_body(entries, double), "}"]
            calls += _over_channels(function, passed, entries[0].channels)
    return [*lines, f"static void {name}({arguments}) {{", *calls, "}"]


def _split(group: list[Entries]) -> list[list[Entries]]:
    """Cut the paths of an input irrep so that their outputs fit into the registers."""
    parts: list[list[Entries]] = [[]]
    room = REGISTERS - 2 - group[0].degrees[0]
    for entry in group:
        if parts[-1] and sum(other.degrees[2] for other in parts[-1]) + entry.degrees[2] > room - 2:
            parts.append([])
        parts[-1].append(entry)
    return parts


def _row_sum_body(part: list[Entries], double: bool) -> list[str]:
    inputs = part[0].degrees[0]
    channels = part[0].channels
    place = {(e.number, c): f"o + {e.out + c * e.stride} + u" for e in part for c in range(e.degrees[2])}
    lines = [f"V o{p}_{c} = LOAD({where}, lanes);" for (p, c), where in place.items()]
    lines.append("for (int k = 0; k < b->count; k++) {")
    lines.append("const T *x = b->x[k] + u, *w = b->w[k] + u, *mk = b->m + k;")
    lines += [f"const V x{a} = LOAD(x + {part[0].x + a * channels}, lanes);" for a in range(inputs)]
    if double:
        lines.append("const T *r = b->r[k] + u, *v = b->v[k] + u, *nk = b->n + k;")
        lines += [f"const V r{a} = LOAD(r + {part[0].x + a * channels}, lanes);" for a in range(inputs)]
    for entry in part:
        lines.append(f"{{ const V wp = LOAD(w + {entry.w}, lanes); AHEAD(w + {entry.w}, b->ahead[k], 0);")
        lines += _double_terms(entry) if double else _single_terms(entry)
        lines.append("}")
    return [*lines, "}", *(f"STORE({where}, o{p}_{c}, lanes);" for (p, c), where in place.items())]


def _single_terms(entry: Entries) -> list[str]:
    inputs, _, outputs = entry.degrees
    p, lines = entry.number, []
    if inputs <= outputs:
        lines += [f"const V t{a} = wp * x{a};" for a in range(inputs)]
        lines += [f"o{p}_{c} += mk[{m} * EDGES] * t{a};" for (a, c), m in entry.matrix.items()]
        return lines
    for c in range(outputs):
        total = " + ".join(f"mk[{entry.matrix[a, c]} * EDGES] * x{a}" for a in entry.of_output(c))
        if total:
            lines.append(f"o{p}_{c} += wp * ({total});")
    return lines


def _double_terms(entry: Entries) -> list[str]:
    p = entry.number
    lines = [f"const V vp = LOAD(v + {entry.w}, lanes); AHEAD(v + {entry.w}, b->ahead[k], 0);"]
    for a in range(entry.degrees[0]):
        lines.append(f"const V s{a} = wp * x{a}, t{a} = wp * r{a} + vp * x{a};")
    for (a, c), m in entry.matrix.items():
        lines.append(f"o{p}_{c} += mk[{m} * EDGES] * t{a}; o{p}_{c} += nk[{m} * EDGES] * s{a};")
    return lines


def _pair_gradients(groups: list[list[Entries]], *, double: bool) -> list[str]:
    """Return functions that write 16 pairs' gradients for one vector of channels, and one that calls all."""
    name = "double_gradient" if double else "gradient"
    lines, calls = [], []
    for group in groups:
        function, channels = f"{name}_{group[0].number}", group[0].channels
        lines += [f"static inline FORCED void {function}(Batch *b, long u, int lanes) {{"]
        lines += ["for (int k = 0; k < b->count; k++) {", *_pair_body(group, double), "}", "}"]
        calls += _over_channels(function, "b", channels)
    return [*lines, f"static void {name}(Batch *b) {{", *calls, "}"]


def _over_channels(function: str, passed: str, channels: int) -> list[str]:
    """Return calls of a function for every vector of channels; the remainder is a narrower one."""
    lines = [f"for (long u = 0; u + LANES <= {channels}; u += LANES) {function}({passed}, u, LANES);"]
    return [*lines, f"if ({channels} % LANES) {function}({passed}, {channels} / LANES * LANES, {channels} % LANES);"]


def _pair_body(group: list[Entries], double: bool) -> list[str]:
    """Return code for both directions of a pair: side 0 is the first edge (from the sender), side 1 its reverse."""
    inputs, channels, first = group[0].degrees[0], group[0].channels, group[0].x
    lines = ["const T *w = b->w[k] + u, *mk = b->m + k; T *gw = b->gw[k] + u; V *gy = b->gy + k * DY;"]
    lines += ["const T *v = b->v[k] + u, *nk = b->n + k;"] if double else []
    lines += ["const T *x0 = b->x[k] + u, *g0 = b->g + u, *x1 = b->own_x + u, *g1 = b->far_g[k] + u;"]
    lines += ["T *h0 = b->gx[k] + u, *h1 = b->own_gx + u;"]
    lines += ["const T *r0 = b->r[k] + u, *r1 = b->own_r + u;"] if double else []
    places = [(side, a, first + a * channels) for side in (0, 1) for a in range(inputs)]
    for side, a, where in places:
        lines.append(f"const V x{side}_{a} = LOAD(x{side} + {where}, lanes);")
        lines += [f"const V r{side}_{a} = LOAD(r{side} + {where}, lanes);"] if double else []
        lines.append(f"V h{side}_{a} = ZERO;")
    for entry in group:
        lines += ["{", *_path_gradient(entry, double), "}"]
    # a pair's whole sum is added at once, so that separate memory gives the same bits
    for side, a, where in places:
        lines.append(f"STORE(h{side} + {where}, LOAD(h{side} + {where}, lanes) + h{side}_{a}, lanes);")
    return lines


def _path_gradient(entry: Entries, double: bool) -> list[str]:
    """Return code for ∂/∂W and ∂/∂x from q[a] = Σ_c M[a, c] g[c] and, in the double backward, z of the tangents."""
    lines = [f"V s = ZERO; const V wp = LOAD(w + {entry.w}, lanes); AHEAD(w + {entry.w}, b->ahead[k], 0);"]
    lines += [f"const V vp = LOAD(v + {entry.w}, lanes); AHEAD(v + {entry.w}, b->ahead[k], 0);"] if double else []
    names = (("q", "mk"), ("z", "nk")) if double else (("q", "mk"),)
    for side in (0, 1):
        lines += ["{", *(f"V {name}{a} = ZERO;" for name, _ in names for a in range(entry.degrees[0]))]
        for c in range(entry.degrees[2]):
            lines.append(f"{{ const V g = LOAD(g{side} + {entry.out + c * entry.stride}, lanes);")
            for a in entry.of_output(c):
                lines += [f"{name}{a} += {matrix}[{entry.matrix[a, c]} * EDGES] * g;" for name, matrix in names]
            lines.append("}")
        plus = "-=" if side and entry.odd else "+="
        for a in range(entry.degrees[0]):
            x, r, h = f"x{side}_{a}", f"r{side}_{a}", f"h{side}_{a}"
            if double:
                lines.append(f"s {plus} {x} * z{a}; s {plus} {r} * q{a}; {h} {plus} wp * z{a}; {h} {plus} vp * q{a};")
            else:
                lines.append(f"s {plus} {x} * q{a}; {h} {plus} wp * q{a};")
        lines.append("}")
    lines.append(f"stream(gw + {entry.w}, s, lanes, b->past); if (!b->past) AHEAD(gw + {entry.w}, b->ahead[k], 1);")
    return lines + _harmonic_gradient(entry, double)


def _harmonic_gradient(entry: Entries, double: bool) -> list[str]:
    """Return code for ∂/∂Y[b] = Σ_(a, c) CG[a, b, c] Σ_u k[a] g[c], with k = W x (double backward: W vx + vW x)."""
    inputs, harmonics, outputs = entry.degrees
    lines = []
    for side in (0, 1):
        for a in range(inputs):
            value = f"wp * r{side}_{a} + vp * x{side}_{a}" if double else f"wp * x{side}_{a}"
            lines.append(f"const V k{side}_{a} = {value};")
    lines += [f"V y{b} = gy[{entry.y + b}];" for b in range(harmonics)]
    minus = "-" if entry.odd else "+"
    for c in range(outputs):
        where = entry.out + c * entry.stride
        lines.append(f"{{ const V f0 = LOAD(g0 + {where}, lanes), f1 = LOAD(g1 + {where}, lanes);")
        for a in entry.of_output(c):
            lines.append(f"{{ const V t = k0_{a} * f0 {minus} k1_{a} * f1;")
            lines += [f"y{b} += (T){value!r} * t;" for b, value in entry.couplings[a, c]]
            lines.append("}")
        lines.append("}")
    return [*lines, *(f"gy[{entry.y + b}] = y{b};" for b in range(harmonics))]


class Operations(NamedTuple):
    """Floating-point operations per edge of each kernel."""

    forward: int
    """Of the forward kernel."""
    backward: int
    """Of the backward kernel."""
    double_backward: int
    """Of the double backward kernel."""


def operations(paths: TensorProductPaths) -> Operations:
    """Return the floating-point operations per edge of each kernel, as written here (a pair's count for two edges)."""
    forward = backward = double_backward = 0
    for entry in (entry for group in entries_of(paths) for entry in group):
        channels, (inputs, _, outputs) = entry.channels, entry.degrees
        matrix, terms = len(entry.matrix), sum(len(values) for values in entry.couplings.values())
        vectors = -(-channels // 16)
        forward += channels * (2 * matrix + (inputs if inputs <= outputs else 2 * outputs))
        harmonic = 3 * matrix * channels // 2 + terms * 16 * vectors
        backward += channels * (2 * matrix + 5 * inputs) + harmonic
        double_backward += channels * (2 * 4 * matrix + 4 * inputs + 11 * inputs) + harmonic
    return Operations(forward, backward, double_backward)
