"""Relaxation through ASE lowers the potential's own energy, and says whether it is done."""

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk

from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.interop.calculator import to_structure
from foundation.interop.relaxation import relax
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
PAIR = ase.Atoms("CuAu", [[0.0, 0.0, 0.0], [0.0, 0.3, 2.6]])


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).eval()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_relaxation_lowers_energy_and_forces(potential: Potential, emt_manifest: Manifest, number: int) -> None:
    structure = Frames(emt_manifest, "train")[number]
    before = potential.cast(torch.float64)(to_graph(structure, potential.cutoff, torch.float64))
    relaxation = relax(structure, potential, max_steps=30)
    assert relaxation.energy_before == pytest.approx(before.energy.item(), rel=1e-12)
    assert relaxation.energy_after < relaxation.energy_before
    assert 0 < relaxation.num_steps <= 30
    relaxed = potential(to_graph(to_structure(relaxation.atoms), potential.cutoff, torch.float64))
    assert relaxed.energy.item() == pytest.approx(relaxation.energy_after, rel=1e-9)
    assert relaxation.converged == (relaxation.max_force < 0.02)


def test_relaxation_of_a_crystal_moves_its_cell_and_of_a_molecule_does_not(potential: Potential) -> None:
    strained = bulk("Cu", a=3.9)
    strained.symbols[:] = "Al"
    crystal = relax(to_structure(strained), potential, max_steps=20, max_force=1e-4)
    assert np.abs(crystal.atoms.cell[:] - strained.cell[:]).max() > 1e-4
    pair = relax(to_structure(PAIR), potential, max_steps=20, max_force=1e-4)
    assert not pair.atoms.cell[:].any()
    assert np.abs(pair.atoms.positions - PAIR.positions).max() > 1e-4


def test_one_step_is_not_called_converged(potential: Potential, emt_manifest: Manifest) -> None:
    relaxation = relax(Frames(emt_manifest, "train")[0], potential, max_steps=1, max_force=1e-8)
    assert not relaxation.converged
    assert relaxation.num_steps == 1
    assert relaxation.max_force > 1e-8
