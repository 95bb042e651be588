"""Products of matrices in C at the shapes of SevenNet-0, beside torch's and what a core's registers can do."""

from dataclasses import dataclass

import torch

from foundation.kernels.cpu.dense import multiply
from foundation.kernels.memory import keep_freed_memory
from tests.benchmarks.register_peak import register_peak
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=gemm"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    rounds: int = 15
    """Measured rounds."""
    operations: float = 1e9
    """Operations of a measurement; small products are repeated."""
    float64: bool = False
    """Measure in float64 instead of float32."""


@dataclass(frozen=True)
class Shape:
    """A product of a training step."""

    name: str
    """Its place in a training step."""
    rows: int
    """Rows of the result."""
    inner: int
    """Products in an element of the result."""
    columns: int
    """Columns of the result."""
    turned: str = ""
    """The factor that is transposed, 'left' or 'right'; none if empty."""
    bar: float = 0.65
    """Share of the register peak to reach."""


SHAPES = (
    Shape("radial, last layer", 3395, 64, 960, bar=0.75),
    Shape("radial, gradient for the hidden layer", 3395, 960, 64, "right", bar=0.75),
    Shape("radial, gradient for the weights", 64, 3395, 960, "left", bar=0.75),
    Shape("radial, hidden layer", 3395, 64, 64),
    Shape("linear map", 435, 160, 128),
    Shape("linear map, gradient for the features", 435, 160, 128, "right"),
    Shape("linear map, gradient for the weights", 160, 435, 128, "left"),
    Shape("linear map of scalars", 145, 384, 224),
    Shape("linear map of degree 2", 725, 352, 32),
)


def run(config: Config) -> None:
    """Measure and write runs/bench/gemm.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    dtype, real = (torch.float64, "double") if config.float64 else (torch.float32, "float")
    chains, operations = register_peak(real)
    rows: list[Row] = []
    for shape in SHAPES:
        left = torch.randn(shape.inner, shape.rows, dtype=dtype).t()
        right = torch.randn(shape.columns, shape.inner, dtype=dtype).t()
        left = left if shape.turned == "left" else left.contiguous()
        right = right if shape.turned == "right" else right.contiguous()
        work = 2.0 * shape.rows * shape.inner * shape.columns
        times = max(2, round(config.operations / work))
        tasks = {
            "peak": chains,
            "ours": lambda left=left, right=right, times=times: [multiply(left, right) for _ in range(times)],
            "torch": lambda left=left, right=right, times=times: [left @ right for _ in range(times)],
        }
        seconds = interleaved(tasks, config.rounds)
        peak = operations / seconds["peak"] / 1e9
        ours, theirs = (times * work / seconds[name] / 1e9 for name in ("ours", "torch"))
        sizes = f"{shape.rows} x {shape.inner} x {shape.columns}"
        rows.append(
            Row(
                measure=f"{shape.name}, {sizes}; torch's product {theirs:.0f} GFLOP/s", value=ours, unit="GFLOP/s",
                peer="registers", peer_value=peak, ratio=ours / peak, bar=shape.bar, holds=ours / peak >= shape.bar,
                command=COMMAND,
            )
        )  # fmt: skip
    write("gemm", rows)
