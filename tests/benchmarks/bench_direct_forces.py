"""Forces inside grains by a head of their own, as in the published network (arXiv:2505.01058), beside derivatives.

Both are the same network of grains, trained by the same loop on the same frames. With a head, the force on a grain as a
whole is still a derivative of the energy, divided among its atoms; what remains inside the grain is a sum of messages
and of the displacements of its atoms, with weights that a small network reads from the grain's features. Such forces
belong to no energy, so that dynamics does not conserve it.

The data are those of docs/architectures.md: --train and --test name their folders.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from jaxtyping import Float
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import open_manifest
from foundation.interop.calculator import Calculator
from foundation.models.grains import GrainsConfig, GrainsNetwork, Layers
from foundation.nn.grains import grains_of
from foundation.potential import Potential, Prediction, new_potential
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=direct_forces"
OPTIM = OptimConfig(optimizer="muon", learning_rate=0.01, warmup_steps=50)
EMA_DECAY = 0.995
WARM_UP = 300
"""Steps of 1 fs with a thermostat before the energy is watched."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    train: Path = Path("runs/data/electrolyte-0")
    """Data set to train on."""
    test: Path = Path("runs/data/electrolyte-test")
    """Data set with other boxes in its split test."""
    grains: tuple[str, ...] = ("Li", "PF6", "CO3C2H4", "CO3C3H8")
    """Kinds of grains."""
    steps: int = 1500
    """Steps of each training."""
    frames: int = 4
    """Frames of a step."""
    picoseconds: float = 1.0
    """Length of the dynamics at 300 K, with steps of 0.5 fs."""
    seed: int = 0
    """Random seed of weights, frames and velocities."""
    forms: tuple[str, ...] = ("derivatives", "head")
    """Forms that are trained."""


class DirectForces(Potential):
    """A potential of grains whose forces inside grains come from a head of their own."""

    def __init__(self, potential: Potential) -> None:
        """Take a potential of grains, and add a head with random weights."""
        super().__init__(potential.network, potential.elements, potential.theories)
        self.load_state_dict(potential.state_dict())
        network = potential.network
        assert isinstance(network, GrainsNetwork)
        self._sequences = network.config.sequences
        self._scalars, self._vectors = network.config.channels
        width = 2 * self._scalars + self._vectors
        self.heads = torch.nn.ModuleList(
            Layers(width, *network.config.hidden_sizes, len(each) * (self._vectors + len(each)))
            for each in self._sequences
        )

    def forward(self, batch: GraphBatch) -> Prediction:
        """Return the energy with forces of which only those on whole grains are its derivatives."""
        kept: list[Tensor] = []
        block = self.network.get_submodule("blocks")[-1]
        # for this call alone: a hook that stays would belong to the potential that a copy was made of
        hook = block.register_forward_hook(lambda _, __, messages: kept.append(messages))
        found = super().forward(batch)
        hook.remove()
        assert batch.molecule is not None
        with torch.set_grad_enabled(self.training):
            inside = self._inside(batch, kept[0])
            whole = _mean_of_grain(found.forces, batch.molecule)
            forces = whole + inside - _mean_of_grain(inside, batch.molecule)
        return replace(found, forces=forces)

    def _inside(self, batch: GraphBatch, messages: Float[Tensor, "grains features"]) -> Float[Tensor, "atoms 3"]:
        """Return the forces of the head [eV/Å], from the messages of the last block."""
        grains = grains_of(batch, self._sequences)
        features = self.network.features(batch, batch.numbers)  # of each atom's grain
        stop = self._scalars + 3 * self._vectors
        messages = messages[:, self._scalars : stop].view(-1, 3, self._vectors)
        forces = features.new_zeros(len(batch.numbers), 3)
        for kind, head in zip(grains.kinds, self.heads, strict=True):
            own, slots = features.index_select(0, kind.atoms[:, 0]), kind.atoms.shape[1]
            weights = head(own).view(len(own), slots, self._vectors + slots)
            of_messages, of_displacements = weights.split([self._vectors, slots], dim=2)
            found = torch.einsum("gsv,giv->gsi", of_messages, messages.index_select(0, kind.grains))
            found = found + torch.einsum("gst,gti->gsi", of_displacements, kind.displacements.to(found.dtype))
            forces = forces.index_add(0, kind.atoms.flatten(), found.flatten(0, 1))
        return forces * self.get_buffer("scale")[0].to(forces.dtype)


