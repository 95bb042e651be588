"""Potential: units and types of predictions, modes, unknown elements, and what it takes from a data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import InvalidStructure, Structure
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, UnknownElement, new_potential, reference_energies, to_structure

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).eval()


@pytest.fixture(scope="module")
def batch(emt_manifest: Manifest) -> GraphBatch:
    frames = Frames(emt_manifest, "train")
    return collate([frames[number] for number in range(5)], 5.0)


def atom(number: int) -> Structure:
    return Structure.checked(
        numbers=[number], positions=np.zeros((1, 3)), cell=np.zeros((3, 3)), pbc=[False] * 3, energy=0.0
    )


def test_energies_are_float64_and_derivatives_have_the_networks_type(potential: Potential, batch: GraphBatch) -> None:
    for dtype in (torch.float32, torch.float64):
        prediction = potential.cast(dtype)(batch)
        assert prediction.energy.dtype == prediction.atom_energies.dtype == torch.float64
        assert prediction.forces.dtype == prediction.stress.dtype == dtype
        assert potential.dtype == dtype
        assert potential.get_buffer("reference_energies").dtype == torch.float64


def test_float32_and_float64_agree_to_single_precision(potential: Potential, batch: GraphBatch) -> None:
    single, double = potential(batch), potential.cast(torch.float64)(batch)
    scale = float(double.forces.abs().max())
    torch.testing.assert_close(single.energy, double.energy, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(single.forces.double(), double.forces, rtol=1e-4, atol=1e-4 * scale)


def test_atom_energies_add_up_to_the_energy(potential: Potential, batch: GraphBatch) -> None:
    prediction = potential(batch)
    sums = [energies.sum() for energies in prediction.atom_energies.split(batch.num_atoms.tolist())]
    torch.testing.assert_close(torch.stack(sums), prediction.energy, rtol=1e-13, atol=1e-13)


def test_evaluation_is_detached_and_works_without_gradients(potential: Potential, batch: GraphBatch) -> None:
    with_grad = potential(batch)
    with torch.no_grad():
        without = potential(batch)
    for name in ("energy", "forces", "stress", "atom_energies"):
        assert torch.equal(getattr(with_grad, name), getattr(without, name))
        assert not getattr(with_grad, name).requires_grad
    assert without.forces.any()
    assert all(parameter.grad is None for parameter in potential.parameters())


def test_training_gives_the_same_prediction_but_differentiable(potential: Potential, batch: GraphBatch) -> None:
    evaluated, trained = potential.cast(torch.float64)(batch), potential.train()(batch)
    for name in ("energy", "forces", "stress", "atom_energies"):
        assert getattr(trained, name).requires_grad
        expected = getattr(evaluated, name)
        torch.testing.assert_close(getattr(trained, name).detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_gradient_of_a_prediction_is_its_slope_with_the_weights(
    potential: Potential, batch: GraphBatch, name: str
) -> None:
    potential.cast(torch.float64).train()

    def value() -> torch.Tensor:
        return getattr(potential(batch), name).square().sum()

    value().backward()
    step = 1e-6
    for weight in (
        "network.blocks.0.radial.layer0.weight",
        "network.embedding.weight",
        "network.readout.0.weight",
    ):
        parameter = potential.get_parameter(weight)
        assert parameter.grad is not None
        data, place = parameter.data.view(-1), int(parameter.grad.abs().argmax())
        start = data[place].item()
        ends = []
        for sign in (1, -1):
            data[place] = start + sign * step
            ends.append(value().item())
        data[place] = start
        assert parameter.grad.view(-1)[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_the_batch_itself_is_left_alone(potential: Potential, batch: GraphBatch) -> None:
    positions, cell = batch.positions.clone(), batch.cell.clone()
    potential(batch)
    assert not batch.positions.requires_grad
    assert torch.equal(batch.positions, positions)
    assert torch.equal(batch.cell, cell)


def test_an_unknown_element_is_named_beside_the_known_ones(potential: Potential) -> None:
    with pytest.raises(UnknownElement, match=r"know U; .*trained on 7 elements: Al Ni Cu Pd Ag Pt Au"):
        potential(collate([atom(13), atom(92)], 5.0))


def test_every_unknown_element_is_named_once(potential: Potential) -> None:
    with pytest.raises(UnknownElement, match=r"know H, U;"):
        potential(collate([atom(92), atom(1), atom(92)], 5.0))


def test_references_scale_and_elements_are_the_data_sets(potential: Potential, emt_manifest: Manifest) -> None:
    statistics = emt_manifest.split("train").statistics
    assert potential.elements == statistics.elements == (13, 28, 29, 46, 47, 78, 79)
    expected = statistics.reference_energies()[list(potential.elements)]
    np.testing.assert_allclose(potential.get_buffer("reference_energies")[0].numpy(), expected, rtol=1e-12)
    assert set(potential.get_buffer("scale").tolist()) == {statistics.force_rms}
    denominator = potential.network.blocks[0].denominator.item()
    assert denominator == pytest.approx(statistics.mean_neighbors(5.0), rel=1e-6)


def test_energy_is_scale_times_network_plus_reference(potential: Potential, batch: GraphBatch) -> None:
    before = potential(batch)
    potential.get_buffer("reference_energies")[0, 2] += 3.0  # copper
    potential.get_buffer("scale")[:] *= 2.0
    after = potential(batch)
    position = torch.tensor([potential.elements.index(int(number)) for number in batch.numbers])
    references = potential.get_buffer("reference_energies")[0, position]
    copper = 3.0 * (batch.numbers == 29)
    expected = 2 * (before.atom_energies - (references - copper)) + references
    torch.testing.assert_close(after.atom_energies, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.forces, 2 * before.forces, rtol=1e-5, atol=1e-5)


def test_a_cutoff_that_the_data_did_not_count_is_refused(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"counted at 5.0 Å, not at 6.0 Å"):
        new_potential(replace(CONFIG, cutoff=6.0), {"EMT": emt_manifest.split("train").statistics})


def test_data_without_any_neighbours_are_refused() -> None:
    statistics = Statistics(cutoffs=(5.0,))
    for number in (1, 8):
        labelled = replace(atom(number), has_forces=True, forces=np.ones((1, 3), np.float32))
        statistics.add([labelled], np.zeros((1, 1), dtype=int))
    with pytest.raises(ValueError, match=r"no two atoms of the training data are within"):
        new_potential(CONFIG, {"EMT": statistics})


def test_an_empty_batch_has_an_empty_prediction(potential: Potential) -> None:
    prediction = potential(collate([], 5.0))
    assert prediction.energy.shape == (0,)
    assert prediction.forces.shape == (0, 3)
    assert prediction.stress.shape == (0, 3, 3)


def test_the_order_of_elements_belongs_to_the_network() -> None:
    torch.manual_seed(0)
    potential = Potential(EquivariantNetwork(CONFIG, (29, 13), mean_neighbors=5.0), (29, 13), ("EMT",)).eval()
    potential.get_buffer("reference_energies").copy_(torch.tensor([[-29.0, -13.0]]))
    potential.get_buffer("scale").zero_()
    assert potential(collate([atom(13), atom(29)], 5.0)).energy.tolist() == [-13.0, -29.0]


def test_every_structure_has_the_references_of_its_theory() -> None:
    elements = (13, 29)
    potential = Potential(EquivariantNetwork(CONFIG, elements, mean_neighbors=5.0), elements, ("PBE", "SCAN")).eval()
    potential.get_buffer("reference_energies").copy_(torch.tensor([[-13.0, -29.0], [-130.0, -290.0]]))
    potential.get_buffer("scale").zero_()
    batch = collate([atom(13), atom(29), atom(29)], 5.0, theories=[1, 0, 1])
    assert potential(batch).energy.tolist() == [-130.0, -29.0, -290.0]
    assert potential.composition_energy(batch).tolist() == [-130.0, -29.0, -290.0]


def test_a_theory_is_named_where_there_are_several() -> None:
    network = EquivariantNetwork(CONFIG, (13,), mean_neighbors=5.0)
    one, two = Potential(network, (13,), ("PBE",)), Potential(network, (13,), ("PBE", "SCAN"))
    assert (one.theory_number(None), one.theory_number("PBE"), two.theory_number("SCAN")) == (0, 0, 1)
    for potential, name in ((two, None), (two, "r2SCAN"), (one, "SCAN")):
        with pytest.raises(ValueError, match=rf"levels of theory are PBE.*not {name}"):
            potential.theory_number(name)


def test_an_element_without_data_at_one_theory_borrows_its_reference() -> None:
    sums = []
    # the second theory is 1 eV lower for both elements that they share, and has not seen copper
    for shift, numbers in ((0.0, (1, 8, 29)), (-1.0, (1, 8))):
        statistics = Statistics(cutoffs=(5.0,))
        structures = [replace(atom(number), energy=-float(number) + shift) for number in numbers for _ in range(100)]
        statistics.add(structures, np.ones((len(structures), 1), dtype=int))
        sums.append(statistics)
    references = reference_energies(sums)
    np.testing.assert_allclose(references[:, [1, 8]], [[-1.0, -8.0], [-2.0, -9.0]], atol=0.05)
    assert references[0, 29] == pytest.approx(-29.0, abs=0.05)
    assert references[1, 29] == pytest.approx(-30.0, abs=0.1)


def test_many_structures_are_predicted_in_order_each_independent_of_the_others(
    potential: Potential, emt_manifest: Manifest
) -> None:
    frames = Frames(emt_manifest, "train")
    structures = [frames[number] for number in range(12)]
    potential.cast(torch.float64).train()
    edges = collate(structures, potential.cutoff).num_edges
    for budget in (1, edges // 3, 10 * edges):
        found = potential.predict(structures, edge_budget=budget)
        assert potential.training
        assert len(found) == len(structures)
        potential.eval()
        for structure, each in zip(structures, found, strict=True):
            alone = potential(collate([structure], potential.cutoff, torch.float64))
            for name in ("energy", "forces", "stress", "atom_energies"):
                mine, expected = getattr(each, name), getattr(alone, name)
                assert not mine.requires_grad
                torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)
        potential.train()


def test_atoms_of_ase_are_predicted_as_structures_are(potential: Potential) -> None:
    atoms = [bulk("Cu", cubic=True), bulk("Al")]
    found = potential.predict(atoms)
    expected = potential.predict([to_structure(each) for each in atoms])
    assert [float(each.energy) for each in found] == [float(each.energy) for each in expected]
    assert float(found[0].energy) != float(found[1].energy)


def test_what_cannot_be_predicted_among_many_is_named(potential: Potential) -> None:
    flat = bulk("Cu", cubic=True)
    flat.cell[2] = 0.0
    with pytest.raises(InvalidStructure, match="structure 1: periodic cell without volume"):
        potential.predict([bulk("Al"), flat])
    with pytest.raises(UnknownElement, match="does not know U"):
        potential.predict([atom(92)])
    with pytest.raises(ValueError, match="name one, not PBE"):
        potential.predict([bulk("Al")], theory="PBE")
