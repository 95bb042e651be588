"""A list of files or words is typed in any of the usual ways, and an option by its last name."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foundation.datasets import DatasetConfig
from launch import parser
from launch.__main__ import parse
from launch.parser import Loaded, Verb
from launch.words import nearest, options_of, rewritten
from launch.yaml_files import parse_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    epochs: int = 1
    weight: float = 1.0
    words: tuple[str, ...] = ()
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Other:
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | tuple[Path | DatasetConfig, ...]
    val: tuple[Path, ...] = ()
    sets: tuple[DatasetConfig, ...] = ()
    cutoffs: tuple[float, ...] = (5.0,)
    directives: tuple[str, ...] = ()
    factors: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    perhaps: Other | None = None
    other: Other = field(default_factory=Other)


OPTIONS = options_of(Config)


def said(line: str) -> list[str]:
    return rewritten(shlex.split(line), OPTIONS, {"train": "data"}, parse_yaml)


WAYS = {
    "--data a --data b": '--data=["a", "b"]',
    "--data a,b": '--data=["a", "b"]',
    "--data a b": '--data=["a", "b"]',
    "--data 'a, b'": "--data=a, b",
    "--data=a --data=b": '--data=["a", "b"]',
    "--data '[a, b]'": '--data=["a", "b"]',
    """--data '["a","b"]'""": '--data=["a", "b"]',
    "--train a --data b": '--data=["a", "b"]',
    "--data a": "--data=a",
    "--data a '{path: b, repeat: 2}'": '--data=["a", {"path": "b", "repeat": 2}]',
    "--data https://x/a,b": "--data=https://x/a,b",
    "--data 'OUTCAR_{1,2}'": "--data=OUTCAR_{1,2}",
    "--data 'OUTCAR_[1,2]' c": '--data=["OUTCAR_[1,2]", "c"]',
    "--val a": '--val=["a"]',
    "--val null": "--val=null",
    "--sets a b": '--sets=[{"path": "a"}, {"path": "b"}]',
    "--cutoffs 5 6.5": "--cutoffs=[5, 6.5]",
    "--cutoffs 5,6": "--cutoffs=[5, 6]",
    "--cutoffs -1 -2": "--cutoffs=[-1, -2]",
    "--directives=--gres=gpu:2,x --directives=--mem=1G": '--directives=["--gres=gpu:2,x", "--mem=1G"]',
    "--words 1e5 No": '--inner.words=["1e5", "No"]',
    "--epochs 3": "--inner.epochs=3",
    "--inner.epochs 3": "--inner.epochs=3",
    "--on": "--inner.on=true",
    "--factors.a 2": "--factors.a=2",
    "--perhaps.weight 2": "--perhaps.weight=2",
    "--config {} {}": "--config={} --config={}",
}


@pytest.mark.parametrize("line", WAYS)
def test_a_list_is_typed_in_any_of_the_usual_ways(line: str) -> None:
    assert " ".join(said(line)) == WAYS[line]


def test_a_repeated_list_stands_where_it_was_given_last_and_other_options_keep_their_order() -> None:
    assert said("--data a --config {} --epochs 2 --data b --epochs 3") == [
        *("--config={}", "--inner.epochs=2", '--data=["a", "b"]', "--inner.epochs=3"),
    ]


def test_a_file_is_named_whole_whatever_characters_its_name_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.xyz", "[1].xyz", "{x: y}", "null"):
        Path(name).touch()
    assert said("--data a,b.xyz '[1].xyz' '{x: y}' null") == ['--data=["a,b.xyz", "[1].xyz", "{x: y}", "null"]']
    assert said("--data '[\"x,y/*.xyz\"]'") == ["--data=x,y/*.xyz"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--weight 2", "--weight could be --inner.weight or --perhaps.weight or --other.weight: give its full name"),
        ("--epohcs 2", r"unknown option --epohcs \(did you mean --inner.epochs\?\)"),
        ("--other.epochs 2", r"unknown option --other.epochs \(did you mean --inner.epochs\?\)"),
        ("--dta 2", r"unknown option --dta \(did you mean --data\?\)"),
        ("--xyz 2", "unknown option --xyz$"),
        ("--train_flie 2", "unknown option --train_flie"),
        ("--train_file 2", r"unknown option --train_file \(did you mean --data\?\)"),
        ("--data", "--data has no value"),
        ("--epochs 2 3", "'3' belongs to no option"),
        ("b --epochs 2", "'b' stands before any option"),
        ("-epochs 2", "'-epochs': options have two dashes, such as --epochs"),
    ],
)
def test_a_word_that_cannot_be_understood_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        said(line)


def test_a_name_in_another_section_is_the_nearest() -> None:
    assert nearest("fit.epochs", OPTIONS) == "inner.epochs"
    assert nearest("inner.epoch", OPTIONS) == "inner.epochs"
    assert nearest("nothing.like.it", OPTIONS) is None


VERBS = {"verb": Verb("help", lambda: Loaded(config=Config, run=print))}
B = DatasetConfig(path=Path("b"), repeat=2.0)


@pytest.mark.parametrize(
    ("line", "data"),
    [
        ("--data a", Path("a")),
        ("--data a,b", (Path("a"), Path("b"))),
        ("--data a '{path: b, repeat: 2}'", (Path("a"), B)),
        ("--data '{path: b, repeat: 2}'", (B,)),
        ("--data '[a, {path: b, repeat: 2}]'", (Path("a"), B)),
    ],
)
def test_the_parser_reads_what_was_rewritten(line: str, data: object) -> None:
    assert parser.parse(VERBS, ["verb", *shlex.split(line)])[1].data == data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data '[{pth: b}]'", r"unknown option 'data.pth' \(did you mean path\?\)"),
        ("--data a '{path: b, repaet: 2}'", r"unknown option 'data\[1\].repaet' \(did you mean repeat\?\)"),
        ("--data a '{path: b, repeat: often}'", r"data\[1\].repeat: a number is needed, not 'often'"),
        ("--data '[a'", r"--data \[a: not a list in YAML .* a file of such a name is written \./\[a"),
        ("--data a --val null", "val: a value is needed, not null"),
        ("--data a --factors.x much", "factors.x: a number is needed, not 'much'"),
    ],
)
def test_the_one_value_of_a_list_that_is_wrong_is_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parser.parse(VERBS, ["verb", *shlex.split(line)])


SMALL = ["--out", "run", "--steps", "1", "--irreps", "4x0e"]


def test_training_takes_lists_and_short_names(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: elsewhere\nfit: {steps: 7}\n")
    _, config = parse(["pretrain", "--config", str(file), "--train", "a", *SMALL, "--overwrite", "--resume", "auto"])
    assert (config.data, config.fit.steps, config.model.irreps) == (Path("a"), 1, "4x0e")
    assert (config.overwrite, config.fit.resume) == (True, "auto")
    _, config = parse(["finetune", "--start", "s", "--data", "a", "--out", "o", "--steps", "1", "--freeze", "x", "y"])
    assert config.freeze == ("x", "y")
    _, config = parse(["finetune", "--start", "s", "--data", "a,b", "--out", "o", "--steps", "1"])
    assert [Path(getattr(each, "path", each)) for each in config.data] == [Path("a"), Path("b")]
