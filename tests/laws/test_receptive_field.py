"""Receptive field: with n blocks, a force depends on atoms up to 2n cutoffs away, and on nothing beyond.

An energy depends on what lies within n cutoffs; a force is the derivative of all energies that depend on the atom.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.models import DataFacts, EquivariantConfig, ModelConfig
from foundation.potential import Potential
from tests.small_networks import CUTOFF, EQUIVARIANT, SMALL_NETWORKS

SPACING = 0.88 * CUTOFF
"""Atoms of the chain see their nearest neighbours alone, and 2n + 1 steps are more than 2n cutoffs for n up to 3."""
ELEMENTS = (8, 13)


def potential_of(config: ModelConfig) -> Potential:
    """Every weight random."""
    torch.manual_seed(3)
    network = config.network(ELEMENTS, facts=DataFacts(mean_neighbors=2.0))
    potential = Potential(network, ELEMENTS, ("PBE",)).cast(torch.float64)
    for name, parameter in potential.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter)
    return potential.eval()


def forces(potential: Potential, length: int, moved: int | None = None) -> torch.Tensor:
    """Return the forces on a bent chain, one of whose atoms may be moved by a tenth of an ångström."""
    positions = np.random.default_rng(0).uniform(-0.05, 0.05, (length, 3))
    positions[:, 0] += SPACING * np.arange(length)
    if moved is not None:
        positions[moved] += [0.03, 0.1, -0.05]
    chain = Structure.checked(
        numbers=np.resize(ELEMENTS, length), positions=positions, cell=np.zeros((3, 3)), pbc=[False] * 3, energy=0.0
    )
    return potential(collate([chain], potential.cutoff, torch.float64)).forces.detach()


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_a_force_depends_on_atoms_up_to_two_cutoffs_away_for_each_block(num_blocks: int, degree: int) -> None:
    config = EquivariantConfig(irreps="6x0e+4x1o", num_blocks=num_blocks, max_degree=degree, **EQUIVARIANT)
    if degree == 0:
        config = replace(config, irreps="6x0e")
    check(potential_of(config), 2 * num_blocks)


@pytest.mark.parametrize("name", ["symmetry-functions", "radial-symmetry-functions-polynomial"])
def test_symmetry_functions_see_two_cutoffs(name: str) -> None:
    check(potential_of(SMALL_NETWORKS[name]), 2)


def check(potential: Potential, steps: int) -> None:
    """Check that the force on the first atom depends on the atom that many steps away, and on none beyond."""
    length = steps + 3
    before = forces(potential, length)
    assert not torch.equal(forces(potential, length, moved=steps)[0], before[0])
    for beyond in (steps + 1, steps + 2):
        assert beyond * SPACING > steps * CUTOFF
        after = forces(potential, length, moved=beyond)
        assert torch.equal(after[0], before[0])
        assert not torch.equal(after[-1], before[-1])
