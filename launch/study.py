"""Studies: a question that data, trainings and suites answer, from one YAML file to one page.

The steps are commands of this program, each in its own process: `build` for every data set, `pretrain` or `finetune`
for every run and seed, `evaluate` for every subject. A step waits for those whose results it needs. What is finished is
skipped, so the same command goes on where it was stopped.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.quoting import abbreviated
from data_pipeline.store import durable
from data_pipeline.store.untrusted import OpenRecord, typed
from foundation.configuration import changes
from foundation.finetuning.tradeoff import read_tuned_run, write_tradeoff
from foundation.reports.forgetting_record import SuiteEnds
from foundation.reports.study_report import Bar, Judged, StudyRecord, write_study
from foundation.reports.suite_report import JSON_NAME, SuitesRecord
from launch.command import RESUME, Parse
from launch.jobs import Job, Processes, alone
from launch.sweep import NAME, SweepConfig, as_read, planned, with_options
from launch.yaml_files import config_file, read_mapping, with_files_beside

log = logging.getLogger(__name__)

DATA, FISHER, RUNS, JUDGED, TRADEOFF, COSTS = "data", "fisher", "runs", "judged", "tradeoff", "costs.json"
"""Folders of the stages in the folder of a study, that of fine-tunings beside each other, and the file with the CPU
time of every job."""
DATA_OPTIONS = ("data", "val", "test", "path", "frames", "labelled", "extrapolated")
"""Options whose value may be the name of a data set of the study, or a list of names."""

DRIVER = "driver"
"""Option of a source whose value may be the name of a run of the study."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Study to run, and where."""

    name: str
    """Study: the name of a packaged one, such as coulomb, or a YAML file."""
    out: Path | None = None
    """Folder of the study; None: runs/study/NAME, with -quick behind it in the short form."""
    quick: bool = False
    """Run the short form, which shows in a minute that every step works; its numbers say nothing."""
    jobs: int | None = None
    """Number of processes at a time; None: as the study has it."""

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ValueError("jobs must be at least 1")


