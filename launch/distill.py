"""Distillation: a small, fast potential for a family of materials, made from a teacher, from one YAML file.

The steps are those of a study: structures around given cells are labelled by the teacher, a student is trained on them,
then the student's own dynamics finds what it does not know yet, which the teacher labels as well, and a last student is
trained on everything. It is released only if its acceptance, suites with limits, says yes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.store.untrusted import OpenRecord, typed
from foundation import checkpoint
from foundation.checkpoint import CHECKSUMS
from foundation.last_layer import FACTS
from foundation.reports.study_report import Bar, StudyRecord, bar_rows, write_study
from foundation.reports.suite_report import JSON_NAME
from launch.command import Parse
from launch.jobs import Job, Processes, alone
from launch.study import JUDGED, RUNS, Stages, StudyFile, refuse_unknown
from launch.sweep import as_read, with_options
from launch.yaml_files import config_file, read_mapping, to_yaml, with_files_beside

log = logging.getLogger(__name__)

EXPLORED, HELD_OUT, TRAINING = "explored", "held-out", "training"
"""Names of the first data set, of the one that errors are measured on, and of all that the student was trained on."""
STUDENT, TEACHER = "student", "teacher"
"""Names of both subjects."""
RELEASE = "release"
"""Folder of the release."""
RESULTS = {"evaluate": "evaluation.json", "export": CHECKSUMS, "merge": "manifest.json", "uncertainty": FACTS}
"""File that the finished step of a release has left, by verb."""
HELD_OUT_SEED = 1_000_003
"""Random seed of the held-out dynamics."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation to do, and where."""

    name: str
    """Distillation: the name of a packaged one, such as silicon, or a YAML file."""
    out: Path | None = None
    """Folder; None: runs/distill/NAME, with -quick behind it in the short form."""
    quick: bool = False
    """Do the short form, which shows in a minute that every step works; its student is useless."""
    jobs: int = 1
    """Number of processes at a time."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError("jobs must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DistillFile(OpenRecord):
    """Content of the file of a distillation."""

    title: str
    """Title of its page."""
    teacher: str
    """The potential that labels: its name, folder or run."""
    structures: dict[str, Any]
    """Options of the source `exploration`, without its calculator."""
    held_out: dict[str, Any] = field(default_factory=dict)
    """Options that differ in the dynamics on which errors are measured; their seed is another in any case."""
    rounds: int = 1
    """Number of times that a student's own dynamics adds structures."""
    active: dict[str, Any] = field(default_factory=dict)
    """Options that differ in these rounds."""
    first: dict[str, Any] = field(default_factory=dict)
    """Options of `pretrain` that differ for the students before the last, such as fewer steps."""
    pretrain: dict[str, Any]
    """Options of `pretrain` for a student."""
    likeness: dict[str, Any]
    """Options of the suite `likeness`, without the teacher."""
    suites: tuple[Any, ...] = ()
    """Further suites for student and teacher: names of packaged ones, or options."""
    bars: tuple[Bar, ...]
    """Limits that the student has to keep to be released."""
    quick: dict[str, Any] = field(default_factory=dict)
    """Entries that differ in the short form, by dotted name."""

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, not {self.rounds}")
        if not self.bars or {bar.subject for bar in self.bars} != {STUDENT}:
            raise ValueError(f"bars must name at least one limit, and all of them the subject {STUDENT}")

    def study(self) -> StudyFile:
        """Return the steps as a study."""
        explored = {"arguments": [self.teacher], **self.structures}
        data = {EXPLORED: self._built(explored, val_fraction=0.05, test_fraction=0.0)}
        apart = {**explored, "strained": 0, "pair_distances": 0, **self.held_out, "seed": HELD_OUT_SEED}
        data[HELD_OUT] = self._built(apart, val_fraction=0.0, test_fraction=1.0)
        students = [*(f"{STUDENT}-{number}" for number in range(self.rounds)), STUDENT]
        runs: dict[str, dict[str, Any]] = {}
        for number, student in enumerate(students):
            if number:
                active = {**explored, **self.active, "seed": number, "driver": students[number - 1]}
                data[f"round-{number}"] = self._built(active, val_fraction=0.05, test_fraction=0.0)
            seen = [EXPLORED, *(f"round-{earlier}" for earlier in range(1, number + 1))]
            runs[student] = {**({} if student == STUDENT else self.first), "data": seen}
        errors = {"held_out": [{"path": HELD_OUT, "name": "dynamics of the teacher"}]}
        return StudyFile(
            title=self.title,
            question=f"Does a small network stand in for {self.teacher} here?",
            data=data,
            pretrain=self.pretrain,
            runs=runs,
            subjects={TEACHER: self.teacher} if self.suites else {},
            suites=(errors, {"alike": self.teacher, **self.likeness}, *self.suites),
            own_suites={**dict.fromkeys(students[:-1], (errors,)), **({TEACHER: self.suites} if self.suites else {})},
            bars=self.bars,
        )

    def _built(self, source: Mapping[str, Any], *, val_fraction: float, test_fraction: float) -> dict[str, Any]:
        """Return the options of `build` for a data set."""
        return {
            "source": dict(source),
            "provenance": {
                "level_of_theory": f"predictions of {Path(self.teacher).name}",
                "energy_convention": f"total energies of {Path(self.teacher).name}",
                "source": "foundation distill",
            },
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "filters": {"invalid": "reject", "duplicates": "reject"},
        }


