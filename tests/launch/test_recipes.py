"""Recipes lie below files and options, and an unknown one is refused with the nearest."""

from pathlib import Path

import pytest
import yaml

from foundation.finetune import FinetuneConfig
from launch.recipes import expand_recipe, recipes
from launch.verbs import parse

WORDS = ["finetune", "--start", "start", "--data", "data", "--out", "run"]


def parsed(*words: str) -> FinetuneConfig:
    verb, config = parse([*WORDS, *words])
    assert verb == "finetune"
    return config


def test_careful_is_the_default_and_quick_is_shorter() -> None:
    assert set(recipes()) == {"quick", "careful", "reewc"}
    # a recipe is one of the configurations of the package, known by name like every other
    assert parsed("--config", "recipes/quick") == parsed("--recipe", "quick")
    assert parsed("--recipe", "careful") == parsed()
    assert parsed("--recipe", "quick").fit.steps is not None


def test_files_and_options_lie_above_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("fit: {steps: 7}\n")
    steps = parsed("--recipe", "quick").fit.steps
    assert steps not in (None, 7)
    assert parsed("--config", str(tmp_path / "mine.yaml"), "--recipe=quick").fit.steps == 7
    quick = parsed("--fit.steps", "9", "--recipe", "quick")
    assert quick.fit.steps == 9
    assert quick.optim.learning_rate == parsed("--recipe", "quick").optim.learning_rate


def test_the_configuration_of_a_recipe_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*WORDS, "--recipe", "quick", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["fit"]["steps"] == parsed("--recipe", "quick").fit.steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "quik"], r"recipe 'quik' is unknown \(did you mean quick\?\): choose from careful, quick, reewc"),
        (["--recipe"], r"recipe '' is unknown: choose from"),
        (["--recipe", "quick", "--recipe=careful"], "quick and careful cannot be mixed"),
    ],
)
def test_an_unknown_recipe_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_recipe(words)
