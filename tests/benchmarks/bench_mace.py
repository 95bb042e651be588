"""MACE beside this project on Coulomb forces: an optional peer, which a person installs for this.

A MACE of as many layers and the same cutoff is trained by its own package's modules on the data set of the study
`coulomb` for a CPU time, and judged by the study's suite. Its settings are its package's defaults where they are not
the study's: products of three features, Adam with a learning rate of 0.01, weights 1 of energies and 100 of forces.
It needs e3nn 0.4, which this project's other peers do not run with: install it into an environment of its own, set
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, and remove the package `tests` that comes with it, which hides this one.
"""

import copy
import importlib.util
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import open_manifest
from data_pipeline.structure import Structure
from foundation.evaluation.suites import CoulombLaw, run_suites
from foundation.interop.subject import CalculatorSubject
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=mace"
CUTOFF = 5.0
DISTANCES = (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 24.0)
SHOWN = 100
"""Number of steps between printed losses."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    data: Path = Path("runs/study/coulomb/data/charged")
    """Data set of the study."""
    cpu_seconds: float = 390.0
    """CPU time of the training; this project's five blocks take as much for 5,000 steps."""
    batch: int = 2
    """Frames of a step."""
    num_layers: int = 5
    """Interactions, as many as this project's blocks."""
    channels: int = 32
    """Features of each degree."""
    correlation: int = 3
    """Largest number of features in a product."""
    num_media: int = 32
    """Media of the suite at each distance."""


def run(config: Config) -> None:
    """Train, judge and write runs/bench/mace.json."""
    if importlib.util.find_spec("mace") is None:
        print("mace is not installed, so there is nothing to measure: pip install mace-torch==0.3.16")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    frames = list(Dataset(manifest=open_manifest(config.data), split="train").frames())
    model = network(config, frames)
    averaged, steps = trained(model, config, frames)
    suite = CoulombLaw(probe_distances=DISTANCES, num_media=config.num_media, medium="charged")
    found = run_suites([suite], CalculatorSubject(Peer(averaged, model.atomic_numbers.tolist()), "MACE"))["coulomb"]
    measure = f"MACE, {config.num_layers} layers, {steps} steps in {config.cpu_seconds:.0f} CPU-s"
    rows = [
        Row(measure=f"{measure}: {name}", value=each.value, unit=each.unit, command=COMMAND)
        for name, each in found.quantities.items()
        if each.value is not None
    ]
    write("mace", rows)


def network(config: Config, frames: list[Structure]) -> Any:
    """Return an untrained MACE whose energies of elements and scale fit the frames."""
    from e3nn import o3
    from mace import modules

    numbers = sorted({number for frame in frames for number in frame.numbers.tolist()})
    counts = np.array([[np.count_nonzero(frame.numbers == number) for number in numbers] for frame in frames])
    energies = np.linalg.lstsq(counts, np.array([frame.energy for frame in frames]), rcond=None)[0]
    scale = float(np.sqrt(np.mean([np.square(frame.forces).mean() for frame in frames])))
    some = inputs(frames[:50], numbers)
    return modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=1,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=config.num_layers,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(f"{config.channels}x0e+{config.channels}x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=energies,
        avg_num_neighbors=some["edge_index"].shape[1] / len(some["positions"]),
        atomic_numbers=numbers,
        correlation=config.correlation,
        gate=torch.nn.functional.silu,
        radial_MLP=[32, 32],
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    )


def trained(model: Any, config: Config, frames: list[Structure]) -> tuple[Any, int]:
    """Return the network with the moving average of its weights, and the number of steps in the CPU time."""
    numbers = model.atomic_numbers.tolist()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    averaged, steps, began = copy.deepcopy(model), 0, time.process_time()
    for batch in batches(frames, config.batch):
        used = time.process_time() - began
        if used > config.cpu_seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * max(0.01, 1 - used / config.cpu_seconds)
        out = model(inputs(batch, numbers), training=True)
        labels = torch.tensor([[frame.energy, frame.num_atoms] for frame in batch], dtype=torch.float32)
        forces = torch.from_numpy(np.concatenate([frame.forces for frame in batch]))
        loss = ((out["energy"] - labels[:, 0]) / labels[:, 1]).square().mean()
        loss = loss + 100 * (out["forces"] - forces).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        steps += 1
        kept = min(0.99, steps / (steps + 10))
        with torch.no_grad():
            for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - kept)
        if steps % SHOWN == 0:
            error = (out["forces"] - forces).abs().mean()
            print(
                f"step {steps}, {used:.0f} CPU-s: mean error of a force component {float(error):.4f} eV/Å", flush=True
            )
    return averaged.eval(), steps


def batches(frames: list[Structure], size: int) -> Iterator[list[Structure]]:
    """Yield batches in random order without end."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(frames))
        for start in range(0, len(order) - size + 1, size):
            yield [frames[each] for each in order[start : start + size].tolist()]


def inputs(frames: list[Structure], numbers: list[int]) -> dict[str, torch.Tensor]:
    """Return a batch as MACE takes it; frames do not repeat."""
    edges, owners, first = [], [], 0
    for owner, frame in enumerate(frames):
        distances = np.linalg.norm(frame.positions[:, None] - frame.positions, axis=-1)
        np.fill_diagonal(distances, np.inf)
        edges.append(np.stack(np.nonzero(distances < CUTOFF)) + first)
        owners += [owner] * frame.num_atoms
        first += frame.num_atoms
    edge_index = torch.from_numpy(np.concatenate(edges, axis=1))
    kinds = torch.tensor([numbers.index(number) for frame in frames for number in frame.numbers.tolist()])
    return {
        "positions": torch.from_numpy(np.concatenate([frame.positions for frame in frames])).float(),
        "node_attrs": torch.nn.functional.one_hot(kinds, len(numbers)).float(),
        "edge_index": edge_index,
        "shifts": torch.zeros(edge_index.shape[1], 3),
        "unit_shifts": torch.zeros(edge_index.shape[1], 3),
        "cell": torch.zeros(3 * len(frames), 3),
        "batch": torch.tensor(owners),
        "ptr": torch.tensor(np.cumsum([0] + [frame.num_atoms for frame in frames])),
        "head": torch.zeros(len(frames), dtype=torch.long),
    }


class Peer(Calculator):
    """A trained MACE in float32."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (as ASE declares it)

    def __init__(self, model: Any, numbers: list[int]) -> None:
        super().__init__()
        self.model, self.numbers = model, numbers

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Compute energy and forces."""
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, ase.Atoms)
        frame = Structure.checked(
            numbers=self.atoms.numbers,
            positions=self.atoms.positions,
            cell=np.zeros((3, 3)),
            pbc=[False] * 3,
            energy=0.0,
        )
        out = self.model(inputs([frame], self.numbers), training=False)
        self.results = {"energy": float(out["energy"]), "forces": out["forces"].detach().numpy().astype(float)}
