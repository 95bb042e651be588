"""Plain files become a data set: the right labels under every name, everything said, nothing lost in silence."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.loading.datasets import Frames
from data_pipeline.plain_files import Built, ReadConfig, build_plain, is_dataset, plain_fingerprint, plain_name
from data_pipeline.store.manifest import NOT_STATED, Manifest, open_manifest
from data_pipeline.structure import InvalidStructure, Structure
from tests.data_pipeline.plain_files.written import (
    STRESS,
    VASP_HEAD,
    energy_of,
    forces_of,
    labelled,
    named,
    outcar,
    unlabelled,
    xyz,
)

VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    """Build words into a new folder, with options of ReadConfig and names of files for val and test."""
    count = iter(range(100))

    def make(*words: Path | str, val: Sequence[Path] = (), test: Sequence[Path] = (), **options: object) -> Built:
        return build_plain(
            [str(word) for word in words],
            tmp_path / f"built{next(count)}",
            ReadConfig(**options),
            val=[str(word) for word in val],
            test=[str(word) for word in test],
        )

    return make


def frames_of(manifest: Manifest) -> list[Structure]:
    return [frame for split in manifest.splits for frame in Frames(manifest, split)]


def sizes(manifest: Manifest) -> tuple[int, ...]:
    return tuple(manifest.split(name).statistics.num_frames for name in ("train", "val", "test"))


def said(built: Built, text: str) -> bool:
    return text in " ".join(" ".join(built.remarks).split())


CONVENTIONS = {
    "MACE": {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"},
    "MACE with virials": {"energy": "REF_energy", "forces": "REF_forces", "virial": "REF_virials"},
    "by method": {"energy": "dft_energy", "forces": "dft_forces", "virial": "dft_virial"},
    "other case": {"energy": "Energy", "forces": "Forces", "stress": "Stress"},
    "singular": {"energy": "E", "forces": "force", "virial": "virial"},
    "free": {"energy": "free_energy", "forces": "FORCES", "virial": "virials"},
}


@pytest.mark.parametrize("names", CONVENTIONS.values(), ids=CONVENTIONS)
def test_labels_are_found_under_the_names_of_every_program(
    tmp_path: Path, build: Callable[..., Built], names: dict[str, str]
) -> None:
    built = build(xyz(tmp_path / "frames.extxyz", named(20, names)))
    found = frames_of(built.manifest)
    assert len(found) == 20
    for number, frame in enumerate(found):
        assert frame.energy == pytest.approx(energy_of(number), abs=1e-8)
        np.testing.assert_allclose(frame.forces, forces_of(number, 8), atol=1e-6)
        np.testing.assert_allclose(frame.stress, STRESS[VOIGT], rtol=1e-5)
    for name in names.values():
        assert any(f"{name}, 20 of 20 frames" in line for line in built.remarks)
    source = built.manifest.build_config["source"]
    assert source["energy_key"] == names["energy"]
    assert source["forces_key"] == names["forces"]
    assert (source["virials_key"] or source["stress_key"]) == names.get("virial", names.get("stress"))


def test_the_names_of_ase_need_no_option_and_what_is_not_read_is_listed(
    tmp_path: Path, build: Callable[..., Built]
) -> None:
    frames = labelled(12)
    for atoms in frames:
        atoms.info |= {"dipole": [0.0, 0.0, 1.0], "config_type": "bulk"}
        atoms.set_array("site_charges", np.zeros(len(atoms)))
    built = build(xyz(tmp_path / "a.xyz", frames))
    assert said(built, "energy: energy, 12 of 12 frames")
    assert said(built, "there too, and not read: config_type, dipole, site_charges")


def test_equal_labels_under_two_names_are_one_and_different_ones_are_the_users_choice(
    tmp_path: Path, build: Callable[..., Built]
) -> None:
    names = {"energy": "REF_energy", "forces": "REF_forces", "virial": "virials"}
    frames = labelled(12)
    for atoms, other in zip(frames, named(12, names), strict=True):
        atoms.info |= other.info
        atoms.set_array("REF_forces", other.get_array("REF_forces"))
    file = xyz(tmp_path / "same.xyz", frames)
    assert said(build(file), "energy: energy, 12 of 12 frames")
    for atoms in frames:
        atoms.info["REF_energy"] -= 1.0
    file = xyz(tmp_path / "differ.xyz", frames)
    with pytest.raises(InvalidStructure, match=r"REF_energy and energy both look like energy and differ") as error:
        build(file)
    assert "--read.energy_key energy" in str(error.value)
    assert "--read.energy_key REF_energy" in str(error.value)
    built = build(file, energy_key="REF_energy")
    assert frames_of(built.manifest)[0].energy == pytest.approx(energy_of(0) - 1.0)
    assert frames_of(build(file, energy_key="energy").manifest)[0].energy == pytest.approx(energy_of(0))


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("REF_forces", lambda v: -v, "REF_forces and forces both look like forces and differ .*by a factor of -1"),
        ("virials", lambda v: 0.1 * v, "stress and virials both look like stress and differ .*by a factor of"),
    ],
)
def test_arrays_that_differ_are_refused_with_the_options(
    tmp_path: Path, build: Callable[..., Built], entry: str, change: Callable, message: str
) -> None:
    frames = labelled(12)
    for atoms, other in zip(frames, named(12, {"forces": "REF_forces", "virial": "virials"}), strict=True):
        values = other.arrays if entry in other.arrays else other.info
        (atoms.arrays if entry in other.arrays else atoms.info)[entry] = change(values[entry])
    with pytest.raises(InvalidStructure, match=message) as error:
        build(xyz(tmp_path / "a.xyz", frames))
    assert f"--read.{'forces' if 'forces' in entry else 'virials'}_key {entry}" in str(error.value)


def test_energy_and_free_energy_of_a_file_are_the_users_choice_if_they_differ(
    tmp_path: Path, build: Callable[..., Built]
) -> None:
    frames = labelled(12)
    for number, atoms in enumerate(frames):
        atoms.calc.results["free_energy"] = energy_of(number)
    assert said(build(xyz(tmp_path / "same.xyz", frames)), "energy: energy, 12 of 12 frames")
    for atoms in frames:
        atoms.calc.results["free_energy"] -= 0.5
    file = xyz(tmp_path / "differ.xyz", frames)
    with pytest.raises(InvalidStructure, match=r"energy and free_energy differ \(frame 0: -43 and -43.5 eV\)"):
        build(file)
    assert frames_of(build(file, energy_key="free_energy").manifest)[0].energy == pytest.approx(-43.5)


def test_units_that_a_name_or_the_frames_state_are_used(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = labelled(12, stress=False)
    for atoms in frames:
        atoms.info["stress_GPa"] = 160.21766208 * STRESS
    built = build(xyz(tmp_path / "a.xyz", frames))
    np.testing.assert_allclose(frames_of(built.manifest)[0].stress, STRESS[VOIGT], rtol=1e-6)
    assert said(built, "stress: stress_GPa [GPa], 12 of 12 frames")
    for atoms in frames:
        atoms.info |= {"dft_stress": atoms.info.pop("stress_GPa") * 10, "stress_unit": "kbar"}
    np.testing.assert_allclose(
        frames_of(build(xyz(tmp_path / "b.xyz", frames)).manifest)[0].stress, STRESS[VOIGT], rtol=1e-6
    )


def test_a_name_that_states_a_unit_other_than_ev_is_refused(tmp_path: Path, build: Callable[..., Built]) -> None:
    file = xyz(tmp_path / "a.xyz", named(12, {"energy": "energy_Ha", "forces": "forces"}))
    with pytest.raises(InvalidStructure, match="'energy_Ha' states a unit other than eV"):
        build(file)


def test_files_of_several_formats_and_names_become_one_data_set(tmp_path: Path, build: Callable[..., Built]) -> None:
    one = xyz(tmp_path / "a.xyz", labelled(10))
    two = xyz(tmp_path / "b.xyz", named(10, {"energy": "REF_energy", "forces": "REF_forces"}, first=10))
    with ase.db.connect(tmp_path / "c.db") as rows:
        for atoms in labelled(10, first=20):
            rows.write(atoms)
    ase.io.write(tmp_path / "d.traj", labelled(10, first=30))
    built = build(one, two, tmp_path / "c.db", tmp_path / "d.traj")
    found = frames_of(built.manifest)
    assert sorted(round(frame.energy, 6) for frame in found) == [round(energy_of(n), 6) for n in range(40)]
    assert len({frame.id for frame in found}) == 40
    assert said(built, "energy: energy, REF_energy, 40 of 40 frames")
    assert said(built, "stress: stress, 30 of 40 frames")
    assert open_manifest(built.manifest.root).fingerprint == built.manifest.fingerprint


def test_frames_without_some_labels_are_counted(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = [*labelled(8), *labelled(4, first=8, stress=False)]
    del frames[0].calc.results["forces"]
    built = build(xyz(tmp_path / "a.xyz", frames))
    assert said(built, "forces: forces, 11 of 12 frames")
    assert said(built, "stress: stress, 8 of 12 frames")


def test_frames_that_cannot_be_used_are_left_out_and_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = [*labelled(11), *unlabelled(1, first=11)]
    built = build(xyz(tmp_path / "a.xyz", frames))
    assert sum(sizes(built.manifest)) == 11
    assert said(built, "left out: 1 frame (invalid); the first:")
    assert said(built, "frame 11: no energy in the calculator")
    with pytest.raises(InvalidStructure, match="no energy in its frames"):
        build(xyz(tmp_path / "b.xyz", unlabelled(3)))
    assert not list(tmp_path.glob("*.partial"))


def test_isolated_atoms_of_mace_are_left_out_and_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = [*labelled(4), labelled(5)[4][:1]]
    frames[4].calc = SinglePointCalculator(frames[4], energy=-3.0)
    frames[4].info["config_type"] = "IsolatedAtom"
    built = build(xyz(tmp_path / "mine.xyz", frames))
    assert sum(sizes(built.manifest)) == 4
    assert said(built, "is an isolated atom for MACE's reference energies")


@pytest.mark.parametrize("number", [1, 3, 9])
def test_few_frames_are_all_for_training(tmp_path: Path, build: Callable[..., Built], number: int) -> None:
    built = build(xyz(tmp_path / "a.xyz", labelled(number)))
    assert sizes(built.manifest) == (number, 0, 0)
    assert said(built, "split: all in train, so that errors cannot be measured")
    asked = build(tmp_path / "a.xyz", val_fraction=0.0, test_fraction=0.0)
    assert sizes(asked.manifest) == (number, 0, 0)


def test_one_material_is_split_in_blocks_and_many_by_groups(tmp_path: Path, build: Callable[..., Built]) -> None:
    one = build(xyz(tmp_path / "one.xyz", labelled(40)))
    assert sizes(one.manifest) == (32, 4, 4)
    assert [frame.id for frame in frames_of(one.manifest)] == [f"one.xyz:{number}" for number in range(40)]
    elements = ("Si", "Ge", "Cu", "Ag", "Au", "Al", "Ni", "Pd", "Pt", "Pb")
    many = build(xyz(tmp_path / "many.xyz", [atoms for each in elements for atoms in labelled(4, each)]))
    groups = [{frame.group for frame in Frames(many.manifest, name)} for name in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 10
    assert sizes(many.manifest) == (32, 4, 4)  # by the seed that was looked for
    random = build(tmp_path / "one.xyz", split_by="random")
    assert all(sizes(random.manifest))
    assert said(random, "single frames, at random")


def test_files_for_validation_and_test_are_these_splits(tmp_path: Path, build: Callable[..., Built]) -> None:
    for place, name in enumerate(("train", "val", "test")):
        xyz(tmp_path / f"{name}.xyz", labelled(20, first=20 * place))
    val, test = tmp_path / "val.xyz", tmp_path / "test.xyz"
    both = build(tmp_path / "train.xyz", val=[val], test=[test])
    assert sizes(both.manifest) == (20, 20, 20)
    for place, name in enumerate(("train", "val", "test")):
        found = [round(frame.energy, 6) for frame in Frames(both.manifest, name)]
        assert found == [round(energy_of(number), 6) for number in range(20 * place, 20 * place + 20)]
    one = build(tmp_path / "train.xyz", val=[val])
    assert sizes(one.manifest) == (18, 20, 2)
    pattern = build(f"{tmp_path}/*.xyz", val=[val], test=[test])
    assert sizes(pattern.manifest) == (20, 20, 20)
    assert said(pattern, "it is in --val")
    with pytest.raises(ValueError, match=r"in --val and in --test"):
        build(tmp_path / "train.xyz", val=[val], test=[val])
    with pytest.raises(ValueError, match=r"--val names files and --read\.val_fraction a part"):
        build(tmp_path / "train.xyz", val=[val], val_fraction=0.2)


def test_a_frame_of_two_splits_is_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    xyz(tmp_path / "train.xyz", labelled(12))
    xyz(tmp_path / "test.xyz", [*labelled(2, first=5), *labelled(10, first=50)])
    built = build(tmp_path / "train.xyz", test=[tmp_path / "test.xyz"])
    assert said(built, "2 frames of test also in train")


def test_energies_of_two_zeros_are_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = labelled(20)
    for atoms in frames[12:]:
        atoms.calc.results["energy"] += 8 * 13.6
    assert said(build(xyz(tmp_path / "a.xyz", frames)), "two groups 13.6 eV/atom apart (12 and 8 frames)")


def test_vasp_is_read_with_its_free_energy_and_its_level_of_theory(tmp_path: Path, build: Callable[..., Built]) -> None:
    for number in range(10):
        outcar(tmp_path / "calc" / str(number) / "OUTCAR", 2, smearing=0.02, first=10 * number)
    built = build(f"{tmp_path}/calc/**/OUTCAR")
    found = frames_of(built.manifest)
    assert [round(frame.energy, 6) for frame in found[:2]] == [-7.5, -7.49]
    assert len(found) == 20
    provenance = built.manifest.provenance
    assert (provenance.name, provenance.level_of_theory) == ("calc", "PBE, VASP, 520 eV")
    assert said(built, "energy and free_energy differ (-7.48 and -7.5 eV")
    assert said(built, "free_energy is read, whose derivative the forces are")
    zero = build(f"{tmp_path}/calc/**/OUTCAR", energy_key="energy")
    assert frames_of(zero.manifest)[0].energy == pytest.approx(-7.48)
    assert said(zero, "energy is read, not free_energy")


def test_files_of_different_functionals_are_refused_unless_the_user_says_they_belong_together(
    tmp_path: Path, build: Callable[..., Built]
) -> None:
    outcar(tmp_path / "pbe" / "OUTCAR", 6)
    outcar(tmp_path / "scan" / "OUTCAR", 6, head=" METAGGA = SCAN  LMAXTAU = 0\n" + VASP_HEAD, first=20)
    with pytest.raises(InvalidStructure, match=r"PBE in 1 files such as .*pbe/OUTCAR; SCAN in 1 files"):
        build(tmp_path / "pbe", tmp_path / "scan")
    built = build(tmp_path / "pbe", tmp_path / "scan", level_of_theory="mixed on purpose")
    assert built.manifest.provenance.level_of_theory == "mixed on purpose"
    outcar(tmp_path / "cut" / "OUTCAR", 6, head=VASP_HEAD.replace("520.0 eV", "400.0 eV"), first=40)
    cut = build(tmp_path / "pbe", tmp_path / "cut")
    assert cut.manifest.provenance.level_of_theory == "PBE, VASP"
    assert said(cut, "different cutoffs ENCUT (400, 520 eV)")


def test_a_structure_list_reads_the_frames_of_its_slices(tmp_path: Path, build: Callable[..., Built]) -> None:
    outcar(tmp_path / "1" / "OUTCAR", 6)
    outcar(tmp_path / "2" / "OUTCAR", 6, first=20)
    (tmp_path / "list").write_text("[one]\n1/OUTCAR 1:6:2\n[two]\n2/OUTCAR -2:\n")
    built = build(tmp_path / "list")
    energies = [round(-7.5 + 0.01 * number, 6) for number in (1, 3, 5, 24, 25)]
    assert [round(frame.energy, 6) for frame in frames_of(built.manifest)] == energies


def test_an_unconverged_file_among_good_ones_is_left_out_and_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    outcar(tmp_path / "1" / "OUTCAR", 12)
    bad = outcar(tmp_path / "2" / "OUTCAR", 1, first=20)
    bad.write_text(bad.read_text().replace("because EDIFF is reached", "EDIFF was not reached (unconverged)"))
    built = build(tmp_path / "1", tmp_path / "2")
    assert sum(sizes(built.manifest)) == 12
    assert said(built, "the electrons did not converge")


def test_provenance_is_optional_and_the_data_are_then_not_passed_on(
    tmp_path: Path, build: Callable[..., Built]
) -> None:
    built = build(xyz(tmp_path / "my frames.v2.xyz", labelled(12)))
    provenance = built.manifest.provenance
    assert provenance.name == "my-frames"
    assert {provenance.licence, provenance.level_of_theory, provenance.citation, provenance.source} == {NOT_STATED}
    assert not provenance.redistributable
    own = build(tmp_path / "my frames.v2.xyz", name="mine", licence="CC0-1.0", level_of_theory="PBE")
    assert (own.manifest.provenance.name, own.manifest.provenance.redistributable) == ("mine", True)


def test_charged_frames_are_refused_by_the_option_that_keeps_them(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = labelled(12)
    frames[3].info["charge"] = 1
    file = xyz(tmp_path / "a.xyz", frames)
    with pytest.raises(InvalidStructure, match=r"frame 3: has charge 1 .*--read.charged keep"):
        build(file)
    assert sum(sizes(build(file, charged="keep").manifest)) == 12


def _gradients(path: Path) -> None:
    frames = unlabelled(3)
    for frame in frames:
        frame.info["energy"], frame.arrays["dft_gradient"] = 1.0, np.ones((len(frame), 3))
    ase.io.write(path, frames, format="extxyz")


def _kilobars(path: Path) -> None:
    frames = unlabelled(3)
    for frame in frames:
        frame.info["energy"], frame.info["stress"] = 1.0, 50.0 * np.eye(3)
    ase.io.write(path, frames, format="extxyz")


def _nothing(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("write", "ignoring"),
    [(_gradients, {"ignored_entries": ("dft_gradient",)}), (_kilobars, {"stress_unit": "eV/A^3"}), (_nothing, None)],
)
def test_a_refusal_names_options_of_reading_and_they_help(
    tmp_path: Path, build: Callable[..., Built], write: Callable[[Path], None], ignoring: dict | None
) -> None:
    write(tmp_path / "odd.xyz")
    with pytest.raises(InvalidStructure) as refused:
        build(tmp_path / "odd.xyz")
    options = re.findall(r"--([\w.]+)", str(refused.value))
    assert options
    assert {each.partition(".")[0] for each in options} == {"read"}
    assert {each.partition(".")[2] for each in options} <= {each.name for each in fields(ReadConfig)}
    if ignoring is not None:
        assert set(ignoring) <= {each.partition(".")[2] for each in options}
        assert sizes(build(tmp_path / "odd.xyz", **ignoring).manifest) == (3, 0, 0)


@pytest.mark.parametrize(("option", "entry"), [("forces_key", "REF_force"), ("group_key", "traj")])
def test_a_misspelt_entry_is_refused_with_those_there_are(
    tmp_path: Path, build: Callable[..., Built], option: str, entry: str
) -> None:
    file = xyz(tmp_path / "a.xyz", named(12, {"energy": "REF_energy", "forces": "REF_forces"}))
    with pytest.raises(InvalidStructure, match=f"no .*entry '{entry}'.*REF_forces"):
        build(file, **{option: entry})


def test_frames_with_different_names_in_one_file_are_refused(tmp_path: Path, build: Callable[..., Built]) -> None:
    file = xyz(tmp_path / "a.xyz", [*labelled(6), *named(6, {"energy": "REF_energy", "forces": "forces"}, first=6)])
    with pytest.raises(InvalidStructure, match=r"name their energy differently \(REF_energy in 6, energy in 6 of 12"):
        build(file)


def test_lines_fit_a_terminal(tmp_path: Path, build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = labelled(12)
    for atoms in frames:
        atoms.info |= {f"a_rather_long_name_of_an_entry_{number}": number for number in range(20)}
    built = build(xyz(Path("a.xyz"), frames))
    assert len(built.remarks) > 10
    assert max(map(len, built.remarks)) <= 80


def test_the_fingerprint_follows_files_and_options(tmp_path: Path) -> None:
    file = xyz(tmp_path / "a.xyz", labelled(2))
    before = plain_fingerprint([str(file)], ReadConfig())
    assert plain_fingerprint([str(tmp_path / "." / "a.xyz")], ReadConfig()) == before
    changed = [
        plain_fingerprint([str(file)], ReadConfig(energy_key="energy")),
        plain_fingerprint([str(file)], ReadConfig(), cutoffs=(6.0,)),
    ]
    xyz(file, labelled(3))
    changed.append(plain_fingerprint([str(file)], ReadConfig()))
    assert len({before, *changed}) == 4


def test_data_sets_are_told_from_plain_files(tmp_path: Path, build: Callable[..., Built]) -> None:
    file = xyz(tmp_path / "a.xyz", labelled(12))
    folder = build(file).manifest.root
    assert is_dataset(folder)
    assert is_dataset(folder / "manifest.json")
    assert is_dataset("https://host/data")
    assert is_dataset(Path("s3://bucket/data"))
    assert not is_dataset(file)
    assert not is_dataset(tmp_path)
    assert not is_dataset("OUTCAR*")


def test_real_outcars_are_read_as_they_state(real_data: Path, build: Callable[..., Built]) -> None:
    built = build(real_data / "hfo2-scan")
    assert sum(sizes(built.manifest)) == 10
    assert built.manifest.provenance.level_of_theory == "SCAN, VASP, 500 eV"
    assert said(built, "LICENSE (not recognised)")


def test_deepmd_systems_stand_beside_files_of_ase(tmp_path: Path, build: Callable[..., Built]) -> None:
    folder = tmp_path / "silicon" / "set.000"
    folder.mkdir(parents=True)
    frames = unlabelled(6, first=20)
    np.save(folder / "coord.npy", np.array([atoms.positions.ravel() for atoms in frames]))
    np.save(folder / "box.npy", np.array([np.asarray(atoms.cell).ravel() for atoms in frames]))
    np.save(folder / "energy.npy", np.array([energy_of(number) for number in range(20, 26)]))
    np.save(folder / "force.npy", np.array([forces_of(number, 8).ravel() for number in range(20, 26)]))
    (tmp_path / "silicon" / "type.raw").write_text("0\n" * 8)
    (tmp_path / "silicon" / "type_map.raw").write_text("Si\n")
    built = build(xyz(tmp_path / "a.xyz", labelled(20)), tmp_path / "silicon")
    energies = sorted(round(frame.energy, 6) for frame in frames_of(built.manifest))
    assert energies == [round(energy_of(number), 6) for number in range(26)]
    alone = build(tmp_path / "silicon")
    assert (alone.manifest.provenance.name, len(frames_of(alone.manifest))) == ("silicon", 6)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["my frames.v2.xyz"], "my-frames"),
        (["calc/OUTCAR"], "calc"),
        (["calc/1/vasprun.xml.gz"], "1"),
        (["calc/**/OUTCAR"], "calc"),
        (["calc/md-*.xyz"], "calc"),
        (["calc/1", "calc/2"], "calc"),
        (["calc/1/a.xyz", "calc/2/*.xyz"], "calc"),
        (["silicon"], "silicon"),
    ],
)
def test_the_name_follows_from_the_words_also_if_the_files_are_gone(words: list[str], name: str) -> None:
    assert plain_name(words, ReadConfig()) == name
    assert plain_name(words, ReadConfig(name="mine")) == "mine"


def test_a_frame_trained_on_under_another_name_is_said(tmp_path: Path, build: Callable[..., Built]) -> None:
    frames = labelled(12)
    train, test = xyz(tmp_path / "train.xyz", frames[:10]), xyz(tmp_path / "exam.xyz", frames[8:])
    assert said(
        build(train, test=[test], val_fraction=0.0),
        "2 frames of test also in train, so that errors on test are too small",
    )
