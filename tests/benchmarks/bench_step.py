"""Training step and inference on one core: the quickstart model and a SevenNet-0-sized one beside sevenn itself."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.graph import GraphBatch, collate
from data_pipeline.sources import EmtAlloys
from data_pipeline.statistics import Statistics
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.optim import OptimConfig, make_optimizer
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


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 24
    """EMT frames in the batch of the quickstart model."""
    num_frames_large: int = 8
    """EMT frames in the batch of the SevenNet-0-sized models."""
    rounds: int = 5
    """Measured rounds, all engines taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/step.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small, small_batch = _ours(QUICKSTART, config.num_frames)
    large, large_batch = _ours(EquivariantConfig(), config.num_frames_large)
    tasks = {
        "train small": _training_step(small, small_batch),
        "infer small": lambda: small.eval()(small_batch),
        "train large": _training_step(large, large_batch),
        "infer large": lambda: large.eval()(large_batch),
    }
    peer = _sevenn(large_batch)
    if peer is not None:
        tasks |= {"train sevenn": lambda: peer(True), "infer sevenn": lambda: peer(False)}
    seconds = interleaved(tasks, config.rounds)
    rows = []
    for verb, name in (("train", "training step"), ("infer", "inference (E, F, S)")):
        rate = len(small_batch.numbers) / seconds[f"{verb} small"]
        rows.append(_row(f"{name}, quickstart model", rate))
        rate = len(large_batch.numbers) / seconds[f"{verb} large"]
        theirs = len(large_batch.numbers) / seconds[f"{verb} sevenn"] if peer else None
        rows.append(_row(f"{name}, SevenNet-0 size", rate, theirs))
    rows += _shares("quickstart model", small, small_batch) + _shares("SevenNet-0 size", large, large_batch)
    write("step", rows)


def _row(measure: str, rate: float, peer_rate: float | None = None) -> Row:
    return Row(
        measure=measure,
        value=rate,
        unit="atoms/s, one core",
        peer="sevenn 0.13, SevenNet-0" if peer_rate else None,
        peer_value=peer_rate,
        ratio=rate / peer_rate if peer_rate else None,
        command=COMMAND,
    )


def _ours(model: EquivariantConfig, num_frames: int) -> tuple[Potential, GraphBatch]:
    structures = list(EmtAlloys(num_frames=num_frames))
    statistics = Statistics(cutoffs=(model.cutoff,))
    batch = collate(structures, model.cutoff)
    statistics.add(structures, np.full((len(structures), 1), batch.num_edges // len(structures)))
    return new_potential(model, {"EMT": statistics}), batch


def _training_step(potential: Potential, batch: GraphBatch):
    optimizer = make_optimizer(OptimConfig(), potential, len(potential.elements))
    counts = label_counts(batch)

    def step() -> None:
        potential.train()
        optimizer.zero_grad()
        loss(LossConfig(), potential(batch), batch, counts).backward()
        optimizer.step()

    return step


def _sevenn(batch: GraphBatch):
    """Return a function that takes a training step or predicts with sevenn's own SevenNet-0; None if not installed."""
    try:
        import sevenn._keys as key
        from sevenn.util import load_checkpoint
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_checkpoint("7net-0").build_model()
    model.set_is_batch_data(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def data() -> dict:
        vectors = batch.edge_vectors()
        values = {
            key.NODE_FEATURE: torch.tensor([model.type_map[z] for z in batch.numbers.tolist()]),
            key.ATOMIC_NUMBERS: batch.numbers,
            key.POS: batch.positions.clone(),
            key.EDGE_IDX: torch.stack([batch.receivers, batch.senders]),
            key.EDGE_VEC: vectors,
            key.CELL: batch.cell.clone(),
            key.CELL_SHIFT: batch.shifts,
            key.CELL_VOLUME: torch.linalg.det(batch.cell).abs(),
            key.NUM_ATOMS: batch.num_atoms,
            key.BATCH: batch.graph_of_atom,
        }
        return values

    def step(training: bool) -> None:
        model.train(training)
        optimizer.zero_grad()
        out = model(data())
        if training:
            energy = (out[key.PRED_TOTAL_ENERGY] - batch.energy) / batch.num_atoms
            total = energy.abs().mean() + (out[key.PRED_FORCE] - batch.forces).abs().mean()
            (total + out[key.PRED_STRESS].abs().mean()).backward()
            optimizer.step()

    return step


def _shares(name: str, potential: Potential, batch: GraphBatch) -> list[Row]:
    """Return the share of a training step in forward, force gradient and backward, and of the parts of the forward."""
    counts, seconds = label_counts(batch), {}
    potential.train()
    network = potential.network
    positions = batch.positions.clone().requires_grad_()
    moved = GraphBatch(**{**{f: getattr(batch, f) for f in batch.__dataclass_fields__}, "positions": positions})
    tasks = {
        "energy forward": lambda: potential.atom_energies(moved),
        "forward and force gradient": lambda: potential(batch),
        "whole step": lambda: loss(LossConfig(), potential(batch), batch, counts).backward(),
    }
    block = network.blocks[-1] if len(network.blocks) == 1 else network.blocks[1]
    features = torch.randn(len(batch.numbers), block.self_interaction_1.irreps_in.dim)
    harmonics = torch.randn(batch.num_edges, network.irreps_harmonics.dim)
    basis = torch.randn(batch.num_edges, network.config.num_basis)
    weights = block.radial(basis).detach()
    edges = (batch.senders, batch.receivers)
    tasks |= {
        "one block forward": lambda: block(features, harmonics, basis, *edges),
        "its convolution": lambda: block.convolution(features, harmonics, weights, *edges),
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
