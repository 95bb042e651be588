"""The ASE calculator: the potential's own numbers, in ASE's order."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import InvalidStructure
from foundation.interop.calculator import Calculator, to_structure
from foundation.models import DataFacts, EquivariantConfig
from foundation.nn.computation import Computation
from foundation.potential import Potential, UnknownElement, new_potential
from tests.small_networks import SMALL_NETWORKS

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).eval()


@pytest.fixture
def crystal() -> ase.Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "Al"
    atoms.set_cell(atoms.cell[:] @ np.array([[1.0, 0.03, 0], [0, 0.98, 0.02], [0, 0, 1.04]]), scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def dimer() -> ase.Atoms:
    return ase.Atoms("CuAl", positions=[[0, 0, 0], [2.4, 0.3, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_potentials(potential: Potential, crystal: ase.Atoms, dtype: torch.dtype) -> None:
    crystal.calc = Calculator(potential, dtype=dtype)
    graph = to_graph(to_structure(crystal), potential.cutoff, torch.float64)
    expected = potential.cast(dtype)(graph)
    assert crystal.get_potential_energy() == expected.energy.item()
    assert crystal.get_potential_energy(force_consistent=True) == expected.energy.item()
    np.testing.assert_array_equal(crystal.get_potential_energies(), expected.atom_energies.numpy())
    np.testing.assert_array_equal(crystal.get_forces(), expected.forces.double().numpy())
    np.testing.assert_array_equal(crystal.get_stress(voigt=False), expected.stress[0].double().numpy())
    assert crystal.get_forces().dtype == np.float64
    assert np.abs(crystal.get_forces()).max() > 1e-3


def test_stress_is_in_voigt_order(potential: Potential, crystal: ase.Atoms) -> None:
    crystal.calc = Calculator(potential)
    stress = potential.cast(torch.float64)(to_graph(to_structure(crystal), potential.cutoff, torch.float64)).stress[0]
    expected = [stress[i, j].item() for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    assert len(set(expected)) == 6
    assert crystal.get_stress().tolist() == pytest.approx(expected, rel=1e-12)


def test_forces_and_stress_are_ases_finite_differences(potential: Potential, crystal: ase.Atoms) -> None:
    crystal.calc = Calculator(potential)
    forces, stress = crystal.get_forces(), crystal.get_stress()
    numerical_forces = calculate_numerical_forces(crystal, eps=1e-4)
    np.testing.assert_allclose(forces, numerical_forces, rtol=1e-5, atol=1e-6 * np.abs(forces).max())
    numerical_stress = calculate_numerical_stress(crystal, eps=1e-5)
    np.testing.assert_allclose(stress, numerical_stress, rtol=1e-5, atol=1e-5 * np.abs(stress).max())


def test_moving_an_atom_gives_new_results(potential: Potential, crystal: ase.Atoms) -> None:
    crystal.calc = Calculator(potential)
    before = crystal.get_potential_energy()
    crystal.positions[0] += 0.1
    moved = crystal.get_potential_energy()
    crystal.positions[0] -= 0.1
    assert moved != before
    assert crystal.get_potential_energy() == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("change", ["positions", "cell", "numbers", "pbc", "molecules"])
def test_any_change_that_matters_is_seen_and_others_are_not(
    potential: Potential, crystal: ase.Atoms, change: str
) -> None:
    calculator, atoms = Calculator(potential), crystal.copy()
    atoms.new_array("molecule", np.arange(len(atoms)))
    calculator.get_potential_energy(atoms)
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    assert calculator.check_state(atoms) == []
    match change:
        case "positions":
            atoms.positions[0, 0] = np.nextafter(atoms.positions[0, 0], 9.0)
        case "cell":
            atoms.cell[1, 1] *= 1 + 1e-15
        case "numbers":
            atoms.numbers[0] = {*atoms.numbers.tolist()}.difference([atoms.numbers[0]]).pop()
        case "pbc":
            atoms.pbc[2] = not atoms.pbc[2]
        case "molecules":
            atoms.arrays["molecule"][0] = 1
    assert calculator.check_state(atoms) == [change]


def test_a_molecule_has_energy_and_forces_but_no_stress(potential: Potential) -> None:
    atoms = dimer()
    atoms.calc = Calculator(potential)
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.get_forces().any()
    with pytest.raises(PropertyNotImplementedError, match="stress needs a cell with a volume"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_potential_energy())


def test_a_slab_with_a_vacuum_vector_has_a_stress(potential: Potential) -> None:
    atoms = fcc111("Cu", size=(1, 1, 2), vacuum=5.0)
    atoms.calc = Calculator(potential)
    assert atoms.pbc.tolist() == [True, True, False]
    assert np.abs(atoms.get_stress()[:3]).max() > 0


def test_unknown_elements_and_impossible_structures_are_refused(potential: Potential) -> None:
    for atoms, error in (
        (molecule("H2O"), UnknownElement),
        (ase.Atoms("Cu2", positions=np.zeros((2, 3))), InvalidStructure),
        (ase.Atoms("Cu", pbc=True), InvalidStructure),
    ):
        atoms.calc = Calculator(potential)
        with pytest.raises(error):
            atoms.get_potential_energy()


def test_structures_become_atoms_and_come_back(crystal: ase.Atoms) -> None:
    structure = to_structure(crystal)
    again = to_atoms(structure)
    assert again == crystal
    assert not structure.has_forces
    assert not structure.has_stress


def results(atoms: ase.Atoms) -> tuple[float, np.ndarray]:
    return atoms.get_potential_energy(), atoms.get_forces()


def test_a_second_calculator_changes_nothing_of_the_first_nor_of_the_potential(
    potential: Potential, crystal: ase.Atoms
) -> None:
    potential.train()
    crystal.calc = Calculator(potential)
    energy, forces = results(crystal)
    other = crystal.copy()
    other.calc = Calculator(potential, dtype=torch.float32)
    assert 0 < np.abs(other.get_forces() - forces).max() < 1e-4
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.zero_()
    crystal.calc.reset()
    assert crystal.get_potential_energy() == energy
    np.testing.assert_array_equal(crystal.get_forces(), forces)
    assert potential.training
    assert potential.dtype == torch.float32


def test_inference_mode_changes_nothing(potential: Potential, crystal: ase.Atoms) -> None:
    crystal.calc = Calculator(potential)
    energy, forces = results(crystal)
    with torch.inference_mode():
        graph = to_graph(to_structure(crystal), potential.cutoff)
        crystal.calc.reset()
        assert results(crystal)[0] == energy
        np.testing.assert_array_equal(crystal.get_forces(), forces)
        crystal.calc = Calculator(potential)
        inside = potential(graph)
    np.testing.assert_array_equal(crystal.get_forces(), forces)
    for batch in (graph, to_graph(to_structure(crystal), potential.cutoff)):
        assert torch.equal(potential(batch).forces, inside.forces)


@pytest.mark.parametrize("num_knots", [0, 64])
def test_a_table_made_in_inference_mode_serves_outside(
    potential: Potential, crystal: ase.Atoms, num_knots: int
) -> None:
    potential.compute_as(Computation(radial_table=num_knots))
    graph = to_graph(to_structure(crystal), potential.cutoff)
    with torch.inference_mode():
        inside = potential.atom_energies(graph)
    assert torch.equal(potential(graph).atom_energies, inside)


def test_threads_that_share_a_calculator_get_results_of_their_own_atoms(
    potential: Potential, crystal: ase.Atoms
) -> None:
    frames = [crystal.copy() for _ in range(12)]
    for number, frame in enumerate(frames):
        frame.rattle(0.05, seed=number)
        frame.calc = Calculator(potential)
    expected = [results(frame) for frame in frames]
    shared = Calculator(potential)
    for frame in frames:
        frame.calc = shared
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(results, frames * 2))
    for (energy, forces), (right_energy, right_forces) in zip(found, expected * 2, strict=True):
        assert energy == right_energy
        np.testing.assert_array_equal(forces, right_forces)


def test_a_calculator_can_be_copied_and_pickled(potential: Potential, crystal: ase.Atoms) -> None:
    crystal.calc = Calculator(potential)
    expected = results(crystal)
    for calculator in (copy.deepcopy(crystal.calc), pickle.loads(pickle.dumps(crystal.calc))):
        other = crystal.copy()
        other.calc = calculator
        assert other.get_potential_energy() == expected[0]
        np.testing.assert_array_equal(other.get_forces(), expected[1])


def test_processes_forked_after_threads_have_computed_give_energies(real_data: Path) -> None:
    case = real_data.parent / "cases" / "k10_fork.py"
    process = subprocess.run(
        [sys.executable, str(case)],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    alone, forked = process.stdout.splitlines()
    assert float(alone) == pytest.approx(-26.598, abs=1e-3)
    assert len(forked.split(",")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "dtype must be float64 or float32, not torch.float16"),
        ({"dtype": torch.int64}, "dtype must be float64 or float32, not torch.int64"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
    ],
)
def test_a_device_or_float_type_that_cannot_be_used_is_refused(
    potential: Potential, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Calculator(potential, **options)


def test_a_prediction_that_is_not_finite_is_an_error(potential: Potential, crystal: ase.Atoms) -> None:
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1e30)
    crystal.calc = Calculator(potential, dtype=torch.float32)
    with pytest.raises(ValueError, match="the predicted energy or forces for AlCu3 are not finite"):
        crystal.get_potential_energy()


def supercell(repeat: int) -> ase.Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.symbols[::4] = "Al"
    atoms.rattle(0.1, seed=0)
    return atoms


def float32_error(potential: Potential, atoms: ase.Atoms) -> dict[str, float]:
    """Largest difference of forces and stress from float64's, over the largest value."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        atoms.calc = Calculator(potential, dtype=dtype)
        found[dtype] = {"forces": atoms.get_forces(), "stress": atoms.get_stress()}
    exact, rounded = found.values()
    return {name: np.abs(rounded[name] - exact[name]).max() / np.abs(exact[name]).max() for name in exact}


