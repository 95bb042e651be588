"""Files through ASE: labels, units and signs, names, and what is said of a bad file."""

import itertools
import re
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from data_pipeline.sources import AseFiles
from data_pipeline.structure import InvalidStructure, Structure

STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
VOIGT = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
"""The same stress in ASE's order: xx, yy, zz, yz, xz, xy."""
EV_PER_CUBIC_ANGSTROM_IN_GPA = 160.21766


def read(path: Path, **options: object) -> list[Structure]:
    return list(AseFiles(files=(str(path),), **options))


def convert(atoms: ase.Atoms, **options: object) -> Structure:
    return AseFiles(files=(), **options).convert(atoms, default_id="x")


def test_labels_of_the_calculator_come_through(copper_file: Path, copper_frames: list[ase.Atoms]) -> None:
    structures = read(copper_file)
    assert [s.energy for s in structures] == [-10.0, -11.0, -12.0]
    for structure, atoms in zip(structures, copper_frames, strict=True):
        np.testing.assert_allclose(structure.forces, atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(structure.stress, atoms.get_stress(voigt=False), atol=1e-8)
        np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(structure.cell, atoms.cell[:], atol=1e-12)
        assert structure.numbers.tolist() == [29] * 4
        assert structure.pbc.all()


def test_iterating_twice_yields_the_same_frames(copper_file: Path) -> None:
    source = AseFiles(files=(str(copper_file),))
    assert [s.positions.tobytes() for s in source] == [s.positions.tobytes() for s in source]


def test_files_are_read_in_the_order_given(tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    for name, atoms in zip("bac", copper_frames, strict=True):
        ase.io.write(tmp_path / f"{name}.extxyz", atoms)
    source = AseFiles(files=tuple(str(tmp_path / f"{name}.extxyz") for name in "cab"))
    assert [(s.id, s.energy) for s in source] == [
        ("c.extxyz:0", -12.0),
        ("a.extxyz:0", -11.0),
        ("b.extxyz:0", -10.0),
    ]


@pytest.mark.parametrize("stress", [VOIGT, STRESS, STRESS.reshape(9)], ids=["voigt", "3x3", "nine"])
def test_every_form_of_stress_gives_the_same_tensor(copper_frames: list[ase.Atoms], stress: np.ndarray) -> None:
    copper_frames[0].info["REF_stress"] = stress
    structure = convert(copper_frames[0], stress_key="REF_stress")
    np.testing.assert_array_equal(structure.stress, STRESS.astype(np.float32))
    assert structure.has_stress


def test_voigt_and_full_stress_in_a_file_are_the_same(copper_file: Path) -> None:
    text = copper_file.read_text()
    forms = []
    for numbers in ("1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"):
        copper_file.write_text(text.replace(" stress=", f' REF_stress="{numbers}" stress='))
        forms.append([structure.stress for structure in read(copper_file, stress_key="REF_stress")])
    np.testing.assert_array_equal(*forms)
    np.testing.assert_array_equal(forms[0], [STRESS] * 3)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("eV/A^3", 1.0),
        ("GPa", 1 / EV_PER_CUBIC_ANGSTROM_IN_GPA),
        ("kbar", 0.1 / EV_PER_CUBIC_ANGSTROM_IN_GPA),
    ],
)
@pytest.mark.parametrize(("sign", "name"), [(1.0, "tension"), (-1.0, "compression")])
def test_units_and_signs_of_stress(
    copper_frames: list[ase.Atoms], unit: str, factor: float, sign: float, name: str
) -> None:
    copper_frames[0].info["virial"] = VOIGT
    structure = convert(copper_frames[0], stress_key="virial", stress_unit=unit, stress_positive_in=name)
    np.testing.assert_allclose(structure.stress, sign * factor * STRESS, rtol=1e-6)


def test_stress_of_seven_numbers_is_refused(copper_frames: list[ase.Atoms]) -> None:
    copper_frames[0].info["virial"] = np.zeros(7)
    with pytest.raises(InvalidStructure, match=r"stress has shape \(7,\)"):
        convert(copper_frames[0], stress_key="virial")


