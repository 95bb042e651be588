"""Words of the command line, rewritten to what the parser reads: one `--section.name=value` for each option.

A list is typed as people type it: `--data a.xyz b.xyz`, `--data a.xyz,b.xyz`, the option twice, or YAML in quotation
marks. An entry that is one of several configurations may be the name of a packaged one: `--suites eos`. A word that
names an existing file, and an address, is never split or read as YAML, so a file called `a,b.xyz` or `[1].xyz` is given
by its name; one that does not exist yet is written `./[1].xyz`, and a pattern with a comma goes into a YAML list, where
nothing is split.

An option is also known by its last names, `--epochs` for `--fit.epochs`, if no other option of the verb ends so.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.quoting import abbreviated
from launch.members import SPECIAL
from launch.yaml_files import config_file, packaged_configs, read_mapping

CONFIG = "config"
FLAGS = ("print_config",)
"""Options without a value."""
FIELDS = {"from": "from_", "for": "for_"}
"""Options whose names are Python keywords, with the names of their fields."""
ELSEWHERE = {
    "batch_size": "fit.edge_budget",
    "device": "machine.accelerator",
    "e0s": "references",
    "foundation_model": "start",
    "gpus": "machine.devices",
    "hidden_irreps": "model.irreps",
    "lr": "optim.learning_rate",
    "max_num_epochs": "fit.epochs",
    "output": "out",
    "per_epoch": "fit.checkpoint_every",
    "r_max": "model.cutoff",
    "restart_latest": "fit.resume",
    "test_file": "test",
    "train_file": "data",
    "valid_file": "val",
}
"""Options of other programs, with those of this one."""
WHOLE = ("directives", "prologue")
"""Lists of lines for another program, which may have commas of their own."""
COMMA = re.compile(r",(?!\s)(?![^\[({]*[\])}])")
"""Comma without a space after it, as in a text, and outside the brackets of a pattern of files."""
Options = Mapping[str, tuple[Any, ...]]
"""Types of the options of a verb, by dotted name; several if an option is one of several configurations."""


def options_of(config_class: Any, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Return the types of all options of a config class by dotted name, sections and their options included."""
    found: dict[str, tuple[Any, ...]] = {}
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        members = members_of(hints[item.name])
        found[prefix + item.name] = (*found.get(prefix + item.name, ()), *members)
        for section in filter(dataclasses.is_dataclass, members):
            for name, inside in options_of(section, f"{prefix}{item.name}.").items():
                found[name] = tuple(dict.fromkeys((*found.get(name, ()), *inside)))
    return found


def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself alone."""
    origin = typing.get_origin(hint)
    return typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)


def rewritten(
    words: Sequence[str], options: Options, aliases: Mapping[str, str], value_of: Callable[[str], object]
) -> list[str]:
    """Return the words of a verb as options with their full names and one value each.

    Args:
        words: Arguments after the verb.
        options: Its options.
        aliases: Other names of options.
        value_of: Function from YAML text to its value.

    Raises:
        ValueError: an option is unknown or could be several, has no value, or a word belongs to no option.
        FileNotFoundError: no configuration of that name.
    """
    result: list[str] = []
    lists: dict[str, list[Any]] = {}
    first = next(iter(words), "--")
    if not first.startswith("-"):
        raise ValueError(f"{abbreviated(first)} stands before any option{_as_data(first, options)}")
    for typed, values in _groups(words):
        name = full_name(typed, options, aliases)
        element = None if name.rpartition(".")[2] in SPECIAL else element_of(options.get(name, ()))
        if name in FLAGS:
            _refuse_stray(values, options)
            result.append(f"--{name}")
        elif name.endswith(".help"):
            result += [f"--{name}", *values]
        elif element is not None and values:
            lists.setdefault(name, []).extend(_entries(values, element, name, value_of))
            result = [word for word in result if not word.startswith(f"--{name}=")]
            result.append(f"--{name}={_list_text(lists[name], options[name], element)}")
        elif name == CONFIG and values:
            result += [f"--{name}={_config(value)}" for value in values]
        else:
            if not values and bool not in options.get(name, ()):
                raise ValueError(f"--{typed} has no value")
            _refuse_stray(values[1:], options)
            result.append(f"--{name}={values[0] if values else 'true'}")
    return result


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every option as typed, without its dashes, and the words that follow it."""
    typed, values = "", []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            if typed:
                yield typed, values
            typed, equals, value = word[2:].partition("=")
            values = [value] if equals else []
        elif re.match(r"-(?!inf|nan)[A-Za-z]", word):
            raise ValueError(f"{abbreviated(word)}: options have two dashes, such as -{word}")
        else:
            values.append(word)
    if typed:
        yield typed, values


