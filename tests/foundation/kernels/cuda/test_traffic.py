"""Operations counted from the division of work, against those in the generated text."""

import re

import pytest
from e3nn import o3

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu.codegen import operations
from foundation.kernels.cuda.codegen import BUDGETS, first_budget, generate
from foundation.kernels.cuda.layout import LANES, KernelName
from foundation.kernels.cuda.traffic import traffic

PATHS = TensorProductPaths(*(o3.Irreps(text) for text in ("64x0e+32x1e+32x2e", "1x0e+1x1e+1x2e", "1x0e+1x1e+1x2e")))
PLACES = ("const auto", "const I", "load", "FORGET", "const T *", "by_pair")
"""Lines that compute addresses only."""
ARITHMETIC = re.compile(r" [*+-] | [+-]= ")


def written(name: KernelName) -> float:
    """Operations of a lane for an edge or pair in the text of the loops over those that are staged."""
    text, total, inside = generate(PATHS, name, "float", BUDGETS[first_budget(PATHS, name, "float")]).text, 0, False
    for line in text.splitlines():
        if line.startswith("for (int k = 0; k < count"):
            inside = True
        elif line.startswith(("{ T some", "out[", "gx[", "INLINE")):
            inside = False
        elif inside and not any(place in line for place in PLACES):
            total += len(ARITHMETIC.findall(line.replace("weights + ", "")))
    return total


@pytest.mark.parametrize("name", ["sum", "double_sum", "gradient", "double_gradient"])
def test_the_operations_are_those_of_the_generated_text(name: KernelName) -> None:
    pairs = 2 if name.endswith("gradient") else 1
    found = traffic(PATHS, name, "float", 50.0).operations * pairs / LANES
    # and a few for couplings, which lanes contract side by side
    assert written(name) < found < 1.15 * written(name) + 60


def test_they_are_about_those_of_the_cpus_kernels() -> None:
    on_cpu = operations(PATHS)
    assert traffic(PATHS, "sum", "float", 50.0).operations == pytest.approx(on_cpu.forward, rel=0.15)
    assert traffic(PATHS, "gradient", "float", 50.0).operations == pytest.approx(on_cpu.backward, rel=0.25)


def test_weights_are_the_bytes_of_the_memory() -> None:
    w = 4 * PATHS.num_weights
    found = traffic(PATHS, "sum", "float", 1e9)
    assert w < found.memory < 1.1 * w
    # read once and written once for both directions, and the sender's gradient
    assert w < traffic(PATHS, "gradient", "float", 1e9).memory < 1.4 * w
    assert traffic(PATHS, "sum", "double", 1e9).memory > 1.9 * found.memory
