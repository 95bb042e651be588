"""YAML of the command line: one reader for configurations, sweeps and values of options.

A file is untrusted, so its size is measured before anything is built from it, with aliases written out. A word is a
number, true, false or null only by YAML 1.2: `No` is nobelium, `on` is a word, 24:00:00 is a time limit, 010 and
2024-01-31 are text. Keys are text as written.
"""

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_pipeline.quoting import abbreviated, one_line

if TYPE_CHECKING:
    from yaml import SafeLoader
else:  # the same in C, ten times faster, if PyYAML was built with libyaml
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PACKAGED = Path(__file__).parent / "configs"
"""Folder of the configurations of this package; in a clone a link to that of the repository."""
MAX_BYTES = 4 * 2**20
"""Largest file [bytes]."""
MAX_NODES = 100_000
"""Largest number of values, lists and mappings, including those repeated by aliases."""
MAX_DEPTH = 40
"""Largest nesting depth; a configuration has about six levels."""
MAX_DIGITS = 19
"""Largest number of digits of an integer: 64 bits."""
_MAP, _SEQ, _STR, _MERGE, _NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "merge", "null", "bool", "int", "float")
)
_WORDS = {
    _MERGE: re.compile("<<"),
    _NULL: re.compile("~|null|Null|NULL|"),
    _BOOL: re.compile("true|True|TRUE|false|False|FALSE"),
    _INT: re.compile("[-+]?(?:0|[1-9][0-9_]*)"),
    _FLOAT: re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
"""Patterns of plain words that are not text, by type; the first match applies."""
_OCTAL = re.compile("[-+]?0[0-9_]+")


class InvalidYaml(ValueError):
    """Text that is not YAML, or not accepted by this program; the message names file and line."""


class YamlLoader(SafeLoader):
    """Loader of plain values from measured text."""

    def resolve(self, kind: type, value: str | None, implicit: Any) -> str:
        """Return the type of a value."""
        if kind is not yaml.ScalarNode:
            return _MAP if kind is yaml.MappingNode else _SEQ
        if value is None or not implicit[0] or _OCTAL.fullmatch(value):
            return _STR
        return next((tag for tag, words in _WORDS.items() if words.fullmatch(value)), _STR)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping with unique text keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
            if key.value in seen and key.tag != _MERGE:
                raise yaml.MarkedYAMLError(
                    problem=f"{abbreviated(key.value)} occurs twice; remove one of them",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_whole(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Return a mapping."""
        return self.construct_mapping(node)

    def construct_list(self, node: yaml.SequenceNode) -> list[Any]:
        """Return a list."""
        return self.construct_sequence(node, deep=True)

    def construct_word(self, node: yaml.ScalarNode) -> bool | int | float | None:
        """Return the value of a plain word."""
        text = str(self.construct_scalar(node))
        if not _WORDS[node.tag].fullmatch(text):
            raise yaml.MarkedYAMLError(
                problem=f"{abbreviated(text)} is not of type {node.tag[18:]}", problem_mark=node.start_mark
            )
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        digits = text.lower().replace("_", "")
        if node.tag == _INT and len(digits.lstrip("+-")) <= MAX_DIGITS:
            return int(digits)
        number = float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        if node.tag == _INT or (math.isinf(number) and "inf" not in digits):
            raise yaml.MarkedYAMLError(
                problem=f"{abbreviated(text)} is too large for a number", problem_mark=node.start_mark
            )
        return number


YamlLoader.yaml_constructors = {
    _MAP: YamlLoader.construct_whole,
    _SEQ: YamlLoader.construct_list,
    _STR: YamlLoader.construct_scalar,
    **dict.fromkeys((_NULL, _BOOL, _INT, _FLOAT), YamlLoader.construct_word),
    None: yaml.SafeLoader.construct_undefined,
}
YamlLoader.yaml_multi_constructors = {}


class _Dumper(yaml.SafeDumper):
    """Dumper of YAML that this reader and readers of YAML 1.1 read as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write values out instead of aliases."""
        return True

    def write_text(self, text: str) -> yaml.Node:
        """Return the node of a text: escaped if it has invisible characters other than line breaks."""
        hidden = not text.replace("\n", "").isprintable()
        return self.represent_scalar(_STR, text, style='"' if hidden else None)


_Dumper.add_representer(str, _Dumper.write_text)
_Dumper.add_implicit_resolver(_FLOAT, re.compile(f"(?:{_WORDS[_FLOAT].pattern})$"), list("-+0123456789."))


def to_yaml(values: Any) -> str:
    """Return plain values as YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def packaged_configs() -> dict[str, Path]:
    """Return the configurations of this package by name, such as pretrain/small."""
    return {file.relative_to(PACKAGED).with_suffix("").as_posix(): file for file in sorted(PACKAGED.rglob("*.yaml"))}


def config_file(word: str) -> Path:
    """Return the file of a configuration: a local one, or else one of this package by its name.

    Raises:
        FileNotFoundError: there is neither.
    """
    if is_file(Path(word)):
        return Path(word)
    known, name = packaged_configs(), word.removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return known[name]
    ends = {each.rpartition("/")[2]: each for each in known}
    near = difflib.get_close_matches(name, [*known, *ends], n=1)
    guess = f" (did you mean {ends.get(near[0], near[0])}?)" if near else f"; there are {', '.join(known)}"
    raise FileNotFoundError(f"--config {word}: no such file, nor a configuration of this package{guess}")


def is_file(path: Path) -> bool:
    """Return whether a file exists; the name may be too long for one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_yaml(file: Path) -> Any:
    """Return the values of a YAML file.

    Raises:
        InvalidYaml: it is not YAML, too large, deep or long, or has a key twice; the message names file and line.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InvalidYaml(f"{file}: larger than {MAX_BYTES:,} bytes, so it is not a configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidYaml(f"{file}, line {line}: not in UTF-8, so it is not YAML, or in another encoding") from error
    return parse_yaml(text, str(file))


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the options in a YAML file.

    Raises:
        InvalidYaml: it cannot be read, or is not a mapping.
        OSError: it cannot be read.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise InvalidYaml(f"{file}: it must be a mapping of options to values, not {abbreviated(values)}")
    return values


def with_files_beside(options: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Return options in which those names in a list that are files beside a configuration have become their paths."""
    if not isinstance(names := options.get(name), list):
        return options
    there = [str(folder / str(each)) if (folder / str(each)).is_file() else each for each in names]
    return {**options, name: there}


def parse_yaml(text: str, where: str = "") -> Any:
    """Return the values of YAML text; `where` names it in messages.

    Raises:
        InvalidYaml: it is not YAML, too large, deep or long, or has a key twice.
    """
    if len(text) > MAX_BYTES:
        raise InvalidYaml(f"{where or 'text'}: larger than {MAX_BYTES:,} characters")
    try:
        _measure(yaml.parse(text, Loader=YamlLoader))
        return yaml.load(text, Loader=YamlLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = [where] if where else []
        place += [f"line {mark.line + 1}"] if mark else []
        raise InvalidYaml(f"{', '.join(place)}: {one_line(error.problem or str(error))}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidYaml(f"{where or 'text'}: not YAML ({one_line(str(error))})") from error


def _measure(events: Iterator[yaml.Event]) -> None:
    """Refuse text that would become too large or too deep.

    Raises:
        yaml.MarkedYAMLError: it would; the message names the line.
    """
    total, anchors = 0, {}  # of each anchor its values and its depth
    begun: list[list[Any]] = [["", 0, 0]]  # anchor, values before it, depth of what is in it
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append([event.anchor, total, 0])
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, depth = begun.pop()
            anchors[anchor] = total - before, depth + 1
            begun[-1][2] = max(begun[-1][2], depth + 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchors[event.anchor] = 1, 0
            total += 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise yaml.MarkedYAMLError(
                    problem=f"*{one_line(str(event.anchor))} refers to nothing complete before it",
                    problem_mark=event.start_mark,
                )
            values, depth = anchors[event.anchor]
            total += values
            begun[-1][2] = max(begun[-1][2], depth)
        if total > MAX_NODES or len(begun) - 1 + begun[-1][2] > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_NODES:,} values, or nested more than {MAX_DEPTH} deep, with all aliases "
                "written out: this is not a configuration",
                problem_mark=event.start_mark,
            )
