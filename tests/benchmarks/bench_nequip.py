"""Training step beside nequip's own, compiled, on real oxides: an optional peer, which a person installs for this.

nequip 0.19.1 has no model of SevenNet-0's: hidden features are of natural parity (128x0e+64x1o+32x2e), which leaves 11
paths in a convolution instead of 15. So this project's model is measured both at exactly these features and at
SevenNet-0's. Alike in all are 5 blocks, cutoff 5 Å, 8 Bessel functions and radial networks of two layers of 64;
nequip's mixing of an atom's own features depends on its element, which is cheap for few elements and costs weights.
Compiling nequip takes minutes.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.structure import SYMBOLS
from foundation.models import EquivariantConfig
from tests.benchmarks.oxides import CUTOFF, SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=nequip"
BAR = 3.5
MODELS = {
    "features of nequip's (128x0e+64x1o+32x2e)": EquivariantConfig(irreps="128x0e+64x1o+32x2e"),
    "SevenNet-0 size (128x0e+64x1e+32x2e)": SEVENNET_0,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 4
    """Oxides in the batch."""
    num_blocks: int = 5
    """Interaction blocks of nequip's model and this project's."""
    rounds: int = 5
    """Measured rounds, all taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/nequip.json."""
    if importlib.util.find_spec("nequip") is None:
        print("nequip is not installed, so there is nothing to measure beside: pip install nequip==0.19.1")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    structures, tasks = oxides(config.num_frames), {}
    for name, model in MODELS.items():
        potential, batch = potential_for(replace(model, num_blocks=config.num_blocks), structures)
        tasks[name] = training_step(potential, batch)
    batch = collate(structures, CUTOFF)
    tasks["nequip"] = nequip_step(batch, config.num_blocks)
    started = time.process_time()
    tasks["nequip"]()
    compiling = time.process_time() - started
    seconds = interleaved(tasks, config.rounds)
    sizes = f"{config.num_blocks} blocks, {len(batch.numbers)} atoms, {batch.num_edges} edges"
    rates = {name: len(batch.numbers) / value for name, value in seconds.items()}
    rows = [_row(f"training step, {name}, {sizes}", rates[name], rates["nequip"]) for name in MODELS]
    measure = "nequip's first step: compiling, in this process alone"
    write("nequip", [*rows, Row(measure=measure, value=compiling, unit="CPU s", command=COMMAND)])


def nequip_step(batch: GraphBatch, num_blocks: int) -> Callable[[], None]:
    """Return a function that takes one optimizer step of nequip's compiled model.

    nequip changes torch's default float type for the whole process; it is put back after each step.
    """
    with warnings.catch_warnings():
        # nequip and what it imports warn of what torch will remove
        warnings.simplefilter("ignore")
        from nequip.model import NequIPGNNModel
        from nequip.utils.global_state import set_global_state

        set_global_state()
        model = NequIPGNNModel(**architecture(batch, num_blocks))
    torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    data = inputs(batch)

    def step() -> None:
        torch.set_default_dtype(torch.float64)
        model.train()
        optimizer.zero_grad()
        out = model(dict(data))
        energy = (out["total_energy"].flatten() - batch.energy) / batch.num_atoms
        total = energy.abs().mean() + (out["forces"] - batch.forces).abs().mean()
        (total + (out["stress"] - batch.stress).abs().mean()).backward()
        optimizer.step()
        torch.set_default_dtype(torch.float32)

    return step


def architecture(batch: GraphBatch, num_blocks: int) -> dict:
    """Return the arguments of nequip's builder that come closest to SevenNet-0."""
    symbols = [SYMBOLS[number] for number in batch.numbers.unique().tolist()]
    return {
        "seed": 0,
        "model_dtype": "float32",
        "compile_mode": "compile",
        "r_max": CUTOFF,
        "type_names": symbols,
        "num_layers": num_blocks,
        "l_max": 2,
        "parity": False,
        "num_features": [128, 64, 32],
        "radial_mlp_depth": 2,
        "radial_mlp_width": 64,
        "num_bessels": 8,
        "avg_num_neighbors": batch.num_edges / len(batch.numbers),
        "per_type_energy_shifts": dict.fromkeys(symbols, -5.0),
        "per_type_energy_scales": dict.fromkeys(symbols, 1.0),
    }


def inputs(batch: GraphBatch) -> dict[str, Tensor]:
    """Return a batch as nequip takes it, lengths in float64; its edges are the same, from receiver to sender."""
    return {
        "pos": batch.positions,
        "cell": batch.cell,
        "pbc": torch.ones(batch.num_graphs, 3, dtype=torch.bool),
        "atom_types": batch.numbers.unique(return_inverse=True)[1],
        "edge_index": torch.stack([batch.receivers, batch.senders]),
        "edge_cell_shift": batch.shifts.double(),
        "batch": batch.graph_of_atom,
        "num_atoms": batch.num_atoms,
    }


def _row(measure: str, rate: float, peer_rate: float) -> Row:
    ratio = rate / peer_rate
    return Row(
        measure=measure,
        value=rate,
        unit="atoms/s, one core",
        peer="nequip 0.19.1, compiled",
        peer_value=peer_rate,
        ratio=ratio,
        bar=BAR,
        holds=ratio >= BAR,
        command=COMMAND,
    )