def test_digits_of_float32_do_not_depend_on_the_size_of_the_cell_nor_on_where_the_atoms_are(
    potential: Potential,
) -> None:
    small, large, far = supercell(2), supercell(6), supercell(2)
    far.positions += 1000.0
    assert len(large) == 27 * len(small)
    expected = float32_error(potential, small)
    for atoms in (large, far):
        errors = float32_error(potential, atoms)
        for name, error in errors.items():
            assert error < 3 * expected[name] < 1e-5, name


def test_the_mode_for_dynamics_is_float32_with_a_radial_table_and_close_to_the_precise_one(
    potential: Potential, crystal: ase.Atoms
) -> None:
    precise, fast = Calculator(potential, mode="precise"), Calculator(potential, mode="md")
    assert (precise.potential.dtype, fast.potential.dtype) == (torch.float64, torch.float32)
    assert precise.potential.network.computation.radial_table == 0
    assert fast.potential.network.computation.radial_table == 256
    assert potential.network.computation == Computation()
    exact, found = precise.get_forces(crystal), fast.get_forces(crystal)
    assert 0 < np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()


def test_a_float_type_and_a_table_of_the_users_own_are_kept(potential: Potential) -> None:
    potential.compute_as(Computation(radial_table=64))
    chosen = Calculator(potential, dtype="float64", mode="md").potential
    assert (chosen.dtype, chosen.network.computation.radial_table) == (torch.float64, 64)
    assert Calculator(potential, dtype=torch.float32).potential.dtype == torch.float32


