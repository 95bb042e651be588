"""`foundation build --data`: plain files become a data set on the command line, with everything said."""

from pathlib import Path

import pytest

from data_pipeline.plain_files import BuildFilesConfig, ReadConfig
from data_pipeline.store.manifest import open_manifest
from launch.__main__ import main
from launch.verbs import parse
from tests.data_pipeline.plain_files.written import labelled, named, outcar, xyz


def test_files_are_built_and_what_was_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    xyz(Path("a.xyz"), named(15, {"energy": "REF_energy", "forces": "REF_forces"}))
    xyz(Path("b.xyz"), labelled(15, first=15))
    xyz(Path("held.xyz"), labelled(5, first=50))
    assert main(["build", "--data", "a.xyz", "b.xyz", "--val", "held.xyz", "--out", "data"]) == 0
    said = capsys.readouterr().out
    assert "energy: REF_energy, energy, 35 of 35 frames" in said
    assert "read for val: held.xyz" in said
    assert "data set: data" in said
    manifest = open_manifest("data")
    assert [manifest.split(name).statistics.num_frames for name in ("train", "val", "test")] == [27, 5, 3]


def test_a_pattern_and_options_of_reading_are_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        outcar(Path(f"calc/{number}/OUTCAR"), 5, smearing=0.1, first=5 * number)
    words = ["--data", "calc/**/OUTCAR", "--out", "data", "--read.energy_key", "energy", "--read.licence", "CC0-1.0"]
    assert main(["build", *words]) == 0
    assert "energy is read, not free_energy" in " ".join(capsys.readouterr().out.split())
    assert open_manifest("data").provenance.redistributable


def test_the_options_may_stand_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = BuildFilesConfig(data=("a.xyz", "b.xyz"), out=Path("data"), read=ReadConfig(split_by="random"))
    words = ["build", "--data", "a.xyz", "b.xyz", "--out", "data", "--read.split_by", "random"]
    assert parse(words) == ("build", expected)
    with pytest.raises(SystemExit):
        parse([*words, "--print_config"])
    (tmp_path / "build.yaml").write_text(capsys.readouterr().out)
    assert parse(["build", "--config", str(tmp_path / "build.yaml")]) == ("build", expected)


def test_what_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = xyz(tmp_path / "a.xyz", named(5, {"forces": "forces"}))
    before = sorted(tmp_path.rglob("*"))
    assert main(["build", "--data", str(file), "--out", str(tmp_path / "data")]) == 2
    assert "--read.energy_key" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_help_of_files_is_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["build", "--data", "--help"])
    assert "--read.energy_key" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(["build", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "foundation build --data --help" in said
    assert "--filters.max_force" in said
