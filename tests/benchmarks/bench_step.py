"""Training step and inference on one core, beside sevenn itself, on real oxides; the quickstart model on EMT alloys."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.sources import EmtAlloys
from foundation.kernels.memory import keep_freed_memory
from foundation.models import EquivariantConfig
from foundation.models.equivariant import edge_index
from foundation.potential import Potential
from foundation.training.loss import LossConfig, label_counts, loss
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.peer import sevenn_step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=step"
QUICKSTART = EquivariantConfig(
    irreps="32x0e+16x1e+8x2e",
    num_blocks=2,
    radial_sizes=(32, 32),
    readout_channels=16,
    cutoff_function="polynomial",
)
"""The model of configs/quickstart.yaml."""
BARS = {"train": 14.0, "infer": 10.0}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 24
    """EMT frames in the batch of the quickstart model."""
    num_frames_large: int = 4
    """Oxides in the batch of the SevenNet-0-sized models."""
    rounds: int = 5
    """Measured rounds, all engines taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/step.json; what is freed is kept, as in training, for the peer as well."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    small, small_batch = potential_for(QUICKSTART, list(EmtAlloys(num_frames=config.num_frames)))
    large, large_batch = potential_for(SEVENNET_0, oxides(config.num_frames_large))
    tasks = {
        "train small": training_step(small, small_batch),
        "infer small": lambda: small.eval()(small_batch),
        "train large": training_step(large, large_batch),
        "infer large": lambda: large.eval()(large_batch),
    }
    peer = sevenn_step(large_batch)
    if peer is not None:
        tasks |= {"train sevenn": lambda: peer(True), "infer sevenn": lambda: peer(False)}
    seconds = interleaved(tasks, config.rounds)
    rows = []
    sizes = f"{len(large_batch.numbers)} atoms, {large_batch.num_edges} edges"
    for verb, name in (("train", "training step"), ("infer", "inference (E, F, S)")):
        rate = len(small_batch.numbers) / seconds[f"{verb} small"]
        rows.append(_row(f"{name}, quickstart model", rate))
        rate = len(large_batch.numbers) / seconds[f"{verb} large"]
        theirs = len(large_batch.numbers) / seconds[f"{verb} sevenn"] if peer else None
        rows.append(_row(f"{name}, SevenNet-0 size, {sizes}", rate, theirs, BARS[verb]))
    rows += _two_threads(tasks["train large"])
    rows += _shares("quickstart model", small, small_batch) + _shares("SevenNet-0 size", large, large_batch)
    write("step", rows)


def _row(measure: str, rate: float, peer_rate: float | None = None, bar: float | None = None) -> Row:
    ratio = rate / peer_rate if peer_rate else None
    return Row(
        measure=measure,
        value=rate,
        unit="atoms/s, one core",
        peer="sevenn 0.13, SevenNet-0" if peer_rate else None,
        peer_value=peer_rate,
        ratio=ratio,
        bar=bar,
        holds=ratio >= bar if ratio and bar else None,
        command=COMMAND,
    )


def _two_threads(step: Callable[[], object]) -> list[Row]:
    """Return the gain of a second thread in wall time, beside a large matrix product's: other programs spoil both."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    tasks = {"step": step, "product": lambda: left @ right}
    seconds = {(name, threads): float("inf") for threads in (1, 2) for name in tasks}
    for _ in range(8):
        for name, threads in seconds:
            torch.set_num_threads(threads)
            tasks[name]()
            started = time.perf_counter()
            tasks[name]()
            seconds[name, threads] = min(seconds[name, threads], time.perf_counter() - started)
    torch.set_num_threads(1)
    gain, product = (seconds[name, 1] / seconds[name, 2] for name in tasks)
    return [
        Row(
            measure="training step, 2 threads over 1 (wall time)",
            value=gain,
            unit="times",
            peer="torch's matrix product",
            peer_value=product,
            ratio=gain / product,
            bar=1.8,
            holds=gain >= 1.8,
            command=COMMAND,
        )
    ]


def _shares(name: str, potential: Potential, batch: GraphBatch) -> list[Row]:
    """Return the share of a training step in forward, force gradient and backward, and of the parts of the forward."""
    counts, seconds = label_counts(batch), {}
    potential.train()
    network = potential.network
    positions = batch.positions.clone().requires_grad_()
    moved = replace(batch, positions=positions)
    tasks = {
        "energy forward": lambda: potential.atom_energies(moved),
        "forward and force gradient": lambda: potential(batch),
        "whole step": lambda: loss(LossConfig(), potential(batch), batch, counts).backward(),
    }
    block = network.blocks[-1] if len(network.blocks) == 1 else network.blocks[1]
    features = torch.randn(len(batch.numbers), block.self_interaction_1.irreps_in.dim)
    num_pairs = len(batch.pair_edges)
    harmonics = torch.randn(num_pairs, network.irreps_harmonics.dim)
    basis = torch.randn(num_pairs, network.config.num_basis)
    weights = block.radial(basis).detach()
    edges = edge_index(batch)
    tasks |= {
        "one block forward": lambda: block(features, harmonics, basis, edges),
        "its convolution": lambda: block.convolution(features, harmonics, weights, edges),
        "its radial network": lambda: block.radial(basis),
    }
    seconds = interleaved(tasks, 5)
    whole, one = seconds["whole step"], seconds["one block forward"]
    shares = {
        "step: energy forward": seconds["energy forward"] / whole,
        "step: force gradient": (seconds["forward and force gradient"] - seconds["energy forward"]) / whole,
        "step: backward through both": (whole - seconds["forward and force gradient"]) / whole,
        "second block, forward: convolution": seconds["its convolution"] / one,
        "second block, forward: radial network": seconds["its radial network"] / one,
    }
    return [
        Row(measure=f"{name}, {part}", value=share, unit="share", command=COMMAND) for part, share in shares.items()
    ]