def full_name(typed: str, options: Options, aliases: Mapping[str, str]) -> str:
    """Return the full name of an option that may lack its first sections.

    Raises:
        ValueError: there is none, or several.
    """
    name = typed.replace("-", "_")
    name = aliases.get(name, FIELDS.get(name, name))
    last = name.rpartition(".")[2]
    inside = any(name.startswith(f"{each}.") and _is_mapping(kinds) for each, kinds in options.items())
    if name in (CONFIG, *FLAGS) or name.removesuffix("+") in options or last in SPECIAL or inside:
        return name
    ends = [each for each in options if each.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(f"--{typed} could be {' or '.join(f'--{each}' for each in ends)}: give its full name")
    near = nearest(name, [CONFIG, *options])
    raise ValueError(f"unknown option --{typed}{f' (did you mean --{near}?)' if near else ''}")


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the full name nearest to a misspelt one, or None.

    One that moved to another section is found by its last name, a misspelt one by its letters.
    """
    known = {each: each for each in names}
    ends: dict[str, list[str]] = {}
    for each in names:
        ends.setdefault(each.rpartition(".")[2], []).append(each)
    known = {end: full[0] for end, full in ends.items() if len(full) == 1} | known
    last = name.rpartition(".")[2]
    if ELSEWHERE.get(last.lower()) in names:
        return ELSEWHERE[last.lower()]
    if len(ends.get(last, ())) == 1:
        return ends[last][0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return known[near[0]] if near else None


def _is_mapping(kinds: tuple[Any, ...]) -> bool:
    return any(typing.get_origin(kind) is dict for kind in kinds)


def element_of(kinds: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the types of the entries of an option that may be a list of words, or None."""
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            inside = members_of(typing.get_args(kind)[0])
            return None if any(typing.get_origin(each) is tuple for each in inside) else inside
    return None


def _entries(
    values: Sequence[str], element: tuple[Any, ...], name: str, value_of: Callable[[str], object]
) -> Iterator[Any]:
    """Yield the entries of a list in the words of an option."""
    for value in values:
        if _names_something(value):
            yield value
            continue
        if value.lstrip().startswith(("[", "{")) or value == "null":
            try:
                read = value_of(value)
            except ValueError as error:
                raise ValueError(
                    f"--{name} {value}: not a list in YAML ({error}); a file of such a name is written ./{value}"
                ) from error
            yield from (_named(each, element, name) for each in (read if isinstance(read, list) else [read]))
            continue
        whole = name.rpartition(".")[2] in WHOLE or "://" in value
        for part in [value] if whole else filter(None, COMMA.split(value)):
            typed = {str, Path} & set(element) or _only_section(element)
            yield part if typed else _named(value_of(part), element, name)


def _named(value: Any, element: tuple[Any, ...], name: str) -> Any:
    """Return the options of the packaged configuration that an entry names, or the entry itself.

    Raises:
        ValueError: there is none of this name.
    """
    if not isinstance(value, str) or not all(map(dataclasses.is_dataclass, element)) or len(element) < 2:
        return value
    folder = name.rpartition(".")[2].removesuffix("s")
    known = {each.removeprefix(f"{folder}/"): file for each, file in packaged_configs().items()}
    known = {each: file for each, file in known.items() if file.parent.name == folder}
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        guess = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}, or give options in YAML"
        raise ValueError(f"--{name}: no packaged {folder} is called {abbreviated(value)}; {guess}")
    return read_mapping(known[value])


def _names_something(word: str) -> bool:
    try:
        return word != "" and Path(word).exists()
    except (OSError, ValueError):
        return False


def _config(value: str) -> str:
    """Return the file of a configuration, or YAML in place of one as it is."""
    return value if value.lstrip().startswith("{") or "\n" in value else str(config_file(value))


def _only_section(element: tuple[Any, ...]) -> Any:
    """Return the config class that a word stands for by its first field, or None."""
    alone = len(element) == 1 and dataclasses.is_dataclass(element[0])
    return element[0] if alone else None


def _list_text(entries: list[Any], kinds: tuple[Any, ...], element: tuple[Any, ...]) -> str:
    """Return the value of an option: one word as it is where one is accepted, else a list."""
    (first, *others) = entries or [[]]
    if not others and first is None:
        return "null"
    if not others and isinstance(first, str) and {str, Path} & set(kinds):
        return first
    if (section := _only_section(element)) is not None:
        path = dataclasses.fields(section)[0].name
        entries = [{path: each} if isinstance(each, str) else each for each in entries]
    return json.dumps(entries)


def _refuse_stray(values: Sequence[str], options: Options) -> None:
    """Refuse a word that belongs to no option.

    Raises:
        ValueError: there is one.
    """
    if values:
        raise ValueError(f"{abbreviated(values[0])} belongs to no option{_as_data(values[0], options)}")


def _as_data(word: str, options: Options) -> str:
    """Return a suggestion for the name of a file without an option."""
    option = CONFIG if word.endswith((".yaml", ".yml")) else "data"
    return f"; did you mean --{option} {word}?" if option in (CONFIG, *options) and _names_something(word) else ""


def name_first(words: list[str], option: str) -> list[str]:
    """Return arguments with the option that leading `FOLDER...` belong to."""
    return [option, *words] if words and not words[0].startswith("-") else words
