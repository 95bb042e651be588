"""What the commands print on the screen: short tables."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipeline.manifest import Manifest, open_manifest
from data_pipeline.structure import SYMBOLS
from foundation.evaluate import EvaluateConfig, report_folder

console = Console()


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Which data set to describe."""

    data: Path
    """Manifest, or its folder."""
    verify: bool = False
    """Compare every file with its checksum as well."""


def inspect(config: InspectConfig) -> None:
    """Print what a data set holds.

    Raises:
        FileNotFoundError: there is no manifest, or a file is missing.
        ValueError: with verify, a file differs from its checksum.
    """
    opened = open_manifest(config.data)
    if config.verify:
        opened.verify()
    manifest(opened)
    if config.verify:
        console.print("every file has its checksum")


def manifest(opened: Manifest) -> None:
    """Print the splits of a data set, its provenance and its elements."""
    table = Table(title=f"{opened.provenance.name} ({opened.root})", title_justify="left")
    for name in ("split", "frames", "atoms", "forces", "stress", "MB", "rms F, eV/Å"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in opened.splits.items():
        statistics = split.statistics
        if not statistics.num_frames:
            table.add_row(name, "0")
            continue
        table.add_row(
            name,
            f"{statistics.num_frames:,}",
            f"{statistics.num_atoms:,}",
            f"{statistics.num_force_atoms / statistics.num_atoms:.0%}",
            f"{statistics.num_stress_frames / statistics.num_frames:.0%}",
            f"{sum(shard.num_bytes for shard in split.shards) / 1e6:.1f}",
            f"{statistics.force_rms:.3f}" if statistics.num_force_atoms else "–",
        )
    console.print(table)
    train = opened.split("train").statistics
    neighbors = ", ".join(f"{train.mean_neighbors(cutoff):.1f} within {cutoff} Å" for cutoff in train.cutoffs)
    console.print(f"mean neighbours in training: {neighbors}")
    provenance, elements = opened.provenance, opened.split("train").statistics.elements
    console.print(f"level of theory: {provenance.level_of_theory}\nlicence: {provenance.licence}")
    console.print(f"{len(elements)} elements in training: {' '.join(SYMBOLS[z] for z in elements)}")


def errors(values: dict) -> None:
    """Print held-out errors beside the trivial predictors."""
    table = Table(title=f"Errors on the {values['split']} split of {values['dataset']}", title_justify="left")
    for name in ("mean absolute error", "potential", "trivial predictor", "ratio"):
        table.add_column(name, justify="left" if name == "mean absolute error" else "right")
    rows = (
        ("energy, meV/atom (composition only)", "energy_mae", "composition_energy_mae"),
        ("force component, meV/Å (zero)", "force_mae", "zero_force_mae"),
        ("stress component, meV/Å³ (zero)", "stress_mae", "zero_stress_mae"),
    )
    summary = values["errors"]
    for name, key, trivial in rows:
        if key in summary:
            ratio = f"{summary[key] / summary[trivial]:.3f}" if summary[trivial] else "–"
            table.add_row(name, f"{1000 * summary[key]:.2f}", f"{1000 * summary[trivial]:.2f}", ratio)
    console.print(table)
    if summary["num_skipped"]:
        console.print(
            f"{summary['num_skipped']:.0f} frames left out: the potential does not know one of their elements"
        )


def evaluation(config: EvaluateConfig, values: dict) -> None:
    """Print the outcome of an evaluation."""
    errors(values)
    evaluation_page(config)


def evaluation_page(config: EvaluateConfig) -> None:
    """Print where the page of an evaluation is."""
    console.print(f"report: {report_folder(config) / 'index.html'}")


def release(folder: Path) -> None:
    """Print where a release is and the two lines that use it."""
    console.print(f"release: {folder}")
    console.print(f'    potential = foundation.load("{folder}")', highlight=False)
    console.print("    atoms.calc = foundation.Calculator(potential)", highlight=False)
