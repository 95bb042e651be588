"""DeePMD-kit systems, written here in their layout: labels, the sign of the virial, and what is said of bad ones."""

import functools
import pickle
import shutil
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from data_pipeline.sources import DeepmdNpy
from data_pipeline.structure import InvalidStructure, Structure
from tests.fuzz.targets_sources import deepmd


@functools.cache
def rattled(seed: int) -> ase.Atoms:
    """CuAu with EMT's labels; four atoms, off their places and in a sheared cell."""
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[2:] = "Au"
    strain = np.array([[1.02, 0.01, 0.0], [0.0, 1.03, 0.02], [0.0, 0.0, 0.99]])
    atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    atoms.calc = EMT()
    return atoms


@functools.cache
def numerical_virial(seed: int) -> np.ndarray:
    """DeePMD-kit's virial [eV] by its definition, -Σ_γ ∂E/∂h_γα h_γβ, by finite differences."""
    atoms, virial, step = rattled(seed), np.zeros((3, 3)), 1e-5
    for row, column in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strained, strain = atoms.copy(), np.eye(3)
            strain[row, column] += sign * step
            strained.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
            strained.calc = EMT()
            energies.append(strained.get_potential_energy())
        virial[row, column] = -(energies[0] - energies[1]) / (2 * step)
    return virial


def write_system(folder: Path, sets: list[list[int]]) -> Path:
    """Write a system whose sets hold the rattled frames of these seeds."""
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n0\n1\n1\n")
    (folder / "type_map.raw").write_text("Cu\nAu\n")
    for number, seeds in enumerate(sets):
        frames = [rattled(seed) for seed in seeds]
        place = folder / f"set.{number:03d}"
        place.mkdir()
        np.save(place / "coord.npy", np.array([a.positions.ravel() for a in frames]))
        np.save(place / "box.npy", np.array([a.cell[:].ravel() for a in frames]))
        np.save(place / "energy.npy", np.array([a.get_potential_energy() for a in frames]))
        np.save(place / "force.npy", np.array([a.get_forces().ravel() for a in frames]))
        np.save(place / "virial.npy", np.array([numerical_virial(seed).ravel() for seed in seeds]))
    return folder


@pytest.fixture
def system(tmp_path: Path) -> Path:
    return write_system(tmp_path / "data" / "cuau", [[0, 1], [2]])


def read(*folders: Path, **options: object) -> list[Structure]:
    return list(DeepmdNpy(deepmd_npy=tuple(map(str, folders)), **options))


