"""The data of a run on the command line and in YAML: one manifest, or several with repeats and theories."""

from pathlib import Path

import pytest

from foundation.datasets import DatasetConfig
from launch.__main__ import parse

SEVERAL = (
    DatasetConfig(path=Path("data/mptrj"), repeat=8.0),
    DatasetConfig(path=Path("data/salex"), theory="PBE"),
)


def data_of(*arguments: str) -> object:
    verb, config = parse(["pretrain", *arguments, "--out", "run", "--fit.steps", "1", "--model.irreps", "4x0e"])
    assert verb == "pretrain"
    return config.data


def test_one_manifest_is_a_path() -> None:
    assert data_of("--data", "data/mptrj") == Path("data/mptrj")


def test_several_come_as_a_list_on_the_command_line() -> None:
    text = '[{"path": "data/mptrj", "repeat": 8}, {"path": "data/salex", "theory": "PBE"}]'
    assert data_of("--data", text) == SEVERAL


def test_several_come_as_a_list_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\n- path: data/mptrj\n  repeat: 8\n- path: data/salex\n  theory: PBE\n")
    assert data_of("--config", str(file)) == SEVERAL


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\n- path: data/mptrj\n  repeats: 8\n")
    with pytest.raises(ValueError, match=r"unknown option 'data\.repeats'"):
        data_of("--config", str(file))


def test_a_misspelt_key_on_the_command_line_is_not_taken_for_a_path() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'data\.repeats' \(did you mean repeat\?\)"):
        data_of("--data", "[{path: data/mptrj, repeats: 8}]")
