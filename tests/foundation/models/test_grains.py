"""The network of grains: one energy whose derivatives are all forces, and the split of forces inside and between."""

import itertools
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.molecules import packed
from data_pipeline.structure import InvalidStructure, Structure
from foundation.checkpoint import save
from foundation.engine.network import Unsupported
from foundation.engines import EnginesConfig, engines
from foundation.export_for import ExportForConfig, export_for
from foundation.finetuning.protection import ProtectConfig, protect
from foundation.golden import golden_record
from foundation.interop.calculator import Calculator, to_structure
from foundation.interop.in_engines import OF_UNITS, ways_to_compute
from foundation.models import EquivariantConfig, GrainsConfig, GrainsNetwork
from foundation.models.grains import KindNetwork
from foundation.nn.computation import Computation
from foundation.nn.grains import code_of, grains_of, sequence_of
from foundation.potential import Potential
from foundation.surgery.theories import add_theory, keep_theory
from foundation.testing import check_laws

ELEMENTS = (1, 3, 6, 8, 9, 15)
CONFIG = GrainsConfig(
    grains=("Li", "PF6", "CO3C2H4"),
    grain_irreps="8x0e+4x1o+2x2e",
    radial_sizes=(8,),
    hidden_sizes=(8, 6),
    contact_channels=4,
)


def box(seed: int = 0) -> Structure:
    atoms = packed({"EC": 3, "PF6": 1, "Li": 1}, 0.9, np.random.default_rng(seed))
    atoms.rattle(0.05, seed=seed)
    return to_structure(atoms)


def network(config: GrainsConfig = CONFIG) -> Potential:
    torch.manual_seed(0)
    potential = Potential(config.network(ELEMENTS), ELEMENTS, ("SevenNet-0",)).cast(torch.float64)
    potential.standardize([collate([box(seed) for seed in range(4)], config.cutoff, torch.float64)])
    return potential.eval()


@pytest.fixture(scope="module")
def potential() -> Potential:
    return network()


@pytest.mark.parametrize(
    "changes", [{}, {"contact_cutoff": 0.0, "num_blocks": 1}], ids=["messages and contacts", "one block of messages"]
)
def test_a_network_of_grains_obeys_the_laws(changes: dict) -> None:
    torch.manual_seed(1)
    config = replace(CONFIG, grains=("Li", "OH2"), cutoff=9.0, **changes)
    check_laws(Potential(config.network((1, 3, 8)), (1, 3, 8), ("PBE",)))


def by_centres(batch: GraphBatch, potential: Potential) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients with respect to centres and to displacements, with the batch's atoms as functions of both."""
    grains = grains_of(batch, CONFIG.sequences)
    assert batch.molecule is not None
    assert batch.images is not None
    centres = grains.centres.detach().requires_grad_()
    displacements = (grains.positions - grains.centres[batch.molecule]).detach().requires_grad_()
    moved = replace(batch, positions=centres[batch.molecule] + displacements, images=torch.zeros_like(batch.images))
    energy = potential.atom_energies(moved).sum()
    of_centres, of_displacements = torch.autograd.grad(energy, (centres, displacements))
    return of_centres, of_displacements, torch.bincount(batch.molecule)


def test_forces_are_split_exactly_into_those_between_grains_and_those_inside(potential: Potential) -> None:
    batch = collate([box()], CONFIG.cutoff, torch.float64)
    forces = potential(batch).forces
    of_centres, of_displacements, sizes = by_centres(batch, potential)
    assert batch.molecule is not None
    # a grain's whole force is shared by its atoms equally, and what is left inside adds up to nothing
    whole = torch.zeros_like(of_centres).index_add(0, batch.molecule, forces)
    between = whole / sizes[:, None]
    inside = forces - between[batch.molecule]
    sums = torch.zeros_like(of_centres).index_add(0, batch.molecule, inside)
    assert float(sums.abs().max()) < 1e-12
    # displacements were moved one by one, which moves the centres too
    means = torch.zeros_like(of_centres).index_add(0, batch.molecule, of_displacements) / sizes[:, None]
    expected = -(of_displacements - means[batch.molecule])
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole, -of_centres, rtol=0, atol=1e-10)
    assert float(inside.abs().max()) > 0.1
    assert float(whole.abs().max()) > 0.01


def test_a_molecule_is_the_same_wherever_a_boundary_cuts_it(potential: Potential) -> None:
    structure = box()
    rng = np.random.default_rng(3)
    images = rng.integers(-2, 3, (structure.num_atoms, 3)) @ structure.cell
    moved = replace(structure, positions=structure.positions + images)
    two = potential(collate([structure, moved], CONFIG.cutoff, torch.float64))
    assert float(two.energy[0]) == pytest.approx(float(two.energy[1]), abs=1e-11)
    torch.testing.assert_close(*two.forces.split(structure.num_atoms), rtol=0, atol=1e-10)


