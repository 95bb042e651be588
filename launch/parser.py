"""Parser of arguments to a config object: YAML files, dotted options over them, and errors of one sentence."""

import dataclasses
import difflib
import importlib.metadata
import itertools
import json
import math
import operator
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any, NoReturn, cast, get_args, get_type_hints

import jsonargparse
from jsonargparse import _loaders_dumpers as loaders_dumpers

from data_pipeline.quoting import abbreviated
from foundation.configuration import resolved
from launch.explanation import complaint, merged, required
from launch.members import chosen, unions
from launch.words import Options, options_of, rewritten
from launch.yaml_files import InvalidYaml, YamlLoader, is_file, parse_yaml, read_mapping, to_yaml

REPLACEMENTS = (
    (r"\s*Does not validate against any of the Union subtypes\s+Subtypes: .*\s+Errors:\s*- ", " "),
    (r"\n\s*Given value type: .*\s+Given value: .*", ""),
    (r"\n\s*- ", "; or "),
    (r"Problem with given class_path '[^']*':", ""),
    (r"Parser key \"([^\"]*)\":", r"\1:"),
    (r"Group '([^']*)' does not accept option '([^']*)'", r"unknown option '\1.\2'"),
    (r"Option ('[^']*') is not accepted", r"unknown option \1"),
    (r"([\w.]+):\s+unknown option '", r"unknown option '\1."),
    (r"Expected a dot import path string: (.*)", r"options are needed in place of \1, such as {path: \1}"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"a value of type \1 is needed"),
    (r"Importing ('[^']*') is not allowed, .*? to allow it", r"a class of this program is needed, not \1"),
    (r"Exceeds the limit \(\d+ digits\) for integer string conversion.*", "too large for a number"),
    (r"; or Import path [\w.]+ does not correspond to a subclass of \w+", ""),
    (r"Import path [\w.]+ does not correspond to a subclass of \w+; or ", ""),
    (r"\s*\n\s*", " "),
)
"""Patterns of the parser's terms for its types in a message, with their replacements."""

MAX_MESSAGE = 1000
"""Longest message of the parser [characters]; it quotes files."""
COMMAND = "command"
"""Field of a launcher's config: the words after `--`."""
MISSING = object()
PRINT_CONFIG, TRACEBACK, OFFLINE = "--print_config", "--traceback", "--offline"
HELP, VERSION = ("-h", "--help"), "--version"
KEY_WIDTH = 26
"""Width of the column of options [characters]."""
NAME_WIDTH = 20
"""Width of the column of verbs [characters]."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Code of a verb."""

    config: type
    """Dataclass whose fields are the options."""
    run: Callable[[Any], object]
    """Function of the config; an integer result is the exit code."""
    instead: Mapping[str, type] = field(default_factory=dict)
    """Dataclasses that take the place of `config` if an option, which only they have, is given."""
    expand: Callable[[list[str]], list[str]] = list
    """Function that rewrites the arguments after the verb before parsing."""
    epilog: str | None = None
    """Text below the options."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of options."""


@dataclass(frozen=True)
class Verb:
    """A word of the command line."""

    help: str
    """Phrase for the list of verbs."""
    load: Callable[[], Loaded]
    """Function that imports the code."""
    keys: tuple[str, ...] = ()
    """Options shown by --help (all if empty); `--help all` shows the others."""
    group: str = ""
    """Title above the verb in the list of verbs; '': it belongs to the group before it."""


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one sentence, without a page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments; inner parsers, whose errors this one reads, keep their own way."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ValueError(simplified(message).rstrip(".")) from ex


def simplified(message: str) -> str:
    """Return the parser's message without its terms for types, in one line of bounded length."""
    message = message[: 10 * MAX_MESSAGE]
    for pattern, plain in REPLACEMENTS:
        message = re.sub(pattern, plain, message)
    message = message.strip()
    return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "..."


