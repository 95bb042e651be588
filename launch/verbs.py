"""Verbs of the command line: name, help, main options, and the function that loads config and code.

The code of a verb is imported when the verb is chosen, because torch, Lightning and matplotlib take seconds.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import parser
from launch.model_verbs import MODEL_VERBS
from launch.parser import Loaded, Verb
from launch.words import name_first


def _build() -> Loaded:
    from data_pipeline.building.build import BuildConfig, build, is_first_rank
    from data_pipeline.plain_files import BuildFilesConfig, build_plain, checks_on, choices_on, lines
    from launch import tables
    from launch.corpus import HELP, expand_corpus

    def run(config: BuildConfig | BuildFilesConfig) -> None:
        if isinstance(config, BuildFilesConfig):
            options = {"val": config.val, "test": config.test, "cutoffs": config.cutoffs, "overwrite": config.overwrite}
            built = build_plain(config.data, config.out, config.read, **options)
            tables.remarks((*built.remarks, f"data set: {config.out}"))
            return
        manifest = build(config)
        if is_first_rank():  # once for all ranks of MPI
            tables.manifest(manifest)
            tables.remarks(lines([*choices_on(manifest), *checks_on(manifest)]))

    files = (
        "--data FILES builds files of labelled frames, with everything else found from them; its options: foundation "
        "build --data --help. "
    )
    return Loaded(
        config=BuildConfig, instead={"data": BuildFilesConfig}, run=run, expand=expand_corpus, epilog=files + HELP
    )


def _merge() -> Loaded:
    from data_pipeline.building.merge import MergeConfig, merge
    from launch import tables

    return Loaded(
        config=MergeConfig,
        run=lambda config: tables.manifest(merge(config.manifests, config.out, config.name)),
        expand=lambda words: name_first(words, "--manifests"),
    )


def _inspect() -> Loaded:
    from foundation.inspect import InspectConfig, inspect
    from launch import tables

    return Loaded(config=InspectConfig, run=lambda config: tables.inspection(config, *inspect(config)))


def _pretrain() -> Loaded:
    from foundation.pretrain import PretrainConfig, pretrain
    from launch import tables

    def run(config: PretrainConfig) -> None:
        pretrain(config)
        tables.trained(config.out)

    return Loaded(config=PretrainConfig, run=_resumable(run), aliases=TRAIN)


def _finetune() -> Loaded:
    from foundation.finetune import FinetuneConfig, finetune
    from launch import tables
    from launch.recipes import HELP, expand_recipe
    from launch.sweep import sweep

    def run(config: FinetuneConfig) -> object:
        if config.sweep is None:
            finetune(config)
            return tables.trained(config.out)
        return sweep(config, config.sweep, "finetune", parse, _compare, only=config.run)

    return Loaded(config=FinetuneConfig, run=_resumable(run), aliases=TRAIN, expand=expand_recipe, epilog=HELP)


def _compare(runs: Sequence[Path], out: Path) -> None:
    """Compare the finished runs of a sweep."""
    from foundation.finetuning.tradeoff import TradeoffConfig, tradeoff
    from launch import tables

    config = TradeoffConfig(runs=tuple(runs), out=out)
    try:
        tables.tradeoff(config, tradeoff(config))
    except ValueError as error:  # the runs themselves did not fail
        logging.getLogger(__name__).warning("the runs of the sweep are not compared: %s", error)


def _preflight_pretrain() -> Loaded:
    from launch.planned_run import PretrainPreflightConfig
    from launch.preflight import preflight

    return Loaded(config=PretrainPreflightConfig, run=preflight, aliases=TRAIN)


def _preflight_finetune() -> Loaded:
    from launch.planned_run import FinetunePreflightConfig
    from launch.preflight import preflight
    from launch.recipes import HELP, expand_recipe

    return Loaded(config=FinetunePreflightConfig, run=preflight, aliases=TRAIN, expand=expand_recipe, epilog=HELP)


def _fisher() -> Loaded:
    from foundation.finetuning.fisher import FisherConfig, compute_fisher

    return Loaded(config=FisherConfig, run=compute_fisher)


def _protect() -> Loaded:
    from foundation.finetuning.protection import ProtectConfig, protect
    from launch import tables

    return Loaded(config=ProtectConfig, run=lambda config: tables.protected(protect(config)))


def _tradeoff() -> Loaded:
    from foundation.finetuning.tradeoff import TradeoffConfig, tradeoff
    from launch import tables

    return Loaded(
        config=TradeoffConfig,
        run=lambda config: tables.tradeoff(config, tradeoff(config)),
        expand=lambda words: name_first(words, "--runs"),
    )


def _evaluate() -> Loaded:
    from foundation.evaluate import EvaluateConfig, evaluate, judge
    from launch import tables

    def run(config: EvaluateConfig) -> None:
        tables.evaluation(config, judge(config) if config.data is None else evaluate(config))

    return Loaded(config=EvaluateConfig, run=run)


def _discovery() -> Loaded:
    from foundation.discovery import DiscoveryConfig, discover
    from launch import tables

    return Loaded(config=DiscoveryConfig, run=lambda config: tables.discovery(config, discover(config)))


def _predict() -> Loaded:
    from foundation.predict import PredictConfig, predict
    from launch import tables

    return Loaded(config=PredictConfig, run=lambda config: tables.campaign(config, predict(config)))


def _relax() -> Loaded:
    from foundation.relax import RelaxConfig, relax
    from launch import tables

    return Loaded(config=RelaxConfig, run=lambda config: tables.campaign(config, relax(config)))


def _md() -> Loaded:
    from foundation.md import MdConfig, md
    from launch import tables

    return Loaded(config=MdConfig, run=lambda config: tables.campaign(config, md(config)))


def _coverage() -> Loaded:
    from foundation.coverage import CoverageConfig, cover

    return Loaded(config=CoverageConfig, run=lambda config: cover(config) and None)


def _uncertainty() -> Loaded:
    from foundation.uncertainty import UncertaintyConfig, add_uncertainty
    from launch import tables

    return Loaded(config=UncertaintyConfig, run=lambda config: tables.trusted(add_uncertainty(config)))


def _report() -> Loaded:
    from foundation.finetune import lacks_report, report_again
    from foundation.report import ReportConfig, report
    from foundation.run_folder import RECORD
    from launch import tables

    def run(config: ReportConfig) -> None:
        for folder in filter(lacks_report, config.runs):
            report_again(parse(["finetune", "--config", str(folder / RECORD), "--out", str(folder)])[1])
        tables.training(config, report(config))

    return Loaded(
        config=ReportConfig,
        run=_resumable(run),
        expand=lambda words: name_first(words, "--run"),
    )


def _export() -> Loaded:
    from foundation.export import ExportConfig, export
    from foundation.export_for import ExportForConfig, export_for
    from launch import tables

    def run(config: ExportConfig | ExportForConfig) -> None:
        if isinstance(config, ExportForConfig):
            return tables.exported(config, export_for(config))
        return tables.release(export(config))

    other = (
        "--for library | torch | metatomic writes a potential for other programs: foundation export --for library -h. "
    )
    return Loaded(config=ExportConfig, instead={"for": ExportForConfig, "for_": ExportForConfig}, run=run, epilog=other)


def _engines() -> Loaded:
    from foundation.engines import EnginesConfig, engines
    from launch import tables

    return Loaded(config=EnginesConfig, run=lambda config: tables.engines(config, engines(config)))


def _convert() -> Loaded:
    from foundation.convert import ConvertConfig, convert
    from launch import tables

    return Loaded(config=ConvertConfig, run=lambda config: tables.converted(config, convert(config)))


def _slurm() -> Loaded:
    from launch.slurm import SlurmConfig, launch_slurm

    return Loaded(config=SlurmConfig, run=lambda config: launch_slurm(config, parse))


def _local() -> Loaded:
    from launch.local import LocalConfig, launch_local

    return Loaded(config=LocalConfig, run=_resumable(lambda config: launch_local(config, parse)))


def _quickstart() -> Loaded:
    from launch.quickstart import QuickstartConfig, quickstart

    return Loaded(
        config=QuickstartConfig, run=_resumable(quickstart), expand=lambda words: ["--config", "quickstart", *words]
    )


def _distill() -> Loaded:
    from launch.distill import DistillConfig, distill

    return Loaded(
        config=DistillConfig,
        run=_resumable(lambda config: distill(config, parse)),
        expand=lambda words: name_first(words, "--name"),
    )


def _study() -> Loaded:
    from launch.study import StudyConfig, study

    return Loaded(
        config=StudyConfig,
        run=_resumable(lambda config: study(config, parse)),
        expand=lambda words: name_first(words, "--name"),
    )


def _example_data() -> Loaded:
    from foundation.interop.example_data import ExampleDataConfig, example_data
    from launch import tables

    return Loaded(
        config=ExampleDataConfig,
        run=lambda config: tables.example(config, example_data(config)),
        expand=lambda words: name_first(words, "--name"),
    )


def _resumable(run: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a function that returns the exit code of a run stopped by a signal, or of one without its report."""
    from foundation.run_folder import ReportFailed
    from foundation.training.fault_tolerance.preemption import PreemptedError
    from foundation.training.fault_tolerance.watchdog import TRY_AGAIN

    def attempt(config: Any) -> object:
        try:
            return run(config)
        except PreemptedError:  # logged before the job was requeued
            return TRY_AGAIN
        except ReportFailed as error:
            logging.getLogger(__name__).error("%s", error, exc_info=error.__cause__)
            return REPORT_FAILED

    return attempt


