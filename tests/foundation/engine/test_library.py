"""The compiled library computes what the potential does, in any share of atoms among threads and processes."""

import ctypes
import threading
from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from jaxtyping import Float64

from data_pipeline.graphs.batch import GraphBatch, collate
from foundation.engine.library import CompiledPotential, System
from foundation.interop.calculator import to_structure
from foundation.models import EquivariantConfig
from foundation.potential import Potential
from tests.small_networks import CUTOFF, EQUIVARIANT, SMALL_NETWORKS

NETWORKS = {name: config for name, config in SMALL_NETWORKS.items() if isinstance(config, EquivariantConfig)}
# fewer paths, whose C compiles sooner
del NETWORKS["even-3-blocks-degree-3"]
NETWORKS["degree-3"] = EquivariantConfig(
    irreps="8x0e+1x1e+2x3e", num_blocks=2, max_degree=3, cutoff_function="polynomial", **EQUIVARIANT
)
NETWORKS["vectors-not-unit"] = EquivariantConfig(
    irreps="20x0e+18x1e+3x2e", num_blocks=2, unit_harmonics=False, theory_biases=True, **EQUIVARIANT
)
ELEMENTS = (8, 12, 29)


def potential_of(config: EquivariantConfig, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    network = config.network(ELEMENTS, num_theories=2)
    for name, parameter in network.named_parameters():
        if "theory" in name:
            parameter.data.normal_()
    potential = Potential(network, ELEMENTS, ("one", "other"))
    potential.get_buffer("scale").copy_(torch.tensor([0.7, 1.3, 1.1]))
    potential.get_buffer("reference_energies").copy_(torch.arange(6.0).view(2, 3))
    return potential.cast(dtype).eval()


def crystal(repeats: int = 1) -> ase.Atoms:
    atoms = bulk("MgO", "rocksalt", 4.2, cubic=True).repeat(repeats)
    atoms.symbols[1] = "Cu"
    atoms.set_cell(atoms.cell[:] @ np.array([[1.0, 0.03, 0], [0, 0.98, 0.02], [0, 0, 1.04]]), scale_atoms=True)
    atoms.rattle(0.15, seed=0)
    return atoms


def graph(atoms: ase.Atoms, theory: int = 0) -> GraphBatch:
    return collate([to_structure(atoms)], CUTOFF, torch.float64, [theory])


@pytest.mark.parametrize("name", NETWORKS)
def test_energies_forces_and_virial_are_the_potentials(name: str) -> None:
    potential, atoms = potential_of(NETWORKS[name]), crystal()
    for theory, table, relative in ((0, False, 1e-12), (1, True, 1e-6)):
        batch = graph(atoms, theory)
        expected, found = potential(batch), CompiledPotential(potential, theory, table=table)(batch)
        size = float(expected.forces.abs().max())
        tolerance = relative * size
        np.testing.assert_allclose(found.atom_energies, expected.atom_energies, rtol=0, atol=tolerance)
        assert found.energy == pytest.approx(float(expected.energy), abs=10 * tolerance)
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.virial / atoms.get_volume(), expected.stress[0], rtol=0, atol=tolerance)
        assert size > 0.01


def test_float32_is_as_good_as_the_potentials_own() -> None:
    config, atoms = NETWORKS["even-2-blocks"], crystal(2)
    exact, own = potential_of(config)(graph(atoms)), potential_of(config, torch.float32)
    found = CompiledPotential(own)(graph(atoms))
    rounded = own(graph(atoms)).forces.double().numpy()
    error, rounding = (np.abs(each - exact.forces.numpy()).max() for each in (found.forces, rounded))
    assert error < 2 * rounding


def test_any_number_of_threads_gives_the_same_bits() -> None:
    compiled, batch = CompiledPotential(potential_of(NETWORKS["even-2-blocks"])), graph(crystal(3))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compiled(batch))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert other.energy == results[0].energy
        np.testing.assert_array_equal(other.forces, results[0].forces)


def test_one_library_takes_structures_of_any_size() -> None:
    potential = potential_of(NETWORKS["parity-sqrt"])
    compiled = CompiledPotential(potential, table=False)
    for atoms in (
        crystal(2),
        ase.Atoms("Mg", cell=[20] * 3, pbc=True),
        ase.Atoms("MgO", [[0, 0, 0], [0, 0, 2]]),
        crystal(),
    ):
        expected = potential(graph(atoms))
        np.testing.assert_allclose(compiled(graph(atoms)).forces, expected.forces, atol=1e-11)
        assert compiled(graph(atoms)).energy == pytest.approx(float(expected.energy), abs=1e-10)