def overview(verbs: Mapping[str, Verb]) -> str:
    """Return the help of the whole command."""
    return "\n".join(
        [
            "usage: foundation VERB [--config FILE] [--KEY VALUE]... [--offline] [--traceback]",
            "",
            "Pretraining, forgetting-aware fine-tuning and release of universal interatomic potentials.",
            "",
            _listed(verbs),
            "",
            "foundation VERB --help shows the options that people set, --help all every option.",
            "An option may lack its section where no other ends so: --steps 100 is --fit.steps 100.",
            "A list is several words, the option again, or words with commas: --data a.xyz b.xyz.",
            "--offline downloads nothing; --traceback shows where in the code an error arose.",
        ]
    )


def _listed(verbs: Mapping[str, Verb]) -> str:
    """Return the verbs with their phrases, by groups."""
    lines = []
    for name, verb in verbs.items():
        lines += ["", verb.group] if verb.group and lines else [verb.group] if verb.group else []
        lines.append(f"  {name:<{NAME_WIDTH}}{verb.help}")
    return "\n".join(lines)


def _short_help(parser: jsonargparse.ArgumentParser, keys: Sequence[str]) -> str:
    """Return the short help of a verb: the first sentence of each main option."""
    # argparse has no public access to the options of a parser
    actions = {action.dest: action for action in parser._actions}
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [parser.format_usage(), *textwrap.wrap(" ".join((parser.description or "").split()), width), ""]
    for key in keys:
        action = actions[key]
        sentence = _sentence(action.help)
        needed = action.required and action.default is None
        default = "None" if action.default is None else json.dumps(action.default, default=str)
        unset = "required" if needed else f"default: {default}"
        text = f"  --{key:<{KEY_WIDTH}} {sentence} ({unset})"
        lines += textwrap.wrap(text, width, subsequent_indent=" " * (KEY_WIDTH + 5), break_on_hyphens=False)
    lines += ["", *textwrap.wrap(parser.epilog, width)] if parser.epilog else []
    return "\n".join([*lines, "", f"All {len(actions)} options: {parser.prog} --help all\n"])


