"""Sweeps: runs that differ from one configuration in a few options, each with its own process and folder.

All runs are checked before the first starts. The same command resumes a sweep: finished runs are skipped, others
continue from their newest checkpoint.
"""

import copy
import dataclasses
import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.quoting import abbreviated
from foundation.configuration import changes, resolved
from foundation.reports.forgetting_report import JSON_NAME
from foundation.run_folder import occupied, read_record
from launch.command import RESUME, Parse
from launch.jobs import CONFIGS, LOCK, LOGS, Job, Processes, alone
from launch.yaml_files import read_mapping, to_yaml

log = logging.getLogger(__name__)

NAME = re.compile(r"\w[\w.=+-]*")
"""Pattern of the name of a run, which is also the name of a folder."""
MAX_NAME, MAX_RUNS = 200, 10_000
"""Longest name of a run [characters], and largest number of runs."""
NO_CHANGE = "forgetting.before"
"""Option that reuses an earlier measurement, so that another value does not make another run."""
SET_BY_SWEEP = ("out", "sweep", "run", "overwrite", "fit.resume")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Content of a sweep's file."""

    runs: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """Options of each run that differ from the configuration, by dotted name; mappings are merged."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values of options, by dotted name: every run is repeated for every combination, named NAME-VALUE-VALUE."""
    seeds: tuple[int, ...] = ()
    """Values of fit.seed: every run is repeated for each, named NAME-seedN."""
    jobs: int = 1
    """Number of runs at a time."""
    threads: int = 1
    """Number of threads of a run (OMP_NUM_THREADS). Another number may round sums differently."""

    def __post_init__(self) -> None:
        if min(self.jobs, self.threads) < 1:
            raise ValueError("jobs and threads must be at least 1")
        if not self.runs or not all(self.grid.values()):
            raise ValueError("runs must name at least one run, and each option of grid at least one value")
        options = set(itertools.chain(*self.runs.values()))
        if both := options & self.grid.keys():
            raise ValueError(f"{', '.join(sorted(both))} is in grid and in a run: leave one of them out")
        for option in sorted(options | self.grid.keys()):
            if option in SET_BY_SWEEP:
                raise ValueError(f"{option} cannot differ between runs: the sweep sets it")
            if option == "fit.seed" and self.seeds:
                raise ValueError("fit.seed is an option of a run and seeds are given: leave one of them out")


class Run(Job):
    """One run of a sweep."""

    @property
    def finished(self) -> bool:
        """True if it is finished, with its report."""
        reported = "forgetting" not in self.record or (self.out / "forgetting" / JSON_NAME).is_file()
        return reported and (self.out / "potential").is_dir()


def sweep(
    base: Any,
    file: Path,
    verb: str,
    parse: Parse,
    compare: Callable[[Sequence[Path], Path], object] | None = None,
    *,
    only: str | None = None,
) -> int:
    """Do the unfinished runs of a sweep, and return the exit code: 0 if all are then finished, else 1.

    Args:
        base: Configuration of the verb; its `out` is the folder of the sweep.
        file: The file of the sweep.
        verb: Verb that does a run.
        parse: The command line's parser.
        compare: Function called at the end with the folders of all finished runs and the folder of the sweep.
        only: Name of the run to do, or of an entry of `runs` with all its values and seeds; then nothing is compared.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the sweep's folder, or one of a run's name, holds something else.
        ValueError: the file, or the configuration of a run, is wrong; or an existing run started with another one.
        BlockingIOError: another process is at work on the sweep.
        KeyboardInterrupt: stopped by SIGINT, after checkpoints of the active runs.
        PreemptedError: stopped by SIGTERM or SIGUSR1, in the same way.
    """
    plan = read_sweep(file)
    runs = checked_runs(base, plan, verb, parse)
    if only is not None:
        names, compare = chosen(plan, only), None
        runs = [run for run in runs if run.name in names]
    with alone(base.out, "sweep") as lock:
        for run in runs:
            run.write_config()
        unfinished = [run for run in runs if not run.finished]
        if len(unfinished) < len(runs):
            log.info("%d of %d runs are already finished", len(runs) - len(unfinished), len(runs))
        Processes(plan.jobs, plan.threads, lock).work(unfinished)
    finished = [run.out for run in runs if run.finished]
    log.info("%d of %d runs are finished, in %s", len(finished), len(runs), base.out)
    if compare is not None and finished:
        compare(finished, base.out)
    return int(len(finished) < len(runs))


