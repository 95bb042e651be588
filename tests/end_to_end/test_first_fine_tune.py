"""The page of the first fine-tune, and the lines of the README for one's own file, do what they say, in order."""

from pathlib import Path

import ase.io
import pytest

from launch.__main__ import main
from tests.conftest import REPOSITORY
from tests.pages import commands, run_python

SMALLER = {"example-data": ["--frames", "8"], "finetune": ["--steps", "2"]}
"""What makes a command fit into a test; everything else is as written."""
PAGES = {
    "first-fine-tune": (REPOSITORY / "docs/first-fine-tune.md").read_text(),
    "README": (REPOSITORY / "README.md").read_text().split("\n## Your own file\n")[1].split("\n## ")[0],
}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run_as_written(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = commands(PAGES[page])
    assert [words[0] for words in typed] == ["example-data", "finetune", "evaluate", "export"]
    assert sum(word.startswith("--") for words in typed[1:] for word in words) <= 9
    for words in typed:
        assert main([*words, *SMALLER.get(words[0], [])]) == 0, words
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert len(ase.io.read("frames.extxyz", ":")) == 8
    assert Path("mine/SHA256SUMS").is_file()


def test_the_dynamics_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(PAGES["first-fine-tune"]):
        assert main([*words, *SMALLER.get(words[0], [])]) == 0, words
    names = run_python(PAGES["first-fine-tune"])
    assert -300 < names["atoms"].get_potential_energy() < -100
