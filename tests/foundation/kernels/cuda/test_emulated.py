"""The CUDA kernels on the CPU, in a machine that finds races: the numbers of the C kernels and of plain torch."""

from collections.abc import Callable

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.graphs.pairs import mirror
from foundation.kernels import operator
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import native as in_c
from foundation.kernels.cuda import check
from foundation.kernels.cuda.codegen import Source
from foundation.kernels.cuda.layout import Budget
from foundation.kernels.cuda.native import Kernels
from foundation.kernels.edges import EdgeIndex
from tests.foundation.kernels.cuda.emulated import Emulator, Fault
from tests.foundation.kernels.graphs import operands, paired_edges, value_and_derivatives

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
NARROW = Budget(sums=6, values=12, blocks=1)
"""So little that nearly every path and every 32 channels are a part of their own."""


def paths_of(features: str, harmonics: str, allowed: str) -> TensorProductPaths:
    return TensorProductPaths(o3.Irreps(features), o3.Irreps(harmonics), o3.Irreps(allowed))


AROUND_A_WARP = paths_of("33x0e+32x1o+5x2e", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e")
SMALL = paths_of("3x0e+2x1e", "1x0e+1x1e", "1x0e+1x1e")
UNUSED = paths_of("65x0e+3x3e", "1x0e+1x1e", "1x0e+1x1e")


def hub(degree: int) -> EdgeIndex:
    """One atom with so many neighbours, which have no others, and an atom without any at either end."""
    centre, others = torch.full((degree,), 1), torch.arange(2, degree + 2)
    num_atoms = degree + 3
    edges = mirror(centre.numpy(), others.numpy(), num_atoms)
    receivers = torch.from_numpy(edges.receivers)
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(receivers, minlength=num_atoms).cumsum(0)])
    senders, pairs, reverse = map(torch.from_numpy, (edges.senders, edges.pairs, edges.reverse))
    return EdgeIndex(rows, senders, pairs, reverse, sender_order=reverse, sender_pointers=rows)


def results(kernels, paths: TensorProductPaths, edges: EdgeIndex, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """The convolution, its gradients, and those of its double backward."""
    x, y, w = (tensor.detach() for tensor in operands(paths, edges, dtype, seed))
    vx, vy, vw = (tensor.detach() for tensor in operands(paths, edges, dtype, seed + 1))
    out = kernels.forward(paths.name, x, y, w, edges)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    first = kernels.backward(paths.name, (x, y, w, g), None, edges)
    return [out, *first, *kernels.backward(paths.name, (x, y, w, g), (vx, vy, vw), edges)]


def assert_same_numbers(paths: TensorProductPaths, edges: EdgeIndex, dtype: torch.dtype, machine: Emulator) -> None:
    ours, expected = results(Kernels(machine), paths, edges, dtype), results(in_c, paths, edges, dtype)
    for found, right in zip(ours, expected, strict=True):
        assert found.shape == right.shape
        if right.numel():
            assert (found - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("degree", [0, 1, 33, 70])
def test_a_row_of_any_length_has_the_numbers_of_the_c_kernels(degree: int, dtype: torch.dtype) -> None:
    assert_same_numbers(AROUND_A_WARP, hub(degree), dtype, Emulator())


@pytest.mark.parametrize("paths", [SMALL, UNUSED])
def test_edges_without_reverse_and_inputs_without_path(paths: TensorProductPaths) -> None:
    generator = torch.Generator().manual_seed(0)
    senders = torch.randint(5, (40,), generator=generator)
    receivers = torch.randint(4, (40,), generator=generator).sort().values
    assert_same_numbers(paths, EdgeIndex.single(senders, receivers, 6), torch.float64, Emulator())
    assert_same_numbers(paths, paired_edges(0, 0), torch.float64, Emulator())


def test_a_row_that_is_divided_among_many_warps_has_the_same_numbers() -> None:
    machine = Emulator(budget=NARROW)
    assert machine.kernel(AROUND_A_WARP.name, "sum", torch.float64).shape.parts > 8
    assert machine.kernel(AROUND_A_WARP.name, "double_gradient", torch.float64).shape.parts > 3
    assert_same_numbers(AROUND_A_WARP, paired_edges(6, 40), torch.float64, machine)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 31, 34]), st.sampled_from(["0e", "1o", "1e", "2e"])), min_size=1,
             max_size=3),
    st.sampled_from(["1x0e+1x1o", "1x0e+1x2e", "1x1e"]),
    st.integers(0, 100),
)  # fmt: skip
def test_random_irreps_have_the_numbers_of_plain_torch(items: list[tuple[int, str]], harmonics: str, seed: int) -> None:
    paths = paths_of("+".join(f"{n}x{irrep}" for n, irrep in items), harmonics, "1x0e+1x1o+1x1e+1x2e+1x3o")
    edges, module = paired_edges(6, 30, seed), Convolution(paths)
    module.backend = "c"
    values = []
    for kernels in (Kernels(Emulator(seed)), in_c, None):
        arguments = operands(paths, edges, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operator, "implementation", lambda _, kernels=kernels: kernels)
            out = module(*arguments, edges) if kernels else module.in_torch(*arguments, edges)
            values.append(value_and_derivatives(out, arguments))
    for ours, *others in zip(*values, strict=True):
        for right in others:
            assert (ours - right).abs().max() <= 1e-12 * right.abs().max()


def test_the_order_of_warps_does_not_change_the_bits() -> None:
    edges = paired_edges(9, 90)
    once, again = (results(Kernels(Emulator(seed)), AROUND_A_WARP, edges, torch.float32) for seed in (1, 2))
    assert all(torch.equal(ours, other) for ours, other in zip(once, again, strict=True))


def without(text: str, instead: str = "") -> Callable[[Source], Source]:
    def changed(source: Source) -> Source:
        found = source.text.replace(text, instead)
        return source._replace(text=found)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("__syncwarp();"), "shared memory"),
        # the barrier before couplings are staged again for the next edges
        (without("__syncwarp();\nif", "if"), "a race"),
        (without("by_pair[pair * DX", "gx[far * DX"), "two warps write the same address"),
        (without("if (row >= num_atoms) return;"), "outside of all tensors"),
        (without("const bool upper = lane & APART;", "if (lane == 5) return 0; const bool upper = lane & APART;"),
         "lanes"),
    ],
    ids=["no-barriers", "one-barrier", "scatter", "bounds", "vain"],
)  # fmt: skip
def test_a_kernel_that_is_wrong_on_some_device_is_found(change: Callable[[Source], Source], message: str) -> None:
    kernels, edges = Kernels(Emulator(change=change)), hub(70)
    with pytest.raises(Fault, match=message):
        results(kernels, SMALL, edges, torch.float64)


def test_the_self_check_passes_right_kernels_and_names_what_is_wrong() -> None:
    def compared(machine: Emulator) -> float:
        plain = Convolution(SMALL).in_torch
        return check.compare(Kernels(machine), SMALL.name, torch.float32, torch.device("cpu"), plain)

    assert 0 < compared(Emulator()) < 1e-5
    with pytest.raises(check.WrongKernels, match=r"gw is .* from plain torch"):
        compared(Emulator(change=without("gw[weights + 0] =", "gw[weights + 0] = (T)1.001 *")))
