"""Escaping of names, citations and other facts from files for each output language.

HTML does not need it: the pages' templates escape all values.
"""

import re


class Markdown(str):
    """Text that is already Markdown."""

    __slots__ = ()


_INLINE = re.compile(r"[\\`*\[\]<>|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=[#A-Za-z])|!(?=\[)")
_LIST = re.compile(r"( ?\d{1,9})([.)])(?=\s|$)")
_BLOCK = re.compile(r" ?(?=(?:[-+]|#{1,6})(?:\s|$)|[-=]{2,})")


def printable(value: object) -> str:
    """Return text for a terminal or a log, with control characters escaped except line breaks and tabs."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in str(value))


def markdown(value: object) -> Markdown:
    """Return a value as one line of Markdown that shows it literally, also in a table; Markdown is unchanged."""
    if isinstance(value, Markdown):
        return value
    text = _INLINE.sub(r"\\\g<0>", _one_line(value))
    for beginning, escaped in ((_LIST, r"\1\\\2"), (_BLOCK, r"\\")):
        found = beginning.match(text)
        if found:
            text = found.expand(escaped) + text[found.end() :]
    return Markdown(text)


def code(value: object) -> Markdown:
    """Return a value as a span of code for a cell of a table in Markdown."""
    text = _one_line(value).replace("|", r"\|")
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    ticks, space = "`" * (longest + 1), " " if longest or not text else ""
    return Markdown(f"{ticks}{space}{text}{space}{ticks}")


def figure_text(value: object) -> str:
    """Return text for a figure, where dollars start formulas and a leading underscore hides it from the legend."""
    text = _one_line(value).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _one_line(value: object) -> str:
    return printable(re.sub(r"\s+", " ", str(value)))
