"""Symmetry functions of silicon, and a Behler-Parrinello network on them: atoms per second on one core.

Beside plain torch, and beside DScribe's ACSF for the values alone, neighbours included in both: an optional peer, which
a person installs for this (pip install dscribe==2.1.2). n2p2 is not on the package index.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import ase
import ase.build
import numpy as np
import torch

from data_pipeline.graphs.batch import GraphBatch, to_graph
from foundation.interop.calculator import to_structure
from foundation.models import DataFacts, SymmetryFunctionsConfig
from foundation.nn.computation import Computation
from foundation.nn.symmetry_functions import SymmetryFunctionLayer
from foundation.potential import Potential
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=symmetry_functions"
MODEL = SymmetryFunctionsConfig(radial_functions="default", angular_functions="default", cutoff=6.0)
INFERENCE_BAR = 20_000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    repeats: int = 3
    """Cubic cells of eight atoms along each side."""
    rounds: int = 9
    """Measured rounds."""


def run(config: Config) -> None:
    """Measure and write runs/bench/symmetry_functions.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    atoms = ase.build.bulk("Si", cubic=True).repeat(config.repeats)
    atoms.rattle(0.1, seed=1)
    batch = to_graph(to_structure(atoms), MODEL.cutoff)
    potential = Potential(
        MODEL.network((14,), facts=DataFacts(mean_neighbors=batch.num_edges / len(atoms))), (14,), ("none",)
    )
    parameters = list(potential.parameters())

    def step() -> None:
        prediction = potential.train()(batch)
        torch.autograd.grad(prediction.energy.sum() + prediction.forces.square().sum(), parameters)

    def plain(task: Callable[[], object]) -> None:
        potential.compute_as(Computation(backend="torch"))
        task()
        potential.compute_as(Computation())

    tasks: dict[str, Callable[[], object]] = {
        "values, with neighbours": lambda: _values(atoms),
        "energy, forces and stress": lambda: potential.eval()(batch),
        "training step": step,
        "energy, forces and stress, plain torch": lambda: plain(lambda: potential.eval()(batch)),
        "training step, plain torch": lambda: plain(step),
    }
    peer = _dscribe(atoms)
    if peer is not None:
        np.testing.assert_allclose(peer()[:, 1:], _values(atoms).numpy(), rtol=1e-9)
        tasks["dscribe"] = peer
    rates = {name: len(atoms) / each for name, each in interleaved(tasks, config.rounds).items()}
    write("symmetry_functions", [_row(name, rates, batch) for name in list(tasks)[:3]])


def _values(atoms: ase.Atoms) -> torch.Tensor:
    batch = to_graph(to_structure(atoms), MODEL.cutoff)
    layer, kinds = SymmetryFunctionLayer(MODEL.functions), torch.zeros(len(atoms), dtype=torch.int64)
    return layer(batch, batch.edge_vectors(), kinds, 1)


def _dscribe(atoms: ase.Atoms) -> Callable[[], np.ndarray] | None:
    """Return the same functions by DScribe, whose first is the sum of the cutoff function; None if not installed."""
    if importlib.util.find_spec("dscribe") is None:
        print("dscribe is not installed, so nothing is measured beside it: pip install dscribe==2.1.2")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dscribe.descriptors import ACSF  # pyright: ignore[reportMissingImports]
    radial, near, _ = ([list(each) for each in kind] for kind in MODEL.functions[:3])
    peer = ACSF(r_cut=MODEL.cutoff, g2_params=radial, g4_params=near, species=["Si"], periodic=True)
    return lambda: peer.create(atoms)


def _row(name: str, rates: dict[str, float], batch: GraphBatch) -> Row:
    other = "dscribe" if name.startswith("values") else f"{name}, plain torch"
    peer = rates.get(other)
    bar = INFERENCE_BAR if name.startswith("energy") else None
    return Row(
        measure=f"{name}, {len(batch.numbers)} atoms, {batch.num_edges // len(batch.numbers)} neighbours, 26 functions",
        value=rates[name],
        unit="atoms/s",
        peer=other.rpartition(", ")[2],
        peer_value=peer,
        ratio=peer and rates[name] / peer,
        bar=bar,
        holds=None if bar is None else rates[name] >= bar,
        command=COMMAND,
    )
