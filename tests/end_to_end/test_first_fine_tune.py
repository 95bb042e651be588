"""The page of the first fine-tune does what it says, in order; the README has the same commands."""

from pathlib import Path

import ase.io
import pytest

from launch.__main__ import main
from tests.conftest import REPOSITORY
from tests.pages import commands, run_python

SMALLER = {"example-data": ["--frames", "8"], "finetune": ["--steps", "2"]}
"""Options that let a command fit into a test; everything else is as written."""
PAGE = (REPOSITORY / "docs/first-fine-tune.md").read_text()


def test_the_readme_has_the_commands_of_the_page() -> None:
    section = (REPOSITORY / "README.md").read_text().split("\n## Your own file\n")[1].split("\n## ")[0]
    assert commands(section) == commands(PAGE)


def test_the_commands_and_the_dynamics_run_as_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = commands(PAGE)
    assert [words[0] for words in typed] == ["example-data", "finetune", "example-data", "evaluate", "export"]
    own = [words for words in typed if words[0] != "example-data"]
    assert sum(word.startswith("--") for words in own for word in words) <= 9
    for words in typed:
        assert main([*words, *SMALLER.get(words[0], [])]) == 0, words
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "trained on" not in caplog.text
    caplog.clear()
    assert main(["evaluate", "--model", "runs/mine", "--data", "frames.extxyz", "--out", "again"]) == 0
    assert "of the 8 frames were trained on in runs/mine" in caplog.text
    assert len(ase.io.read("frames.extxyz", ":")) == 8
    assert Path("mine/SHA256SUMS").is_file()
    names = run_python(PAGE)
    assert -300 < names["atoms"].get_potential_energy() < -100
