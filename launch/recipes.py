"""Recipes of fine-tunings: packaged configurations that lie below the files and options of the command line."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from launch.yaml_files import packaged_configs

OPTION = "--recipe"
FOLDER = "recipes/"
"""Folder of the recipes among the packaged configurations."""
HELP = (
    "--recipe NAME starts from a recipe, below --config and options: quick (a first potential in minutes), careful "
    "(longer, and at a lower rate), reewc (keeps what the start knows). --print_config shows the result."
)


def recipes() -> dict[str, Path]:
    """Return the files of the packaged recipes by name."""
    known = packaged_configs().items()
    return {name.removeprefix(FOLDER): file for name, file in known if name.startswith(FOLDER)}


def expand_recipe(words: list[str]) -> list[str]:
    """Return arguments with `--recipe NAME` turned into the first --config file, which all others override.

    Raises:
        ValueError: there is no such recipe, or several are given.
    """
    names, rest = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        if word == OPTION or word.startswith(f"{OPTION}="):
            names.append(_name(word, remaining))
        else:
            rest.append(word)
    if len(names) > 1:
        raise ValueError(f"recipe: {' and '.join(names)} cannot be mixed; give one of them")
    return ["--config", str(recipes()[names[0]]), *rest] if names else words


def _name(word: str, following: Iterator[str]) -> str:
    """Return the name of an existing recipe after its option."""
    name, known = word.partition("=")[2] if "=" in word else next(following, ""), recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"recipe {name!r} is unknown{guess}: choose from {', '.join(known)}")
    return name
