"""What the pages of the documentation hold: blocks of code, commands, options."""

import re
import shlex
from typing import Any


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str, program: str = "foundation") -> list[list[str]]:
    """Return the arguments of every call of a program in the blocks of shell."""
    found = []
    for line in "".join(blocks(text, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if program in words:
            found.append(words[words.index(program) + 1 :])
    return found


def run_python(text: str) -> dict[str, Any]:
    """Run the blocks of Python one after another, as one program, and return its names."""
    names: dict[str, Any] = {}
    for block in blocks(text, "python"):
        exec(block, names)
    return names
