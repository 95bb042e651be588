"""The class for `pair_style mliap unified`, with a stand-in for LAMMPS's data: pairs with ghosts, and exchange."""

import pickle

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list

from foundation.engine.network import Unsupported

pytest.importorskip("lammps")
from foundation.interop.lammps_mliap import Unified, unified
from tests.foundation.engine.test_library import NETWORKS, crystal, graph, potential_of

SYMBOLS = ("Cu", "Mg", "O")


class Data:
    """Atoms and neighbours as LAMMPS has them: every neighbour across the cell's border is a ghost of its own."""

    def __init__(self, cutoff: float) -> None:
        """Make the pairs of the crystal up to a distance."""
        self.atoms = crystal()
        self.nlocal = len(self.atoms)
        first, owners, shifts, self.rij = neighbor_list("ijSD", self.atoms, cutoff)
        across, self.pair_j = shifts.any(axis=1), owners.copy()
        images, place = np.unique(np.c_[owners, shifts][across], axis=0, return_inverse=True)
        self.pair_j[across] = self.nlocal + place.ravel()
        self.owners = np.concatenate([np.arange(self.nlocal), images[:, 0]])
        self.ntotal, self.npairs = len(self.owners), len(first)
        # not sorted, as LAMMPS promises no order
        order = np.random.default_rng(0).permutation(self.npairs)
        self.pair_i, self.pair_j, self.rij = first[order], self.pair_j[order], self.rij[order]
        self.elems = np.array([SYMBOLS.index(self.atoms.symbols[owner]) for owner in self.owners])
        self.eatoms, self.energy, self.forces = np.zeros(self.nlocal), 0.0, np.zeros((self.nlocal, 3))
        self.virial, self.exchanges = np.zeros((3, 3)), []

    def forward_exchange(self, given: torch.Tensor, taken: torch.Tensor, width: int) -> None:
        self.exchanges.append(width)
        taken.copy_(given[torch.from_numpy(self.owners)])

    def reverse_exchange(self, given: torch.Tensor, taken: torch.Tensor, width: int) -> None:
        assert width == given.shape[1]
        taken.zero_().index_add_(0, torch.from_numpy(self.owners), given)

    def update_pair_forces(self, gradients: np.ndarray) -> None:
        np.add.at(self.forces, self.pair_i, gradients)
        np.add.at(self.forces, self.owners[self.pair_j], -gradients)
        self.virial += self.rij.T @ gradients


@pytest.mark.parametrize("name", ["even-2-blocks", "vectors-not-unit"])
def test_lammps_gets_what_the_potential_computes(name: str) -> None:
    potential = potential_of(NETWORKS[name])
    data, other = Data(potential.cutoff + 0.7), unified(potential, SYMBOLS, theory="other")
    assert 2 * float(other.rcutfac or 0) == potential.cutoff
    for door in (other, pickle.loads(pickle.dumps(other))):
        data.forces[:], data.virial[:] = 0, 0
        door.compute_forces(data)
        expected = potential(graph(data.atoms, 1))
        np.testing.assert_allclose(data.eatoms, expected.atom_energies, rtol=1e-12)
        assert data.energy == pytest.approx(float(expected.energy), rel=1e-12)
        np.testing.assert_allclose(data.forces, expected.forces, rtol=0, atol=1e-10)
        np.testing.assert_allclose(data.virial / data.atoms.get_volume(), expected.stress[0], rtol=0, atol=1e-10)
    assert len(data.exchanges) == 2 * (len(potential.network.blocks) - 1)


def test_float32_with_the_table_is_close(tmp_path) -> None:
    potential = potential_of(NETWORKS["even-2-blocks"])
    data, door = Data(potential.cutoff), unified(potential, SYMBOLS, theory="one", mode="md")
    door.save(tmp_path / "model.pt")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    assert isinstance(read, Unified)
    read.compute_forces(data)
    forces = potential(graph(data.atoms)).forces
    np.testing.assert_allclose(data.forces, forces, rtol=0, atol=1e-4 * float(forces.abs().max()))


def test_what_cannot_run_is_refused() -> None:
    potential = potential_of(NETWORKS["even-2-blocks"])
    with pytest.raises(ValueError, match="does not know Na"):
        unified(potential, ("Na", "O"), theory="one")
    with pytest.raises(ValueError, match="one, other"):
        unified(potential, SYMBOLS)
    with pytest.raises(Unsupported, match="without a repulsion"):
        unified(potential.repel(), SYMBOLS, theory="one")
