"""The documentation site: its pages, those parts of them that are made from the code, and the examples as pages.

mkdocs calls the functions named on_* (mkdocs.yml, hooks). The site has the layout of the repository, so a link works
there as it does on disk. Parts that come from the code are made in every build and never committed: a new option or
file stays one edit.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from foundation.configuration import ON_RESUME
from launch.verbs import VERBS

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("data_pipeline", "foundation", "launch")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/*.[mch]*",
    "model_cards/*-*.md",
    "model_cards/*.png",
    "model_cards/releases/*/README.md",
    "model_cards/releases/*/*.png",
)
"""Files of the repository that are files of the site."""
RESUME = {"refused": "refused", "compared": "compared", "taken": "may change"}
"""Marks of options, and the words for them."""
PLAIN = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path", type(None): "`null`"}
"""Types, and the words for them."""
PLURAL = {"integer": "integers", "number": "numbers", "path": "paths"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that make the site, and the examples as pages."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted(path for pattern in PAGES for path in REPOSITORY.glob(pattern)):
        name = path.relative_to(REPOSITORY).as_posix()
        files.append(File(name, str(REPOSITORY), config.site_dir, config.use_directory_urls))
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=example_page(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places that comments mark, and link to the pages of the examples."""
    for name, make in GENERATED.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return re.sub(r"(examples/\w+)\.py\)", r"\1.md)", markdown)


def example_page(path: Path) -> str:
    """Return an example in jupytext's percent format as Markdown."""
    parts = []
    for cell in path.read_text().split("# %%")[1:]:
        kind, _, text = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines()))
        elif text.strip():
            parts.append(f"```python\n{text.strip()}\n```")
    title, *rest = parts
    name = path.relative_to(REPOSITORY).as_posix()
    return "\n\n".join([title, f"Run it: `python {name}`.", *rest])


def files_page() -> str:
    """Return every room and file of the packages, each with the summary of its docstring."""
    return "\n".join(line for package in PACKAGES for line in _room(REPOSITORY / package))


def _room(folder: Path) -> Iterator[str]:
    yield f"\n### {folder.relative_to(REPOSITORY).as_posix()}\n\n{summary(folder / '__init__.py')}\n"
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            yield f"- `{file.name}`: {summary(file)}"
    for room in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from _room(room)


def summary(file: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].split())


def benchmarks_page() -> str:
    """Return a table of the benchmarks by name."""
    files = sorted((REPOSITORY / "tests" / "benchmarks").glob("bench_*.py"))
    rows = [f"| `{file.stem.removeprefix('bench_')}` | {summary(file)} |" for file in files]
    return "\n".join(["| name | what it measures |", "|---|---|", *rows])


def options_page() -> str:
    """Return the options of every verb, then those of the sections that they share."""
    parts, sections = [], {}
    for verb, entry in VERBS.items():
        config = entry.load().config
        parts += [f"## foundation {verb}", f"{entry.help[0].upper()}{entry.help[1:]}.", table(config)]
        for name, section in inside(config):
            if section not in verbs_by_config():
                sections.setdefault(section, {}).setdefault(verb, []).append(name)
    parts += ["## Sections", "Options that are a section of several options, each with the verbs that have it."]
    for section in sorted(sections, key=lambda each: each.__name__):
        places = "; ".join(
            f"{', '.join(f'`{name}`' for name in dict.fromkeys(names))} of {verb}"
            for verb, names in sections[section].items()
        )
        text = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0]
        # the quickstart has the sections of four verbs once more
        names = {name for verb, names in sections[section].items() if verb != "quickstart" for name in names}
        prefix = f"{names.pop()}." if len(names) == 1 else ""
        parts += [f"### {section.__name__}", " ".join(text.split()), f"{places}.", table(section, prefix)]
    return "\n\n".join(parts)


@cache
def verbs_by_config() -> dict[type, str]:
    """Return the verbs by the class of their options."""
    return {entry.load().config: verb for verb, entry in VERBS.items()}


def inside(config: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield the dotted name and the class of every section of a config."""
    for item in dataclasses.fields(config):
        for section in sections_of(typing.get_type_hints(config)[item.name]):
            yield prefix + item.name, section
            yield from inside(section, f"{prefix}{item.name}.")


def sections_of(hint: Any) -> list[type]:
    """Return the config classes that a type is made of."""
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return [found for argument in typing.get_args(hint) for found in sections_of(argument)]


def table(config: type, prefix: str = "") -> str:
    """Return the options of a config class as a table, their names behind that of the section."""
    hints, texts = typing.get_type_hints(config), docstrings(config)
    marked = any(item.metadata for item in dataclasses.fields(config))
    rows = ["| option | type | default | meaning |" + " on resume |" * marked, "|---|---|---|---|" + "---|" * marked]
    for item in dataclasses.fields(config):
        name = f"`{prefix}{item.name.rstrip('_')}`"
        cells = [name, words_for(hints[item.name]), default(item), texts.get(item.name, "")]
        if marked:
            cells.append(RESUME.get(item.metadata.get(ON_RESUME, ""), ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def docstrings(config: type) -> dict[str, str]:
    """Return the docstring under each field of a class and of those that it is derived from."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__):
        if dataclasses.is_dataclass(each):
            (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(each))).body
            for field, text in itertools.pairwise(typing.cast(ast.ClassDef, body).body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def words_for(hint: Any) -> str:
    """Return a type in words."""
    if dataclasses.is_dataclass(hint):
        config = typing.cast(type, hint)
        if config in verbs_by_config():
            return f"[options of {verbs_by_config()[config]}](#foundation-{verbs_by_config()[config]})"
        return f"[{config.__name__}](#{config.__name__.lower()})"
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words_for(argument) for argument in arguments)
    if origin is tuple:
        kinds = dict.fromkeys(words_for(argument) for argument in arguments if argument is not Ellipsis)
        return f"list of {' and '.join(PLURAL.get(kind, kind) for kind in kinds)}"
    if origin in (dict, list):
        return f"{'mapping' if origin is dict else 'list'} of {words_for(arguments[-1])}"
    return "any value"


def default(item: dataclasses.Field) -> str:
    """Return the default of an option; of a section, what differs from the section's own defaults."""
    if item.default is not dataclasses.MISSING:
        return _shown(item.default)
    if item.default_factory is dataclasses.MISSING:
        return "required"
    value = item.default_factory()
    if not dataclasses.is_dataclass(value):
        return _shown(value)
    own = {each.name: each.default for each in dataclasses.fields(value)}
    changed = {name: getattr(value, name) for name in own if getattr(value, name) != own[name]}
    plain = {name: each for name, each in changed.items() if not dataclasses.is_dataclass(each)}
    return ", ".join(f"`{name}: {json.dumps(each, default=str)}`" for name, each in plain.items())


def _shown(value: Any) -> str:
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)}`"


GENERATED: dict[str, Callable[[], str]] = {
    "files": files_page,
    "options": options_page,
    "benchmarks": benchmarks_page,
}
"""What stands in the place of a comment of that name."""
