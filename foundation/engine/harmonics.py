"""C source of spherical harmonics as polynomials of a vector's components, and of their gradient.

Harmonics of degree l are homogeneous polynomials of degree l. Their coefficients are found from e3nn's own values, so
conventions are e3nn's, whatever they are.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false

import numpy as np
import torch
from e3nn import o3
from jaxtyping import Float64

SMALLEST = 1e-12
"""Coefficients below it are zero."""


def harmonics_source(irreps: o3.Irreps) -> str:
    """Return the C functions harmonics() and harmonics_gradient() of irreps of one channel each."""
    values, gradients, column = [], ([], [], []), 0
    for item in irreps:
        powers = [(a, b, item.ir.l - a - b) for a in range(item.ir.l + 1) for b in range(item.ir.l + 1 - a)]
        for row in _coefficients(item.ir.l, powers):
            terms = [(value, power) for value, power in zip(row.tolist(), powers, strict=True) if abs(value) > SMALLEST]
            values.append(f"y[{column}] = {_sum(terms)};")
            for axis in range(3):
                lowered = [(value * p[axis], _lowered(p, axis)) for value, p in terms if p[axis]]
                if lowered:
                    gradients[axis].append(f"gy[{column}] * ({_sum(lowered)})")
            column += 1
    lines = [f"g[{axis}] = {' + '.join(sums) or '0'};" for axis, sums in enumerate(gradients)]
    vector = "const double v0 = v[0], v1 = v[1], v2 = v[2];"
    return "\n".join(
        [
            "static void harmonics(const double *v, T *y) {",
            *(vector, *values, "}"),
            "static void harmonics_gradient(const double *v, const T *gy, double *g) {",
            *(vector, *lines, "}"),
        ]
    )


def _coefficients(degree: int, powers: list[tuple[int, int, int]]) -> Float64[np.ndarray, "components powers"]:
    """Return the coefficients of the harmonics of a degree."""
    vectors = np.random.default_rng(0).normal(size=(8 * len(powers), 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = o3.spherical_harmonics(degree, torch.from_numpy(vectors), normalize=False, normalization="component")
    monomials = np.stack([np.prod(vectors ** np.array(power), axis=1) for power in powers], axis=1)
    solved = np.linalg.lstsq(monomials, found.numpy(), rcond=None)[0]
    return solved.T


def _lowered(power: tuple[int, int, int], axis: int) -> tuple[int, int, int]:
    a, b, c = (exponent - (place == axis) for place, exponent in enumerate(power))
    return a, b, c


def _sum(terms: list[tuple[float, tuple[int, int, int]]]) -> str:
    factors = [
        [repr(value), *(f"v{axis}" for axis, exponent in enumerate(power) for _ in range(exponent))]
        for value, power in terms
    ]
    return " + ".join(" * ".join(each) for each in factors) or "0"