def test_named_entries_are_read_instead_of_the_calculator(tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    atoms = copper_frames[0]
    atoms.info.update(REF_energy=-99.5, REF_stress=STRESS)
    atoms.arrays["REF_forces"] = np.arange(12.0).reshape(4, 3)
    ase.io.write(tmp_path / "ref.extxyz", atoms)
    keys = {"energy_key": "REF_energy", "forces_key": "REF_forces", "stress_key": "REF_stress"}
    (structure,) = read(tmp_path / "ref.extxyz", **keys)
    assert structure.energy == -99.5
    np.testing.assert_array_equal(structure.forces, np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(structure.stress, STRESS)


def test_a_forces_key_that_no_frame_has_is_an_error(copper_file: Path) -> None:
    # a misspelt key would train without a single force label, and nobody would be told
    with pytest.raises(InvalidStructure, match="REF_forces"):
        read(copper_file, forces_key="REF_forces")


def test_absent_forces_and_stress_are_missing_labels(copper_frames: list[ase.Atoms]) -> None:
    atoms = copper_frames[0]
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    structure = convert(atoms)
    assert (structure.has_forces, structure.has_stress) == (False, False)


def test_constraints_do_not_change_the_forces(tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    atoms = copper_frames[0]
    forces = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "fixed.traj", atoms)
    (structure,) = read(tmp_path / "fixed.traj")
    np.testing.assert_allclose(structure.forces, forces, rtol=1e-6)


def test_group_is_the_formula_and_id_the_place_unless_named(copper_file: Path) -> None:
    assert [(s.group, s.id) for s in read(copper_file)] == [("Cu4", f"copper.extxyz:{n}") for n in range(3)]


def test_group_and_id_can_be_named(copper_frames: list[ase.Atoms]) -> None:
    copper_frames[0].info.update(run="md-7", number=41)
    structure = convert(copper_frames[0], group_key="run", id_key="number")
    assert (structure.group, structure.id) == ("md-7", "41")


@pytest.mark.parametrize("option", ["group_key", "id_key"])
def test_a_name_that_is_not_there_is_an_error_that_lists_what_is(copper_file: Path, option: str) -> None:
    copper_file.write_text(copper_file.read_text().replace("energy=", "trajectory=t energy="))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz, frame 0: no entry 'run'.*'trajectory'"):
        read(copper_file, **{option: "run"})


def test_files_of_the_same_name_in_different_folders_have_different_ids(
    tmp_path: Path, copper_frames: list[ase.Atoms]
) -> None:
    # VASP names every output OUTCAR, and such a file has no entry that could serve as an id
    paths = [tmp_path / folder / "calculation.extxyz" for folder in "ab"]
    for path, atoms in zip(paths, copper_frames, strict=False):
        path.parent.mkdir()
        ase.io.write(path, atoms)
    ids = [structure.id for structure in AseFiles(files=tuple(map(str, paths)))]
    assert len(set(ids)) == 2


def test_an_environment_variable_in_a_path_is_filled_in(copper_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPER_DATA", str(copper_file.parent))
    assert len(list(AseFiles(files=("${COPPER_DATA}/copper.extxyz",)))) == 3


def test_an_environment_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPPER_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"COPPER_DATA.*environment variable.*not set.*Set it"):
        list(AseFiles(files=("${COPPER_DATA}/copper.extxyz",)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.extxyz: no such file"):
        read(tmp_path / "absent.extxyz")


@pytest.mark.parametrize("format", [None, "extxyz"])
def test_an_empty_file_is_named(tmp_path: Path, format: str | None) -> None:
    (tmp_path / "empty.extxyz").touch()
    with pytest.raises(InvalidStructure, match=r"empty.extxyz.*(Empty file|no frames).*[Rr]emove"):
        read(tmp_path / "empty.extxyz", format=format)


def test_a_frame_without_energy_is_named(copper_file: Path) -> None:
    copper_file.write_text(copper_file.read_text().replace(" energy=-11.0", ""))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz, frame 1: no energy.*energy_key"):
        read(copper_file)
    with pytest.raises(InvalidStructure, match=r"frame 0: no energy in atoms.info\['REF_energy'\]"):
        read(copper_file, energy_key="REF_energy")


def test_an_energy_that_is_no_number_is_named(copper_file: Path) -> None:
    copper_file.write_text(copper_file.read_text().replace("energy=", "REF_energy=").replace("-11.0", "failed"))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz, frame 1:.*energy"):
        read(copper_file, energy_key="REF_energy")


def test_an_unknown_symbol_is_called_an_unknown_element(copper_file: Path) -> None:
    copper_file.write_text(copper_file.read_text().replace("Cu ", "Qq ", 1))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz, frame 0.*unknown element.*Qq"):
        read(copper_file)


def test_a_file_cut_within_its_last_frame_is_found(tmp_path: Path, copper_file: Path) -> None:
    text = copper_file.read_text()
    last_frame = text.rindex("\n4\n") + 1
    last_number = text.rindex(" ") + 2
    cut = tmp_path / "cut.extxyz"
    for position in range(last_frame + 1, last_number, 5):
        cut.write_text(text[:position])
        with pytest.raises(InvalidStructure, match=r"cut.extxyz, frame 2: .*truncated; repair it, remove it"):
            read(cut)


def test_a_file_cut_within_its_last_number_is_found(tmp_path: Path, copper_file: Path) -> None:
    # the columns are all there, so the cut number is a plausible force: only the missing end of line tells
    cut = tmp_path / "cut.extxyz"
    cut.write_text(copper_file.read_text().rstrip()[:-3])
    with pytest.raises(InvalidStructure, match=r"cut.extxyz.*truncated"):
        read(cut)


def test_no_frame_is_lost_behind_a_blank_line(copper_file: Path) -> None:
    # two files joined by hand; ASE's reader takes the blank line for the end
    copper_file.write_text(copper_file.read_text().replace("\n4\n", "\n\n4\n", 1))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz: a blank line after frame 0"):
        read(copper_file)


def test_blank_lines_at_the_end_are_no_matter(copper_file: Path) -> None:
    copper_file.write_text(copper_file.read_text() + "\n\n")
    assert [structure.energy for structure in read(copper_file)] == [-10.0, -11.0, -12.0]


@pytest.fixture(scope="module")
def mptrj(real_data: Path) -> list[Structure]:
    return read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", group_key="mptrj_traj_id")


def test_mptrj_has_the_published_numbers_of_frames_atoms_and_elements(mptrj: list[Structure]) -> None:
    assert len(mptrj) == 1000
    assert sum(frame.num_atoms for frame in mptrj) == 31312
    assert len({int(z) for frame in mptrj for z in frame.numbers}) == 85
    assert all(frame.has_forces and frame.has_stress for frame in mptrj)


def test_first_frame_of_mptrj_is_what_the_file_says(mptrj: list[Structure]) -> None:
    first = mptrj[0]
    assert first.energy == -28.75765745
    assert first.group == "mp-1080834"
    assert first.stress[0, 0] == np.float32(0.0008926831358242223)
    assert first.stress[0, 2] == np.float32(0.0007746200973649859)
    assert first.positions[0].tolist() == [3.87535312, -2.33845927, 4.61262141]
    assert first.forces[5, 2] == np.float32(0.0705251)
    assert first.cell[2].tolist() == [4.8010712, -2.33845937, 8.01088199]


def test_lips_has_forces_and_no_stress(real_data: Path) -> None:
    frames = read(real_data / "lips" / "lips-200.extxyz")
    assert len(frames) == 200
    assert {frame.num_atoms for frame in frames} == {83}
    assert all(frame.has_forces and not frame.has_stress for frame in frames)
    assert frames[0].energy == -357.05872304


@pytest.mark.parametrize("name", ["label_1/OUTCAR_1", "label_2/OUTCAR_10"])
def test_outcar_agrees_with_what_vasp_printed(real_data: Path, name: str) -> None:
    text = (real_data / "hfo2-scan" / name).read_text()
    energy = re.findall(r"energy\(sigma->0\) =\s*(\S+)", text)[-1]
    # VASP prints xx yy zz xy yz zx, positive in compression
    xx, yy, zz, xy, yz, zx = map(float, re.findall(r"in kB((?:\s+-?\d+\.\d+){6})", text)[-1].split())
    table = text[text.index("TOTAL-FORCE") :].splitlines()[2]
    (structure,) = read(real_data / "hfo2-scan" / name)
    assert structure.energy == float(energy)
    printed = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
    np.testing.assert_allclose(structure.stress, -printed / 1602.1766, rtol=1e-5)
    np.testing.assert_allclose(structure.positions[0], [float(x) for x in table.split()[:3]], atol=1e-5)
    np.testing.assert_allclose(structure.forces[0], [float(x) for x in table.split()[3:]], atol=1e-6)


def test_a_database_gives_the_energy_the_code_computed(real_data: Path) -> None:
    path = real_data / "mptrj-db" / "10_mptraj_systems.db"
    rows = ase.io.read(path, index=":")
    structures = read(path)
    assert len(structures) == 10
    for structure, atoms in itertools.zip_longest(structures, rows):
        assert structure.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(structure.forces, atoms.get_forces().astype(np.float32))


MACE_FILE = """2
Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:REF_forces:R:3 config_type=Default REF_energy=-7.5 \
REF_virials="6.4 1.28 0.64 1.28 12.8 0 0.64 0 -6.4" REF_stress="-0.1 -0.02 -0.01 -0.02 -0.2 0 -0.01 0 0.1" pbc="T T T"
Cu 0 0 0 1 2 3
Cu 2 2 0 -1 -2 -3
"""
"""Two atoms in 64 Å³ under the names that MACE reads: REF_virials [eV] is -64 Å³ times REF_stress [eV/Å³]."""


def test_the_names_of_mace_give_all_labels_and_virials_are_the_stress(tmp_path: Path) -> None:
    path = tmp_path / "mace.xyz"
    path.write_text(MACE_FILE)
    names = {"energy_key": "REF_energy", "forces_key": "REF_forces"}
    (by_virials,) = read(path, **names, virials_key="REF_virials")
    (by_stress,) = read(path, **names, stress_key="REF_stress")
    assert (by_virials.energy, by_virials.has_forces, by_virials.has_stress) == (-7.5, True, True)
    assert by_virials.forces.tolist() == [[1, 2, 3], [-1, -2, -3]]
    np.testing.assert_array_equal(by_virials.stress, by_stress.stress)
    expected = np.array([[-0.1, -0.02, -0.01], [-0.02, -0.2, 0.0], [-0.01, 0.0, 0.1]])
    np.testing.assert_allclose(by_virials.stress, expected, rtol=1e-6)
    with pytest.raises(InvalidStructure, match=r"no energy in the calculator.*energy_key.*'REF_energy'"):
        read(path)


def test_a_virial_is_minus_the_derivative_of_the_energy_by_strain() -> None:
    # the sign that MACE, NequIP and DeePMD share, against differences of energies
    def energy(strain: float) -> float:
        atoms = bulk("Cu", a=3.4, cubic=True)
        atoms.set_cell(atoms.cell[:] * (1 + strain), scale_atoms=True)
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    atoms = bulk("Cu", a=3.4, cubic=True)
    trace = -(energy(1e-4) - energy(-1e-4)) / 2e-4
    atoms.info["virial"] = np.eye(3) * trace / 3
    atoms.calc = EMT()
    expected = atoms.get_stress(voigt=False)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    stress = convert(atoms, virials_key="virial").stress
    assert stress[0, 0] < 0  # compressed
    np.testing.assert_allclose(stress, expected, rtol=1e-5, atol=1e-7)


def test_virials_need_a_volume_and_no_stress_beside_them(copper_frames: list[ase.Atoms]) -> None:
    copper_frames[0].info["virial"] = np.eye(3)
    copper_frames[0].pbc = False
    copper_frames[0].cell[2] = 0.0
    with pytest.raises(InvalidStructure, match="without three lattice vectors"):
        convert(copper_frames[0], virials_key="virial")
    with pytest.raises(ValueError, match="give one of them"):
        AseFiles(files=(), stress_key="stress", virials_key="virial")


def test_vasps_energy_is_that_of_zero_smearing_and_the_free_one_can_be_asked_for(
    real_data: Path, tmp_path: Path
) -> None:
    text = (real_data / "hfo2-scan" / "label_2" / "OUTCAR_10").read_text()
    outcar = tmp_path / "OUTCAR"
    # an insulator: all its energies are the same, so a smearing's difference is written in
    outcar.write_text(re.sub(r"(TOTEN  = +)-?\d+\.\d+", r"\g<1>-1717.70000000", text))
    energy = float(re.findall(r"energy\(sigma->0\) =\s*(\S+)", text)[-1])
    (structure,) = read(outcar, alternative_energy_key="free_energy")
    assert (structure.energy, structure.alternative_energy) == (energy, -1717.7)
    (structure,) = read(outcar, energy_key="free_energy")
    assert (structure.energy, structure.has_alternative_energy) == (-1717.7, False)


def test_an_unfinished_outcar_is_named(real_data: Path, tmp_path: Path) -> None:
    text = (real_data / "hfo2-scan" / "label_2" / "OUTCAR_10").read_text()
    outcar = tmp_path / "OUTCAR"
    for place in (20_000, text.index("TOTAL-FORCE"), text.index("energy  without entropy")):
        outcar.write_text(text[:place])
        with pytest.raises(InvalidStructure, match=r"OUTCAR(, frame 0: cannot be read|: the file holds no frames)"):
            read(outcar)


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <kpoints><generation param="Gamma"><v type="int" name="divisions"> 1 1 1 </v></generation>
  <varray name="kpointlist"><v> 0 0 0 </v></varray><varray name="weights"><v> 1 </v></varray></kpoints>
 <atominfo><atoms> 2 </atoms><array name="atoms"><set>
  <rc><c>Cu</c><c>   1</c></rc><rc><c>O </c><c>   2</c></rc></set></array></atominfo>
 <structure name="initialpos">
  <crystal><varray name="basis"><v> 4 0 0 </v><v> 0 4 0 </v><v> 0 0 4 </v></varray></crystal>
  <varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray></structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy"> -10.25 </i><i name="e_wo_entrp"> -9.75 </i>
   <i name="e_0_energy"> -10.00 </i></energy></scstep>
  <structure><crystal><varray name="basis"><v> 4 0 0 </v><v> 0 4 0 </v><v> 0 0 4 </v></varray></crystal>
   <varray name="positions"><v> 0 0 0 </v><v> 0.5 0.5 0.25 </v></varray></structure>
  <varray name="forces"><v> 0.1 0.2 0.3 </v><v> -0.1 -0.2 -0.3 </v></varray>
  <varray name="stress"><v> 16.0 4.0 3.0 </v><v> 4.0 32.0 2.0 </v><v> 3.0 2.0 -16.0 </v></varray>
  <energy><i name="e_fr_energy"> -10.25 </i><i name="e_wo_entrp"> -9.75 </i><i name="e_0_energy"> -10.00 </i></energy>
 </calculation>
</modeling>
"""
"""One ionic step as VASP lays it out; stress in kbar, positive in compression."""


def test_vasprun_gives_its_labels_with_the_sign_of_stress_turned(tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml"
    path.write_text(VASPRUN)
    (structure,) = read(path, alternative_energy_key="free_energy")
    assert (structure.energy, structure.alternative_energy) == (-10.0, -10.25)
    assert structure.positions.tolist() == [[0, 0, 0], [2, 2, 1]]
    np.testing.assert_allclose(structure.forces, [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]], rtol=1e-6)
    printed = np.array([[16.0, 4.0, 3.0], [4.0, 32.0, 2.0], [3.0, 2.0, -16.0]])
    np.testing.assert_allclose(structure.stress, -0.1 * printed / EV_PER_CUBIC_ANGSTROM_IN_GPA, rtol=1e-6)


@pytest.mark.parametrize("text", [":", "0:3", "1::2", "-2:", "::-1", "2", "-1", "5:"])
@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_slices_choose_frames_as_python_does(tmp_path: Path, text: str, suffix: str) -> None:
    frames = []
    for number in range(5):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        atoms.calc = SinglePointCalculator(atoms, energy=float(number))
        frames.append(atoms)
    path = tmp_path / f"frames.{suffix}"
    if suffix == "db":
        with ase.db.connect(path) as rows:
            for atoms in frames:
                rows.write(atoms)
    else:
        ase.io.write(path, frames)
    numbers = list(range(5))
    parts = [int(word) if word else None for word in text.split(":")]
    expected = numbers[slice(*parts)] if len(parts) > 1 else [numbers[int(text)]]
    assert [frame.energy for frame in AseFiles(files=(str(path),), slices=(text,))] == expected


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "1.5", "1 2"])
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="slice"):
        AseFiles(files=("a.xyz",), slices=(text,))
    with pytest.raises(ValueError, match="slices has 2 entries for 1 files"):
        AseFiles(files=("a.xyz",), slices=(":", ":"))
