"""Choice among several configurations of an option, such as the architectures and the sources.

The parser tries the members of such a union in turn and takes --model.cutoff as that of the first one with a cutoff,
regardless of other options. Members differ in their first field, which has no default, so giving it selects the member;
the parser is then given only that member.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from launch.yaml_files import is_file, read_mapping

SPECIAL = {"class_path", "init_args", "help"}
"""The parser's own words in place of options."""
Union = tuple[type, ...]
"""Configurations that an option may be."""


def unions(config_class: Any, prefix: str = "") -> Iterator[tuple[str, Union]]:
    """Yield the dotted names and members of the options that are one of several configurations."""
    hints = get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        hint, dotted = hints[item.name], prefix + item.name
        arguments = get_args(hint) or (hint,)
        members = tuple(each for each in arguments if isinstance(each, type) and dataclasses.is_dataclass(each))
        if len(members) > 1:
            yield dotted, members
        elif members:
            yield from unions(members[0], f"{dotted}.")


def chosen(
    dotted: str,
    members: Union,
    options: Iterable[Mapping[str, Any]],
    arguments: Sequence[str],
    value_of: Callable[[str], object],
) -> type | None:
    """Return the member whose first field is given, in files or by arguments, or None.

    Args:
        dotted: Name of the option.
        members: Configurations that it may be.
        options: Options of the whole configuration, from files.
        arguments: Arguments of the command line.
        value_of: Function from the text of an argument to its value.

    Raises:
        ValueError: first fields of several are given, or only other fields.
    """
    given = set().union(*(_names(_at(values, dotted)) for values in options))
    given |= _of_arguments(dotted, arguments, value_of)
    firsts = {first_field(member): member for member in members}
    found = [name for name in firsts if name in given]
    if len(found) > 1:
        raise ValueError(f"{dotted}: {' and '.join(found)} belong to different kinds of {dotted}; give one of them")
    if given and not found and not given & SPECIAL:
        near = [each for name in sorted(given) for each in difflib.get_close_matches(name, firsts, n=1, cutoff=0.75)]
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"{dotted}: the kind of {dotted} is missing; give one of the options {', '.join(firsts)}{guess}"
        )
    return firsts[found[0]] if found else None


def first_field(config_class: Any) -> str:
    """Return the name of the first field of a config class, which tells it from the other members of a union."""
    return dataclasses.fields(config_class)[0].name


def _at(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _names(value: Any) -> set[str]:
    """Return the names of the options in a value: a mapping, or the name of a file with one."""
    if isinstance(value, str) and is_file(Path(value)):
        value = read_mapping(Path(value))
    return set(value) if isinstance(value, Mapping) else set()


def _of_arguments(dotted: str, arguments: Sequence[str], value_of: Callable[[str], object]) -> set[str]:
    found: set[str] = set()
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name.startswith(f"--{dotted}."):
            found.add(name.removeprefix(f"--{dotted}.").split(".")[0])
        elif name == f"--{dotted}":
            text = value if equals else following
            found |= _names(value_of(text) if text.lstrip().startswith("{") else text)
    return found
