"""Order and signs of the weights per edge (the last radial layer) in SevenNet's checkpoints.

Two things differ between versions. The order of the paths is by output irrep since sevenn 0.11, by input before. The
signs of some of e3nn's Wigner 3j symbols changed in e3nn 0.5. A file has the symbols as buffers, in the order of its
paths, so both follow from them; only if they allow both orders (harmonics to degree 1) does the version stated in the
file decide.

sevenn computes every product up to the highest degree, also those that no later layer reads; such weights are dropped
on import and zero on export.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from e3nn import o3
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.models.equivariant import EquivariantNetwork
from foundation.nn.interaction import InteractionBlock


def block_of(network: EquivariantNetwork, number: int) -> InteractionBlock:
    """Return an interaction block of a network."""
    block = network.blocks[number]
    assert isinstance(block, InteractionBlock)
    return block


def paths_of(network: EquivariantNetwork, number: int) -> tuple[TensorProductPaths, TensorProductPaths]:
    """Return our paths of a block and sevenn's, which lead to every irrep up to the highest degree of the block."""
    block = block_of(network, number)
    parities = (1,) if number == network.config.num_blocks - 1 else (1, -1)
    every = [(1, (degree, parity)) for degree in range(block.irreps_out.lmax + 1) for parity in parities]
    ours = block.convolution.paths
    return ours, replace(ours, irreps_allowed=o3.Irreps(every))


def wigner_symbols(state: Mapping[str, Tensor], convolution: str) -> dict[tuple[int, ...], Tensor]:
    """Return the Wigner 3j symbols of a convolution by their degrees, in the order of the file."""
    prefix = f"{convolution}.convolution._compiled_main_left_right._w3j_"
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {tuple(map(int, name.split("_"))): value for name, value in found.items()}


def columns_of(
    stored: Mapping[tuple[int, ...], Tensor],
    ours: TensorProductPaths,
    theirs: TensorProductPaths,
    version: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return their column of each of our weights per edge, and its sign.

    The file's Wigner 3j symbols are in the order of its paths, with the signs of the e3nn that trained it.
    """
    degrees, paths = degrees_of(theirs), theirs.paths
    by_output = list(range(len(paths)))
    by_input = sorted(by_output, key=lambda p: (paths[p].input, paths[p].harmonic, paths[p].output.l))
    orders = (by_output, by_input) if version >= (0, 11) else (by_input, by_output)
    fitting = [order for order in orders if couplings(order, degrees) == list(stored)]
    if not fitting:
        raise KeyError("the order of its Wigner 3j symbols is unknown")
    columns = places(ours, theirs, fitting[0])
    signs = [torch.full((path.channels,), _sign(stored, degrees[paths.index(path)])) for path in ours.paths]
    return columns, torch.cat(signs)


def places(ours: TensorProductPaths, theirs: TensorProductPaths, order: Sequence[int]) -> Tensor:
    """Return the index of each of our weights among theirs, for a given order of their paths."""
    starts, position = {}, 0
    for p in order:
        starts[theirs.paths[p]], position = position, position + theirs.paths[p].channels
    return torch.cat([torch.arange(starts[path], starts[path] + path.channels) for path in ours.paths])


def degrees_of(paths: TensorProductPaths) -> list[tuple[int, int, int]]:
    """Return the degrees of each path: input, harmonic, output."""
    inputs, harmonics = paths.irreps_in, paths.irreps_harmonics
    return [(inputs[path.input].ir.l, harmonics[path.harmonic].ir.l, path.output.l) for path in paths.paths]


def couplings(order: Sequence[int], degrees: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return the couplings in the order of their first use; those with a scalar have no Wigner 3j symbol stored."""
    return list(dict.fromkeys(degrees[p] for p in order if min(degrees[p]) > 0))


def _sign(stored: Mapping[tuple[int, ...], Tensor], degrees: tuple[int, int, int]) -> float:
    if min(degrees) == 0:
        return 1.0
    theirs, ours = stored[degrees].double(), o3.wigner_3j(*degrees, dtype=torch.float64)
    for sign in (1.0, -1.0):
        if torch.allclose(theirs, sign * ours, atol=1e-5):
            return sign
    raise KeyError(f"the Wigner 3j symbol of degrees {degrees} in the file is not e3nn's")