TRAIN = {"train": "data"}
"""Other name of the data of a run, beside --val and --test."""
REPORT_FAILED = 3
"""Exit code of a finished run, with its potential saved, whose report could not be made."""
BUILD_KEYS = (
    *("source", "out", "cutoffs", "val_fraction", "test_fraction", "split_by", "workers", "overwrite"),
    *("provenance.name", "provenance.licence", "provenance.level_of_theory", "filters.max_force"),
)
TRAINING_KEYS = (
    *("data", "val", "test", "out", "overwrite", "read.energy_key", "fit.epochs", "fit.steps", "fit.resume"),
    *("fit.edge_budget", "fit.seed", "machine.accelerator", "machine.devices", "optim.learning_rate"),
)
PREFLIGHT_KEYS = (*("verify", "memory", "free_disk", "edges_per_second", "price", "time_limit", "report", "strict"),)
LOSS_KEYS = ("loss.energy.weight", "loss.forces.weight", "loss.stress.weight")
VERBS = {
    "finetune": Verb(
        "train a potential on the data of a domain, and measure what it forgets",
        _finetune,
        ("start", *TRAINING_KEYS, "loss", "rehearsal", "penalty", "freeze", "sweep"),
        group="From your own file to a potential:",
    ),
    "evaluate": Verb(
        "measure errors and write a report",
        _evaluate,
        ("model", "data", "split", "out", "theory", "checkpoint", "edge_budget", "device", "suites", "calculator"),
    ),
    "export": Verb("write a release folder with its model card", _export),
    "predict": Verb(
        "predict energies, forces and stresses of many structures",
        _predict,
        ("model", "data", "out", "mode", "theory", "processes", "part", "device"),
        group="Many structures at once:",
    ),
    "relax": Verb(
        "relax many structures",
        _relax,
        (
            "model",
            "data",
            "out",
            "max_force",
            "max_steps",
            "algorithm",
            "cell",
            "symmetry",
            "mode",
            "processes",
            "part",
        ),
    ),
    "md": Verb(
        "run molecular dynamics of many structures",
        _md,
        ("model", "data", "out", "steps", "ensemble", "temperature", "timestep", "seed", "every", "processes", "part"),
    ),
    "quickstart": Verb(
        "run all steps once, on an embedded data set",
        _quickstart,
        ("build.out", "pretrain.out", "pretrain.fit.steps", "evaluate.model", "export.out"),
        group="To try:",
    ),
    "example-data": Verb("write a file of labelled frames to train on", _example_data),
    "pretrain": Verb(
        "train a potential from scratch",
        _pretrain,
        (*TRAINING_KEYS, *LOSS_KEYS, "model"),
        group="To train and to compare:",
    ),
    "fisher": Verb(
        "measure how much each weight of a potential matters to data",
        _fisher,
        ("model", "data", "out", "split", "max_structures", "seed", "device", "theory", "previous", "gamma"),
    ),
    "protect": Verb("make what keeps a potential from forgetting in fine-tunings, and add it to its folder", _protect),
    "report": Verb("draw the curves of runs, and make a missing report of a fine-tuning", _report),
    "tradeoff": Verb("compare what fine-tunings learn and forget", _tradeoff),
    "distill": Verb("make a small, fast potential for a family of materials from a larger one", _distill),
    "study": Verb("answer a question by data, trainings and suites, on one page", _study),
    "discovery": Verb(
        "relax the crystals of Matbench Discovery, and write its submission and metrics",
        _discovery,
        (
            "model",
            "structures",
            "out",
            "references",
            "relaxed",
            "part",
            "max_force",
            "max_steps",
            "device",
            "calculator",
        ),
    ),
    "coverage": Verb(
        "record the environments of atoms that a potential has seen in training",
        _coverage,
        ("model", "data", "out", "split", "max_frames", "checkpoint", "device"),
    ),
    "uncertainty": Verb(
        "find the uncertainty and coverage of a potential from its training data, and add them to its folder",
        _uncertainty,
        ("model", "data", "split", "calibration", "calibration_split", "theory", "max_frames", "device"),
    ),
    "build": Verb("turn a source of labelled frames into shards", _build, BUILD_KEYS, group="Data and potentials:"),
    "merge": Verb("merge several data sets into one", _merge),
    "inspect": Verb("show the contents of a data set and warnings", _inspect, ("data", "out", "verify", "cutoff")),
    "convert": Verb("read or write another program's checkpoint", _convert),
    "engines": Verb("list the programs in which potentials run, and check a potential in each", _engines),
    **MODEL_VERBS,
    "preflight pretrain": Verb(
        "check a pretraining and estimate its time, memory and cost",
        _preflight_pretrain,
        ("data", "out", *PREFLIGHT_KEYS),
        group="On a cluster:",
    ),
    "preflight finetune": Verb(
        "check a fine-tuning and estimate its time, memory and cost",
        _preflight_finetune,
        ("start", "data", "out", *PREFLIGHT_KEYS),
    ),
    "launch slurm": Verb("write the script of a SLURM job, and submit it", _slurm),
    "launch local": Verb("run several processes on this machine", _local),
}
"""All verbs of `foundation`, in the order of its help."""


def parse(arguments: list[str]) -> tuple[str, Any]:
    """Return the verb and its config object.

    Raises:
        ValueError: an argument or a file is wrong.
        SystemExit: help or a configuration was requested, and is printed.
    """
    return parser.parse(VERBS, arguments)
