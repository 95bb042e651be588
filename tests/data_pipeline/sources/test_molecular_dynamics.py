"""Molecular dynamics as data: labels of the calculator, trajectories that depend on their number, frozen spheres."""

import itertools

import ase
import numpy as np
import pytest
from ase.calculators.emt import EMT

from data_pipeline.sources import CrystalDynamics, FrozenSpheres
from data_pipeline.sources.molecular_dynamics import Material, dynamics
from data_pipeline.sources.rigid_ions import RigidIons
from data_pipeline.structure import Structure

SHORT = CrystalDynamics(temperatures=(1000.0, 2500.0), repeats=1, trajectories=2, frames=3, interval=2, warm_up=3)
COPPER = Material(formula="Cu", prototype="fcc", lattice_constant=3.61, calculator="ase.calculators.emt:EMT")
SPHERES = FrozenSpheres(
    frozen_radii=(2.6, 3.7), material=COPPER, repeats=2, trajectories=2, frames=2, interval=2, warm_up=3
)


def contents(structure: Structure) -> tuple:
    arrays = (structure.numbers, structure.positions, structure.cell, structure.forces, structure.stress)
    return (structure.id, structure.group, structure.energy, *(array.tobytes() for array in arrays))


def test_a_trajectory_does_not_depend_on_which_others_are_made() -> None:
    whole = list(SHORT)
    assert len(whole) == 2 * 2 * 3
    parts = [[contents(frame) for frame in part.read()] for part in reversed(SHORT.parts())]
    assert [contents(frame) for frame in whole] == list(itertools.chain(*reversed(parts)))
    hot = CrystalDynamics(temperatures=(2500.0,), repeats=1, trajectories=1, frames=2, interval=2, warm_up=3)
    assert [contents(frame) for frame in hot] == [contents(frame) for frame in whole[6:8]]
    assert len({frame.positions.tobytes() for frame in whole}) == len({frame.id for frame in whole}) == len(whole)
    assert [len(list(group)) for _, group in itertools.groupby(whole, lambda frame: frame.group)] == [3] * 4


def test_frames_have_the_labels_of_their_own_positions() -> None:
    for frame in SHORT:
        atoms = ase.Atoms(frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True, calculator=RigidIons())
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-6)


def test_frozen_ions_stay_and_a_hotter_crystal_moves_more() -> None:
    distances = []
    for temperature in (300.0, 3000.0):
        perfect = Material().crystal(2)
        moving = dynamics(
            perfect.copy(),
            temperature=temperature,
            seed=(0,),
            calculator=RigidIons(),
            warm_up=30,
            interval=1,
            frozen=[0, 5],
        )
        moved = np.linalg.norm(next(moving).positions - perfect.positions, axis=1)
        assert (moved[[0, 5]] == 0).all()
        assert (np.delete(moved, [0, 5]) > 0).all()
        distances.append(np.sqrt((moved**2).mean()))
    # the amplitude grows as the square root of the temperature
    assert 2.0 < distances[1] / distances[0] < 5.0


def test_another_crystal_and_its_calculator_are_named_in_the_options() -> None:
    (frame,) = CrystalDynamics(temperatures=(900.0,), material=COPPER, repeats=2, trajectories=1, frames=1, warm_up=5)
    assert frame.num_atoms == 32
    atoms = ase.Atoms(frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True, calculator=EMT())
    np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
    np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-6)
    assert np.abs(frame.forces).max() > 0.1


def test_spheres_stay_and_forces_on_their_atoms_are_kept() -> None:
    frames = {frame.id: frame for frame in SPHERES}
    assert len(frames) == 8
    for radius, num_atoms in ((2.6, 32), (3.7, 108)):
        perfect, centre, frozen = SPHERES.perfect(radius)
        # twelve neighbours at 2.55 Å, six more at 3.61 Å
        assert len(frozen) == {2.6: 13, 3.7: 19}[radius]
        for name in SPHERES.names(radius):
            frame = frames[name]
            assert frame.num_atoms == num_atoms
            moved = (frame.positions != perfect.positions).any(axis=1)
            assert (np.flatnonzero(~moved) == frozen).all()
            assert np.abs(frame.forces[centre]).max() > 1e-4


def test_names_of_frames_are_those_of_the_options() -> None:
    made = [frame.id for frame in SPHERES]
    assert made == [name for radius in SPHERES.frozen_radii for name in SPHERES.names(radius)]
    hotter = FrozenSpheres(frozen_radii=(2.6,), material=COPPER, temperature=4001.0, trajectories=2, frames=2)
    softer = FrozenSpheres(
        frozen_radii=(2.6,), material=COPPER, repeats=2, trajectories=2, frames=2, interval=2, warm_up=4
    )
    same = FrozenSpheres(
        frozen_radii=(2.6,), material=COPPER, repeats=2, trajectories=2, frames=2, interval=2, warm_up=3
    )
    assert not {*made} & {*hotter.names(2.6), *softer.names(2.6)}
    assert same.names(2.6) == SPHERES.names(2.6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frozen_radii": ()}, "frozen_radii must be lengths"),
        ({"frozen_radii": (100.0,)}, "frozen_radii must be lengths"),
        ({"trajectories": 1}, "trajectories must be at least 2"),
        ({"temperature": 0.0}, "temperature and melting 1 to 100,000 K"),
    ],
)
def test_impossible_spheres_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FrozenSpheres(**{"frozen_radii": (3.0,), **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formula": "Sr"}, "Sr is no rocksalt crystal"),
        ({"lattice_constant": 0.1}, "between 1 and 30 Å"),
        ({"calculator": "ase:Atoms"}, "makes a Atoms, which is not an ASE calculator"),
        ({"arguments": ("x", "y")}, "nothing can be made of x, y"),
    ],
)
def test_what_is_no_crystal_or_calculator_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Material(**options).oracle()


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="temperatures must be positive"):
        CrystalDynamics(temperatures=(0.0,))
    with pytest.raises(ValueError, match="must be at least 1"):
        CrystalDynamics(temperatures=(300.0,), frames=0)


def test_a_cubic_perovskite_has_the_large_cation_in_a_cage_of_twelve() -> None:
    cell = Material(formula="SrTiO3", prototype="perovskite", lattice_constant=3.9).crystal(2)
    assert len(cell) == 40
    around = {
        symbol: cell.get_distances(index, np.arange(40), mic=True)
        for index, symbol in reversed(list(enumerate(cell.symbols)))
    }
    nearest = {symbol: np.sort(distances)[1] for symbol, distances in around.items()}
    assert nearest == pytest.approx({"Ti": 1.95, "O": 1.95, "Sr": 3.9 / np.sqrt(2)})
    assert [np.isclose(around[symbol], nearest[symbol]).sum() for symbol in ("Sr", "Ti")] == [12, 6]
    for formula in ("SrO", "SrTiO2N", "SrTi2O2"):
        with pytest.raises(ValueError, match="a perovskite has a formula such as SrTiO3"):
            Material(formula=formula, prototype="perovskite")
