"""One run for the first GPU that the project meets: is everything right there, and how fast is it?

`python -m tests.benchmarks.gpu --out gpu.json` takes six minutes at most and writes after every section what it has:
the self-check, the tests marked gpu, the rates of copies and matrix products, the convolution's kernels beside plain
torch, OpenEquivariance and e3nn, and training and inference of SevenNet-0's size with every backend, also from
recordings, and by sevenn.
With `--device cpu` it runs the same with tiny sizes, to see that it runs; its numbers then mean nothing.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.structure import Structure
from foundation.kernels.backend import Backend
from foundation.kernels.convolution import Convolution, cuda_verdicts
from foundation.kernels.cuda import openequivariance
from foundation.kernels.cuda.layout import KernelName
from foundation.kernels.cuda.traffic import traffic
from foundation.kernels.edges import EdgeIndex
from foundation.models.equivariant import edge_index
from foundation.nn.computation import Computation
from foundation.potential import Potential
from foundation.recording import CudaGraphs, RecordedPotential
from tests.benchmarks.oxides import SEVENNET_0, potential_for, recorded_step, training_step
from tests.benchmarks.peer import sevenn_step
from tests.foundation.kernels.test_convolution import oracle
from tests.foundation.layout import swap_layout

LATTICE = 3.5
"""Lattice constant [Å] at which an atom of a face-centred cubic crystal has 54 neighbours within 5 Å."""


@dataclass(kw_only=True)
class Section:
    """Result of one part of the run."""

    name: str
    outcome: str = "not run: no time left"
    """"ok", or what went wrong."""
    seconds: float = 0.0
    """Time that it took [s]."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Findings; the unit is part of the name."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a run."""

    cells: tuple[int, ...]
    """Cubic cells along each side of the crystals."""
    copy: int
    """Numbers that are copied."""
    product: int
    """Rows of the matrices that are multiplied."""
    rounds: int
    """Measured rounds."""


SIZES = {
    "cuda": Sizes(cells=(2, 4, 8), copy=1 << 28, product=8192, rounds=10),
    "cpu": Sizes(cells=(2,), copy=1 << 20, product=256, rounds=1),
}


class Run:
    """The sections, and what they share."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.sizes = device, SIZES[device.type]
        self._end = time.monotonic() + seconds
        torch.manual_seed(0)
        self.crystals = [crystal(cells) for cells in self.sizes.cells]

    def left(self) -> float:
        """Return the time that is left [s]."""
        return self._end - time.monotonic()

    def batch(self, number: int) -> GraphBatch:
        """Return the batch of one of the crystals, on the device."""
        return collate([self.crystals[number]], SEVENNET_0.cutoff).to(self.device)

    def potential(self) -> Potential:
        """Return an untrained potential of SevenNet-0's size."""
        return potential_for(SEVENNET_0, self.crystals[:1])[0].to(self.device)

    def seconds(self, task: Callable[[], object]) -> float:
        """Return the shortest time of a task [s]."""
        task()
        best = float("inf")
        for _ in range(self.sizes.rounds):
            self.wait()
            started = time.perf_counter()
            task()
            self.wait()
            best = min(best, time.perf_counter() - started)
        return best

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def backends(self) -> Iterator[Backend]:
        """Yield the backends of the device, the own kernels first."""
        if self.device.type == "cpu":
            yield "c"
        else:
            if all(verdict.works for verdict in cuda_verdicts(self.potential(), torch.cuda.current_device())):
                yield "cuda"
            if openequivariance.available():
                yield "openequivariance"
        yield "torch"


def crystal(cells: int) -> Structure:
    """Return a crystal of copper and aluminium, atoms displaced, with random labels."""
    rng = np.random.default_rng(cells)
    corners = np.stack(np.meshgrid(*[np.arange(cells)] * 3), axis=-1).reshape(-1, 1, 3)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    positions = LATTICE * (corners + basis).reshape(-1, 3)
    positions += rng.normal(scale=0.03, size=positions.shape)
    forces = rng.normal(size=positions.shape)
    return Structure.checked(
        numbers=rng.choice([13, 29], len(positions)),
        positions=positions,
        cell=LATTICE * cells * np.eye(3),
        pbc=[True] * 3,
        energy=-3.5 * len(positions),
        forces=forces - forces.mean(axis=0),
        stress=0.01 * np.eye(3),
    )