def read_sweep(file: Path) -> SweepConfig:
    """Read the file of a sweep.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is wrong.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a sweep is YAML with {', '.join(PARSERS)}")
    values = read_mapping(file)
    try:
        if unknown := values.keys() - PARSERS.keys():
            raise ValueError(
                f"it cannot have {', '.join(map(abbreviated, sorted(unknown)))}, only {', '.join(PARSERS)}"
            )
        if not {"runs", "grid", "seeds"} & values.keys():
            raise ValueError("it must have runs, grid or seeds")
        plan = SweepConfig(**{name: PARSERS[name](value) for name, value in values.items()})
        planned(plan)  # here, where the file is known
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return plan


def _runs(value: object) -> dict[str, dict[str, Any]]:
    if isinstance(value, dict) and all(isinstance(options, dict) for options in value.values()):
        return {str(name): {str(key): v for key, v in options.items()} for name, options in value.items()}
    raise ValueError("runs must map the name of each run to its options, {} for none")


def _grid(value: object) -> dict[str, list[Any]]:
    if isinstance(value, dict) and all(isinstance(values, list) for values in value.values()):
        return {str(option): values for option, values in value.items()}
    raise ValueError("grid must map each option to a list of values")


def _seeds(value: object) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(seed) is int for seed in value):
        return tuple(value)
    raise ValueError(f"seeds must be a list of whole numbers, not {abbreviated(value)}")


def _number(value: object) -> int:
    if type(value) is int:
        return value
    raise ValueError(f"jobs and threads must be whole numbers, not {abbreviated(value)}")


PARSERS = {"runs": _runs, "grid": _grid, "seeds": _seeds, "jobs": _number, "threads": _number}
"""Parser of each entry of the file."""


def planned(plan: SweepConfig) -> dict[str, dict[str, Any]]:
    """Return the options of every run by its name.

    Raises:
        ValueError: two runs would have the same name, or one that no folder can have, or there are too many.
    """
    count = math.prod([len(plan.runs), *map(len, plan.grid.values()), len(plan.seeds) or 1])
    if count > MAX_RUNS:
        raise ValueError(f"{count:,} runs; a sweep has at most {MAX_RUNS:,}")
    found: dict[str, dict[str, Any]] = {}
    seeds = [("seed" + str(seed), {"fit.seed": seed}) for seed in plan.seeds] or [("", {})]
    for (name, options), values, (seed, seeded) in itertools.product(
        plan.runs.items(), itertools.product(*plan.grid.values()), seeds
    ):
        whole = "-".join(part for part in (str(name), *map(_in_a_name, values), seed) if part)
        if not NAME.fullmatch(whole) or len(whole) > MAX_NAME or whole in (CONFIGS, LOGS, f"sweep{LOCK}"):
            raise ValueError(f"a run cannot be named {abbreviated(whole)}: use letters, digits and . _ = + -")
        if whole in found:
            raise ValueError(f"two runs would be named {whole!r}; give one of them another name")
        found[whole] = options | dict(zip(plan.grid, values, strict=True)) | seeded
    return found


def chosen(plan: SweepConfig, name: str) -> set[str]:
    """Return the names of the runs of a name: one run, or an entry of `runs` with all values and seeds.

    Raises:
        ValueError: no run has this name.
    """
    if name in plan.runs:
        return set(planned(dataclasses.replace(plan, runs={name: plan.runs[name]})))
    if name not in planned(plan):
        raise ValueError(f"the sweep has no run {abbreviated(name)}; choose from {', '.join(planned(plan))}")
    return {name}


def _in_a_name(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "none"


def checked_runs(base: Any, plan: SweepConfig, verb: str, parse: Parse) -> list[Run]:
    """Return the runs of a sweep with their resolved configurations, each as the command line reads it.

    Raises:
        FileExistsError: the sweep's folder, or one of a run's name, holds something else.
        ValueError: the configuration of a run is wrong, or an existing run started with another one.
    """
    if base.overwrite:
        raise ValueError("--overwrite with a sweep: it may start more than once; remove the old folder yourself")
    if (base.out / "run.json").is_file():
        raise FileExistsError(f"{base.out} holds a run, not a sweep; choose another --out")
    runs = []
    for name, options in planned(plan).items():
        out = base.out / name
        own = {"out": str(out), RESUME[0].removeprefix("--"): RESUME[1]}
        record = with_options(
            resolved(base) | ({"sweep": None, "run": None} if hasattr(base, "sweep") else {}), options | own
        )
        run = Run(name=name, verb=verb, out=out, record=as_read(record, f"run {name}", verb, parse))
        _check_folder(run, verb, parse)
        runs.append(run)
    return runs


def with_options(record: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with options of dotted names changed or added."""
    changed = copy.deepcopy(dict(record))
    for option, value in options.items():
        *path, last = str(option).split(".")
        place = changed
        for part in path:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        both = isinstance(value, dict) and isinstance(place.get(last), dict)
        place[last] = {**place[last], **value} if both else copy.deepcopy(value)
    return changed


def as_read(record: Mapping[str, Any], whose: str, verb: str, parse: Parse) -> dict[str, Any]:
    """Return a configuration as the command line reads it, with all defaults."""
    try:
        _, config = parse([verb, "--config", to_yaml(record)])
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from error
    return resolved(config)


def _check_folder(run: Run, verb: str, parse: Parse) -> None:
    """Refuse a folder that holds anything other than this run."""
    if not occupied(run.out):
        return
    file = run.out / "run.json"
    if not file.is_file():
        raise FileExistsError(
            f"{run.out} has no run.json, so it is not a run and is not replaced; give the run another name"
        )
    # as asked for, before anything that follows from the data was settled; and as read today, with newer options
    asked = read_mapping(run.config) if run.config.is_file() else read_record(run.out)
    began = as_read(asked, str(run.config if run.config.is_file() else file), verb, parse)
    changed = [
        f"{name} was {was} and is {now}" for name, (was, now) in changes(began, run.record).items() if name != NO_CHANGE
    ]
    if changed:
        raise ValueError(
            f"run {run.name} was {'finished' if run.finished else 'started'} with another configuration: "
            f"{'; '.join(changed)}. Restore it, give the run another name, or remove {run.out}"
        )
