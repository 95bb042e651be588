# %% [markdown]
# # Add an architecture
#
# A network is two classes: a config (`Architecture`) and a module (`EnergyModel`); `foundation/models/energy_model.py`
# describes both. This one is a learned pair potential: the energy of an atom is a sum over its neighbours of a small
# network of their distance and of both elements.
#
# To train it with `foundation pretrain`, put both classes into a file of `foundation/models/` and add the config to the
# union in `foundation/models/__init__.py`. Nothing else has to be edited.

# %%
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from torch import Tensor

from data_pipeline import GraphBatch, Structure, collate
from foundation import Potential
from foundation.configuration import DECIDES
from foundation.models.energy_model import NO_FACTS, Architecture, DataFacts, EnergyModel
from foundation.nn.computation import Computation, Option, refuse_options, set_layers
from foundation.nn.radial import BesselBasis, polynomial_cutoff
from foundation.testing import check_laws

# %% [markdown]
# ## The config
#
# Its first field has no default and a name that no other architecture uses: by it a YAML says which one it means.


# %%
@dataclass(frozen=True, kw_only=True)
class PairConfig(Architecture):
    """Hyperparameters of a learned pair potential."""

    architecture: ClassVar[str] = "pairs"

    pair_channels: int = field(metadata=DECIDES)
    """Width of the hidden layer."""
    cutoff: float = field(default=5.0, metadata=DECIDES)
    """Atoms closer than this are neighbours [Å]."""
    num_basis: int = field(default=8, metadata=DECIDES)
    """Number of radial basis functions."""

    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters, without building the network."""
        inputs = self.num_basis + 2 * num_elements
        return self.num_basis + (inputs + 1) * self.pair_channels + self.pair_channels + 1 + num_theories

    def network(self, elements: tuple[int, ...], num_theories: int = 1, facts: DataFacts = NO_FACTS) -> "PairNetwork":
        """Return a network with random weights."""
        return PairNetwork(self, elements, num_theories, facts)


# %% [markdown]
# ## The network
#
# `forward` gets a batch of graphs and returns an energy per atom. Forces and stress follow by differentiation in
# `Potential`. Smoothness at the cutoff is the network's own duty: here by a polynomial that ends with two derivatives.


# %%
class PairNetwork(EnergyModel):
    """Atomic energies as sums over neighbours."""

    def __init__(self, config: PairConfig, elements: tuple[int, ...], num_theories: int, facts: DataFacts) -> None:
        super().__init__()
        self._config, self._elements, self._num_theories = config, elements, num_theories
        self.basis = BesselBasis(config.num_basis, config.cutoff)
        self.hidden = torch.nn.Linear(config.num_basis + 2 * len(elements), config.pair_channels)
        self.readout = torch.nn.Linear(config.pair_channels, 1)
        self.theory_bias = torch.nn.Parameter(torch.zeros(num_theories))
        self.register_buffer("denominator", torch.tensor(facts.mean_neighbors))

    @property
    def config(self) -> PairConfig:
        """The architecture."""
        return self._config

    @property
    def reach(self) -> float:
        """Distance to the farthest atom that the energy of an atom depends on [Å]."""
        return self.cutoff

    @property
    def parity(self) -> bool:
        """True: distances are the same in a mirror."""
        return True

    def forward(self, batch: GraphBatch, elements: Tensor) -> Tensor:
        """Return the energy of each atom, in units of the potential's scale."""
        distances = torch.linalg.vector_norm(batch.edge_vectors(), dim=1).to(self.readout.weight.dtype)
        kinds = torch.nn.functional.one_hot(elements, len(self._elements)).to(distances.dtype)
        pairs = torch.cat([self.basis(distances), kinds[batch.receivers], kinds[batch.senders]], dim=1)
        energies = self.readout(torch.nn.functional.silu(self.hidden(pairs))).squeeze(1)
        energies = energies * polynomial_cutoff(distances, self.cutoff, 6) / self.get_buffer("denominator")
        sums = torch.zeros_like(kinds[:, 0]).index_add(0, batch.receivers, energies)
        return sums + self.theory_bias[batch.theory[batch.graph_of_atom]]

    def describe(self) -> str:
        """Return the architecture in one phrase, for the model card."""
        return f"learned pair potential, hidden layer of {self.config.pair_channels}"

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the stages for freezing and adapters, from the input to the energy."""
        return {"block 0": ("basis.*", "hidden.*"), "readout": ("readout.*", "theory_bias")}

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "PairNetwork":
        """Return a network for other elements, each of which begins as one of this network's."""
        network = self.config.network(elements, self._num_theories).to(self.readout.weight)
        radial, receiver, sender = self.hidden.weight.split(
            [self.config.num_basis, len(self._elements), len(self._elements)], dim=1
        )
        weight = torch.cat([radial, receiver[:, list(sources)], sender[:, list(sources)]], dim=1)
        network.load_state_dict(dict(self.state_dict()) | {"hidden.weight": weight})
        return network.train(self.training)

    def with_theories(self, mixture: Tensor) -> "PairNetwork":
        """Return a network for other levels of theory, each a mixture of this network's."""
        network = self.config.network(self._elements, len(mixture)).to(self.readout.weight)
        biases = mixture.to(self.theory_bias) @ self.theory_bias
        network.load_state_dict(dict(self.state_dict()) | {"theory_bias": biases})
        return network.train(self.training)

    def compute_as(self, computation: Computation) -> None:
        """Compute in another way from now on; refuse what this network cannot do."""
        refused: dict[Option, str] = {
            "radial_table": "a pair potential has no radial networks",
            "recompute": "a pair potential has no interaction blocks",
        }
        refuse_options(computation, refused)
        set_layers(self, computation)
        self.computation = computation


# %% [markdown]
# ## The laws
#
# Rotation, mirror images, translation, permutation, extensivity, forces and stress as derivatives, smoothness at the
# cutoff, locality: `check_laws` tries them all on structures that it makes up.

# %%
torch.manual_seed(0)
network = PairConfig(pair_channels=32).network((29, 79), facts=DataFacts(mean_neighbors=40.0))
potential = Potential(network, elements=(29, 79), theories=("EMT",))
for law, deviation in check_laws(potential).items():
    print(f"{law:<14} {deviation:.1e}")

# %% [markdown]
# ## It learns
#
# Sixteen rattled crystals of copper and gold, labelled with effective medium theory.

# %%
rng, structures = np.random.default_rng(0), []
for _ in range(16):
    atoms = bulk("Cu", "fcc", a=rng.uniform(3.6, 4.1), cubic=True)
    atoms.numbers = rng.choice([29, 79], len(atoms))
    atoms.rattle(0.1, rng=rng)
    atoms.calc = EMT()
    structures.append(
        Structure.checked(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.get_potential_energy(),
            forces=atoms.get_forces(),
        )
    )
batch = collate(structures, potential.cutoff)
optimizer = torch.optim.Adam(potential.train().parameters(), lr=0.01)
errors = []
for _ in range(200):
    optimizer.zero_grad()
    prediction = potential(batch)
    error = (prediction.forces - batch.forces).abs().mean()
    (error + (prediction.energy - batch.energy).abs().mean() / 4).backward()
    optimizer.step()
    errors.append(float(error.detach()))
print(f"force error {errors[0]:.2f} eV/Å before, {errors[-1]:.2f} eV/Å after {len(errors)} steps")