def distill(config: DistillConfig, parse: Parse) -> int:
    """Do the unfinished steps, release an accepted student, and return the exit code: 0 if it is released, else 1.

    Raises:
        FileNotFoundError: there is no such distillation.
        ValueError: its file, or an option of a step, is wrong; or an existing step was done with other options.
        BlockingIOError: another process is at work on it.
        KeyboardInterrupt: stopped by SIGINT, after checkpoints of the active steps.
        PreemptedError: stopped by SIGTERM or SIGUSR1, in the same way.
    """
    file = config_file(config.name if Path(config.name).suffix else f"distill/{config.name}")
    plan = read_distillation(file, quick=config.quick)
    out = config.out or Path("runs/distill") / f"{file.stem}{'-quick' * config.quick}"
    stages = Stages(plan.study(), out, parse)
    with alone(out, "distillation") as lock:
        failed = stages.work(config.jobs, lock)
        record = stages.record(quick=config.quick, missing=failed, pages={})
        write_study(record, out)
        log.info("page of the distillation: %s", out / "index.html")
        if failed or not accepted(record):
            return 1
        for job in release_jobs(plan.study(), out, parse):
            if not is_current(job, out / RUNS / STUDENT):
                job.write_config()
                if Processes(1, 1, lock).work([job]):
                    return 1
    log.info("released: %s", out / RELEASE)
    return 0


def read_distillation(file: Path, *, quick: bool) -> DistillFile:
    """Read the file of a distillation, in its full or its short form.

    Raises:
        ValueError: it is wrong; the message names the file.
    """
    values = read_mapping(file)
    try:
        refuse_unknown(values, DistillFile)
        if quick:
            short = values.get("quick", {})
            if not isinstance(short, dict):
                raise ValueError("quick must map names to options, {} for none")
            values = with_options(values, short)
        return typed(DistillFile, _beside(values, file.parent), "")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _beside(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a file with the paths of cells that lie in its folder."""
    found = dict(values)
    for section, option in (("structures", "explored"), ("active", "explored"), ("likeness", "starts")):
        if isinstance(options := found.get(section), dict):
            found[section] = with_files_beside(options, option, folder)
    return found


def accepted(record: StudyRecord) -> bool:
    """Return True if all limits are kept, and say which are not."""
    missed = [row for row in bar_rows(record) if not row.kept]
    for row in missed:
        log.warning("not accepted: %s is %s, the limit %s", row.title, row.found, row.limit)
    return not missed


def is_current(job: Job, run: Path) -> bool:
    """Return True if a step of the release of a student's run is finished, and the released weights are the run's.

    Raises:
        ValueError: it was done with other options.
    """
    if not (job.out / RESULTS[job.verb]).is_file():
        return False
    if job.verb == "export":
        trained, released = (checkpoint.describe(checkpoint.find(folder)) for folder in (run, job.out))
        return trained.weights_sha256 == released.weights_sha256
    if job.config.is_file() and job.config.read_text() != to_yaml(job.record):
        raise ValueError(f"{job.out} was made with other options than {job.config.stem} has now: remove it")
    return True


def release_jobs(study: StudyFile, out: Path, parse: Parse) -> list[Job]:
    """Return the steps of a release: errors beside the findings of the suites, the export, and its uncertainty."""
    run, report, release, data = out / RUNS / STUDENT, out / RUNS / STUDENT / "report", out / RELEASE, out / "data"
    evaluate = {
        "model": str(run),
        "data": str(data / HELD_OUT),
        "out": str(report),
        "suites_from": str(out / JUDGED / STUDENT / JSON_NAME),
    }
    seen = [str(data / name) for name in study.data if name != HELD_OUT]
    training = str(data / TRAINING)
    merge = {"manifests": seen, "name": TRAINING, "out": training}
    uncertainty = {
        "model": str(release),
        "data": training,
        "calibration": [str(data / HELD_OUT)],
        "calibration_split": "test",
    }
    steps = (
        ("report", "evaluate", report, evaluate),
        (RELEASE, "export", release, {"run": str(run), "out": str(release)}),
        (TRAINING, "merge", data / TRAINING, merge),
        ("uncertainty", "uncertainty", release, uncertainty),
    )
    return [
        Job(name=name, verb=verb, out=folder, record=as_read(record, name, verb, parse))
        for name, verb, folder, record in steps
    ]
