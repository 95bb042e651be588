"""C source of one layer's convolution for inference: sums of rows, and the gradient of a row's own features.

The sums are those of the training kernels. The gradient goes by rows too: an atom's features are read by its
neighbours, and the messages that they take from it run along the reverses of its own edges. So a row needs the
gradients of its neighbours' sums and nothing else, any number of threads or processes may share the rows, and the order
of every sum is the same. The price is that a pair's weights are made twice.

For one edge, q[a] = Σ_c M[a, c] g[c] of the reverse direction gives ∂/∂x[a] = W q[a] and ∂/∂W = Σ_a x[a] q[a]; the
latter is multiplied with the slope of W at once, and never written.
"""

from importlib.resources import files

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import codegen, parts
from foundation.kernels.entries import Entries, entries_of


def layer_source(paths: TensorProductPaths, number: int) -> str:
    """Return the C source of a set of paths; its functions are `layer_sum_N` and `layer_differentiate_N`."""
    groups = entries_of(paths)
    flat = [entry for group in groups for entry in group]
    return "\n".join(
        [
            parts.part("prologue.c"),
            # rows of weights are made just before they are read
            "#undef AHEAD\n#define AHEAD(place, offset, write)",
            *codegen.sizes_source(paths, flat),
            part("foundation_model.h"),
            part("engine.h"),
            part("batch.c"),
            *codegen.couplings_source(flat),
            *codegen.row_sums(groups, double=False),
            *_gradient(groups),
            f"#define SUM layer_sum_{number}\n#define DIFFERENTIATE layer_differentiate_{number}",
            part("rows.c"),
        ]
    )


def part(name: str) -> str:
    """Return a C file of this folder."""
    return files("foundation.engine").joinpath(name).read_text()


def _gradient(groups: list[list[Entries]]) -> list[str]:
    """Return functions for every input irrep and two vectors of channels or one, and one that calls all for an edge."""
    arguments = "const T *w, const T *d, const T *mk, const T *g, const T *x, T *h, V *gy, V *r"
    passed = "b->w[k] + u, b->d[k] + u, b->m + k, b->g[k] + u, x + u, h + u, gy, r"
    lines, calls = [], []
    for group in groups:
        function, channels = f"gradient_{group[0].number}", group[0].channels
        calls.append("u = 0;")
        for vectors in (2, 1):
            lines += [f"static inline FORCED void {function}_{vectors}({arguments}, int lanes) {{"]
            lines += [*_body(group, vectors), "}"]
            step = f"{vectors} * LANES"
            calls.append(f"for (; u + {step} <= {channels}; u += {step}) {function}_{vectors}({passed}, LANES);")
        calls.append(f"if ({channels} % LANES) {function}_1({passed}, {channels} % LANES);")
    head = "static void gradient(const Batch *b, int k, const T *x, T *h, V *gy, V *r) {"
    return [*lines, head, "long u;", *calls, "}"]


def _body(group: list[Entries], vectors: int) -> list[str]:
    """Return code for some vectors of channels; their products for a harmonic are summed before they are scaled."""
    inputs, channels, first = group[0].degrees[0], group[0].channels, group[0].x
    used = sorted({entry.y + b for entry in group for b in range(entry.degrees[1])})
    each = range(vectors)
    lines = [f"V h{a}_{v} = ZERO;" for a in range(inputs) for v in each]
    lines += ["V slope = *r;", *(f"V y{b} = gy[{b}];" for b in used)]
    for entry in group:
        lines.append("{")
        lines += [f"const V w{v} = LOAD(w + {entry.w} + {v} * LANES, lanes); V s{v} = ZERO;" for v in each]
        for a in range(inputs):
            place = first + a * channels
            lines.append("{")
            for v in each:
                lines.append(f"const V x{v} = LOAD(x + {place} + {v} * LANES, lanes), t{v} = w{v} * x{v};")
                lines.append(f"V q{v} = ZERO;")
            for c in entry.of_input(a):
                where = entry.out + c * entry.stride
                lines.append(f"{{ const T m = mk[{entry.matrix[a, c]} * EDGES];")
                lines += [f"const V g{v} = LOAD(g + {where} + {v} * LANES, lanes); q{v} += m * g{v};" for v in each]
                lines.append(f"const V p = {' + '.join(f't{v} * g{v}' for v in each)};")
                lines += [f"y{entry.y + b} += (T){value!r} * p;" for b, value in entry.couplings[a, c]]
                lines.append("}")
            lines += [f"s{v} += x{v} * q{v}; h{a}_{v} += w{v} * q{v};" for v in each]
            lines.append("}")
        lines += [f"slope += s{v} * LOAD(d + {entry.w} + {v} * LANES, lanes);" for v in each]
        lines.append("}")
    for a in range(inputs):
        for v in each:
            place = f"h + {first + a * channels} + {v} * LANES"
            lines.append(f"STORE({place}, LOAD({place}, lanes) + h{a}_{v}, lanes);")
    return [*lines, "*r = slope;", *(f"gy[{b}] = y{b};" for b in used)]
