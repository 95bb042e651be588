"""Share of the registers' peak that a whole step reaches, and where its time goes, by kind of function in C.

Operations are counted as they are executed: every product of matrices by its sizes, convolutions by the generator's own
count, nothing for activations, tables and what torch does. So a share says how much of the time an ideal core would
need for products and convolutions alone. The count is made in a step of its own, with a clock around every function.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch

from foundation.kernels import dense, operator, radial_interpolation
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import native
from foundation.kernels.cpu.codegen import operations
from foundation.kernels.cpu.dense import LinearMap
from foundation.kernels.memory import keep_freed_memory
from foundation.nn.computation import Computation
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.register_peak import register_peak
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=peak"
BARS = {"training step": 0.45, "training step with the table": 0.35}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 4
    """Oxides in the batch."""
    knots: int = 256
    """Knots of the radial table."""
    rounds: int = 9
    """Measured rounds, all taking turns in each."""


@dataclass
class Part:
    """Functions of one kind in a step."""

    seconds: float = 0.0
    """Their CPU time."""
    operations: float = 0.0
    """Their floating-point operations."""
    calls: int = 0
    """Number of calls."""


def run(config: Config) -> None:
    """Measure and write runs/bench/peak.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    # weights that change need a new table: energies are of potentials of their own
    (exact, batch), (table, _), (still, _), (still_table, _) = (
        potential_for(SEVENNET_0, oxides(config.num_frames)) for _ in range(4)
    )
    for potential in (table, still_table):
        potential.compute_as(Computation(radial_table=config.knots))
    tasks: dict[str, Callable[[], object]] = {
        "training step": training_step(exact, batch),
        "training step with the table": training_step(table, batch),
        "energy, forces and stress": lambda: still.eval()(batch),
        "energy, forces and stress with the table": lambda: still_table.eval()(batch),
    }
    peak_task, peak_operations = register_peak()
    seconds = interleaved(tasks | {"peak": peak_task}, config.rounds)
    peak = peak_operations / seconds["peak"]
    sizes = f"{len(batch.numbers)} atoms, {batch.num_edges} edges"
    rows = []
    for name, task in tasks.items():
        parts = counted(task)
        total = sum(part.operations for part in parts.values())
        measure = f"{name}, {sizes}: {1e3 * seconds[name]:.0f} ms, {total / 1e9:.1f} GFLOP"
        rows.append(_row(measure, total / seconds[name], peak, BARS.get(name)))
        rest = seconds[name] - sum(part.seconds for part in parts.values())
        for kind, part in sorted(parts.items(), key=lambda item: -item[1].seconds):
            measure = f"{name}: {kind}, {1e3 * part.seconds:.1f} ms, {part.calls} calls"
            rows.append(
                _row(measure, part.operations / part.seconds, peak) if part.operations else _time(measure, part)
            )
        rows.append(_time(f"{name}: the rest", Part(seconds=rest)))
    write("peak", rows)


def counted(task: Callable[[], object]) -> dict[str, Part]:
    """Return the functions in C that a task calls, by kind."""
    parts: dict[str, Part] = defaultdict(Part)
    with _clocks(parts):
        task()
        parts.clear()
        task()
    return dict(parts)


@contextlib.contextmanager
def _clocks(parts: dict[str, Part]) -> Iterator[None]:
    """Put clocks around the functions in C."""

    def clock(function: Callable, kind: str, count: Callable[..., float]) -> Callable:
        def timed(*arguments, **options):
            started = time.process_time()
            result = function(*arguments, **options)
            part = parts[kind]
            part.seconds += time.process_time() - started
            part.operations += count(*arguments, **options)
            part.calls += 1
            return result

        return timed

    with contextlib.ExitStack() as stack:
        for where, name, kind, count in _places():
            stack.enter_context(mock.patch.object(where, name, clock(getattr(where, name), kind, count)))
        yield


def _places() -> Iterator[tuple[object, str, str, Callable[..., float]]]:
    """Yield where functions in C are called from, their names, kinds and operations."""
    for where in (dense, operator):
        yield where, "multiply", "products", lambda a, b, *_, **__: 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    yield (
        LinearMap,
        "_run",
        "linear maps",
        lambda this, _, rows, *__: sum(2.0 * rows * b.components * b.fan_in * b.fan_out for b in this.blocks),
    )
    for name in ("activated", "activated_back", "activated_along"):
        yield dense, name, "activations and gates", _nothing
    yield radial_interpolation, "_run", "table", _nothing
    yield native, "forward", "convolution", lambda name, x, y, w, edges: _per_edge(name, 0) * len(edges.senders)
    yield native, "backward", "convolution's derivatives", _backward
    yield (
        native,
        "forward_of_hidden",
        "convolution, with weights",
        lambda name, x, y, h, m, edges: (_per_edge(name, 0) + 2.0 * m.numel()) * len(edges.senders),
    )
    yield (
        native,
        "backward_of_hidden",
        "convolution's derivatives, with weights",
        lambda name, inputs, m, edges: (_per_edge(name, 1) + 2.0 * m.numel()) * len(edges.senders),
    )


def _nothing(*_: object, **__: object) -> float:
    return 0.0


def _per_edge(name: str, kernel: int) -> float:
    return float(operations(TensorProductPaths.named(name))[kernel])


def _backward(name: str, _: tuple, tangents: tuple | None, edges) -> float:
    return _per_edge(name, 1 if tangents is None else 2) * len(edges.senders)


def _row(measure: str, rate: float, peak: float, bar: float | None = None) -> Row:
    return Row(
        measure=measure,
        value=rate / 1e9,
        unit="GFLOP/s",
        peer="registers",
        peer_value=peak / 1e9,
        ratio=rate / peak,
        bar=bar,
        holds=rate / peak >= bar if bar else None,
        command=COMMAND,
    )


def _time(measure: str, part: Part) -> Row:
    return Row(measure=measure, value=1e3 * part.seconds, unit="ms", command=COMMAND)
