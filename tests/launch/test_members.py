"""An option that is one of several configurations is the one whose first field is given, wherever that is said."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_pipeline.building.build import BuildConfig
from data_pipeline.sources import AseFiles, AseLmdb, EmtAlloys
from foundation.pretrain import PretrainConfig
from launch.__main__ import main, parse
from launch.members import chosen, unions
from launch.quickstart import QuickstartConfig
from launch.yaml_files import parse_yaml

PROVENANCE = "name licence level_of_theory energy_convention citation source".split()
BUILD = ["build", "--out", "o", *(word for name in PROVENANCE for word in (f"--provenance.{name}", "x"))]


@dataclass(frozen=True, kw_only=True)
class Early:
    early: int
    width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Late:
    late: int
    width: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Inner:
    either: Early | Late
    perhaps: Early | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    many: tuple[Late, ...] = ()
    here: Early | Late | None = field(default=None)


def test_unions_are_found_wherever_they_are() -> None:
    assert dict(unions(Outer)) == {"inner.either": (Early, Late), "here": (Early, Late)}
    assert "source" in dict(unions(BuildConfig))
    assert "build.source" in dict(unions(QuickstartConfig))


def choose(text: str, arguments: Sequence[str] = ()) -> type | None:
    return chosen("here", (Early, Late), [parse_yaml(text)], arguments, parse_yaml)


@pytest.mark.parametrize("arguments", ["--here.width 5", "--here.width=5", "", "--here.late 3"])
def test_a_file_says_which_it_is(arguments: str) -> None:
    assert choose("here: {late: 1}", arguments.split()) is Late


@pytest.mark.parametrize("argument", ["--here.late=1", "--here={late: 1}", "--here={width: 2, late: 1}"])
def test_an_argument_says_which_it_is(argument: str) -> None:
    assert choose("inner: {either: {early: 1}}", [argument]) is Late


def test_a_file_in_place_of_the_options_says_it(tmp_path: Path) -> None:
    (tmp_path / "early.yaml").write_text("early: 1")
    assert choose(f"here: {tmp_path / 'early.yaml'}") is Early
    assert choose("x: 1", ["--here", str(tmp_path / "early.yaml")]) is Early
    assert choose("here: nowhere.yaml") is None


def test_two_at_once_and_none_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="here: early and late belong to different kinds of here; give one of them"):
        choose("here: {late: 1}", ["--here.early", "2"])
    with pytest.raises(ValueError, match="here: the kind of here is missing; give one of the options early, late"):
        choose("here: {width: 1}")


def test_a_dotted_option_that_several_have_goes_to_the_one_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "build.yaml"
    file.write_text("source: {aselmdb: [a, b]}")
    _, config = parse([*BUILD, "--config", str(file), "--source.energy_key", "1e5"])
    assert config.source == AseLmdb(aselmdb=("a", "b"), energy_key="1e5")
    _, config = parse([*BUILD, "--source.energy_key", "e", "--source.files", "[a]"])
    assert config.source == AseFiles(files=("a",), energy_key="e")
    assert parse([*BUILD, "--source.num_frames", "3"])[1].source == EmtAlloys(num_frames=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--source.num_frames 3 --source.sed 4", "unknown option --source.sed (did you mean --source.seed?)"),
        ("--source.num_frames 3 --source.seed x", "source.seed: a whole number is needed, not 'x'"),
        ("--source.num_frames 3 --source.seed null", "source.seed: a value is needed, not null"),
        ("--source.seed 4", "source: the kind of source is missing; give one of the options files, aselmdb"),
    ],
)
def test_what_is_wrong_is_said_of_the_one_that_is_meant(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BUILD, *options.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_an_architecture_is_told_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert dict(PretrainConfig.__dataclass_fields__)["model"]
    assert main(["pretrain", "--data", "d", "--out", "o", "--fit.steps", "1"]) == 2
    said = capsys.readouterr().err
    assert "model" in said
    assert "required" in said