def test_labels_come_through_and_the_virial_becomes_the_stress(system: Path) -> None:
    structures = read(system)
    assert len(structures) == 3
    for structure, atoms in zip(structures, map(rattled, range(3)), strict=True):
        assert structure.numbers.tolist() == [29, 29, 79, 79]
        np.testing.assert_array_equal(structure.positions, atoms.positions)
        np.testing.assert_array_equal(structure.cell, atoms.cell[:])
        assert structure.energy == atoms.get_potential_energy()
        np.testing.assert_allclose(structure.forces, atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(structure.stress, atoms.get_stress(voigt=False), atol=1e-6)
        assert structure.pbc.all()


def test_frames_are_named_by_system_set_and_number_and_grouped_by_system(system: Path) -> None:
    other = write_system(system.parent / "deeper" / "more", [[3]])
    structures = read(system.parent, other)
    assert [s.id for s in structures] == [
        "cuau:set.000:0",
        "cuau:set.000:1",
        "cuau:set.001:0",
        "deeper/more:set.000:0",
    ]
    assert [s.group for s in structures] == ["cuau"] * 3 + ["deeper/more"]


def test_parts_are_sets_and_travel_to_other_processes(system: Path) -> None:
    parts = DeepmdNpy(deepmd_npy=(str(system),)).parts()
    assert [part.name for part in parts] == ["cuau:set.000", "cuau:set.001"]
    assert parts[0].size > parts[1].size > 0
    assert [s.id for s in pickle.loads(pickle.dumps(parts[1])).read()] == ["cuau:set.001:0"]


def test_missing_files_of_force_and_virial_are_missing_labels(system: Path) -> None:
    for name in ("force", "virial"):
        (system / "set.001" / f"{name}.npy").unlink()
    first, _, last = read(system)
    assert (first.has_forces, first.has_stress) == (True, True)
    assert (last.has_forces, last.has_stress) == (False, False)


def test_a_system_without_period_has_no_cell_and_no_stress(system: Path) -> None:
    (system / "nopbc").touch()
    (system / "set.000" / "box.npy").unlink()
    for structure in read(system):
        assert not structure.pbc.any()
        assert not structure.cell.any()
        assert not structure.has_stress
        assert structure.has_forces


def test_energies_may_be_a_column(system: Path) -> None:
    energies = [s.energy for s in read(system)]
    file = system / "set.000" / "energy.npy"
    np.save(file, np.load(file).reshape(-1, 1))
    assert [s.energy for s in read(system)] == energies


def test_names_of_types_can_be_given_where_the_system_has_none(system: Path) -> None:
    (system / "type_map.raw").unlink()
    with pytest.raises(InvalidStructure, match=r"cuau: no type_map\.raw; name the elements"):
        read(system)
    assert read(system, type_map=("Ag", "Pt"))[0].numbers.tolist() == [47, 47, 78, 78]


def test_mixed_types_drop_the_virtual_atoms_and_group_by_composition(system: Path) -> None:
    (system / "type.raw").write_text("0\n" * 4)
    np.save(system / "set.000" / "real_atom_types.npy", np.array([[1, 0, 1, -1], [0, 0, 1, 1]]))
    np.save(system / "set.001" / "real_atom_types.npy", np.array([[1, 1, 0, 0]]))
    structures = read(system)
    assert [s.numbers.tolist() for s in structures] == [[79, 29, 79], [29, 29, 79, 79], [79, 79, 29, 29]]
    np.testing.assert_array_equal(structures[0].positions, rattled(0).positions[:3])
    np.testing.assert_allclose(structures[0].forces, rattled(0).get_forces()[:3], atol=1e-6)
    assert [s.group for s in structures] == ["cuau:Au2Cu", "cuau:Au2Cu2", "cuau:Au2Cu2"]


@pytest.mark.parametrize("name", ["coord", "box", "energy", "force", "virial", "real_atom_types"])
def test_a_wrong_shape_names_the_file(system: Path, name: str) -> None:
    np.save(system / "set.000" / f"{name}.npy", np.zeros((2, 11)))
    with pytest.raises(InvalidStructure, match=rf"set\.000/{name}\.npy: has shape \(2, 11\), expected \(.*, \d+\)"):
        read(system)


def test_another_number_of_frames_names_the_file(system: Path) -> None:
    file = system / "set.000" / "force.npy"
    np.save(file, np.load(file)[:1])
    with pytest.raises(InvalidStructure, match=r"force\.npy: has shape \(1, 12\), expected \(2, 12\)"):
        read(system)


@pytest.mark.parametrize("name", ["coord", "box", "energy"])
def test_a_missing_file_that_is_needed_is_named(system: Path, name: str) -> None:
    (system / "set.000" / f"{name}.npy").unlink()
    with pytest.raises(InvalidStructure, match=rf"set\.000/{name}\.npy: no such file"):
        read(system)


def test_a_damaged_array_is_named(system: Path) -> None:
    file = system / "set.000" / "force.npy"
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(InvalidStructure, match=r"set\.000/force\.npy: cannot be read"):
        read(system)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("type.raw", "0 0 1 x", r"type\.raw: not a list of whole numbers"),
        ("type.raw", "0 0 1 2", r"frame 0: a type is outside 0-1"),
        ("type_map.raw", "Cu Q", r"type_map\.raw: 'Q' is not a chemical symbol"),
    ],
)
def test_wrong_types_are_named(system: Path, file: str, text: str, message: str) -> None:
    (system / file).write_text(text)
    with pytest.raises(InvalidStructure, match=message):
        read(system)


def test_a_bad_frame_is_refused_and_reading_goes_on(system: Path) -> None:
    file = system / "set.000" / "force.npy"
    forces = np.load(file)
    forces[0, 5] = np.nan
    np.save(file, forces)
    frames = [frame for part in DeepmdNpy(deepmd_npy=(str(system),)).parts() for frame in part.read()]
    assert [isinstance(frame, InvalidStructure) for frame in frames] == [True, False, False]
    assert "set.000, frame 0: forces has a value that is not finite" in str(frames[0])


def test_a_flat_cell_is_refused_by_its_name(system: Path) -> None:
    np.save(system / "set.001" / "box.npy", np.zeros((1, 9)))
    with pytest.raises(InvalidStructure, match=r"set\.001, frame 0: periodic cell without volume"):
        read(system)


