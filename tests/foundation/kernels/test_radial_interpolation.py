"""Interpolation between rows of a table: its derivatives, its bits, and plain torch as the oracle."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foundation.kernels import radial_interpolation
from foundation.kernels.radial_interpolation import ROWS, Places, interpolated


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave one thread behind, as all tests expect."""
    yield
    torch.set_num_threads(1)


def case(num_points: int, num_knots: int, columns: int, dtype: torch.dtype = torch.float64) -> tuple:
    """A table, coefficients and places; some intervals have no points, some many."""
    random = torch.Generator().manual_seed(num_points)
    knot = (torch.rand(num_points, generator=random) ** 2 * (num_knots - 1)).long()
    table = torch.randn(4 * num_knots, columns, generator=random, dtype=torch.float64).to(dtype)
    coefficients = torch.randn(num_points, len(ROWS), generator=random, dtype=torch.float64).to(dtype)
    return table.requires_grad_(), coefficients.requires_grad_(), Places.of(knot, num_knots)


def derivatives(table: Tensor, coefficients: Tensor, places: Places) -> list[Tensor]:
    """The value, both gradients of a function of it, and the gradients of a function of those."""
    value = interpolated(table, coefficients, places)
    first = torch.autograd.grad(value.sin().sum(), (table, coefficients), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].cos().sum(), (table, coefficients))
    return [value, *first, *second]


@pytest.mark.parametrize(("num_points", "columns"), [(0, 5), (1, 1), (7, 3), (4, 19)])
def test_numerical_first_and_second_derivatives_agree(num_points: int, columns: int) -> None:
    table, coefficients, places = case(num_points, 4, columns)

    def function(table: Tensor, coefficients: Tensor) -> Tensor:
        return interpolated(table, coefficients, places)

    assert torch.autograd.gradcheck(function, (table, coefficients))
    assert torch.autograd.gradgradcheck(function, (table, coefficients))


@pytest.mark.parametrize("columns", [1, 16, 45])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_c_and_plain_torch_agree(columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = derivatives(*case(300, 20, columns, dtype))
    monkeypatch.setattr(radial_interpolation, "_compiles", lambda dtype: False)
    plain = derivatives(*case(300, 20, columns, dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for ours, expected in zip(compiled, plain, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_any_number_of_threads_gives_the_same_bits(threads: None) -> None:
    results = []
    for number in (1, 2, 4, 1):
        torch.set_num_threads(number)
        results.append(derivatives(*case(3000, 60, 35, torch.float32)))
    for other in results[1:]:
        assert all(torch.equal(ours, expected) for ours, expected in zip(other, results[0], strict=True))


def test_points_are_listed_by_interval() -> None:
    places = Places.of(torch.tensor([3, 0, 3, 1, 0]), 6)
    assert places.order.tolist() == [1, 4, 3, 0, 2]
    assert places.pointers.tolist() == [0, 2, 3, 3, 5, 5]


PROGRAM = """
import logging, torch
logging.basicConfig(format="%(message)s")
from foundation.kernels.radial_interpolation import Places, interpolated
for _ in range(2):
    print(interpolated(torch.ones(8, 3), torch.ones(2, 6), Places.of(torch.tensor([0, 0]), 2)).sum().item())
"""


def test_without_a_compiler_plain_torch_does_it_and_says_so_once(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd(), "PATH": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["36.0", "36.0"]
    (line,) = result.stderr.strip().splitlines()
    assert "interpolated by plain torch" in line
    assert "no C compiler on PATH" in line
