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
    """Return the source of power_of_e() for a float type."""
    degree = EXP_DEGREE[real]
    numbers = f"enum {{ EXP_DEGREE = {degree}, MANTISSA = {23 if real == 'float' else 52} }};"
    return "\n".join([numbers, array("EXP", [1 / math.factorial(n) for n in range(degree + 1)]), part("exponential.c")])
