"""Products of matrices in C at the shapes of SevenNet-0, beside torch's and what a core's registers can do.

A result is written to the place of the one before. A training step, whose results go to places of their own, is
measured with products in C and with torch's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from foundation.kernels import dense
from foundation.kernels.cpu.dense import multiply
from foundation.kernels.memory import keep_freed_memory
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.register_peak import register_peak
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=gemm"
MANY = 1000
"""So many products in an element of a result are only in gradients of weights."""


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
        out = torch.empty(shape.rows, shape.columns, dtype=dtype)
        work = 2.0 * shape.rows * shape.inner * shape.columns
        times = max(2, round(config.operations / work))
        tasks = {
            "peak": chains,
            "ours": functools.partial(repeated, times, multiply, left, right, out=out),
            "torch": functools.partial(repeated, times, torch.mm, left, right, out=out),
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
    if not config.float64:
        rows += training_steps(config)
    write("gemm", rows)


def repeated(times: int, function: Callable[..., object], *arguments: object, **options: object) -> None:
    """Call a function so many times."""
    for _ in range(times):
        function(*arguments, **options)


def training_steps(config: Config) -> list[Row]:
    """Return atoms per second of a training step with products in C, beside those with torch's."""
    potential, batch = potential_for(SEVENNET_0, oxides(4))
    step = training_step(potential, batch)

    def with_products(product: Callable[..., Tensor]) -> None:
        with mock.patch.object(dense, "multiply", product):
            step()

    products = {"ours": multiply, "all": of_torch, "gradients": of_torch_for_gradients_of_weights}
    seconds = interleaved({name: functools.partial(with_products, p) for name, p in products.items()}, config.rounds)
    rate = {name: len(batch.numbers) / value for name, value in seconds.items()}
    measure = f"training step, SevenNet-0 size, {len(batch.numbers)} atoms, {batch.num_edges} edges"
    peers = {"all": "torch's products", "gradients": "torch's products for gradients of weights"}
    return [
        Row(
            measure=measure, value=rate["ours"], unit="atoms/s, one core", peer=peer, peer_value=rate[name],
            ratio=rate["ours"] / rate[name], command=COMMAND,
        )
        for name, peer in peers.items()
    ]  # fmt: skip


def of_torch(
    left: Tensor, right: Tensor, scale: float = 1.0, out: Tensor | None = None, *, add: bool = False
) -> Tensor:
    """Return multiply() of the arguments by torch."""
    if out is None:
        return torch.mm(left, right).mul_(scale)
    return out.addmm_(left, right, beta=float(add), alpha=scale)


def of_torch_for_gradients_of_weights(left: Tensor, right: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Return multiply() by torch, where many products are summed."""
    product = of_torch if left.shape[1] > MANY else multiply
    return product(left, right, *arguments, **options)
