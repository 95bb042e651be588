"""The README fits a page, and its commands and lines of Python do what it says, in order, on the real data."""

import re
from pathlib import Path

import ase.build
import pytest

import foundation
from launch.__main__ import main
from tests.conftest import REPOSITORY
from tests.pages import blocks, commands, run_python

README = (REPOSITORY / "README.md").read_text()
SMALLER = {
    "pretrain": """--fit.steps 2 --machine.devices 1 --fit.validate_every 2 --fit.checkpoint_every 2 --fit.log_every 1
        --model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8]""".split(),
}
"""What makes a command fit into a test; everything else is as written."""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_it_fits_a_page() -> None:
    assert README.count("\n") <= 150
    assert len(README.split()) <= 900


def test_the_five_commands_run_as_written_and_with_the_option_of_the_text(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOUNDATION_DATA", str(real_data))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    five = commands(section("Train"))
    assert [words[0] for words in five] == ["build", "inspect", "pretrain", "evaluate", "export"]
    (option,) = re.findall(r"dotted options\s+over its file \(`(--[^`]*)`\)", section("Train"))
    smaller = SMALLER | {"pretrain": [*option.split(), *SMALLER["pretrain"]]}
    for words in five:
        assert main([*words, *smaller.get(words[0], [])]) == 0, words
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    atoms.calc = foundation.Calculator(foundation.load(five[-1][-1]))
    assert abs(atoms.get_potential_energy()) < 100.0


def test_the_lines_of_python_run_as_written(capsys: pytest.CaptureFixture) -> None:
    (snippet,) = blocks(README, "python")
    assert len([line for line in snippet.splitlines() if "atoms" in line and "import" not in line]) == 3
    names = run_python(README)
    assert names["atoms"].get_forces().shape == (2, 3)
    assert -8.0 < names["atoms"].get_potential_energy() < -6.0  # two atoms of rock salt
    assert str(names["atoms"].get_potential_energy()) in capsys.readouterr().out


def test_every_measured_row_has_its_own_benchmark() -> None:
    rows = re.findall(r"\| `make bench BENCH=(\w+)` \|", section("Measured"))
    assert len(rows) == len(set(rows)) == 6
    tables = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for row in [line.split("|") for line in section("Measured").splitlines() if "BENCH=" in line]:
        assert row[2].split()[0] in tables, row


def test_what_fine_tunings_reach_is_what_the_card_says() -> None:
    card = (REPOSITORY / "model_cards" / "sevennet-0-lpsc-reewc.md").read_text()
    results = (REPOSITORY / "docs" / "fine-tuning.md").read_text().partition("## Results")[2]
    pages = section("Fine-tune without forgetting"), results
    numbers = {found for page in pages for found in re.findall(r"\| ([+−]?\d+(?:\.\d+)?(?: %)?) (?=\|)", page)}
    assert {"84.2", "32.8", "+18 %", "+65 %"} <= numbers
    assert [number for number in numbers if not re.search(rf"{re.escape(number)}[ \n]", card)] == []


def test_every_room_is_in_the_table_of_the_house() -> None:
    names = re.findall(r"`([\w/.]+)`", section("The house"))
    rooms = {path.parent.name for path in REPOSITORY.glob("foundation/*/__init__.py")}
    assert rooms <= {name.rstrip("/").split("/")[-1] for name in names}
    assert {"configs/", "data_pipeline/", "launch/"} <= set(names)