def self_check(run: Run) -> dict[str, float]:
    """Compare the own kernels of SevenNet-0 with plain torch."""
    if run.device.type == "cpu":
        return {}
    started = time.monotonic()
    verdicts = cuda_verdicts(run.potential(), torch.cuda.current_device())
    for verdict in verdicts:
        print(verdict.finding)
    if not all(verdict.works for verdict in verdicts):
        raise AssertionError("; ".join(verdict.finding for verdict in verdicts if not verdict.works))
    return {"convolutions that pass": len(verdicts), "compilation and check [s]": time.monotonic() - started}


def gpu_tests(run: Run) -> dict[str, float]:
    """Run the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/foundation/kernels"]
    command += ["tests/foundation/training/test_replay.py", "tests/foundation/test_recording.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=min(150.0, max(1.0, run.left())))
    print(found.stdout[-3000:])
    if found.returncode:
        raise AssertionError(f"tests failed: {found.stdout[-1000:]} {found.stderr[-500:]}")
    return {}


def rates(run: Run) -> dict[str, float]:
    """Measure copies and matrix products."""
    values = torch.ones(run.sizes.copy, device=run.device)
    target = torch.empty_like(values)
    moved = 2 * values.nbytes / run.seconds(lambda: target.copy_(values))
    size, found = run.sizes.product, {"copy [TB/s]": moved / 1e12}
    matrix = torch.ones(size, size, device=run.device)
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        found[f"matrix product, {name} [TFLOP/s]"] = 2e-12 * size**3 / run.seconds(lambda: matrix @ matrix)
    torch.set_float32_matmul_precision("highest")
    return found


def kernels(run: Run) -> dict[str, float]:
    """Measure the middle convolution: forward, first and second derivatives, beside others; share of the roofline."""
    module, batch = run.potential().network.blocks[1].convolution, run.batch(-1)
    paths, edges = module.paths, edge_index(batch)
    pairs = len(batch.pair_edges)
    shapes = (
        (len(batch.numbers), paths.irreps_in.dim),
        (pairs, paths.irreps_harmonics.dim),
        (pairs, paths.num_weights),
    )
    inputs = [torch.randn(shape, device=run.device, requires_grad=True) for shape in shapes]
    found = {"edges": float(batch.num_edges)}
    for backend in run.backends():
        module.backend = backend
        found |= _passes(run, backend, lambda: module(*inputs, edges), inputs, batch.num_edges)
    if run.left() > 60:
        convolved = _e3nn(module, inputs, edges)
        found |= _passes(run, "e3nn", convolved, inputs, batch.num_edges)
    if "cuda: forward [ns/edge]" in found:
        passes: tuple[tuple[str, tuple[KernelName, ...]], ...] = (
            ("forward", ("sum",)),
            ("forward and backward", ("sum", "gradient", "gather")),
        )
        copy = rates(run)["copy [TB/s]"] * 1e12
        for name, parts in passes:
            least = sum(traffic(paths, part, "float", batch.num_edges / len(batch.numbers)).memory for part in parts)
            found[f"{name}: share of the memory's bound"] = least / copy / (1e-9 * found[f"cuda: {name} [ns/edge]"])
    return found


def _passes(
    run: Run, name: str, forward: Callable[[], torch.Tensor], inputs: list[torch.Tensor], edges: int
) -> dict[str, float]:
    """Return the times of the forward, of both passes, and of these and their derivatives, for an edge."""

    def first(create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, inputs, torch.ones_like(out), create_graph=create_graph)

    def second() -> object:
        squares = [gradient.square().sum() for gradient in first(create_graph=True)]
        return torch.autograd.grad(torch.stack(squares).sum(), inputs)

    tasks = {"forward": forward, "forward and backward": first, "forward, backward and both again": second}
    return {f"{name}: {key} [ns/edge]": 1e9 * run.seconds(task) / edges for key, task in tasks.items()}


def _e3nn(module: Convolution, inputs: list[torch.Tensor], edges: EdgeIndex) -> Callable[[], torch.Tensor]:
    """Return e3nn's tensor product of every edge, summed by receiver: what NequIP and SevenNet compute."""
    product, irreps_out = oracle(module.paths)
    product = product.to(inputs[0].device)
    receivers, order = edges.receivers(), edges.pairs

    def convolved() -> torch.Tensor:
        x = swap_layout(inputs[0], module.paths.irreps_in, to_e3nn=True)
        messages = product(x[edges.senders], inputs[1][order], inputs[2][order])
        return x.new_zeros(len(x), irreps_out.dim).index_add(0, receivers, messages)

    return convolved


