"""C source of symmetry functions and their derivatives, with every parameter written out, and its calls.

A term of G4 or G5 is C(u, v, w) Σ E_η(s) q(x): C the cutoff functions, E_η = exp(-η s) of the sum s of squared lengths,
and q a power of the cosine x of the angle. Its derivatives for u, v, w need three sums over functions (of E q, -η E q
and E q'), and the second ones three more. So a gradient costs little more than the values, whatever their number.
"""

import ctypes
import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.parts import array, exponential, part

COSINE_DEGREE = {"float": 10, "double": 16}
"""Degree of the polynomial of the cosine cutoff, in squared lengths."""


class SymmetryFunctions(NamedTuple):
    """Parameters of a set of symmetry functions."""

    radial: tuple[tuple[float, float], ...]
    """Width η [1/Å²] and centre r_s [Å] of each G2."""
    near: tuple[tuple[float, float, float], ...]
    """Width η [1/Å²], exponent ζ and sign λ of each G4, whose far ends are neighbours too."""
    wide: tuple[tuple[float, float, float], ...]
    """The same of each G5, without the third side."""
    cutoff: float
    """Distance below which atoms are neighbours [Å]."""
    power: int | None
    """Power of the polynomial cutoff function; None: the cosine."""

    def num_functions(self, num_kinds: int) -> int:
        """Return the number of functions of an atom whose neighbours are of so many kinds."""
        pairs = num_kinds * (num_kinds + 1) // 2
        return num_kinds * len(self.radial) + pairs * (len(self.near) + len(self.wide))

    @property
    def in_c(self) -> bool:
        """True if the C source can be generated: exponents are whole numbers, the power of the cutoff at least 3."""
        whole = all(exponent == int(exponent) for _, exponent, _ in (*self.near, *self.wide))
        return whole and (self.power is None or self.power >= 3)