def test_atoms_of_one_element_in_a_molecule_are_told_apart(potential: Potential) -> None:
    structure = box()
    carbonate = np.flatnonzero(structure.molecules == structure.molecules[structure.numbers == 6][0])
    hydrogen = carbonate[structure.numbers[carbonate] == 1]
    positions = structure.positions.copy()
    positions[hydrogen[[0, 1]]] = positions[hydrogen[[1, 0]]]
    swapped = replace(structure, positions=positions)
    before, after = potential(collate([structure, swapped], CONFIG.cutoff, torch.float64)).energy
    assert abs(float(before - after)) > 1e-6
    # whole molecules may change places
    order = np.argsort(-structure.molecules, kind="stable")
    arrays = {name: getattr(structure, name)[order] for name in ("numbers", "positions", "molecules")}
    assert float(
        potential(collate([replace(structure, **arrays)], CONFIG.cutoff, torch.float64)).energy
    ) == pytest.approx(float(before), abs=1e-11)


def contact_sums(structure: Structure, network: GrainsNetwork) -> Float64[np.ndarray, "atoms channels"]:
    """The sums over contacts of a structure much larger than the cutoffs, term by term."""
    config = network.config
    slots = np.concatenate([[0], np.cumsum([len(each) for each in config.sequences])])
    slot = np.zeros(structure.num_atoms, int)
    for label in np.unique(structure.molecules):
        own = np.flatnonzero(structure.molecules == label)
        kind = config.sequences.index(tuple(structure.numbers[own].tolist()))
        slot[own] = slots[kind] + np.arange(len(own))
    filters = network.contact_filter.detach().numpy()
    weights = network.contact_slots.detach().numpy()
    waves = network.contact_basis.wave_numbers.detach().double().numpy()
    centres = {each: structure.positions[structure.molecules == each].mean(0) for each in set(structure.molecules)}
    sums = np.zeros((structure.num_atoms, config.contact_channels))
    for i, j in itertools.permutations(range(structure.num_atoms), 2):
        labels = structure.molecules[[i, j]]
        length = np.linalg.norm(structure.positions[i] - structure.positions[j])
        apart = np.linalg.norm(centres[labels[0]] - centres[labels[1]])
        if labels[0] == labels[1] or length > config.contact_cutoff:
            continue
        assert apart < 0.85 * config.cutoff
        x = length / config.contact_cutoff
        fading = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
        basis = 2 / config.contact_cutoff * np.sin(waves * length) / length
        sums[i] += fading * (basis @ filters) * weights[slot[j]]
    return sums


def test_contacts_are_sums_over_atoms_of_other_grains(potential: Potential) -> None:
    found = box()
    open_box = replace(found, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool))
    batch = collate([open_box], CONFIG.cutoff, torch.float64)
    network = potential.network
    assert isinstance(network, GrainsNetwork)
    with torch.no_grad():
        grains, vectors = network._grains(batch)
        sums = network._contacts(grains, batch, vectors).numpy()
    expected = contact_sums(open_box, network)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(sums, expected, atol=1e-10)


def test_sequences_are_written_as_formulas_in_the_order_of_the_atoms() -> None:
    assert sequence_of("CO3C2H4") == (6, 8, 8, 8, 6, 6, 1, 1, 1, 1)
    assert code_of(sequence_of("CO")) != code_of(sequence_of("OC"))
    for wrong in ("", "co2", "C0", "Xx2", "C2-", "C 2"):
        with pytest.raises(ValueError, match="grain"):
            sequence_of(wrong)


def test_other_grains_are_refused(potential: Potential) -> None:
    water = ase.Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    with pytest.raises(InvalidStructure, match="does not say which atoms are one molecule"):
        Calculator(potential).get_potential_energy(water)
    water.new_array("molecule", np.zeros(3, int))
    with pytest.raises(InvalidStructure, match="grain OH2 is none of those that the potential knows, Li, PF6, CO3C2H4"):
        Calculator(potential).get_potential_energy(water)


def test_labels_may_be_whole_floats_and_those_of_lammps(potential: Potential) -> None:
    atoms = to_atoms(box())
    energy = Calculator(potential).get_potential_energy(atoms)
    labels = atoms.arrays.pop("molecule")
    for name, values in (("molecule", labels.astype(float)), ("mol-id", labels)):
        other = atoms.copy()
        other.new_array(name, values)
        assert Calculator(potential).get_potential_energy(other) == energy
    for wrong in (labels + 0.5, labels.astype(str)):
        other = atoms.copy()
        other.new_array("molecule", wrong)
        with pytest.raises(InvalidStructure, match="by an array of whole numbers of the name molecule, grain"):
            Calculator(potential).get_potential_energy(other)


def test_a_label_for_two_molecules_is_refused_with_what_is_known(potential: Potential) -> None:
    twice = replace(to_structure(ase.Atoms("Li2", [[0, 0, 0], [0, 0, 3]])), id="a", has_molecules=True)
    batch = collate([twice], potential.cutoff, torch.float64)
    with pytest.raises(
        InvalidStructure, match=r"structure 'a': a grain Li2 is none .* number them anew where a cell was"
    ):
        potential(batch)