def models(run: Run) -> dict[str, float]:
    """Measure training steps and predictions of SevenNet-0's size, and their memory."""
    found: dict[str, float] = {}
    for number in range(len(run.crystals)):
        batch = run.batch(number)
        atoms, size = len(batch.numbers), f"{len(batch.numbers)} atoms, {batch.num_edges} edges"
        for backend in run.backends():
            if run.left() < 30:
                return found
            potential = run.potential()
            potential.compute_as(Computation(backend=backend))
            step = training_step(potential, batch)
            name = f"{backend}, {size}"
            found |= _measured(run, f"{name}, training", step, atoms)
            records = run.device.type == "cuda" and backend != "openequivariance"
            if records:
                found |= _measured(run, f"{name}, training from a recording", recorded_step(potential, batch), atoms)
            potential.eval()
            found |= _measured(run, f"{name}, prediction", lambda predict=potential, of=batch: predict(of), atoms)
            if records:
                recorded, on_host = RecordedPotential(CudaGraphs(), potential), batch.to("cpu")
                predict = partial(recorded, on_host)
                found |= _measured(run, f"{name}, prediction from a recording", predict, atoms)
        peer = sevenn_step(batch) if run.left() > 30 else None
        if peer is not None:
            found |= _measured(run, f"sevenn, {size}, training", lambda step=peer: step(True), atoms)
            found |= _measured(run, f"sevenn, {size}, prediction", lambda step=peer: step(False), atoms)
    return found


def _measured(run: Run, name: str, task: Callable[[], object], atoms: int) -> dict[str, float]:
    """Return atoms per second and, on a GPU, the peak of memory; nothing where it does not fit."""
    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        found = {f"{name} [atoms/s]": atoms / run.seconds(task)}
    except torch.OutOfMemoryError:
        return {}
    return found | ({f"{name} [GB]": torch.cuda.max_memory_allocated(run.device) / 1e9} if on_gpu else {})


SECTIONS = {"self-check": self_check, "tests": gpu_tests, "rates": rates, "kernels": kernels, "models": models}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections and write the JSON; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu.json"))
    parser.add_argument("--seconds", type=float, default=340.0, help="no section begins after this time")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu shows that the script runs")
    run, sections = Run(torch.device(options.device), options.seconds), []
    name = torch.cuda.get_device_name(0) if options.device == "cuda" else "CPU: the numbers mean nothing"
    for title in options.sections:
        section, started = Section(name=title), time.monotonic()
        sections.append(section)
        if run.left() > 0:
            try:
                section.numbers, section.outcome = SECTIONS[title](run), "ok"
            except Exception as error:  # the next sections may still run
                traceback.print_exc()
                section.outcome = f"{type(error).__name__}: {error}"
            section.seconds = time.monotonic() - started
        print(
            title, section.outcome, *(f"\n  {key}: {value:.4g}" for key, value in section.numbers.items()), flush=True
        )
        content = {"device": name, "torch": torch.__version__, "sections": [asdict(each) for each in sections]}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(section.outcome != "ok" for section in sections))


if __name__ == "__main__":
    sys.exit(main())