def test_a_network_without_a_radial_network_has_the_mode_for_dynamics_too() -> None:
    network = SMALL_NETWORKS["symmetry-functions"].network((8,), facts=DataFacts(mean_neighbors=8.0))
    assert Calculator(Potential(network, (8,), ("PBE",)), mode="md").potential.dtype == torch.float32


def test_an_unknown_mode_is_refused(potential: Potential) -> None:
    with pytest.raises(ValueError, match="mode must be precise or md, not fast"):
        Calculator(potential, mode="fast")


def test_the_compiled_engine_computes_the_same(potential: Potential, crystal: ase.Atoms) -> None:
    other = crystal.copy()
    crystal.calc = Calculator(potential)
    for mode, tolerance in (("precise", 1e-10), ("md", 1e-4)):
        calculator = Calculator(potential, mode=mode, engine="compiled")
        for each in (calculator, copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
            other.calc = each
            np.testing.assert_allclose(other.get_potential_energies(), crystal.get_potential_energies(), atol=tolerance)
            np.testing.assert_allclose(other.get_forces(), crystal.get_forces(), atol=tolerance)
            np.testing.assert_allclose(other.get_stress(), crystal.get_stress(), atol=tolerance)
    pair = dimer()
    pair.calc = Calculator(potential, engine="compiled")
    assert pair.get_forces().any()
    with pytest.raises(PropertyNotImplementedError, match="stress needs a cell with a volume"):
        pair.get_stress()


def test_what_the_compiled_engine_cannot_do_is_refused(potential: Potential, crystal: ase.Atoms) -> None:
    with pytest.raises(ValueError, match="engine must be one of torch, compiled, recorded, not c"):
        Calculator(potential, engine="c")
    with pytest.raises(ValueError, match="on processors, not on meta"):
        Calculator(potential, device="meta", engine="compiled")
    crystal.symbols[1] = "Fe"
    crystal.calc = Calculator(potential, engine="compiled")
    with pytest.raises(UnknownElement, match="does not know Fe"):
        crystal.get_potential_energy()