@dataclass(frozen=True, kw_only=True)
class StudyFile(OpenRecord):
    """Content of the file of a study."""

    title: str
    """Title of its page."""
    question: str
    """Question that it answers."""
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of `build` for each data set, by its name, which runs use as a path."""
    fisher: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of `fisher` for each Fisher, by its name, which runs use as penalty.fisher."""
    pretrain: dict[str, Any] | None = None
    """Options of `pretrain` that all runs share; None: they are no pretrainings."""
    finetune: dict[str, Any] | None = None
    """Options of `finetune` that all runs share; None: they are no fine-tunings."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of each run by its name."""
    seeds: tuple[int, ...] = ()
    """Values of fit.seed: every run is repeated for each."""
    subjects: dict[str, str | dict[str, str]] = field(default_factory=dict)
    """Potentials that exist already, by name on the page: folders or published names, or options of `evaluate`."""
    calculators: dict[str, str] = field(default_factory=dict)
    """Calculators of other programs, by name on the page: module and name of their class."""
    suites: tuple[Any, ...]
    """Suites that judge every subject: names of packaged ones, or options."""
    own_suites: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Suites in place of these, by name of a run (without its seed), subject or calculator."""
    bars: tuple[Bar, ...] = ()
    """Limits to keep."""
    jobs: int = 1
    """Number of processes at a time."""
    quick: dict[str, Any] = field(default_factory=dict)
    """Entries of this file that differ in the short form, by dotted name; data, a run or own suites that are null are
    left out."""

    def __post_init__(self) -> None:
        if (self.pretrain is None) + (self.finetune is None) != 1 and self.runs:
            raise ValueError("runs need pretrain or finetune, the options that they share, and only one of them")
        if not (self.runs or self.subjects or self.calculators):
            raise ValueError("runs, subjects or calculators must name something to judge")
        for name in (*self.subjects, *self.calculators, *self.data, *self.fisher):
            if not NAME.fullmatch(name):
                raise ValueError(f"nothing can be named {abbreviated(name)}: use letters, digits and . _ = + -")
        if repeated := sorted({*self.runs} & {*self.subjects} | {*self.runs, *self.subjects} & {*self.calculators}):
            raise ValueError(f"{', '.join(repeated)} names two subjects; rename one of them")
        if unknown := sorted(self.own_suites.keys() - {*self.runs, *self.subjects, *self.calculators}):
            raise ValueError(f"own_suites names {', '.join(map(abbreviated, unknown))}, which is no run or subject")


def study(config: StudyConfig, parse: Parse) -> int:
    """Do the unfinished steps of a study, write its page, and return the exit code: 0 if nothing failed, else 1.

    Raises:
        FileNotFoundError: there is no such study.
        ValueError: its file, or an option of a step, is wrong; or an existing step was done with other options.
        BlockingIOError: another process is at work on it.
        KeyboardInterrupt: stopped by SIGINT, after checkpoints of the active jobs.
        PreemptedError: stopped by SIGTERM or SIGUSR1, in the same way.
    """
    file = config_file(config.name if Path(config.name).suffix else f"study/{config.name}")
    plan = read_study(file, quick=config.quick)
    out = config.out or Path("runs/study") / f"{file.stem}{'-quick' * config.quick}"
    stages = Stages(plan, out, parse)
    with alone(out, "study") as lock:
        failed = stages.work(config.jobs or plan.jobs, lock)
        pages = stages.compare()
        write_study(stages.record(quick=config.quick, missing=failed, pages=pages), out)
    log.info("page of the study: %s", out / "index.html")
    return int(bool(failed))


def read_study(file: Path, *, quick: bool) -> StudyFile:
    """Read the file of a study, in its full or its short form.

    Raises:
        ValueError: it is wrong; the message names the file.
    """
    values = read_mapping(file)
    try:
        refuse_unknown(values, StudyFile)
        sections = {name: values.get(name, {}) for name in ("data", "fisher", "runs", "quick")}
        for name, section in sections.items():
            mapping = isinstance(section, dict)
            if not mapping or (name != "quick" and not all(isinstance(each, dict) for each in section.values())):
                raise ValueError(f"{name} must map names to options, {{}} for none")
        shared = {verb: with_options({}, values[verb]) for verb in ("pretrain", "finetune") if values.get(verb)}
        steps = {
            section: {name: with_options({}, options) for name, options in sections[section].items()}
            for section in ("data", "fisher")
        }
        whole = {**values, **shared, **steps}
        if quick:
            whole = with_options(whole, sections["quick"])
            for section in ("data", "runs", "own_suites"):
                if isinstance(entries := whole.get(section), dict):
                    whole[section] = {name: each for name, each in entries.items() if each is not None}
        if isinstance(suites := whole.get("suites"), list):
            folder = file.parent
            whole["suites"] = [with_files_beside(s, "starts", folder) if isinstance(s, dict) else s for s in suites]
        return typed(StudyFile, whole, "")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def refuse_unknown(values: Mapping[str, Any], kind: type) -> None:
    """Refuse entries of a file that its dataclass lacks.

    Raises:
        ValueError: naming them.
    """
    known = [each.name for each in dataclasses.fields(kind)]
    if unknown := sorted(values.keys() - set(known)):
        raise ValueError(f"it cannot have {', '.join(map(abbreviated, unknown))}, only {', '.join(known)}")


class Stages:
    """Jobs of a study, and what they found."""

    def __init__(self, plan: StudyFile, out: Path, parse: Parse) -> None:
        """Make and check all jobs, before the first is started.

        Raises:
            ValueError: an option is wrong, or an existing step was done with other options.
        """
        self.plan, self.out, self.parse = plan, out, parse
        self.runs = planned(SweepConfig(runs=plan.runs, seeds=plan.seeds)) if plan.runs else {}
        self.data = [self._data(name, options) for name, options in plan.data.items()]
        self.fishers = [self._fisher(name, options) for name, options in plan.fisher.items()]
        self.training = [self._run(name, options) for name, options in self.runs.items()]
        self.judging = [self._judging(*each) for each in self._subjects()]
        for job in self.jobs:
            _check(job, self.parse)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All steps, in the order in which they are started if they need nothing."""
        return (*self.data, *self.fishers, *self.training, *self.judging)

    def work(self, at_a_time: int, lock: int) -> tuple[str, ...]:
        """Do what is unfinished, each step after those that it needs, and return the names of the steps that failed."""
        processes = Processes(at_a_time, 1, lock, self._cost)
        failed: list[Job] = []
        left = [job for job in self.jobs if not is_finished(job)]
        if len(left) < len(self.jobs):
            log.info("%d of %d steps are finished", len(self.jobs) - len(left), len(self.jobs))
        while ready := [job for job in left if not self._needs(job) & {*left, *failed}]:
            for job in ready:
                job.write_config()
            failed += processes.work(ready)
            left = [job for job in left if job not in ready]
        return tuple(f"{job.verb} {job.name}" for job in failed)

    def compare(self) -> dict[str, str]:
        """Put the finished fine-tunings beside each other, and return the address of that page by title."""
        if self.plan.finetune is None:
            return {}
        judged = {each.weights_sha256: each.suites for each in map(self._judged, self.plan.subjects) if each}
        runs = [job.out for job in self.training if (job.out / "potential").is_dir()]
        try:
            found = {out: (read_tuned_run(out), self._judged(out.name)) for out in runs}
            ends = {
                out: SuiteEnds(before=judged.get(run.before.weights_sha256, {}), after=after.suites)
                for out, (run, after) in found.items()
                if after
            }
            write_tradeoff(runs, self.out / TRADEOFF, ends)
        except (ValueError, FileNotFoundError) as error:  # nothing was held out, or nothing was finished
            log.warning("fine-tunings are not put beside each other: %s", error)
            return {}
        return {"Learning against forgetting": f"{TRADEOFF}/index.html"}

    def _judged(self, name: str) -> SuitesRecord | None:
        """Return what was found for a subject; None if it was not judged."""
        file = self.out / JUDGED / name / JSON_NAME
        return SuitesRecord.from_json(file) if file.is_file() else None

    def record(self, *, quick: bool, missing: tuple[str, ...], pages: dict[str, str]) -> StudyRecord:
        """Return everything that was found."""
        costs, subjects = self._costs(), dict[str, Judged]()
        for group, seed, _ in self._subjects():
            name = "-".join(filter(None, (group, seed)))
            judged = subjects.setdefault(group, Judged(seeds={}))
            if found := self._judged(name):
                judged.seeds[seed] = found.suites
            if (training := f"{self._verb} {name}") in costs:
                judged.training_seconds[seed] = costs[training]
        stages = {"building the data": "build ", "Fishers": "fisher ", "judging": "evaluate "}
        seconds = {title: sum(costs[name] for name in costs if name.startswith(verb)) for title, verb in stages.items()}
        return StudyRecord(
            title=self.plan.title,
            question=self.plan.question,
            quick=quick,
            subjects=subjects,
            bars=self.plan.bars,
            seconds={title: seconds for title, seconds in seconds.items() if seconds},
            missing=missing,
            pages=pages,
        )

    @property
    def _verb(self) -> str:
        return "pretrain" if self.plan.finetune is None else "finetune"

    def _subjects(self) -> list[tuple[str, str, dict[str, str]]]:
        """Return the name, the seed and the option of evaluate of every subject."""
        found = []
        for group in self.plan.runs:
            names = planned(SweepConfig(runs={group: {}}, seeds=self.plan.seeds))
            found += [
                (group, name.removeprefix(group).lstrip("-"), {"model": str(self.out / RUNS / name)}) for name in names
            ]
        for name, word in self.plan.subjects.items():
            found.append((name, "", {"model": word} if isinstance(word, str) else word))
        return found + [(name, "", {"calculator": word}) for name, word in self.plan.calculators.items()]

    def _data(self, name: str, options: Mapping[str, Any]) -> Job:
        out = self.out / DATA / name
        return self._job("build", name, out, self._located(_generated(name, options) | {"out": str(out)}))

    def _fisher(self, name: str, options: Mapping[str, Any]) -> Job:
        out = self.out / FISHER / f"{name}.safetensors"
        return self._job("fisher", name, out, self._located({**options, "out": str(out)}))

    def _run(self, name: str, options: Mapping[str, Any]) -> Job:
        out = self.out / RUNS / name
        shared = self.plan.pretrain if self.plan.finetune is None else self.plan.finetune
        own = {"out": str(out), RESUME[0].removeprefix("--"): RESUME[1]}
        return self._job(self._verb, name, out, self._located(with_options(shared or {}, {**options, **own})))

    def _judging(self, group: str, seed: str, subject: Mapping[str, str]) -> Job:
        name = "-".join(filter(None, (group, seed)))
        out = self.out / JUDGED / name
        chosen = self.plan.own_suites.get(group, self.plan.suites)
        suites = [read_mapping(config_file(f"suite/{each}")) if isinstance(each, str) else each for each in chosen]
        return self._job("evaluate", name, out, {**subject, "suites": self._located(suites), "out": str(out)})

    def _located(self, value: Any) -> Any:
        """Return options with the paths of the study's data sets, Fishers and runs in place of their names."""
        if isinstance(value, list):
            return [self._located(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {key: self._path(key.rpartition(".")[2], each) for key, each in value.items()}

    def _path(self, option: str, value: Any) -> Any:
        """Return the value of an option, with a path in place of the name of a data set, Fisher or run, or several."""
        if option in DATA_OPTIONS and isinstance(value, list):
            return [self._path(option, each) for each in value]
        if option in DATA_OPTIONS and str(value) in self.plan.data:
            return str(self.out / DATA / value)
        if option == DRIVER and value in self.runs:
            return str(self.out / RUNS / value)
        if option == FISHER and str(value) in self.plan.fisher:
            return str(self.out / FISHER / f"{value}.safetensors")
        return self._located(value)

    def _needs(self, job: Job) -> set[Job]:
        """Return the steps whose results a step reads."""
        text = json.dumps(job.record)
        return {each for each in self.jobs if each is not job and json.dumps(str(each.out)) in text}

    def _costs(self) -> dict[str, float]:
        """Return the CPU time of jobs by verb and name [s]."""
        file = self.out / COSTS
        return typed(dict[str, float], json.loads(file.read_text()), "") if file.is_file() else {}

    def _cost(self, job: Job, seconds: float) -> None:
        """Add the CPU time of a process to its job's."""
        name = (
            f"{job.verb} {job.out.relative_to(self.out / JUDGED)}"
            if job.verb == "evaluate"
            else f"{job.verb} {job.name}"
        )
        costs = self._costs()
        durable.write_whole(self.out / COSTS, json.dumps(costs | {name: costs.get(name, 0.0) + seconds}, indent=1))

    def _job(self, verb: str, name: str, out: Path, record: Mapping[str, Any]) -> Job:
        return Job(name=name, verb=verb, out=out, record=as_read(record, f"{verb} {name}", verb, self.parse))


def is_finished(job: Job) -> bool:
    """Return True if the result of a step is whole."""
    results = {"build": "manifest.json", "fisher": "", "evaluate": JSON_NAME}
    return (job.out / results.get(job.verb, "potential")).exists()


def _generated(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a data set that a study generates, with the provenance that its file does not state."""
    facts = {
        "name": name,
        "licence": "CC0-1.0",
        "level_of_theory": name,
        "energy_convention": "energies of the generating model",
        "citation": "generated by foundation",
        "source": "foundation study",
    }
    return with_options({"provenance": facts}, options)


def _check(job: Job, parse: Parse) -> None:
    """Refuse a step that was done with other options; those newer than the step are taken as their defaults.

    Raises:
        ValueError: naming the options.
    """
    if not job.config.is_file() or not job.out.exists():
        return
    began = as_read(read_mapping(job.config), str(job.config), job.verb, parse)
    changed = [f"{name} was {was} and is {now}" for name, (was, now) in changes(began, job.record).items()]
    if changed:
        raise ValueError(
            f"{job.out} was made with other options: {'; '.join(changed)}. Restore them, remove it, or choose another "
            "--out"
        )
