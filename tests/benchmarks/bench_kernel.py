"""The convolution's kernels alone: arithmetic per second beside this core's matrix product, and the torch backend."""

from dataclasses import dataclass

import torch

from data_pipeline.graphs.batch import collate
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import native
from foundation.kernels.cpu.codegen import operations
from foundation.models import EquivariantNetwork
from foundation.models.equivariant import edge_index
from tests.benchmarks.oxides import CUTOFF, SEVENNET_0, oxides
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=kernel"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 4
    """Oxides in the batch."""
    rounds: int = 9
    """Measured rounds."""


def run(config: Config) -> None:
    """Measure and write runs/bench/kernel.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = collate(oxides(config.num_frames), CUTOFF)
    network = EquivariantNetwork(SEVENNET_0, (8,), mean_neighbors=50.0)
    paths: TensorProductPaths = network.blocks[1].convolution.paths
    edges, num_pairs = edge_index(batch), len(batch.pair_edges)
    shapes = ((len(batch.numbers), paths.irreps_in.dim), (num_pairs, paths.irreps_harmonics.dim))
    x, y, w = inputs = [torch.randn(shape) for shape in (*shapes, (num_pairs, paths.num_weights))]
    tangents = tuple(torch.randn_like(tensor) for tensor in inputs)
    g = torch.randn(len(batch.numbers), paths.irreps_out.dim)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    plain = Convolution(paths)
    plain.backend = "torch"
    tasks = {
        "gemm": lambda: left @ right,
        "forward": lambda: native.forward(paths.name, x, y, w, edges),
        "backward": lambda: native.backward(paths.name, (x, y, w, g), None, edges),
        "double backward": lambda: native.backward(paths.name, (x, y, w, g), tangents, edges),
        "forward, plain torch": lambda: plain(x, y, w, edges),
    }
    seconds = interleaved(tasks, config.rounds)
    peak = 2 * 2048**3 / seconds["gemm"] / 1e9
    counted = operations(paths)
    rows = [Row(measure="matrix product, 2048 cubed, float32", value=peak, unit="GFLOP/s", command=COMMAND)]
    for kernel, flops in counted._asdict().items():
        name = kernel.replace("_", " ")
        rate = flops * batch.num_edges / seconds[name] / 1e9
        rows.append(
            Row(
                measure=f"{name}: {1e6 * seconds[name] / batch.num_edges:.3f} us/edge, {flops} FLOP/edge as executed",
                value=rate,
                unit="GFLOP/s",
                peer="matrix product",
                peer_value=peak,
                ratio=rate / peak,
                bar=0.4,
                holds=rate / peak >= 0.4,
                command=COMMAND,
            )
        )
    torch_rate, ours = (batch.num_edges / seconds[name] / 1e6 for name in ("forward, plain torch", "forward"))
    rows.append(
        Row(
            measure="forward", value=ours, unit="million edges/s", peer="plain torch", peer_value=torch_rate,
            ratio=ours / torch_rate, command=COMMAND,
        )
    )  # fmt: skip
    write("kernel", rows)
