"""Explanation of refused options: the one value that is wrong, by its name, and what is needed there.

The parser tries the members of a union in turn and lists the complaint of each; here the value itself tells which of
them was meant. Only what the parser has refused is looked at, so nothing is refused twice or otherwise.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data_pipeline.quoting import MAX_VALUE, abbreviated
from launch.members import SPECIAL, first_field
from launch.words import members_of, nearest
from launch.yaml_files import InvalidYaml, is_file, read_mapping

NEEDED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text, in quotation marks where it looks like a number,",
    Path: "a path",
}
"""Types of plain values in words."""
MAX_LISTED = 12
"""Largest number of required options in a message."""


def merged(options: Iterable[Mapping[str, Any]], arguments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the values of files and, over them, of arguments, by section."""
    result: dict[str, Any] = {}
    for values in options:
        _merge(result, values)
    for name, value in arguments:
        for section in reversed(name.split(".")):
            value = {section: value}
        _merge(result, value)
    return result


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        value = _section(value)
        if isinstance(value, Mapping) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = dict(value) if isinstance(value, Mapping) else value


def _section(value: Any) -> Any:
    """Return the options in a file that is named in place of them; any other value as it is."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and is_file(Path(value)):
        try:
            return read_mapping(Path(value))
        except (InvalidYaml, OSError):
            return value
    return value


def complaint(hint: Any, value: Any, name: str) -> str | None:
    """Return a sentence on the first wrong value, or None.

    Args:
        hint: Type of the value.
        value: Plain value as read from YAML, or text of an argument.
        name: Its dotted name.
    """
    members = members_of(hint)
    if Any in members or (value is None and type(None) in members):
        return None
    if value is None:
        return f"{name}: a value is needed, not null"
    if isinstance(value, Mapping):
        kinds = [kind for kind in members if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict]
    elif isinstance(value, list | tuple):
        kinds = [kind for kind in members if typing.get_origin(kind) is tuple]
    else:
        kinds = [kind for kind in members if kind in NEEDED or typing.get_origin(kind) is Literal]
    if not kinds:
        return f"{name}: {_needed(members, value)}"
    if isinstance(value, Mapping):
        return _of_mapping(kinds, value, name)
    if isinstance(value, list | tuple):
        (entry, *_) = typing.get_args(kinds[0])
        numbered = ((f"{name}[{number}]" if len(value) > 1 else name, each) for number, each in enumerate(value))
        return next((found for place, each in numbered if (found := complaint(entry, each, place))), None)
    return None if any(_fits(kind, value) for kind in kinds) else f"{name}: {_needed(kinds, value)}"


def _of_mapping(kinds: Sequence[Any], value: Mapping[str, Any], name: str) -> str | None:
    """Return a sentence on the first wrong option of a section, or None."""
    if value.keys() & SPECIAL:
        return None
    chosen = [kind for kind in kinds if typing.get_origin(kind) is dict or first_field(kind) in value]
    if len(kinds) > 1 and not chosen:
        firsts = ", ".join(first_field(kind) for kind in kinds)
        return f"{name}: the kind of {name} is missing; give one of the options {firsts}"
    kind = (chosen or kinds)[0]
    if typing.get_origin(kind) is dict:
        entry = typing.get_args(kind)[1]
        return next((found for key, each in value.items() if (found := complaint(entry, each, f"{name}.{key}"))), None)
    hints = typing.get_type_hints(kind)
    for key, each in value.items():
        dotted = f"{name}.{key}" if name else key.rstrip("_")
        if key not in hints:
            near = nearest(key, list(hints))
            return f"unknown option '{dotted}'" + (f" (did you mean {near}?)" if near else "")
        if found := complaint(hints[key], each, dotted):
            return found
    return None


def _fits(kind: Any, value: Any) -> bool:
    """Return whether a plain value, or the text of one, is of a type."""
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if kind is bool:
        return isinstance(value, bool) or value in ("true", "false")
    if kind in (int, float):
        if isinstance(value, str):
            try:
                return kind(value) is not None
            except ValueError:
                return False
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, str | Path)


def _needed(kinds: Iterable[Any], value: Any) -> str:
    """Return a phrase on what is needed in place of a value."""
    needed, near = [], []
    kinds = [kind for kind in kinds if kind is not type(None)]
    for kind in [kind for kind in kinds if kind in NEEDED or typing.get_origin(kind) is Literal] or kinds:
        if typing.get_origin(kind) is Literal:
            choices = [str(each) for each in typing.get_args(kind)]
            needed.append(("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices)))
            near += difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        elif dataclasses.is_dataclass(kind):
            first, shown = first_field(kind), str(value)[:MAX_VALUE]
            fitting = {str, Path} & set(members_of(typing.get_type_hints(kind)[first]))
            return f"options are needed in place of {shown}, such as {{{first}: {shown if fitting else '...'}}}"
        elif typing.get_origin(kind) is tuple:
            needed.append(f"a list, such as [{str(value)[:MAX_VALUE]}],")
        else:
            needed.append(NEEDED.get(kind, "options by name"))
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"{' or '.join(needed)} is needed, not {abbreviated(value)}{guess}"


def _missing(config_class: Any, values: Mapping[str, Any], helps: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """Yield every required option that has no value, as one types it, with its description."""
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        dotted, given = f"{prefix}{item.name}", values.get(item.name)
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        sections = [kind for kind in members_of(hints[item.name]) if dataclasses.is_dataclass(kind)]
        if isinstance(given, Mapping):
            found = [kind for kind in sections if first_field(kind) in given] or sections
            if len(found) == 1 and not given.keys() & SPECIAL:
                yield from _missing(found[0], given, helps, f"{dotted}.")
        elif item.name in values or not required:
            continue
        elif len(sections) == 1 and len(members_of(hints[item.name])) == 1:
            yield from _missing(sections[0], {}, helps, f"{dotted}.")
        else:
            names = [f"--{dotted}.{first_field(kind)}" for kind in sections if typing.get_origin(hints[item.name])]
            described = f" ({helps[dotted]})" if helps.get(dotted) else ""
            yield (" or ".join(names) if len(names) == len(members_of(hints[item.name])) else f"--{dotted}") + described


def required(config_class: Any, values: Mapping[str, Any], helps: Mapping[str, str]) -> str | None:
    """Return a sentence that lists the required options without a value, or None.

    Args:
        config_class: Config of the verb.
        values: Its options, by section.
        helps: First sentences of the descriptions of options, by dotted name.
    """
    needed = list(_missing(config_class, values, helps))
    rest = f"; and {len(needed) - MAX_LISTED} more" if len(needed) > MAX_LISTED else ""
    return f"required: {'; '.join(needed[:MAX_LISTED])}{rest}" if needed else None
