"""The README's commands and its lines of Python do what it says, in order, on the real data."""

import re
from pathlib import Path

import ase.build
import pytest

from launch.__main__ import main, parse

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
SMALLER = {
    "pretrain": """--fit.steps 2 --machine.devices 1 --fit.validate_every 2 --fit.checkpoint_every 2 --fit.log_every 1
        --model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8]""".split(),
}
"""What makes a command fit into a test; everything else is as written."""


def commands(text: str) -> list[list[str]]:
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("    foundation ")]
    return [words[1:] for words in lines]


def test_the_five_commands_and_the_python_run_as_written(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOUNDATION_DATA", str(real_data))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    five = commands(README.split("## The five commands")[1].split("\n## ")[0])
    assert [words[0] for words in five] == ["build", "inspect", "pretrain", "evaluate", "export"]
    for words in five:
        assert main([*words, *SMALLER.get(words[0], [])]) == 0, words
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    exec(snippet, {"atoms": atoms})
    assert abs(atoms.get_potential_energy()) < 100.0
    assert atoms.get_forces().shape == (2, 3)


def test_every_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for words in commands(README):
        parse(words)


def test_every_file_that_the_readme_names_exists() -> None:
    tree = README.split("## The files")[1].split("Units are")[0]
    for line in tree.splitlines():
        words = line.split()
        if not words:
            continue
        for name in (word for word in words if re.fullmatch(r"[\w/]+\.(py|yaml|md)|[\w/]+/", word)):
            assert any(folder_.joinpath(name).exists() for folder_ in _folders()), name
    for image in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (REPOSITORY / image).is_file()


def _folders() -> list[Path]:
    tops = [REPOSITORY / name for name in ("configs", "model_cards", "data_pipeline", "foundation", "launch", "tests")]
    return [REPOSITORY, *tops, *(folder for top in tops for folder in top.iterdir() if folder.is_dir())]
