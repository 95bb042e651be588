"""A model, not a measurement, of the CUDA kernels on an H100 and an H200: they have never run on a GPU.

For each kernel, operations and bytes of an edge are counted from the generated division of work. Each kernel takes the
longest of three times: operations over the rate of multiply-adds, bytes over the bandwidth of the memory, and bytes
over that of the second-level cache; kernels run one after the other. Radial networks and linear maps take their
operations over the same rate, and their passes over the weights are counted too. Left out: launches, small batches,
latency, and everything else of a step. The rates are published peaks, times what is assumed to be reached of them.
"""

from dataclasses import dataclass

from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda.layout import KernelName
from foundation.kernels.cuda.traffic import Traffic, traffic
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.linear import Linear
from foundation.nn.radial import RadialNetwork
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=gpu_model"
STEP: dict[KernelName, int] = {"sum": 1, "gradient": 2, "double_gradient": 1, "double_sum": 1, "gather": 3}
"""Number of times that each kernel runs in a training step: energy, forces, and the gradient of both."""
PREDICTION: dict[KernelName, int] = {"sum": 1, "gradient": 1, "gather": 1}
"""The same for energies and forces."""
WEIGHT_PASSES = {"step": 9, "prediction": 2}
"""Passes over the weights of all pairs by the matrix products that make them or use their gradients."""
PRODUCTS = {"step": 6, "prediction": 2}
"""Number of times that a matrix product of the energy is done, its derivatives counted (see flops.py)."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Rates of a GPU."""

    name: str
    """Its name."""
    operations: float
    """Peak of float32 multiply-adds [operations/s]."""
    memory: float
    """Bandwidth of the memory [B/s]."""
    cache: float
    """Assumed. Bandwidth of the second-level cache [B/s]."""


DEVICES = (
    Device(name="H100", operations=67e12, memory=3.35e12, cache=5.5e12),
    Device(name="H200", operations=67e12, memory=4.8e12, cache=5.5e12),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Assumptions of the model."""

    irreps: str = "128x0e+64x1e+32x2e"
    """Hidden irreps: SevenNet-0's."""
    max_degree: int = 2
    """Highest degree of the harmonics."""
    degree: float = 52.0
    """Edges of an atom."""
    issue: float = 0.55
    """Share of multiply-adds among the instructions of the kernels' inner loops, from `make test-cuda-compile`; the
    others take their turns."""
    reached: float = 0.9
    """Assumed. Share of a bandwidth that is reached."""


def seconds(work: Traffic, device: Device, config: Config) -> tuple[float, str]:
    """Return the time of an edge in a kernel, and what limits it."""
    times = {
        "operations": work.operations / (device.operations * config.issue),
        "memory": work.memory / (device.memory * config.reached),
        "cache": work.cache / (device.cache * config.reached),
    }
    limit = max(times, key=lambda name: times[name])
    return times[limit], limit


def run(config: Config) -> None:
    """Compute and write runs/bench/gpu_model.json."""
    model = EquivariantConfig(irreps=config.irreps, max_degree=config.max_degree)
    network = EquivariantNetwork(model, (8,), mean_neighbors=config.degree)
    paths = [module.paths for module in network.modules() if isinstance(module, Convolution)]
    rows = _counts(paths[len(paths) // 2], config)
    for device in DEVICES:
        for name, runs in (("step", STEP), ("prediction", PREDICTION)):
            conv = sum(
                count * seconds(traffic(each, kernel, "float", config.degree), device, config)[0]
                for each in paths
                for kernel, count in runs.items()
            )
            rest = _rest(network, paths, device, config, name)
            rows.append(_row(f"{device.name}, {name}: convolutions alone", 1e-6 / (config.degree * conv), "M atoms/s"))
            rows.append(_row(f"{device.name}, {name}: all", 1e-6 / (config.degree * (conv + rest)), "M atoms/s"))
    write("gpu_model", rows)


def _counts(paths: TensorProductPaths, config: Config) -> list[Row]:
    """Return the counts of a middle convolution."""
    rows = []
    for name in STEP:
        work = traffic(paths, name, "float", config.degree)
        limits = "; ".join(
            f"{d.name} {1e9 * t:.2f} ns by {by}" for d in DEVICES for t, by in [seconds(work, d, config)]
        )
        for unit, value in zip(("kFLOP", "kB of memory", "kB of cache"), work, strict=True):
            rows.append(_row(f"middle convolution, {name}, an edge ({limits})", value / 1e3, unit))
    return rows


def _rest(
    network: EquivariantNetwork, paths: list[TensorProductPaths], device: Device, config: Config, name: str
) -> float:
    """Return the time of an edge in radial networks (for pairs) and linear maps (for atoms)."""
    operations = 0.0
    for module in network.modules():
        if isinstance(module, RadialNetwork):
            operations += PRODUCTS[name] * sum(weight.numel() for weight in module.weights)
        elif isinstance(module, Linear):
            same = [(i, o) for i in module.irreps_in for o in module.irreps_out if i.ir == o.ir]
            total = sum(i.ir.dim * i.mul * o.mul for i, o in same)
            operations += PRODUCTS[name] * 2 * total / config.degree
    moved = WEIGHT_PASSES[name] * sum(each.num_weights for each in paths) * 4 / 2
    return operations / (device.operations * config.reached) + moved / (device.memory * config.reached)


def _row(measure: str, value: float, unit: str) -> Row:
    return Row(measure=f"model: {measure}", value=value, unit=unit, command=COMMAND)