@cache
def _parser(name: str, config_class: type, epilog: str | None) -> jsonargparse.ArgumentParser:
    """Return the parser of a verb; the docstring under each field is its help."""
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        # a class_path in a file would import, and so run, any module
        import_path_denylist=["*"],
        import_path_allowlist=["data_pipeline", "foundation", "launch"],
    )
    jsonargparse.set_loader("yaml", _value_of, exceptions=(InvalidYaml,))
    # the parser reads numbers once more, by YAML 1.1, where 1:30 is 90 and yes is true, without an option to change it
    loaders_dumpers.yaml_default_loader = YamlLoader
    parser = _Parser(
        prog=f"foundation {name}",
        usage="%(prog)s [--config FILE] [--KEY VALUE]...",
        description=config_class.__doc__,
        epilog=epilog,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_argument(PRINT_CONFIG, action="store_true", help="print all options as YAML, for --config, and end")
    parser.add_class_arguments(config_class, fail_untyped=True, skip={COMMAND})
    return parser


def _values_of(arguments: Sequence[str], options: Options) -> list[tuple[str, object]]:
    """Return the names and values of arguments; those of texts and paths as typed."""
    found: list[tuple[str, object]] = []
    for argument in arguments:
        name, _, text = argument[2:].partition("=")
        if not {name, name.rpartition(".")[0]} & options.keys():
            continue
        kinds = set(options.get(name, ()))
        bracketed = text.lstrip().startswith(("[", "{"))
        try:
            typed = kinds & {str, Path} and not (bracketed and len(kinds) > 1)
            found.append((name, text if typed else _value_of(text)))
        except InvalidYaml:
            found.append((name, text))
    return found


def _value_of(text: str) -> object:
    """Return the value of the text of an option, or of a file given as one."""
    value = parse_yaml(text)
    # {task} and the like are words here, not mappings
    words = isinstance(value, dict) and value and "\n" not in text.strip() and not any(value.values())
    return text if words and all(each is None for each in value.values()) else value


def _files_of(arguments: Sequence[str]) -> list[Path]:
    """Return the files after --config."""
    named = [Path(argument.removeprefix("--config=")) for argument in arguments if argument.startswith("--config=")]
    return [file for file in named if is_file(file)]  # or YAML itself


def _with_help(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """Return a message and the command that shows all options."""
    return f"{message}{'' if message.endswith('?') else '.'} All options: {parser.prog} --help all"


def _sentence(text: str | None) -> str:
    """Return the first sentence of a description, without its full stop."""
    return re.split(r"(?<=\.)\s", " ".join((text or "").split()))[0].rstrip(".")


def _settings(parser: jsonargparse.ArgumentParser, config_class: type, arguments: list[str]) -> jsonargparse.Namespace:
    """Return the parsed options.

    Raises:
        ValueError: they are wrong, or a file is.
    """
    # before the parser reads them, which does not know line numbers
    options = {file: read_mapping(file) for file in _files_of(arguments)}
    for file, values in options.items():
        if inside := {"config", PRINT_CONFIG[2:]} & values.keys():
            raise ValueError(f"{file}: {inside.pop()} is only an option of the command line; leave it out")
    # the parser has no other way to get the selected member of a union
    actions = {action.dest: action for action in parser._actions}
    for dotted, members in unions(config_class):
        member = chosen(dotted, members, options.values(), arguments, _value_of)
        actions[dotted]._typehint = member or reduce(operator.or_, members)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        values = parser.parse_args(arguments)
    except ValueError as error:
        for file in (Path(argument.rpartition("=")[2]) for argument in arguments):
            # a file in place of options; a UnicodeDecodeError does not name it
            if (f"in place of {file}," in str(error) or isinstance(error, UnicodeDecodeError)) and is_file(file):
                read_mapping(file)
        if isinstance(error, UnicodeDecodeError):
            raise ValueError("a file in place of options is not in UTF-8, so it is not YAML") from error
        helps = {name: _sentence(action.help) for name, action in actions.items()}
        given = merged(options.values(), _values_of(arguments, options_of(config_class)))
        found = complaint(config_class, given, "")
        if found is None and "required" in str(error):
            found = required(config_class, given | {COMMAND: ()}, helps)
        found = found or str(error)
        raise ValueError(_with_help(found, parser)) from error
    _refuse_nothing(config_class, values, "")
    try:
        return parser.instantiate(values)
    except ValueError as error:  # of a __post_init__, in the parser's wrapping
        raise ValueError(simplified(str(error))) from error


def parse(verbs: Mapping[str, Verb], arguments: list[str]) -> tuple[str, Any]:
    """Return the verb and its config object.

    Raises:
        ValueError: an argument or a file is wrong.
        SystemExit: help or a configuration was requested, and is printed.
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    command = tuple(arguments[split + 1 :])
    words = [word for word in arguments[:split] if word not in (TRACEBACK, OFFLINE)]
    if words == [VERSION]:
        print(f"foundation {importlib.metadata.version('foundation')}")
        raise SystemExit(0)
    if not words or words[0] in (*HELP, "help"):
        print(overview(verbs))
        raise SystemExit(0 if words else 2)
    members = {name: verb for name, verb in verbs.items() if name.startswith(f"{words[0]} ")}
    if members and (len(words) == 1 or words[1] in HELP):
        print(f"usage: foundation {words[0]} VERB [--KEY VALUE]...\n\n{_listed(members)}")
        raise SystemExit(0 if len(words) > 1 else 2)
    name, words = _verb(verbs, words)
    loaded = verbs[name].load()
    loaded = dataclasses.replace(loaded, config=_class_of(loaded, words))
    parser = _parser(name, loaded.config, loaded.epilog)
    if wanted := [number for number, word in enumerate(words) if word in HELP]:
        listed = verbs[name].keys if loaded.config is verbs[name].load().config else ()
        everything = words[wanted[0] + 1 : wanted[0] + 2] == ["all"] or not listed
        print(parser.format_help() if everything else _short_help(parser, listed), end="")
        raise SystemExit(0)
    files: list[Path] = []
    words = loaded.expand(words)
    try:
        words = rewritten(words, options_of(loaded.config), loaded.aliases, _value_of)
    except ValueError as error:
        raise ValueError(_with_help(str(error), parser)) from error
    try:
        files = _files_of(words)
        config, printed = _config_of(name, loaded.config, parser, words, command)
    except ValueError as error:
        if not files or any(str(file) in str(error) for file in files):
            raise
        raise ValueError(f"{error}; read from --config {', '.join(map(str, files))}") from error
    if printed:
        print(to_yaml({key: value for key, value in resolved(config).items() if key != COMMAND}), end="")
        raise SystemExit(0)
    return name, config


def _class_of(loaded: Loaded, words: Sequence[str]) -> type:
    """Return the dataclass of the options given, on the command line or in files."""
    if not loaded.instead:
        return loaded.config
    given = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    files = _files_of([f"--config={following}" for word, following in itertools.pairwise(words) if word == "--config"])
    given = given.union(*(read_mapping(file) for file in [*files, *_files_of(words)]))
    return next((kind for option, kind in loaded.instead.items() if option in given), loaded.config)


def _verb(verbs: Mapping[str, Verb], words: list[str]) -> tuple[str, list[str]]:
    """Return the verb at the beginning of words, and the words after it.

    Raises:
        ValueError: it is unknown.
    """
    for count in (1, 2):
        if (name := " ".join(words[:count])) in verbs:
            return name, words[count:]
    longer = [name for name in verbs if name.startswith(f"{words[0]} ")]
    if longer and (len(words) == 1 or words[1].startswith("-")):
        raise ValueError(f"{words[0]} needs another word: {' or '.join(longer)}. All verbs: foundation --help")
    begun = " ".join(words[:2]) if longer else words[0]
    near = difflib.get_close_matches(begun, verbs, n=1)
    guess = f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(verbs)}."
    raise ValueError(f"unknown verb {abbreviated(begun)}{guess} All verbs: foundation --help")


def _config_of(
    name: str, config_class: type, parser: jsonargparse.ArgumentParser, words: list[str], command: tuple[str, ...]
) -> tuple[Any, bool]:
    """Return the config object of a verb, and whether to print it.

    Raises:
        ValueError: an option is wrong, or a file.
    """
    settings = _settings(parser, config_class, words).as_dict()
    settings.pop("config", None)
    printed = settings.pop(PRINT_CONFIG.removeprefix("--"))
    hints = get_type_hints(config_class)
    for key, value in settings.items():
        if isinstance(value, Path) and str(value).startswith(("[", "{")) and not value.exists():
            found = complaint(hints[key], _value_of(str(value)), key) or f"{key}: there is no {value}"
            raise ValueError(_with_help(found, parser))
    if any(item.name == COMMAND for item in dataclasses.fields(config_class)):
        settings[COMMAND] = command
    elif command:
        raise ValueError(f"`{name}` takes no command after --")
    config = config_class(**settings)
    _refuse_not_finite(config)
    return config, printed


def _refuse_nothing(config_class: type, values: jsonargparse.Namespace, name: str) -> None:
    """Refuse null for a required value, which the parser accepts.

    Raises:
        ValueError: naming the option.
    """
    for item in dataclasses.fields(cast(Any, config_class)):
        value, dotted = values.get(item.name, MISSING), f"{name}{item.name}"
        if value is None and item.type is not Any and type(None) not in get_args(item.type):
            raise ValueError(f"{dotted}: a value is needed, not null")
        classes = list(_classes(item.type))
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, jsonargparse.Namespace):
                inside = each.get("init_args", each)
                for kind in (kind for kind in classes if vars(inside).keys() <= kind.__dataclass_fields__.keys()):
                    _refuse_nothing(kind, inside, f"{dotted}.")


def _classes(hint: Any) -> Iterable[type]:
    """Return the config classes in a type."""
    if dataclasses.is_dataclass(hint):
        return [cast(type, hint)]
    return [found for inside in get_args(hint) for found in _classes(inside)]


def _refuse_not_finite(value: object, name: str = "") -> None:
    """Refuse NaN and infinities, which pass comparisons with limits.

    Raises:
        ValueError: naming the option.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    inside: Iterable[tuple[object, object]] = ()
    if dataclasses.is_dataclass(value):
        inside = [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
    elif isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list | tuple):
        inside = enumerate(value)
    for key, each in inside:
        _refuse_not_finite(each, f"{name}{'.' * bool(name)}{key}")