def test_a_folder_without_systems_or_sets_is_an_error(tmp_path: Path, system: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder \(source\.deepmd_npy names it\)"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no type\.raw in this folder"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "type.raw").write_text("0")
    with pytest.raises(FileNotFoundError, match=r"empty: no folder set\.\*"):
        read(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"environment variable .* --source\.deepmd_npy"):
        DeepmdNpy(deepmd_npy=("${NO_SUCH_VARIABLE}/x",)).parts()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("force", "forces", r"forces\.npy: looks like forces.*name is force\.npy"),
        ("force", "Force", r"Force\.npy: looks like forces"),
        ("force", "gradient", r"gradient\.npy: looks like forces"),
        ("virial", "virials", r"virials\.npy: looks like stress.*name is virial\.npy"),
        ("virial", "stress", r"stress\.npy: looks like stress.*-stress \* volume"),
    ],
)
def test_labels_in_files_of_another_name_are_refused_by_it(system: Path, old: str, new: str, message: str) -> None:
    (system / "set.000" / f"{old}.npy").rename(system / "set.000" / f"{new}.npy")
    with pytest.raises(InvalidStructure, match=message):
        read(system)


@pytest.mark.parametrize("name", ["real_atom_type", "atom_types", "types"])
def test_types_in_a_file_of_another_name_are_refused_by_it(system: Path, name: str) -> None:
    np.save(system / "set.000" / f"{name}.npy", np.ones((2, 4), dtype=np.int64))
    with pytest.raises(InvalidStructure, match=rf"{name}\.npy: looks like types.*real_atom_types\.npy"):
        read(system)


def test_labels_beside_those_that_are_read_are_a_warning(system: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("forces", "dft_energy"):
        np.save(system / "set.000" / f"{name}.npy", np.zeros((2, 12)))
    (system / "nopbc").touch()
    assert len(read(system)) == 3
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "forces.npy: looks like forces" in said
    assert "dft_energy.npy: looks like energy" in said
    assert "virial.npy: not read" in said


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("coord", np.ones((2, 12), dtype=bool), "coord.npy: is of type 'bool'"),
        ("force", np.ones((2, 12), dtype=bool), "force.npy: is of type 'bool'"),
        ("energy", np.array(["-1", "-2"]), "energy.npy: is of type '<U2'"),
        ("box", np.ones((2, 9), dtype=complex), "box.npy: is of type 'complex128'"),
        ("real_atom_types", np.ones((2, 4)), "real_atom_types.npy: is of type float64"),
        ("total_charge", np.array([0.0, 1.0]), r"set.000, frame 1: has charge 1 .*by total_charge"),
        ("virial", np.arange(18.0).reshape(2, 9), "set.000, frame 0: the stress is not symmetric"),
    ],
)
def test_arrays_of_another_meaning_are_refused(system: Path, name: str, array: np.ndarray, message: str) -> None:
    np.save(system / "set.000" / f"{name}.npy", array)
    with pytest.raises(InvalidStructure, match=message):
        read(system)


@pytest.mark.parametrize("shape", ["(-2, 12)", "(10**15, 12)", "(2, 12, 'x')", "(2,) * 70", "()"])
def test_an_absurd_header_of_an_array_is_refused(system: Path, shape: str) -> None:
    file = system / "set.000" / "coord.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    file.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header + file.read_bytes()[128:])
    with pytest.raises(InvalidStructure, match=r"coord\.npy: "):
        read(system)


@pytest.mark.parametrize("text", ["0\n0\n-1\n1\n", "0 0 1.0 1", f"0 0 1 {10**30}", "\x00\x00"])
def test_types_that_are_none_are_refused(system: Path, text: str) -> None:
    (system / "type.raw").write_text(text)
    with pytest.raises(InvalidStructure, match=r"type\.raw: "):
        read(system)


@pytest.mark.parametrize("name", ["spin", "fparam", "aparam"])
def test_a_set_whose_energies_depend_on_more_than_its_atoms_is_refused(tmp_path: Path, name: str) -> None:
    deepmd(tmp_path)
    np.save(tmp_path / "set.000" / f"{name}.npy", np.zeros((3, 1)))
    with pytest.raises(InvalidStructure, match=rf"{name}\.npy: the energies depend on it"):
        list(DeepmdNpy(deepmd_npy=(str(tmp_path),)))


@pytest.mark.parametrize("name", ["set.000.bak", "set.000_old"])
def test_a_copy_of_a_set_is_refused(tmp_path: Path, name: str) -> None:
    deepmd(tmp_path)
    shutil.copytree(tmp_path / "set.000", tmp_path / name)
    with pytest.raises(InvalidStructure, match=rf"{name}: is not named set"):
        list(DeepmdNpy(deepmd_npy=(str(tmp_path),)))


def test_an_element_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    deepmd(tmp_path)
    (tmp_path / "type_map.raw").write_text("Cu Cu")
    with pytest.raises(InvalidStructure, match=r"type_map\.raw: names 'Cu' twice"):
        list(DeepmdNpy(deepmd_npy=(str(tmp_path),)))
