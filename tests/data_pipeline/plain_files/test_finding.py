"""Words of the user: files, globs, folders and structure_lists mean the right files, and the rest is listed."""

import os
from pathlib import Path

import pytest

from data_pipeline.plain_files.finding import DataFile, find_files, kind_of_file
from data_pipeline.structure import InvalidStructure
from tests.data_pipeline.plain_files.written import labelled, outcar, xyz


def names(files: list[DataFile], folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in files]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.xyz", "extxyz"),
        ("a.extxyz", "extxyz"),
        ("a.XYZ", "extxyz"),
        ("a.xyz.gz", "extxyz"),
        ("OUTCAR", "vasp-out"),
        ("OUTCAR_3.gz", "vasp-out"),
        ("si.OUTCAR", "vasp-out"),
        ("vasprun.xml", "vasp-xml"),
        ("vasprun.xml.bz2", "vasp-xml"),
        ("a.db", "db"),
        ("a.traj", "traj"),
        ("a.aselmdb", "aselmdb"),
        ("a.h5", "mace"),
        ("POSCAR", None),
        ("notes.txt", None),
        ("phonon.xml", None),
    ],
)
def test_formats_are_known_by_name(name: str, kind: str | None) -> None:
    assert kind_of_file(Path(name)) == kind


def test_a_folder_is_searched_at_any_depth_and_the_rest_is_listed(tmp_path: Path) -> None:
    outcar(tmp_path / "calc" / "2" / "OUTCAR")
    outcar(tmp_path / "calc" / "1" / "OUTCAR")
    for name in ("calc/1/vasprun.xml", "calc/1/INCAR", "calc/3/vasprun.xml", "calc/.hidden.xyz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    found = find_files([str(tmp_path / "calc")])
    assert names(found.files, tmp_path) == ["calc/1/OUTCAR", "calc/2/OUTCAR", "calc/3/vasprun.xml"]
    assert {os.path.relpath(path, tmp_path): reason for path, reason in found.unread} == {
        "calc/1/INCAR": "not recognised",
        "calc/1/vasprun.xml": "the OUTCAR beside it is read",
    }


def test_globs_are_sorted_and_cross_folders(tmp_path: Path) -> None:
    for name in ("b/OUTCAR", "a/OUTCAR", "a/deep/OUTCAR"):
        outcar(tmp_path / name)
    found = find_files([f"{tmp_path}/**/OUTCAR"])
    assert names(found.files, tmp_path) == ["a/OUTCAR", "a/deep/OUTCAR", "b/OUTCAR"]
    assert names(find_files([f"{tmp_path}/?/OUTCAR"]).files, tmp_path) == ["a/OUTCAR", "b/OUTCAR"]


def test_a_glob_leaves_out_what_is_not_recognised_unless_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("x")
    xyz(tmp_path / "a.xyz", labelled(1))
    found = find_files([f"{tmp_path}/*"])
    assert names(found.files, tmp_path) == ["a.xyz"]
    assert [reason for _, reason in found.unread] == ["not recognised"]
    (tmp_path / "b.dat").write_text("x")
    (tmp_path / "c.dat").write_text("x")
    assert [file.kind for file in find_files([f"{tmp_path}/*.dat"]).files] == ["other", "other"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    xyz(tmp_path / "a.xyz", labelled(1))
    (tmp_path / "link.xyz").symlink_to(tmp_path / "a.xyz")
    found = find_files([str(tmp_path / "a.xyz"), f"{tmp_path}/*.xyz"])
    assert names(found.files, tmp_path) == ["a.xyz"]
    assert found.unread == [(tmp_path / "link.xyz", "named twice")]


def test_a_structure_list_names_files_with_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        outcar(tmp_path / f"run{number}" / "OUTCAR")
    outcar(tmp_path / "lists" / "OUTCAR")
    text = "[bulk]\nrun{1..2}/OUTCAR :\n\n[surface]\nrun3/OUTCAR 0:10:2\nOUTCAR\n"
    (tmp_path / "lists" / "structure_list").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = find_files(["lists/structure_list"]).files
    assert found == [
        DataFile(Path("run1/OUTCAR"), "vasp-out", ":"),
        DataFile(Path("run2/OUTCAR"), "vasp-out", ":"),
        DataFile(Path("run3/OUTCAR"), "vasp-out", "0:10:2"),
        DataFile(Path("lists/OUTCAR"), "vasp-out", ":"),
    ]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("gone/OUTCAR :", FileNotFoundError, r"gone/OUTCAR: no such file \(line 2 of .*list names it\)"),
        ("OUTCAR first", InvalidStructure, "line 2: 'OUTCAR first' is neither a .label. nor a path"),
        ("OUTCAR : extra", InvalidStructure, "line 2"),
        ("", FileNotFoundError, "the list names no file"),
    ],
)
def test_a_wrong_line_of_a_structure_list_is_named(
    tmp_path: Path, line: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "list").write_text(f"[all]\n{line}\n")
    with pytest.raises(error, match=message):
        find_files([str(tmp_path / "list")])


def test_a_deepmd_system_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "systems" / "water" / "set.000").mkdir(parents=True)
    (tmp_path / "systems" / "water" / "type.raw").write_text("0\n")
    (found,) = find_files([str(tmp_path / "systems")]).files
    assert found == DataFile(tmp_path / "systems" / "water", "deepmd")


@pytest.mark.parametrize(
    ("made", "word", "message"),
    [
        ([], "gone.xyz", "no such file or folder"),
        (["train.xyz"], "trian.xyz", r"did you mean .*train\.xyz\?"),
        ([], "*.xyz", "no file matches this pattern"),
        (["empty/"], "empty", "it is empty"),
        (["text/INCAR", "text/POSCAR"], "text", "it holds 'INCAR, POSCAR'"),
        (["run/run.json"], "run", "folder of a run"),
        (["release/model.safetensors"], "release", "is a potential, not data"),
        (["model.pth"], "model.pth", "is a potential, not data"),
        (["data/manifest.json"], "data", "built data set"),
        ([], "$NOT_SET_ANYWHERE/a.xyz", "environment variable in this path is not set"),
    ],
)
def test_what_is_not_data_is_refused_by_name(tmp_path: Path, made: list[str], word: str, message: str) -> None:
    for name in made:
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_files([word if word.startswith("$") else str(tmp_path / word)])
