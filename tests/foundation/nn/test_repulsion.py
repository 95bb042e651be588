"""Short-range repulsion: the universal screened Coulomb energy, its switch, derivatives, and where it is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.checkpoint import describe, load, save
from foundation.interop.calculator import Calculator, to_structure
from foundation.interop.sevennet import UnsupportedSevenNet, to_sevennet
from foundation.models import DataFacts, GrainsConfig
from foundation.nn.repulsion import COULOMB, INNER, OUTER, SCREENING, Repulsion, switch, zbl_energy
from foundation.potential import Potential
from foundation.surgery.elements import add_elements
from foundation.surgery.theories import add_theory
from foundation.testing import check_laws
from tests.small_networks import SMALL_NETWORKS

ELEMENTS = (1, 6, 7, 8, 14)


def small(name: str = "even-2-blocks") -> Potential:
    torch.manual_seed(0)
    network = SMALL_NETWORKS[name].network(ELEMENTS, facts=DataFacts(mean_neighbors=8.0))
    return Potential(network, ELEMENTS, ("PBE",)).cast(torch.float64).eval()


def close_atoms(distance: float = 0.55, periodic: bool = True) -> Structure:
    """Four atoms of a triclinic cell, two of which collide."""
    cell = np.array([[3.9, 0.0, 0.0], [0.7, 4.1, 0.0], [-0.5, 0.8, 4.4]])
    positions = np.array([[0.1, 0.2, 0.0], [0.1, 0.2, distance], [1.9, 2.0, 1.8], [2.4, 0.4, 3.0]])
    return Structure.checked(
        numbers=[8, 14, 6, 7],
        positions=positions,
        cell=cell if periodic else np.zeros((3, 3)),
        pbc=[periodic] * 3,
        energy=0.0,
    )


def energy(potential: Potential, structure: Structure) -> float:
    return float(potential(collate([structure], potential.cutoff, torch.float64)).energy)


def test_the_energy_is_the_bare_one_of_the_nuclei_at_contact_and_screened_farther_out() -> None:
    one, other = torch.tensor([14.0, 8.0]).double(), torch.tensor([14.0, 1.0]).double()
    near = torch.full((2,), 1e-6, dtype=torch.float64)
    assert torch.allclose(zbl_energy(one, other, near) * near, COULOMB * one * other, rtol=1e-4)
    assert sum(factor for factor, _ in SCREENING) == pytest.approx(1.0, abs=1e-12)
    # the published screening function at one screening length, evaluated by hand
    length = 0.8854 * 0.52917721 / (2 * 14**0.23)
    found = zbl_energy(one[:1], other[:1], torch.tensor([length], dtype=torch.float64))
    assert float(found) == pytest.approx(14.39964548 * 14 * 14 / length * 0.41644, rel=1e-4)


def test_the_switch_goes_from_one_to_zero_with_two_continuous_derivatives() -> None:
    ends = torch.tensor([0.0, INNER, OUTER, 2.0], dtype=torch.float64)
    assert switch(ends).tolist() == [1.0, 1.0, 0.0, 0.0]
    x = torch.tensor([INNER + 1e-9, OUTER - 1e-9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(switch(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert slope.abs().max() < 1e-6
    assert curvature.abs().max() < 1e-5
    between = switch(torch.linspace(INNER, OUTER, 50, dtype=torch.float64))
    assert (between.diff() < 0).all()


@pytest.mark.parametrize("periodic", [True, False])
def test_forces_and_stress_are_the_slopes_of_the_energy(periodic: bool) -> None:
    potential, structure = small().repel(), close_atoms(periodic=periodic)
    prediction = potential(collate([structure], potential.cutoff, torch.float64))
    assert prediction.forces[0, 2] < -10
    for atom, axis in ((0, 2), (1, 2), (1, 0), (2, 1)):
        shift = np.zeros((4, 3))
        shift[atom, axis] = 1e-5
        ends = [energy(potential, replace(structure, positions=structure.positions + s * shift)) for s in (1, -1)]
        assert float(prediction.forces[atom, axis]) == pytest.approx(-(ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-6)
    if periodic:
        for first, second in ((2, 2), (0, 2)):
            strain = np.zeros((3, 3))
            strain[first, second] = strain[second, first] = 0.5e-5 if first != second else 1e-5
            ends = []
            for sign in (1, -1):
                deformed = np.eye(3) + sign * strain
                moved = replace(structure, positions=structure.positions @ deformed, cell=structure.cell @ deformed)
                ends.append(energy(potential, moved))
            slope = (ends[0] - ends[1]) / 2e-5 / structure.volume
            assert float(prediction.stress[0, first, second]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["even-2-blocks", "symmetry-functions"])
def test_what_physics_asks_holds_with_it(name: str) -> None:
    check_laws(small(name).repel())


def test_nothing_changes_at_the_distances_of_bonds_and_close_atoms_are_pushed_apart() -> None:
    bonds = [to_structure(molecule(name)) for name in ("N2", "CO", "H2O", "C2H2")]
    bonds += [to_structure(bulk("Si", cubic=True)), to_structure(bulk("SiC", "zincblende", a=4.36))]
    plain, repelling = small(), small().repel()
    for structure in bonds:
        assert energy(plain, structure) == energy(repelling, structure)
    added = [energy(repelling, close_atoms(d)) - energy(plain, close_atoms(d)) for d in (1.4, 1.0, 0.8, 0.5, 0.2)]
    assert added[0] == 0
    assert all(np.diff(added) > 0)
    assert added[-1] > 500


def test_each_pair_is_counted_once_and_atoms_share_it() -> None:
    structure = close_atoms(periodic=False)
    energies = Repulsion()(collate([structure, structure], 4.0, torch.float64))
    assert torch.equal(energies[0], energies[1])
    assert torch.equal(energies[:4], energies[4:])
    assert not energies[2:4].any()


def test_it_is_saved_described_loaded_and_kept_by_surgery(tmp_path: Path) -> None:
    potential, structure = small().repel(), close_atoms()
    save(potential, tmp_path / "with", {})
    save(small(), tmp_path / "without", {})
    assert describe(tmp_path / "with").origin.repulsion
    assert not describe(tmp_path / "without").origin.repulsion
    assert describe(tmp_path / "with").weights_sha256 == describe(tmp_path / "without").weights_sha256
    assert energy(load(tmp_path / "with"), structure) == energy(potential, structure)
    assert energy(load(tmp_path / "without"), structure) == energy(small(), structure)
    for changed in (add_theory(potential, "other"), add_elements(potential, [26])):
        assert energy(changed, structure) == pytest.approx(energy(potential, structure), rel=1e-9)


def test_calculators_add_it_on_request_and_other_programs_do_not_lose_it_silently(tmp_path: Path) -> None:
    potential, structure = small(), close_atoms()
    atoms = bulk("Si", cubic=True)
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.6]
    plain = Calculator(potential).get_potential_energy(atoms)
    assert Calculator(potential, zbl=True).get_potential_energy(atoms) > plain + 100
    assert potential.repulsion is None
    assert energy(potential, structure) == energy(small(), structure)
    with pytest.raises(UnsupportedSevenNet, match="repulsion"):
        to_sevennet(potential.repel(), tmp_path / "x.pth")


def test_a_network_whose_graphs_are_of_grains_cannot_have_it() -> None:
    network = GrainsConfig(grains=("O", "H2")).network((1, 8))
    with pytest.raises(ValueError, match="needs their pairs"):
        Potential(network, (1, 8), ("PBE",)).repel()
