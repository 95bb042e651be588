"""What physics asks of every potential: several architectures, random weights, float64."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.models import DataFacts, EquivariantConfig, ModelConfig
from foundation.potential import Potential, Prediction
from foundation.testing import LAWS, check_laws
from tests.small_networks import CUTOFF, EQUIVARIANT, SMALL_NETWORKS

ELEMENTS = (8, 13, 29)
EXACT = 1e-11
"""Largest difference relative to the largest value: sums in another order, no more."""


def make_potential(config: ModelConfig) -> Potential:
    """Every weight random, so that the laws do not hang on how a network is initialised."""
    torch.manual_seed(1)
    network = config.network(ELEMENTS, facts=DataFacts(mean_neighbors=8.0))
    potential = Potential(network, ELEMENTS, ("PBE",)).cast(torch.float64)
    for name, parameter in potential.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter)
    potential.get_buffer("reference_energies").copy_(torch.tensor([[-1.0, 0.5, 2.0]]))
    potential.get_buffer("scale").copy_(torch.tensor([1.0, 1.5, 0.7]))
    return potential.eval()


@pytest.fixture(scope="module", params=SMALL_NETWORKS)
def potential(request: pytest.FixtureRequest) -> Potential:
    return make_potential(SMALL_NETWORKS[request.param])


def predict(potential: Potential, *structures: Structure) -> Prediction:
    return potential(collate(structures, potential.cutoff, torch.float64))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= EXACT * max(1.0, float(expected.abs().max()))


def unlabelled(numbers: Any, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Structure:
    return Structure.checked(numbers=numbers, positions=positions, cell=cell, pbc=pbc, energy=0.0)


def spread_out(rng: np.random.Generator, num_atoms: int, box: np.ndarray, nearest: float = 1.3) -> np.ndarray:
    """Random positions in a box, no two nearer than a bond."""
    positions: list[np.ndarray] = []
    while len(positions) < num_atoms:
        new = rng.uniform(0, 1, 3) @ box
        if all(np.linalg.norm(new - old) > nearest for old in positions):
            positions.append(new)
    return np.array(positions)


def molecule(seed: int = 0, num_atoms: int = 7) -> Structure:
    """A cluster without any symmetry."""
    rng = np.random.default_rng(seed)
    numbers = np.resize(ELEMENTS, num_atoms)
    positions = spread_out(rng, num_atoms, 4.0 * np.eye(3))
    return unlabelled(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool))


def crystal(seed: int = 0) -> Structure:
    """A triclinic cell smaller than the cutoff, without any symmetry."""
    rng = np.random.default_rng(seed)
    cell = np.array([[3.6, 0.0, 0.0], [0.7, 3.9, 0.0], [-0.5, 0.8, 4.4]])
    return unlabelled(np.array([8, 13, 29, 13]), spread_out(rng, 4, cell), cell, np.ones(3, bool))


def slab(height: float) -> Structure:
    """Four atoms that repeat along two directions; the third lattice vector has the given length."""
    cell = np.array([[3.7, 0.0, 0.0], [0.9, 4.1, 0.0], [0.0, 0.0, 1.0]])
    positions = spread_out(np.random.default_rng(3), 4, cell * [[1], [1], [3.0]])
    cell[2] *= height
    return unlabelled(np.array([8, 13, 29, 29]), positions, cell, np.array([True, True, False]))


def moved(structure: Structure, positions: np.ndarray) -> Structure:
    return replace(structure, positions=positions)


def strained(structure: Structure, strain: np.ndarray) -> Structure:
    deformation = np.eye(3) + strain
    return replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation)


def transformed(structure: Structure, matrix: np.ndarray) -> Structure:
    return replace(structure, positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T)


def rotation(seed: int = 4) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def assert_transforms(potential: Potential, structure: Structure, matrix: np.ndarray) -> None:
    before, after = predict(potential, structure), predict(potential, transformed(structure, matrix))
    turn = torch.from_numpy(matrix)
    assert before.forces.abs().max() > 1e-2
    assert_same(after.energy, before.energy)
    assert_same(after.atom_energies, before.atom_energies)
    assert_same(after.forces, before.forces @ turn.T)
    assert_same(after.stress, turn @ before.stress @ turn.T)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds(potential: Potential, law: str) -> None:
    applies = law != "mirror" or potential.network.parity
    assert list(check_laws(potential, [law])) == [law] * applies


@pytest.mark.parametrize("structure", [molecule(), crystal()], ids=["molecule", "crystal"])
@pytest.mark.parametrize("matrix", [-np.eye(3), np.diag([1.0, 1.0, -1.0])], ids=["inversion", "mirror"])
@pytest.mark.parametrize("name", ["parity-sqrt", "even-2-blocks", "scalars-sqrt-polynomial"])
def test_a_mirror_image_has_the_same_energy(name: str, matrix: np.ndarray, structure: Structure) -> None:
    # two blocks without parity cannot make a pseudoscalar: that takes a cross product and then a dot product
    assert_transforms(make_potential(SMALL_NETWORKS[name]), structure, matrix)


def test_three_blocks_without_parity_tell_mirror_images_apart() -> None:
    potential = make_potential(EquivariantConfig(irreps="8x0e+8x1e+8x2e", num_blocks=3, **EQUIVARIANT))
    energy, mirrored = predict(potential, molecule(), transformed(molecule(), -np.eye(3))).energy
    assert abs(energy - mirrored) > 1e-6


def test_atoms_may_be_named_in_any_periodic_image(potential: Potential) -> None:
    structure = crystal()
    rng = np.random.default_rng(5)
    elsewhere = moved(structure, structure.positions + rng.integers(-3, 4, (4, 3)) @ structure.cell)
    fractions = np.linalg.solve(structure.cell.T, elsewhere.positions.T + 0.4).T
    wrapped = moved(structure, (fractions % 1.0) @ structure.cell)
    before = predict(potential, structure)
    for image in (elsewhere, wrapped):
        after = predict(potential, image)
        assert_same(after.energy, before.energy)
        assert_same(after.forces, before.forces)
        assert_same(after.stress, before.stress)


def test_another_choice_of_lattice_vectors_is_the_same_crystal(potential: Potential) -> None:
    structure = crystal()
    other = np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]]) @ structure.cell
    before, after = predict(potential, structure), predict(potential, replace(structure, cell=other))
    assert_same(after.energy, before.energy)
    assert_same(after.stress, before.stress)


def test_stress_is_positive_where_the_energy_rises_on_stretching(potential: Potential) -> None:
    step = 1e-3 * np.eye(3)
    for seed in range(4):
        structure = crystal(seed)
        shrunk, stretched = predict(potential, strained(structure, -step), strained(structure, step)).energy
        tension = float(predict(potential, structure).stress[0].trace())
        assert abs(tension) > 1e-5
        assert np.sign(tension) == np.sign(float(stretched - shrunk))


def test_stress_is_symmetric(potential: Potential) -> None:
    stress = predict(potential, crystal()).stress[0]
    assert_same(stress, stress.T)


def test_forces_add_up_to_zero_and_so_do_the_torques_on_a_molecule(potential: Potential) -> None:
    for structure in (molecule(), crystal(), slab(0.0)):
        forces = predict(potential, structure).forces
        assert_same(forces.sum(dim=0) / forces.abs().max(), torch.zeros(3, dtype=torch.float64))
    forces = predict(potential, molecule()).forces
    torques = torch.linalg.cross(torch.from_numpy(molecule().positions), forces)
    assert torques.abs().max() > 1e-2
    assert_same(torques.sum(dim=0) / torques.abs().max(), torch.zeros(3, dtype=torch.float64))


def test_two_copies_far_apart_have_twice_the_energy(potential: Potential) -> None:
    one = molecule()
    positions = np.concatenate([one.positions, one.positions + 100.0])
    both = unlabelled(np.tile(one.numbers, 2), positions, one.cell, one.pbc)
    single, double = predict(potential, one), predict(potential, both)
    assert_same(double.energy, 2 * single.energy)
    assert_same(double.forces, single.forces.repeat(2, 1))


def test_batch_mates_do_not_matter(potential: Potential) -> None:
    structures = [molecule(), crystal(), slab(0.0), molecule(7, 3), crystal(8)]
    batch = predict(potential, *structures)
    alone = [predict(potential, structure) for structure in structures]
    for name in ("energy", "forces", "stress", "atom_energies"):
        expected = torch.cat([getattr(prediction, name) for prediction in alone])
        assert_same(getattr(batch, name), expected)


def test_no_gradient_crosses_from_one_graph_to_another(potential: Potential) -> None:
    batch = collate([molecule(), crystal()], potential.cutoff, torch.float64)
    positions = batch.positions.clone().requires_grad_()
    energies = potential.atom_energies(replace(batch, positions=positions))
    (gradient,) = torch.autograd.grad(energies[batch.graph_of_atom == 0].sum(), positions)
    assert gradient[batch.graph_of_atom == 0].any()
    assert not gradient[batch.graph_of_atom == 1].any()


def triple(distance: float) -> Structure:
    """An atom at a distance from another, and a third that is a neighbour of both."""
    positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [1.7, 1.1, 0.3]])
    return unlabelled(np.array([13, 29, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool))


@pytest.mark.parametrize("num_atoms", [2, 3])
def test_energy_and_forces_are_continuous_through_the_cutoff(potential: Potential, num_atoms: int) -> None:
    def at(distance: float) -> Structure:
        whole = triple(distance)
        return unlabelled(whole.numbers[:num_atoms], whole.positions[:num_atoms], whole.cell, whole.pbc)

    inside, just_inside, just_outside = at(CUTOFF - 1.5), at(CUTOFF - 1e-7), at(CUTOFF + 1e-7)
    edges = [collate([s], CUTOFF, torch.float64).num_edges for s in (just_inside, just_outside)]
    assert edges[0] == edges[1] + 2
    far, before, after = (predict(potential, structure) for structure in (inside, just_inside, just_outside))
    assert (far.energy - after.energy).abs() > 1e-4
    assert (far.forces - after.forces).abs().max() > 1e-4
    assert (before.energy - after.energy).abs() < 1e-6 * (far.energy - after.energy).abs()
    assert (before.forces - after.forces).abs().max() < 1e-4 * far.forces.abs().max()


def test_energy_has_no_jump_anywhere_along_a_pull(potential: Potential) -> None:
    distances = np.linspace(CUTOFF - 1.0, CUTOFF + 0.2, 241)
    prediction = predict(potential, *(triple(distance) for distance in distances))
    pull = prediction.forces.view(-1, 3, 3)[:, 1, 0]
    step = distances[1] - distances[0]
    work = 0.5 * step * (pull[1:] + pull[:-1])
    # the trapezoid's error is cubic in the step: a jump of the energy would stand out
    assert (prediction.energy.diff() + work).abs().max() < 1e-3 * work.abs().max() + 1e-6


def test_an_isolated_atom_has_a_finite_energy_and_no_force(potential: Potential) -> None:
    structures = [
        unlabelled(np.array([number]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool)) for number in ELEMENTS
    ]
    prediction = predict(potential, *structures)
    assert prediction.energy.isfinite().all()
    assert len(set(prediction.energy.tolist())) == 3
    assert not prediction.forces.any()
    assert not prediction.stress.any()


def test_a_one_atom_cell_is_its_supercell(potential: Potential) -> None:
    cell = np.array([[0.0, 1.8, 1.8], [1.8, 0.0, 1.8], [1.8, 1.8, 0.0]])
    one = unlabelled(np.array([29]), np.array([[0.2, 0.1, 0.4]]), cell, np.ones(3, bool))
    images = np.array(list(itertools.product(range(2), repeat=3))) @ cell
    eight = unlabelled(np.full(8, 29), one.positions + images, 2 * cell, np.ones(3, bool))
    single, large = predict(potential, one), predict(potential, eight)
    assert collate([one], CUTOFF).num_edges > 12
    assert single.energy.isfinite()
    assert single.forces.abs().max() < 1e-11
    assert large.forces.abs().max() < 1e-11
    assert_same(large.energy / 8, single.energy)
    assert_same(large.stress, single.stress)


def test_a_cubic_crystal_has_an_isotropic_stress(potential: Potential) -> None:
    cell = 1.7 * (np.ones((3, 3)) - np.eye(3))
    stress = predict(potential, unlabelled(np.array([13]), np.zeros((1, 3)), cell, np.ones(3, bool))).stress[0]
    expected = stress.trace() / 3 * torch.eye(3, dtype=torch.float64)
    assert abs(stress.trace()) > 1e-5
    assert_same(stress, expected)


def test_a_slab_is_the_same_with_vacuum_in_a_periodic_cell_or_without_a_third_vector(
    potential: Potential,
) -> None:
    bare, open_top = slab(0.0), slab(30.0)
    periodic = replace(open_top, pbc=np.ones(3, bool))
    without, with_vector, repeated = (predict(potential, s) for s in (bare, open_top, periodic))
    for other in (with_vector, repeated):
        assert_same(other.energy, without.energy)
        assert_same(other.forces, without.forces)
    assert_same(with_vector.stress, repeated.stress)
    assert with_vector.stress.abs().max() > 1e-5


def test_a_cell_without_volume_has_no_stress(potential: Potential) -> None:
    wire = unlabelled(np.array([8, 29]), np.array([[0.0, 0, 0], [1.9, 0.4, 0]]), np.diag([3.9, 0, 0]), np.eye(3)[0] > 0)
    for structure in (molecule(), slab(0.0), wire):
        prediction = predict(potential, structure)
        assert not prediction.stress.any()
        assert prediction.forces.any()


def test_influence_ends_with_the_reach_and_not_before(potential: Potential) -> None:
    reach = round(potential.network.reach / CUTOFF)
    places = np.arange(2 * reach + 4)
    # each atom has only the next ones on both sides within the cutoff
    positions = np.stack([3.0 * places, 0.6 * (places % 2), 0.4 * (places % 3 == 0)], axis=1)
    chain = unlabelled(np.resize(ELEMENTS, len(places)), positions, np.zeros((3, 3)), np.zeros(3, bool))
    changed = positions.copy()
    changed[0] += [0.3, -0.2, 0.25]
    before, after = predict(potential, chain), predict(potential, moved(chain, changed))
    energies: Tensor = (after.atom_energies - before.atom_energies).abs()
    assert energies[: reach + 1].min() > 0
    assert not energies[reach + 1 :].any()
    forces = (after.forces - before.forces).abs().amax(dim=1)
    assert forces[: 2 * reach + 1].min() > 0
    assert not forces[2 * reach + 1 :].any()