def _mean_of_grain(rows: Float[Tensor, "atoms 3"], grain: Tensor) -> Float[Tensor, "atoms 3"]:
    """Return for each atom the mean over its grain."""
    number = int(grain.max()) + 1
    sums = rows.new_zeros(number, 3).index_add(0, grain, rows)
    counts = rows.new_zeros(number).index_add(0, grain, rows.new_ones(len(rows)))
    return (sums / counts.unsqueeze(1)).index_select(0, grain)


def run(config: Config) -> None:
    """Train both, judge them, and write runs/bench/direct_forces.json."""
    torch.set_num_threads(1)
    train, test = (open_manifest(each) for each in (config.train, config.test))
    frames = Dataset(manifest=train, split="train").frames()
    held_out = list(Dataset(manifest=test, split="test").frames())
    model = GrainsConfig(grains=config.grains)
    rows: list[Row] = []
    for name in config.forms:
        torch.manual_seed(config.seed)
        potential = new_potential(model, {"SevenNet-0": train.split("train").statistics})
        potential.standardize(_batches(frames, potential, config, 50))
        if name == "head":
            potential = DirectForces(potential)
        potential = trained(potential, frames, config)
        predicted = [(potential(collate([each], potential.cutoff)), each) for each in held_out]
        forces = torch.cat(
            [found.forces.flatten() - torch.from_numpy(each.forces).flatten() for found, each in predicted]
        )
        energies = [(float(found.energy) - each.energy) / each.num_atoms for found, each in predicted]
        try:
            drift, kelvin = conserved(potential, held_out[0], config)
        except ValueError:  # molecules have flown apart
            drift, kelvin = math.inf, math.nan
        for measure, value, unit in (
            ("force RMSE, held out", 1e3 * float(forces.double().square().mean().sqrt()), "meV/Å"),
            ("energy RMSE, held out", 1e3 * float(np.sqrt(np.mean(np.square(energies)))), "meV/atom"),
            ("drift of the energy at 300 K", drift, "eV/atom/ps"),
            ("mean temperature of it", kelvin, "K"),
        ):
            rows.append(Row(measure=f"{name}: {measure}", value=value, unit=unit, command=COMMAND))
            print(rows[-1].measure, rows[-1].value, flush=True)
    write("direct_forces", rows)


def _batches(frames: Frames, potential: Potential, config: Config, number: int) -> Iterator[GraphBatch]:
    """Yield batches of random frames."""
    rng = np.random.default_rng(config.seed)
    for _ in range(number):
        chosen = [frames[int(place)] for place in rng.integers(len(frames), size=config.frames)]
        yield collate(chosen, potential.cutoff)


def trained(potential: Potential, frames: Frames, config: Config) -> Potential:
    """Return the moving average of a potential over its training."""
    optimizer = make_optimizer(OPTIM, potential, len(potential.elements))
    schedule, terms = make_schedule(OPTIM, optimizer, config.steps), LossConfig()
    average = {name: each.clone() for name, each in potential.state_dict().items()}
    potential.train()
    for step, batch in enumerate(_batches(frames, potential, config, config.steps)):
        optimizer.zero_grad()
        value = loss(terms, potential(batch), batch, label_counts(batch))
        value.backward()
        torch.nn.utils.clip_grad_norm_(potential.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for name, each in potential.state_dict().items():
            if each.is_floating_point():
                average[name].lerp_(each, 1 - decay)
        if step % 100 == 99:
            print(f"step {step + 1} of {config.steps}: loss {float(value.detach()):.3g}", flush=True)
    potential.load_state_dict(average)
    return potential.eval()


def conserved(potential: Potential, start: object, config: Config) -> tuple[float, float]:
    """Return the drift of the total energy [eV/atom/ps] and the mean temperature [K] of microcanonical dynamics."""
    atoms = to_atoms(start)  # pyright: ignore[reportArgumentType]
    atoms.calc = Calculator(copy.copy(potential), dtype=torch.float32)
    rng = np.random.default_rng(config.seed)
    width = np.sqrt(atoms.get_masses() * 300 * units.kB)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * width[:, None])
    friction = 0.02 / units.fs
    Langevin(atoms, 1.0 * units.fs, temperature_K=300, friction=friction, rng=rng, fixcm=False).run(WARM_UP)
    moving, energies, kelvins = VelocityVerlet(atoms, 0.5 * units.fs), [], []
    for _ in range(round(config.picoseconds * 200)):
        moving.run(10)
        energies.append(atoms.get_total_energy() / len(atoms))
        kelvins.append(atoms.get_temperature())
    times = 0.005 * np.arange(len(energies))
    return float(np.polyfit(times, energies, 1)[0]), float(np.mean(kelvins))