def test_a_kind_that_the_data_lack_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    network(CONFIG)
    assert "the sample of the training data" not in caplog.text
    network(replace(CONFIG, grains=(*CONFIG.grains, "CO3C3H8")))
    assert "there is no CO3C3H8 in the sample of the training data" in caplog.text


def test_engines_that_hand_over_no_labels_say_so(potential: Potential) -> None:
    ways = {way.engine: way for way in ways_to_compute(potential, 0)}
    for engine in ("OpenMM", "torch-sim", "metatomic"):
        with pytest.raises(Unsupported, match="without the labels of their molecules"):
            ways[engine].compute([to_atoms(box())])


def test_labels_of_molecules_go_through_i_pi(potential: Potential) -> None:
    pytest.importorskip("ipi")
    way = next(way for way in ways_to_compute(potential, 0) if way.engine == "i-PI")
    (found,) = way.compute([to_atoms(box())])
    energy = float(potential(collate([box()], potential.cutoff, torch.float64)).energy)
    assert found.energy == pytest.approx(energy, abs=OF_UNITS * (1 + abs(energy)))


def test_what_needs_generated_crystals_is_refused_before_they_are_made(potential: Potential, tmp_path: Path) -> None:
    save(potential, tmp_path / "potential", {})
    with pytest.raises(ValueError, match="check a release of it"):
        engines(EnginesConfig(check=tmp_path / "potential"))
    with pytest.raises(ValueError, match=r"name the data to rehearse with --rehearsal\.data"):
        protect(ProtectConfig(model=tmp_path / "potential"))
    config = ExportForConfig(for_="library", model=tmp_path / "potential", out=tmp_path / "library")
    with pytest.raises(ValueError, match="a potential of molecules, which is not exported"):
        export_for(config)
    assert [path.name for path in tmp_path.iterdir()] == ["potential"]


def test_a_graph_of_atoms_is_refused(potential: Potential) -> None:
    with pytest.raises(InvalidStructure, match="graph of molecules"):
        potential(collate([box()], 5.0, torch.float64))


def test_a_calculator_takes_molecules_from_the_array(potential: Potential) -> None:
    atoms = to_atoms(box())
    atoms.calc = Calculator(potential)
    expected = potential(collate([box()], CONFIG.cutoff, torch.float64))
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), atol=1e-11)


def test_inputs_are_standardized_over_the_sample() -> None:
    potential = network()
    batch = collate([box(seed) for seed in range(4)], CONFIG.cutoff, torch.float64)
    grains_network = potential.network
    assert isinstance(grains_network, GrainsNetwork)
    carbonate = grains_network.kinds[2]
    assert isinstance(carbonate, KindNetwork)
    with torch.no_grad():
        grains, vectors = grains_network._grains(batch)
        found = carbonate.inputs(grains_network._inputs_of(grains, batch, vectors)[2])
    assert float(found.mean(dim=0).abs().max()) < 1e-9
    assert 0.9 < float(found.std(dim=0).median()) <= 1.0 + 1e-9
    assert float(grains_network.blocks[0].get_buffer("denominator")) > 1.0


def test_levels_of_theory_are_biases_of_the_energy(potential: Potential) -> None:
    batch = collate([box()], CONFIG.cutoff, torch.float64)
    two = add_theory(potential, "other", like="SevenNet-0")
    network = two.network
    assert isinstance(network, GrainsNetwork)
    torch.nn.init.normal_(network.theory_bias)
    second = replace(batch, theory=torch.ones_like(batch.theory))
    assert float(two(batch).energy) != pytest.approx(float(two(second).energy), abs=1e-6)
    for theory, changed in (("SevenNet-0", batch), ("other", second)):
        kept = keep_theory(two, theory)
        assert float(kept(batch).energy) == pytest.approx(float(two(changed).energy), abs=1e-10)


def test_unsupported_options_are_refused(potential: Potential) -> None:
    with pytest.raises(ValueError, match="radial_table"):
        potential.compute_as(Computation(radial_table=64))


def test_a_configuration_that_cannot_be_is_refused() -> None:
    assert CONFIG.cutoff == MoleculeCutoff(10.0)
    wrong = [
        {"grains": ()},
        {"grains": ("Li", "Li")},
        {"grain_irreps": "8x0e"},
        {"grain_irreps": "4x1o+8x0e"},
        {"cutoff": -1.0},
        {"hidden_sizes": ()},
        {"num_blocks": 0},
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match=r"grain|hidden_sizes|num_blocks|cutoff"):
            replace(CONFIG, **changes)


def test_a_golden_prediction_says_which_atoms_are_one_molecule(potential: Potential) -> None:
    structure = box()
    record = golden_record(potential, structure, "SevenNet-0")
    assert record["molecules"] == structure.molecules.tolist()
    assert "molecules" not in golden_record(alone(), replace(structure, has_molecules=False), "PBE")


def alone() -> Potential:
    """A network of atoms."""
    config = EquivariantConfig(irreps="4x0e", num_blocks=1, max_degree=0, radial_sizes=(4,))
    return Potential(config.network(ELEMENTS), ELEMENTS, ("PBE",)).eval()
