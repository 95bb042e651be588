"""The `foundation` command: reads a config (YAML, dotted overrides) for a verb and calls its function.

A function that returns an integer decides the exit code; whatever else it returns, the code is 0.
"""

import dataclasses
import itertools
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import jsonargparse

from data_pipeline.build import BuildConfig, build, is_first_rank
from data_pipeline.merge import MergeConfig, merge
from foundation.configuration import resolved
from foundation.convert import ConvertConfig, convert
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.escape import printable
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.fisher import FisherConfig, compute_fisher
from foundation.finetuning.tradeoff import TradeoffConfig, tradeoff
from foundation.pretrain import PretrainConfig, pretrain
from foundation.report import ReportConfig, report
from foundation.training.preemption import PreemptedError
from foundation.training.watchdog import TRY_AGAIN
from launch import show
from launch.corpus import HELP, expand_corpus
from launch.local import LocalConfig, launch_local
from launch.preflight import PreflightConfig, preflight
from launch.quickstart import QuickstartConfig, quickstart
from launch.slurm import SlurmConfig, launch_slurm
from launch.sweep import sweep
from launch.yaml_files import InvalidYaml, parse_yaml, read_mapping, to_yaml


def _build(config: BuildConfig) -> None:
    """Build a data set and show it, once for all ranks of MPI."""
    manifest = build(config)
    if is_first_rank():
        show.manifest(manifest)


def _finetune(config: FinetuneConfig) -> int:
    """Fine-tune once, or do the runs of a sweep and compare all that are finished."""
    if config.sweep is None:
        finetune(config)
        return 0
    return sweep(config, config.sweep, "finetune", parse, _compare)


def _compare(runs: Sequence[Path], out: Path) -> None:
    config = TradeoffConfig(runs=tuple(runs), out=out)
    try:
        show.tradeoff(config, tradeoff(config))
    except ValueError as error:  # nothing that was asked for has failed
        logging.getLogger(__name__).warning("the runs of the sweep are not compared: %s", error)


VERBS: dict[str, tuple[type, Callable[[Any], object], str]] = {
    "build": (BuildConfig, _build, "turn a source of labelled frames into shards"),
    "merge": (MergeConfig, lambda c: show.manifest(merge(c.manifests, c.out, c.name)), "make several data sets one"),
    "inspect": (show.InspectConfig, show.inspect, "show what a data set holds and what looks wrong with it"),
    "pretrain": (PretrainConfig, pretrain, "train a potential from scratch"),
    "finetune": (FinetuneConfig, _finetune, "train a potential on the data of a domain, and see what it forgets"),
    "preflight": (PreflightConfig, preflight, "check a pretraining and estimate its time, memory and cost"),
    "fisher": (FisherConfig, compute_fisher, "measure how much each weight of a potential matters to data"),
    "tradeoff": (TradeoffConfig, lambda c: show.tradeoff(c, tradeoff(c)), "compare what fine-tunings learn and forget"),
    "evaluate": (EvaluateConfig, lambda c: show.evaluation(c, evaluate(c)), "measure errors and write a report"),
    "report": (ReportConfig, lambda c: show.training(c, report(c)), "draw the curves of a run, or of several"),
    "export": (ExportConfig, lambda c: show.release(export(c)), "write a release folder with its model card"),
    "convert": (ConvertConfig, lambda c: show.converted(c, convert(c)), "read or write another program's checkpoint"),
    "launch slurm": (SlurmConfig, lambda c: launch_slurm(c, parse), "write the script of a SLURM job, and submit it"),
    "launch local": (LocalConfig, lambda c: launch_local(c, parse), "run several processes on this machine"),
    "quickstart": (QuickstartConfig, quickstart, "do all of it once, on an embedded data set"),
}
USER_ERRORS = (ValueError, OSError)
"""What a wrong input raises: shown as a sentence, without a traceback."""
IN_PLAIN_WORDS = (
    (r"\s*Does not validate against any of the Union subtypes\s+Subtypes: .*\s+Errors:\s*- ", " "),
    (r"\n\s*Given value type: .*\s+Given value: .*", ""),
    (r"\n\s*- Expected a <class 'NoneType'>.*", ""),
    (r"Not of type Path: .*not list\n\s*- ", ""),
    (r"\n\s*- ", "; or "),
    (r"Problem with given class_path '[^']*':", ""),
    (r"Parser key \"([^\"]*)\":", r"\1:"),
    (r"Subcommand '[^']*' does not accept option", "there is no option"),
    (r"Option ('[^']*') is not accepted", r"there is no option \1"),
    (r"Expected a <class 'tuple'>\. Got value: (.*)", r"a list is needed, such as [\1]"),
    (r"Expected a dot import path string: (.*)", r"options are needed in place of \1, such as {path: \1}"),
    (r"Expected a typing\.Literal\[([^]]*)\]", r"one of \1 is needed"),
    (r"Expected a <class 'str'>", "text is needed, in quotation marks where it looks like a number"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"a value of type \1 is needed"),
    (r"Importing ('[^']*') is not allowed, .*? to allow it", r"a class of this program is needed, not \1"),
    (r"Exceeds the limit \(\d+ digits\) for integer string conversion.*", "too large for a number"),
    (r"\s*\n\s*", " "),
)
"""Patterns that take the parser's words for its own types out of a message, and what takes their place."""


