"""What --print_config prints is YAML that the same verb reads back to an equal configuration."""

from pathlib import Path

import pytest

from launch.__main__ import VERBS, main, parse
from tests.conftest import REPOSITORY

PARTS = ("distill", "recipes", "study", "suite", "sweep")
"""Folders of files that are not the configuration of a verb."""
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name not in PARTS)
VERB_OF = {"configs": "quickstart", "data": "build"}
"""Verb of the configurations in a folder that is not called like it."""
OVERRIDES = {
    "quickstart": "--pretrain.fit.steps 3 --build.filters.max_force 9.5",
    "build": "--provenance.name no --cutoffs [4.5,6] --provenance.citation 1:30",
    "pretrain": "--model.cutoff 6.5 --fit.wandb off --optim.betas [0.8,0.99]",
    "finetune": '--fit.seed 7 --penalty null --forgetting.retained [{"path":"a;b:c"}]',
    "fisher": "--out elsewhere",
    "convert": "--out elsewhere --card.name 1e5",
}
COMMANDS = {
    "merge": "--manifests ['a','b'] --out c --name 1e5",
    "inspect": "--data d --verify true",
    "pretrain": "--out o --fit.steps 1 --model.irreps 4x0e --card.name no "
    '--data [{"path":"a","repeat":8},{"path":"b","theory":"1e5"}]',
    "finetune": '--start s --data d --out o --fit.steps 1 --rehearsal.data r --adapters.rank 2 --rate_factors {"a":9}',
    "preflight pretrain": "--config configs/pretrain/small.yaml --price 2.5",
    "preflight finetune": "--start s --data d --out o --recipe quick --price 2.5",
    "protect": "--model m --num_structures 9",
    "example-data": "emt-alloys --out f.extxyz",
    "distill": "silicon --quick true",
    "study": "coulomb --quick true --jobs 3",
    "tradeoff": "a b --out c",
    "evaluate": "--model m --data d --split val",
    "report": "a b --out c",
    "export": "--run r --out o --card.name y --card.citation 1:30",
    "discovery": "--model m --structures s.jsonl --out o --part 3/32",
    "predict": "--model m --data s.cif t.cif --out o --part 3/32",
    "relax": "--model m --data s.xyz --out o --algorithm lbfgs --symmetry true",
    "md": "--model m --data s.xyz --out o --steps 10 --ensemble npt",
    "engines": "--check m --theory PBE",
    "coverage": "--model m --data d --out c.safetensors --split train",
    "uncertainty": "--model m --data d --calibration e f.xyz --theory 1e5",
    "convert": "--from sevennet --checkpoint x.pth --out o",
    "models list": "--elements Li,S --theory no",
    "models info": "sevennet-0@1",
    "models download": "hf:a/b@main sevennet-0",
    "models verify": "a b",
    "models path": "https://example.org/a",
    "models lineage": "a --configuration true",
    "models table": "--out page.md",
    "publish": "--release r --to hf:a/b",
    "launch slurm": "--time 24:00:00 --directives ['--exclusive'] --array 0-3 --out o",
    "launch local": "--processes 2",
}


def read_back(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[object, object]:
    """Return the configuration that arguments mean, and the one that is read from what they print."""
    verb, meant = parse(arguments)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert "Namespace" not in file.read_text()
    assert "class_path" not in file.read_text()
    again, found = parse([*verb.split(), "--config", str(file)])
    assert again == verb
    return meant, found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_configuration_is_read_back(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    verb = VERB_OF.get(path.parent.name, path.parent.name)
    meant, found = read_back([verb, "--config", str(path), *OVERRIDES[verb].split()], tmp_path, capsys)
    assert found == meant


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_reads_back_what_it_prints(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    meant, found = read_back([*verb.split(), *COMMANDS[verb].split()], tmp_path, capsys)
    assert found == meant


def test_no_verb_is_left_out() -> None:
    assert {*COMMANDS, *OVERRIDES} == set(VERBS)


def test_a_launcher_prints_the_configuration_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", "--data", "d", "--out", "o", "--fit.steps", "1", "--model.irreps", "4x0e"]
    with pytest.raises(SystemExit):
        main(["launch", "slurm", "--time", "10", "--nodes", "2", "--", *command, "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    machine = ["--machine.accelerator", "cpu", "--machine.num_nodes", "2"]
    assert parse(["pretrain", "--config", "printed.yaml"]) == parse([*command, *machine])
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def test_what_lacks_an_option_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--data", "d", "--print_config"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "out" in said.err
