"""Quickstart: build, pretrain, evaluate, export, load back, and relax a structure."""

import time
from dataclasses import dataclass

import foundation
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.structure import Structure
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.interop.relaxation import relax
from foundation.pretrain import PretrainConfig, pretrain
from launch import tables as tables


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Configs of the four verbs, in order."""

    build: BuildConfig
    """The data."""
    pretrain: PretrainConfig
    """The run."""
    evaluate: EvaluateConfig
    """The report."""
    export: ExportConfig
    """The release."""


def quickstart(config: QuickstartConfig) -> None:
    """Build, pretrain, evaluate, export, load back and relax, then print a table of the errors."""
    started = time.perf_counter()
    tables.console.rule("1 of 4: build shards")
    tables.manifest(build(config.build))
    tables.console.rule("2 of 4: pretrain")
    pretrain(config.pretrain)
    tables.console.rule("3 of 4: evaluate on held-out groups")
    errors = evaluate(config.evaluate)
    tables.console.rule("4 of 4: export, load back, relax")
    release = export(config.export)
    start = strained_structure(open_manifest(config.build.out), config.evaluate.split)
    relaxation = relax(start, foundation.load(release))
    tables.console.print(
        f"relaxed {relaxation.atoms.get_chemical_formula()} ({start.id}) with ASE in {relaxation.num_steps} steps: "
        f"{relaxation.energy_before:.4f} eV before, {relaxation.energy_after:.4f} eV after, "
        f"largest force {relaxation.max_force:.3f} eV/Å"
    )
    tables.errors(errors)
    tables.evaluation_page(config.evaluate)
    tables.release(release)
    tables.console.print(f"total time {time.perf_counter() - started:.0f} s")


def strained_structure(manifest: Manifest, split: str) -> Structure:
    """Return the structure of a split with the largest force, which has most to relax."""
    return max(Frames(manifest, split), key=lambda structure: float(abs(structure.forces).max()))
