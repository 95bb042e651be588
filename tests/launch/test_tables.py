"""What `inspect` and `merge` print, from the command line."""

import dataclasses
from pathlib import Path

import ase.io
import numpy as np
import pytest

from data_pipeline.store.manifest import open_manifest
from foundation.evaluate import EvaluateConfig
from foundation.evaluation.quantities import QUANTITIES
from foundation.evaluation.suites import Finding, Findings
from foundation.reports.evaluation_report import Evaluation
from launch import tables as tables
from launch.__main__ import main
from launch.tables import sparkline
from tests.data_pipeline.plain_files.written import labelled, xyz

REPOSITORY = Path(__file__).resolve().parents[2]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output on one line: where it wraps depends on the width of the screen."""
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def slice_of_mptrj(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that builds the first 60 frames of mptrj-1k as its configuration says."""
    frames = ase.io.read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":60")
    ase.io.write(tmp_path / "slice.xyz", frames, format="extxyz")
    monkeypatch.chdir(tmp_path)
    config = str(REPOSITORY / "configs" / "data" / "mptrj-1k.yaml")
    return ["build", "--config", config, "--source.files", f'["{tmp_path}/slice.xyz"]', "--out", "data"]


def test_inspect_prints_what_is_in_real_data(
    slice_of_mptrj: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(slice_of_mptrj) == 0
    capsys.readouterr()
    assert main(["inspect", "--data", "data", "--out", "page"]) == 0
    output, manifest = printed(capsys), open_manifest("data")
    for split in manifest.splits.values():
        assert f"{split.statistics.num_frames:,} │ {split.statistics.num_atoms:,}" in output
    for words in (
        "licence: MIT (the selection",
        "level of theory: PBE and PBE+U, VASP",
        "energies: total energies of VASP, without",
        "cite: Deng et al.",
        "energy per atom, eV",
        "force on an atom, eV/Å",
        "mean normal stress, eV/Å³",
        "frames with each element: O ",
        "0 pairs of neighbouring frames to compare, too few for a verdict",
        "warning: elements in",
        "warning: elements in fewer than 5 training frames, whose noise their reference energies follow:",
        "page: page/index.html",
    ):
        assert words in output
    assert "mptrj-1k" in (tmp_path / "page" / "index.html").read_text()
    assert "sign of the stress" not in output


def test_merge_prints_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = ("name", "licence", "level_of_theory", "energy_convention", "citation", "source")
    provenance = [word for fact in facts for word in (f"--provenance.{fact}", "a fact")]
    for seed in ("1", "2"):
        source = ["--source.num_frames", "20", "--source.seed", seed]
        assert main(["build", *source, "--out", f"data{seed}", *provenance]) == 0
    capsys.readouterr()
    assert main(["merge", "--manifests", '["data1", "data2"]', "--out", "both", "--name", "pair"]) == 0
    assert "pair (both)" in printed(capsys)
    assert sum(split.statistics.num_frames for split in open_manifest("both").splits.values()) == 40
    assert main(["inspect", "--data", "both", "--verify", "true"]) == 0
    assert "every file has its checksum" in printed(capsys)
    assert main(["merge", "--manifests", '["data1", "data1"]', "--out", "twice", "--name", "twice"]) == 2
    assert "would count twice" in capsys.readouterr().err


def test_a_sparkline_shows_every_place_that_is_not_empty() -> None:
    assert sparkline(np.array([0, 0, 1, 1000, 0, 500, 0])) == "▁█ ▄"
    assert len(sparkline(np.arange(1, 1000), width=20)) == 20
    assert sparkline(np.zeros(5, dtype=int)) == ""


def test_a_name_is_shown_as_it_is_and_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]a[/] [link=e] :smile: [/x] \x1b[2J"
    errors = {"energy_mae": 0.1, "composition_energy_mae": 0.2, "num_skipped": 0}
    facts = dict.fromkeys(("dataset", "split", "manifest_fingerprint", "level_of_theory", "weights_sha256"), name)
    tables.errors(Evaluation(**facts, errors=errors, by_element={}, worst_frames=[]))
    tables.potential(Path(name))
    out = printed(capsys)
    assert out.count(r"[bold]a[/] [link=e] :smile: [/x] \x1b[2J") == 5
    assert "\x1b" not in out


def test_a_table_in_a_file_fits_80_columns_and_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict.fromkeys(("split", "manifest_fingerprint", "level_of_theory", "weights_sha256"), "x")
    errors = {key: 12.3456 for key in QUANTITIES}
    errors |= {each.trivial.key: 123.456 for each in QUANTITIES.values() if each.trivial}
    found = Evaluation(**facts, dataset="a data set", errors=errors, by_element={}, worst_frames=[])
    tables.errors(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # no row is divided: title, rules above, within and below, and the header
    assert len(lines) == len(QUANTITIES) + 5
    suite = Finding(value=1.0, reference=2.0, unit="eV")
    config = EvaluateConfig(model=Path("m"), data=Path("d"), out=Path("/" + 100 * "long/"))
    named = {f"energy of vacancies {number} in the supercell of a crystal": suite for number in range(3)}
    tables.evaluation(
        config, dataclasses.replace(found, suites={"defects and their migration": Findings(quantities=named)})
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1] == f"report: {config.out / 'index.html'}"


def test_inspect_names_a_plain_file_and_no_folder_that_is_gone_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    xyz(tmp_path / "mine.xyz", labelled(3))
    assert main(["inspect", "--data", "mine.xyz"]) == 0
    output = printed(capsys)
    assert "mine (mine.xyz)" in output
    assert "foundation-" not in output