MAX_MESSAGE, MAX_SHOWN = 1000, 10_000
"""Longest message of the parser, and of anything [characters]: they quote what was read."""
COMMAND = "command"
"""Field of the config of a launcher: what stands behind `--`."""
MISSING = object()
PRINT_CONFIG = "--print_config"
OPTIONS = {"--from": "--from_"}
"""Options of a plain name that Python keeps for itself, so that no field of a dataclass can have it."""


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are a sentence, without some hundred lines of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments; the parsers inside this one, whose errors it reads, do that in their own way."""
        if not self.exit_on_error:
            super().error(message, ex)
        prog = getattr(ex, "subcommand_parser", self).prog.replace(" [options]", "")
        raise ValueError(f"{in_plain_words(message).rstrip('.')}. All options: {prog} --help") from ex


def in_plain_words(message: str) -> str:
    """Return what the parser has to say without its words for types, in one line of bounded length."""
    message = message[: 10 * MAX_MESSAGE]
    for pattern, plain in IN_PLAIN_WORDS:
        message = re.sub(pattern, plain, message)
    message = message.strip()
    return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "..."


@cache
def make_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of the command line; the docstring under each field is its help."""
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        # a class_path in a file would import, and so run, any module that lies about
        import_path_denylist=["*"],
        import_path_allowlist=["data_pipeline", "foundation", "launch"],
    )
    jsonargparse.set_loader("yaml", _value_of, exceptions=(InvalidYaml,))
    parser = _Parser(
        prog="foundation",
        allow_abbrev=False,
        description="Pretraining, forgetting-aware fine-tuning and release of universal interatomic potentials.",
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    verbs = parser.add_subcommands(required=True, dest="verb")
    launcher = _Parser(description="Start a command that trains on several processes.")
    verbs.add_subcommand("launch", launcher, help="start a command on the nodes of a cluster, or on several processes")
    launchers = launcher.add_subcommands(required=True, dest="where")
    for name, (config_class, _, description) in VERBS.items():
        epilog = HELP if name == "build" else None
        verb = _Parser(description=config_class.__doc__, epilog=epilog, allow_abbrev=False, print_config=None)
        verb.add_argument("--config", action="config", help="YAML file; later options override what it says")
        verb.add_argument(PRINT_CONFIG, action="store_true", help="print all options as YAML, for --config, and end")
        verb.add_class_arguments(config_class, fail_untyped=True, skip={COMMAND})
        group, _, where = name.partition(" ")
        (launchers if where else verbs).add_subcommand(where or group, verb, help=description)
    return parser


def _value_of(text: str) -> object:
    """Return what the text of an option, or of a file that is one, stands for."""
    value = parse_yaml(text)
    # {task} and its like are words here, not mappings of nothing
    words = isinstance(value, dict) and value and "\n" not in text.strip() and not any(value.values())
    return text if words and all(each is None for each in value.values()) else value


def _files_of(arguments: Sequence[str]) -> list[Path]:
    """Return the files that stand behind --config."""
    named = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == "--config":
            named.append(Path(value if equals else following))
    return [file for file in named if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a name: YAML itself
        return False


def _as_declared(argument: str) -> str:
    """Return an option as the fields of the configs have it: --num-nodes is --num_nodes."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return OPTIONS.get(name, "--" + name[2:].replace("-", "_")) + equals + value


def _settings(arguments: list[str]) -> tuple[str, Any]:
    """Return the verb and what the parser makes of its options.

    Raises:
        ValueError: they are wrong, or a file is.
    """
    for file in _files_of(arguments):  # before the parser reads them, which knows no lines
        read_mapping(file)
    parser = make_parser()
    try:
        values = parser.parse_args(arguments)
    except UnicodeDecodeError as error:  # of a file that stands in place of options
        for file in (Path(argument.rpartition("=")[2]) for argument in arguments):
            if _is_file(file):
                read_mapping(file)
        raise ValueError("a file that stands in place of options is not in UTF-8, so it is no YAML") from error
    name = values.verb if values.verb != "launch" else f"launch {values.launch.where}"
    group, _, where = name.partition(" ")
    _refuse_nothing(VERBS[name][0], values[group][where] if where else values[group], "")
    try:
        return values.verb, parser.instantiate(values)[values.verb]
    except ValueError as error:  # of a __post_init__, in the parser's wrapping
        raise ValueError(in_plain_words(str(error))) from error


def parse(arguments: list[str]) -> tuple[str, Any]:
    """Return the verb and its config object."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, command = arguments[:split], arguments[split + 1 :]
    if "build" in arguments:
        arguments = expand_corpus(arguments)
    if arguments[:1] in (["report"], ["tradeoff"]):
        arguments = _name_runs(arguments)
    arguments = [_as_declared(argument) for argument in arguments]
    files = _files_of(arguments)
    try:
        verb, config, printed = _config_of(arguments, command)
    except ValueError as error:
        if not files or any(str(file) in str(error) for file in files):
            raise
        raise ValueError(f"{error}; read from --config {', '.join(map(str, files))}") from error
    if printed:
        print(to_yaml({name: value for name, value in resolved(config).items() if name != COMMAND}), end="")
        raise SystemExit(0)
    return verb, config


def _config_of(arguments: list[str], command: Sequence[str]) -> tuple[str, Any, bool]:
    """Return the verb, its config object, and whether it is to be printed.

    Raises:
        ValueError: an option is wrong, or a file.
    """
    verb, settings = _settings(arguments)
    if verb == "launch":
        verb, settings = f"launch {settings.where}", settings[settings.where]
    settings = settings.as_dict()
    settings.pop("config", None)
    printed = settings.pop(PRINT_CONFIG.removeprefix("--"))
    for name, value in settings.items():
        if isinstance(value, Path) and str(value).startswith(("[", "{")):
            raise ValueError(
                f"{name}: {value} has an option that there is not. All options: foundation {verb} --{name}.help"
            )
    if verb.startswith("launch "):
        settings[COMMAND] = tuple(command)
    elif command:
        raise ValueError(f"`{verb}` takes no command behind --")
    config = VERBS[verb][0](**settings)
    _refuse_not_finite(config)
    return verb, config, printed


def _refuse_nothing(config_class: type, values: jsonargparse.Namespace, name: str) -> None:
    """Refuse null where a value must be, which the parser lets pass.

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
                path = str(each.get("class_path", "")).rpartition(".")[2]
                for chosen in (kind for kind in classes if len(classes) == 1 or kind.__name__ == path):
                    _refuse_nothing(chosen, each.get("init_args", each), f"{dotted}.")


def _classes(hint: Any) -> Iterable[type]:
    """Return the config classes that a type is made of."""
    if dataclasses.is_dataclass(hint):
        return [cast(type, hint)]
    return [found for inside in get_args(hint) for found in _classes(inside)]


def _refuse_not_finite(value: object, name: str = "") -> None:
    """Refuse numbers that are none, which pass every comparison with a limit.

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


def _name_runs(arguments: list[str]) -> list[str]:
    """Return `report FOLDER...` as `report --run [FOLDER, ...]`, and `tradeoff FOLDER...` the same with --runs."""
    runs = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments[1:]))
    if arguments[0] == "tradeoff":
        named = ["--runs", json.dumps(runs)] if runs else []
    else:
        named = ["--run", json.dumps(runs)] if len(runs) > 1 else ["--run", *runs] if runs else []
    return [arguments[0], *named, *arguments[1 + len(runs) :]]


class _Formatter(logging.Formatter):
    """Lines of the log in which the name of a data set cannot command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        return printable(super().format(record))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 calls a torch interface that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)`", category=FutureWarning)
    # Lightning looks for srun even when it is told that a shell started the run
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    try:
        verb, config = parse(arguments)
        outcome = VERBS[verb][1](config)
    except USER_ERRORS as error:
        if "--traceback" in arguments:
            raise
        print(f"foundation: {printable(str(error)[:MAX_SHOWN])}", file=sys.stderr)
        return 2
    except PreemptedError:  # it was logged before the job went back to the queue
        return TRY_AGAIN
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        # so Lightning ends a process that is interrupted in training, when it has let the checkpoint be written
        print("foundation: interrupted; continue with --fit.resume true", file=sys.stderr)
        return 130
    except KeyboardInterrupt as error:
        print(f"foundation: interrupted. {error}", file=sys.stderr)
        return 130
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    sys.exit(main())