class _Graph(ctypes.Structure):
    """`Graph` of symmetry.c."""

    _fields_ = [
        ("num_atoms", ctypes.c_int64),
        ("row_pointers", ctypes.c_void_p),
        ("kinds", ctypes.c_void_p),
        ("num_kinds", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    ]


class _Fields(ctypes.Structure):
    """`Fields` of symmetry.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("vectors", "g", "t", "values", "gv")]


@cache
def library(functions: SymmetryFunctions, dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled kernels of a set of functions in a float type.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    return compiler.load(generate(functions, real), (f"-DREAL={real}", "-fno-math-errno"))


def call(
    name: str,
    functions: SymmetryFunctions,
    graph: tuple[Int[Tensor, " pointers"], Int[Tensor, " edges"], int],
    vectors: Float[Tensor, "edges 3"],
    **fields: Float[Tensor, "..."],
) -> None:
    """Run `values`, `gradient` or `tangent` on contiguous tensors."""
    pointers, kinds, num_kinds = graph
    described = _Graph(
        num_atoms=len(pointers) - 1,
        row_pointers=pointers.data_ptr(),
        kinds=kinds.data_ptr(),
        num_kinds=num_kinds,
        num_threads=torch.get_num_threads(),
    )
    given = _Fields(vectors=vectors.data_ptr(), **{field: tensor.data_ptr() for field, tensor in fields.items()})
    getattr(library(functions, vectors.dtype), name)(ctypes.byref(described), ctypes.byref(given))


def generate(functions: SymmetryFunctions, real: str) -> str:
    """Return the C source of a set of functions for a float type, which is given to the compiler as REAL."""
    degree = COSINE_DEGREE[real]
    cosine = [0.5 * (-1) ** n * math.pi ** (2 * n) / math.factorial(2 * n) for n in range(degree + 1)]
    cosine[0] += 0.5
    numbers = {
        "RADIAL": len(functions.radial),
        "NEAR": len(functions.near),
        "WIDE": len(functions.wide),
        "MOST": max(1, len(functions.radial), len(functions.near), len(functions.wide)),
        "DEGREE": degree,
    }
    return "\n".join(
        [
            part("prologue.c"),
            "#include <math.h>",
            "enum { " + ", ".join(f"{name} = {value}" for name, value in numbers.items()) + " };",
            f"#define POLYNOMIAL {int(functions.power is not None)}",
            f"#define POWER {functions.power or 0}",
            f"#define RADIUS {functions.cutoff!r}",
            f"#define SQRT {'sqrtf' if real == 'float' else 'sqrt'}",
            array("CUTOFF", cosine),
            exponential(real),
            part("symmetry.c"),
            *_edge_terms(functions.radial),
            *_angle_terms("near_terms", functions.near, near=True),
            *_angle_terms("wide_terms", functions.wide, near=False),
            part("symmetry_rows.c"),
        ]
    )


def _edge_terms(radial: tuple[tuple[float, float], ...]) -> list[str]:
    """Return code for the terms X f of G2, edges side by side: X = exp(-η (r - r_s)²), m the slope of ln X for u."""
    lines = [
        "static inline FORCED void edges_of_kind(Row *row, int kind, const T *g, T *values, int level) {",
        "V sums[MOST];",
        "for (int i = 0; i < RADIAL; i++) sums[i] = ZERO;",
        "for (int64_t n = row->first[kind]; n < row->first[kind + 1]; n += LANES) {",
        "const V u = at(row->u + n), inverse = at(row->inverse + n), r = u * inverse;",
        "V f = at(row->f + n), f1 = at(row->f1 + n), f2 = at(row->f2 + n);",
        "for (int64_t i = row->first[kind + 1] - n; i < LANES; i++) f[i] = f1[i] = f2[i] = 0;",
        "const V ut = 2 * (at(row->x + n) * at(row->tx + n) + at(row->y + n) * at(row->ty + n)"
        " + at(row->z + n) * at(row->tz + n));",
        "V e = ZERO, change = ZERO, m, m1, z, X;",
    ]
    for number, (width, centre) in enumerate(radial):
        lines += [
            f"z = r - (T){centre!r}; X = power_of_e((T){-width!r} * z * z);",
            f"m = (T){-width!r} * z * inverse; m1 = (T){-0.5 * width * centre!r} * inverse * inverse * inverse;",
            f"if (level == 0) sums[{number}] += f * X;",
            f"else e += g[{number}] * X * (f1 + m * f);",
            f"if (level == 2) sums[{number}] += X * (f1 + m * f) * ut,"
            f" change += g[{number}] * X * (f2 + 2 * m * f1 + m * m * f + m1 * f) * ut;",
        ]
    return [
        *lines,
        "if (level == 0) continue;",
        "const V along = 2 * (level == 2 ? change : e), across = 2 * e;",
        "for (int i = 0; i < LANES && n + i < row->first[kind + 1]; i++) {",
        "row->gx[n + i] += along[i] * row->x[n + i] + (level == 2 ? across[i] * row->tx[n + i] : 0);",
        "row->gy[n + i] += along[i] * row->y[n + i] + (level == 2 ? across[i] * row->ty[n + i] : 0);",
        "row->gz[n + i] += along[i] * row->z[n + i] + (level == 2 ? across[i] * row->tz[n + i] : 0);",
        "}",
        "}",
        "if (level != 1)",
        "for (int i = 0; i < RADIAL; i++) values[i] += total(sums[i]);",
        "}",
    ]


def _angle_terms(name: str, functions: tuple[tuple[float, float, float], ...], *, near: bool) -> list[str]:
    """Return code for LANES terms of G4 (near) or G5."""
    powers = dict.fromkeys((int(exponent), int(sign)) for _, exponent, sign in functions)
    widths = dict.fromkeys(width for width, _, _ in functions)
    side, sides = ("w", "wt") if near else ("ZERO", "ZERO")
    lines = [
        f"static inline FORCED void {name}(Terms *b, Row *row, const T *g, V *sums, int level) {{",
        "const V u = at(b->u), v = at(b->v), w = at(b->w), x = at(b->cosine), h = at(b->h);",
        "const V fa = at(b->fa), fb = at(b->fb), fa1 = at(b->fa1), fb1 = at(b->fb1);",
        "const V fa2 = at(b->fa2), fb2 = at(b->fb2);",
        "const V ut = at(b->ut), vt = at(b->vt), wt = at(b->wt);",
        "V fc = ZERO + 1, fc1 = ZERO, fc2 = ZERO;",
        *(["cutoff(w, &fc, &fc1, &fc2);"] if near else []),
        f"const V s = u + v + {side}, st = ut + vt + {sides}, C = fa * fb * fc;",
        "const V xu = h - x / (2 * u), xv = h - x / (2 * v), xw = -h, xt = xu * ut + xv * vt + xw * wt;",
        "const V Cu = fa1 * fb * fc, Cv = fa * fb1 * fc, Cw = fa * fb * fc1, Ct = Cu * ut + Cv * vt + Cw * wt;",
        "V A = ZERO, B = ZERO, D = ZERO, F = ZERO, G = ZERO, K = ZERO, E, P, P1, P2;",
        "(void)v, (void)xt, (void)Ct;",
        *_powers(powers),
    ]
    for width in widths:
        lines += [f"E = power_of_e((T){-width!r} * s); P = P1 = P2 = ZERO;"]
        for number, (of, exponent, sign) in enumerate(functions):
            if of != width:
                continue
            q = f"q_{list(powers).index((int(exponent), int(sign)))}"
            lines += [
                f"if (level == 0) sums[{number}] += E * C * {q};",
                f"else P += g[{number}] * {q}, P1 += g[{number}] * {q}_1;",
                f"if (level == 2) P2 += g[{number}] * {q}_2,"
                f" sums[{number}] += E * ((Ct - (T){width!r} * st * C) * {q} + C * xt * {q}_1);",
            ]
        lines += [
            f"if (level) A += E * P, B += (T){-width!r} * E * P, D += E * P1;",
            f"if (level == 2) F += (T){width * width!r} * E * P, G += (T){-width!r} * E * P1, K += E * P2;",
        ]
    last = "B + D * xw" if near else "D * xw"
    return [
        *lines,
        "if (level == 0) return;",
        f"const V Su = B + D * xu, Sv = B + D * xv, Sw = {last};",
        "const V e[3] = {Cu * A + C * Su, Cv * A + C * Sv, Cw * A + C * Sw};",
        "V change[3] = {ZERO, ZERO, ZERO};",
        "if (level == 2) {",
        "const V At = B * st + D * xt, Bt = F * st + G * xt, Dt = G * st + K * xt;",
        "const V ht = -h * (ut / (2 * u) + vt / (2 * v));",
        "const V xut = ht - xt / (2 * u) + x * ut / (2 * u * u), xvt = ht - xt / (2 * v) + x * vt / (2 * v * v);",
        "const V Cut = fa2 * fb * fc * ut + fa1 * fb1 * fc * vt + fa1 * fb * fc1 * wt;",
        "const V Cvt = fa1 * fb1 * fc * ut + fa * fb2 * fc * vt + fa * fb1 * fc1 * wt;",
        "const V Cwt = fa1 * fb * fc1 * ut + fa * fb1 * fc1 * vt + fa * fb * fc2 * wt;",
        "change[0] = Cut * A + Cu * At + Ct * Su + C * (Bt + Dt * xu + D * xut);",
        "change[1] = Cvt * A + Cv * At + Ct * Sv + C * (Bt + Dt * xv + D * xvt);",
        f"change[2] = Cwt * A + Cw * At + Ct * Sw + C * ({'Bt + ' if near else ''}Dt * xw - D * ht);",
        "}",
        "scatter(b, row, e, change, level);",
        "}",
    ]


def _powers(powers: dict[tuple[int, int], None]) -> list[str]:
    """Return code for q = 2^(1-ζ) (1 + λ x)^ζ and its first two derivatives, for each ζ and λ."""
    lines = []
    for sign in dict.fromkeys(sign for _, sign in powers):
        base = f"b{'m' if sign < 0 else 'p'}"
        lines.append(f"V {base}_0 = ZERO + 1, {base}_1 = (T)0.5 * (1 + (T){sign} * x);")
        # rounding may take the cosine of a straight angle beyond one
        lines.append(f"for (int i = 0; i < LANES; i++) {base}_1[i] = {base}_1[i] < 0 ? 0 : {base}_1[i];")
        needed = {n for exponent, of in powers if of == sign for n in (exponent, exponent - 1, max(0, exponent - 2))}
        for n in range(2, max(needed) + 1):
            lines.append(f"const V {base}_{n} = {base}_{n // 2} * {base}_{n - n // 2};")
    for number, (exponent, sign) in enumerate(powers):
        base = f"b{'m' if sign < 0 else 'p'}"
        second = f"(T){exponent * (exponent - 1) / 2!r} * {base}_{exponent - 2}" if exponent > 1 else "ZERO"
        lines += [
            f"const V q_{number} = 2 * {base}_{exponent}, q_{number}_1 = (T){exponent * sign} * {base}_{exponent - 1},"
            f" q_{number}_2 = {second};"
        ]
    return lines
