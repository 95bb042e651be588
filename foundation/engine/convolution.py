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
    """Return a function for each input irrep and vector of channels, and one that calls all for an edge."""
    arguments = "const T *w, const T *d, const T *mk, const T *g, const T *x, T *h, V *gy, V *r"
    lines, calls = [], []
    for group in groups:
        function, channels = f"gradient_{group[0].number}", group[0].channels
        lines += [f"static inline FORCED void {function}({arguments}, long u, int lanes) {{", *_body(group), "}"]
        passed = "b->w[k] + u, b->d[k] + u, b->m + k, b->g[k] + u, x + u, h + u, gy, r, u, {lanes}"
        calls.append(f"for (; u + LANES <= {channels}; u += LANES) {function}({passed.format(lanes='LANES')});")
        calls.append(f"if ({channels} % LANES) {function}({passed.format(lanes=f'{channels} % LANES')});")
        calls.append("u = 0;")
    head = "static void gradient(const Batch *b, int k, const T *x, T *h, V *gy, V *r) {"
    return [*lines, head, "long u = 0;", *calls, "}"]


def _body(group: list[Entries]) -> list[str]:
    inputs, channels, first = group[0].degrees[0], group[0].channels, group[0].x
    used = sorted({entry.y + b for entry in group for b in range(entry.degrees[1])})
    lines = [f"const V x{a} = LOAD(x + {first + a * channels}, lanes); V h{a} = ZERO;" for a in range(inputs)]
    lines += ["V slope = *r;", *(f"V y{b} = gy[{b}];" for b in used)]
    for entry in group:
        lines += [f"{{ const V wp = LOAD(w + {entry.w}, lanes); V s = ZERO;"]
        lines += [f"V q{a} = ZERO; const V t{a} = wp * x{a};" for a in range(inputs)]
        for c in range(entry.degrees[2]):
            lines.append(f"{{ const V g_c = LOAD(g + {entry.out + c * entry.stride}, lanes);")
            for a in entry.of_output(c):
                lines.append(f"q{a} += mk[{entry.matrix[a, c]} * EDGES] * g_c; {{ const V p = t{a} * g_c;")
                lines += [f"y{entry.y + b} += (T){value!r} * p;" for b, value in entry.couplings[a, c]]
                lines.append("}")
            lines.append("}")
        lines += [f"s += x{a} * q{a}; h{a} += wp * q{a};" for a in range(inputs)]
        lines.append(f"slope += s * LOAD(d + {entry.w}, lanes); }}")
    lines += [
        f"STORE(h + {first + a * channels}, LOAD(h + {first + a * channels}, lanes) + h{a}, lanes);"
        for a in range(inputs)
    ]
    return [*lines, "*r = slope;", *(f"gy[{b}] = y{b};" for b in used)]
