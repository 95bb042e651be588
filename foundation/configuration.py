"""Record of a run's configuration: the options that decide a step, and those that may differ on resume.

Every field of a run's configuration is marked where it is declared: `field(metadata=DECIDES)`, COMPARED or MAY_CHANGE.
A field that is a configuration, or one of several, has no mark, but its own fields do, unless it has one for all of
them; one that may also be something else (None, a path) has the mark for that case.
"""

import dataclasses
import json
import logging
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.quoting import abbreviated

log = logging.getLogger(__name__)

ON_RESUME = "on_resume"
DECIDES = {ON_RESUME: "refused"}
"""Mark of a field: another value changes the steps, at least by rounding, so a run cannot resume with it."""
COMPARED = {ON_RESUME: "compared"}
"""Mark of a field: its effect decides and is compared, not its text: the path of data by their content, like all that
orders them (the fingerprint of the stream), 'auto' by its choice."""
MAY_CHANGE = {ON_RESUME: "taken"}
"""Mark of a field: the steps do not depend on it (over processes, up to rounding, as tests show)."""
ABSENT = object()
UNDECIDED = (None, ABSENT, "auto")
"""Values of options that data and start may still decide."""
MAX_SHOWN = 120
"""Longest value in a message [characters]."""


def check_numbers(config: object, limits: Mapping[str, tuple[int, int]]) -> None:
    """Check that numbers of a config are within inclusive limits; None passes.

    Raises:
        ValueError: one is not; the message names the field.
    """
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most:,}"
            raise ValueError(f"{name} must be {bound}, not {abbreviated(value)}")


def resolved(config: object) -> dict:
    """Return a config dataclass as JSON, with all defaults."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of two resolved configurations by dotted name: old and new value, None if missing."""
    pairs = dict(_flat(before)), dict(_flat(now))
    found = {name: (pairs[0].get(name), pairs[1].get(name)) for name in sorted({**pairs[0], **pairs[1]})}
    return {name: values for name, values in found.items() if values[0] != values[1]}


def deciding_changes(before: Mapping[str, Any], config: object, *, settled: bool = True) -> list[str]:
    """Return descriptions of the changes of a configuration that decide a step.

    An option missing from the record is newer than it and taken as its default, which is logged; so is an option that
    no longer exists and cannot be compared.

    Args:
        before: Resolved configuration at the start of the run.
        config: Configuration to resume with, a dataclass.
        settled: False if its data are still to decide what it leaves out, which is then not compared.
    """
    old, new = dict(_flat(before)), dict(_flat(resolved(config)))
    found, unknown = [], []
    for name in sorted({**old, **new}):
        was, now = old.get(name, ABSENT), new.get(name, ABSENT)
        mark, default = _declared(type(config), name.split("."))
        if was == now or mark in (COMPARED, MAY_CHANGE) or (not settled and now in UNDECIDED):
            continue
        if mark is None:
            unknown.append(f"{name} ({_shown(was)}, an option that no longer exists)")
        elif was is ABSENT and now == default:
            unknown.append(f"{name} ({_shown(now)} now, the default)")
        else:
            found.append(f"{name} was {_shown(was)} and is {'set' if was is None and now is ABSENT else _shown(now)}")
    if unknown and not found:
        log.info("not in the record of the run, or no longer in this program, so not compared: %s", ", ".join(unknown))
    return found


def marks(config_class: type, prefix: str = "") -> dict[str, Mapping[str, str] | None]:
    """Return the mark of every field of a configuration, nested ones included, by dotted name; None if missing.

    A field that can only be a configuration has no mark and is left out.
    """
    found: dict[str, Mapping[str, str] | None] = {}
    for item, inside, alone in _fields(config_class):
        if not alone:
            mark = {ON_RESUME: item.metadata[ON_RESUME]} if ON_RESUME in item.metadata else None
            found[prefix + item.name] = mark
        for section in inside:
            found |= marks(section, f"{prefix}{item.name}.")
    return found


def _declared(config_class: type, path: list[str]) -> tuple[Mapping[str, str] | None, Any]:
    """Return the mark of an option and its default as JSON, ABSENT if it has none."""
    for item, inside, alone in _fields(config_class):
        if item.name != path[0]:
            continue
        rest = path[1:]
        while rest and rest[0].isdecimal():  # an index in a list
            rest = rest[1:]
        if inside and rest:
            return next((found for section in inside if (found := _declared(section, rest))[0]), (None, ABSENT))
        mark = DECIDES if alone else typing.cast("Mapping[str, str] | None", dict(item.metadata) or None)
        return mark, ABSENT if path[1:] else _default(item)
    return None, ABSENT


def _fields(config_class: type) -> Iterator[tuple[dataclasses.Field, list[type], bool]]:
    """Yield each field, the configurations that it may be or hold, and whether it is always one."""
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        hint = hints[item.name]
        inside = list(_configurations(hint))
        alone = inside == list(typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
        marked = ON_RESUME in item.metadata
        if marked:  # a class without marks, such as a source of data, is an option as a whole
            inside = [each for each in inside if any(marks(each).values())]
        whole = alone and marked
        yield item, [] if whole else inside, alone and not whole


def _configurations(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield typing.cast("type", hint)
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for argument in typing.get_args(hint):
            yield from _configurations(argument)


def _default(item: dataclasses.Field) -> Any:
    if item.default is not dataclasses.MISSING:
        value = item.default
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        return ABSENT
    return resolved(value) if dataclasses.is_dataclass(value) else json.loads(json.dumps(value, default=str))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of a nested dictionary; empty ones and lists of values are values."""
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    text = "None" if value is ABSENT else str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
