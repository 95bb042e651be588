"""What may be replaced: what is ours and holds nothing else, and nothing that is read for what replaces it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.store.replacing import named_paths, refuse_foreign, refuse_inside


def refuse(folder: Path) -> None:
    refuse_foreign(folder, "release", "config.json", lambda path: path.suffix == ".json")


def test_what_is_not_there_and_what_is_ours_may_be_replaced(tmp_path: Path) -> None:
    refuse(tmp_path / "new")
    (tmp_path / "config.json").touch()
    (tmp_path / "golden.json").touch()
    refuse(tmp_path)


def test_a_folder_of_another_kind_stays(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"has no config\.json, so it is not a release and is not replaced"):
        refuse(tmp_path)


def test_what_would_be_lost_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "thesis.tex", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=r"would be lost \('notes\.txt, thesis\.tex'\); move them away"):
        refuse(tmp_path)


def test_what_is_read_is_not_replaced_also_behind_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "source").touch()
    (tmp_path / "link").symlink_to(folder / "source")
    refuse_inside([tmp_path], [folder])
    for path in (folder, folder / "source", tmp_path / "link"):
        with pytest.raises(FileExistsError, match=rf"{path} lies in {folder}, which the result would replace"):
            refuse_inside([path], [folder])


@dataclass
class Settings:
    start: Path
    name: str
    data: tuple[dict[str, Path], ...]


def test_paths_are_found_wherever_they_are_in_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path))
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    settings = Settings(start=Path("a"), name="c", data=({"path": Path("$HERE/b")}, {"path": Path("not-there")}))
    assert named_paths(settings) == [tmp_path / "a", tmp_path / "b"]
    assert named_paths(settings, texts=True) == [tmp_path / "a", tmp_path / "c", tmp_path / "b"]
