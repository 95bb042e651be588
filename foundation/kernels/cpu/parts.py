"""Parts of C source that several libraries share."""

import math
from importlib.resources import files

EXP_DEGREE = {"float": 7, "double": 13}
"""Degree of the polynomial of the exponential."""


def part(name: str) -> str:
    """Return the text of a file of C source in this folder."""
    return files("foundation.kernels.cpu").joinpath(name).read_text()


def array(name: str, values: list[float]) -> str:
    """Return the declaration of an array of constants."""
    return f"static const double {name}[] = {{" + ", ".join(repr(value) for value in values) + "};"


def exponential(real: str) -> str:
    """Return the source of power_of_e() for a float type, "float" or "double", or for both, if DOUBLE decides it.

    Its numbers are the coefficients of the Taylor series.
    """
    if real == "both":
        numbers = f"#if DOUBLE\n{_of_exponential('double')}\n#else\n{_of_exponential('float')}\n#endif"
    else:
        numbers = _of_exponential(real)
    return f"{numbers}\n{part('exponential.c')}"


def _of_exponential(real: str) -> str:
    degree = EXP_DEGREE[real]
    sizes = f"enum {{ EXP_DEGREE = {degree}, MANTISSA = {23 if real == 'float' else 52} }};"
    return f"{sizes}\n{array('EXP', [1 / math.factorial(n) for n in range(degree + 1)])}"