def test_two_processes_that_exchange_ghosts_compute_what_one_does() -> None:
    potential, batch = potential_of(NETWORKS["even-2-blocks"]).repel(), graph(collided(2))
    expected, atoms = potential(batch), len(batch.numbers)
    share = [np.arange(0, atoms, 2), np.arange(1, atoms, 2)]
    meeting, rows = threading.Barrier(2), {}
    forces, energies = [np.zeros((atoms, 3)), np.zeros((atoms, 3))], [0.0, 0.0]

    def work(rank: int) -> None:
        """Compute half of the atoms; all others are ghosts."""
        order = np.concatenate([share[rank], share[1 - rank]])
        place = np.argsort(order)

        def exchange(_: object, values: int, width: int) -> None:
            own = np.ctypeslib.as_array((ctypes.c_double * (atoms * width)).from_address(values)).reshape(atoms, width)
            local = len(share[rank])
            rows[rank] = own[:local].copy()
            meeting.wait()
            own[local:] = rows[1 - rank]
            meeting.wait()

        compiled = CompiledPotential(potential, table=False)
        pointers, vectors = batch.row_pointers.numpy(), batch.edge_vectors().numpy()
        edges = np.concatenate([np.arange(pointers[atom], pointers[atom + 1]) for atom in share[rank]])
        counts = np.diff(pointers)[share[rank]]
        found = compiled.compute(
            System(
                numbers=batch.numbers.numpy()[order],
                row_pointers=np.concatenate([[0], np.cumsum(counts)]),
                senders=place[batch.senders.numpy()[edges]],
                vectors=vectors[edges],
                exchange=exchange,
            )
        )
        energies[rank] = found.energy
        forces[rank][order] = found.forces

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(energies) == pytest.approx(float(expected.energy), rel=1e-12)
    np.testing.assert_allclose(sum(forces), expected.forces, rtol=1e-12, atol=1e-11)


def virial_by_differences(potential: Potential, atoms: ase.Atoms) -> Float64[np.ndarray, "3 3"]:
    """Return dE/d(strain) by finite differences."""
    found, step = np.zeros((3, 3)), 1e-5
    for row, column in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
            energies.append(float(potential(graph(strained)).energy))
        found[row, column] = (energies[0] - energies[1]) / (2 * step)
    return found


def test_the_virial_is_the_derivative_by_strain() -> None:
    potential, atoms = potential_of(NETWORKS["even-2-blocks"]), crystal()
    found = CompiledPotential(potential, table=False)(graph(atoms)).virial
    np.testing.assert_allclose(found, virial_by_differences(potential, atoms), atol=1e-6)


def collided(repeats: int = 1) -> ase.Atoms:
    """Return a crystal with two pairs of atoms where the repulsion is partly and wholly switched on."""
    atoms = crystal(repeats)
    first, second = (len(atoms) // 2 - 1, len(atoms) // 2), (0, len(atoms) - 1)
    for (one, other), distance in ((first, 1.0), (second, 0.3)):
        atoms.positions[other] = atoms.positions[one] + distance * np.array([0.48, -0.6, 0.64])
    return atoms


def test_the_repulsion_is_added_in_float64() -> None:
    potential, batch = potential_of(NETWORKS["even-2-blocks"]).repel(), graph(collided())
    expected, found = potential(batch), CompiledPotential(potential, table=False)(batch)
    np.testing.assert_allclose(found.atom_energies, expected.atom_energies, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(found.virial / np.linalg.det(batch.cell[0]), expected.stress[0], rtol=1e-12, atol=1e-10)
    assert found.energy == pytest.approx(float(expected.energy), rel=1e-12)
    plain = potential_of(NETWORKS["even-2-blocks"])
    added = [CompiledPotential(each.cast(torch.float32), table=False)(batch) for each in (potential, plain)]
    exact = expected.atom_energies - plain.cast(torch.float64)(batch).atom_energies
    assert exact.max() > 100
    np.testing.assert_allclose(added[0].atom_energies - added[1].atom_energies, exact, rtol=1e-12, atol=1e-10)


def test_what_is_no_system_is_refused() -> None:
    compiled, batch = CompiledPotential(potential_of(NETWORKS["even-2-blocks"])), graph(crystal())
    whole = System.of(batch)
    for changed, message in (
        (replace(whole, numbers=np.full(8, 11)), "does not know Na"),
        (replace(whole, row_pointers=whole.row_pointers[::-1].copy()), "row_pointers must begin with 0"),
        (replace(whole, senders=whole.senders + 8), "a sender is no atom"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled.compute(changed)
