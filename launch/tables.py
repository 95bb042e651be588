"""Tables that the commands print."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.inspection import (
    MIN_PAIRS,
    PERIODIC_TABLE,
    Inspection,
    WorkCheck,
    all_statistics,
    ordered_splits,
    trained_on,
)
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS
from foundation.convert import ConvertConfig
from foundation.discovery import DiscoveryConfig
from foundation.engines import ENGINES, Check, EnginesConfig
from foundation.evaluate import EvaluateConfig, report_folder
from foundation.evaluation.comparison import Estimate
from foundation.evaluation.quantities import QUANTITIES, rows
from foundation.export_for import ExportForConfig
from foundation.finetuning.tradeoff import TradeoffConfig
from foundation.inspect import InspectConfig
from foundation.interop.example_data import ExampleDataConfig
from foundation.report import ReportConfig, curves_folder
from foundation.reports.discovery_report import DiscoveryRecord, discovery_rows, summary_rows
from foundation.reports.escape import printable
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.forgetting_report import percent
from foundation.reports.run_report import RunFacts, summary_table
from foundation.reports.run_report import remarks as remarks_on_run
from foundation.reports.suite_report import SuitesRecord
from foundation.reports.suite_table import suite_rows
from foundation.reports.tradeoff_record import Tradeoff
from foundation.simulation.campaign import CampaignConfig, Summary
from foundation.training.strategy import is_rank_zero

SHOWN = 5
"""Number of structures put aside that are named."""
LOG_WIDTH = 80
"""Width of tables in a file or a pipe [characters]."""


class _Plain(Console):
    """A console without markup, emoji or terminal commands in names."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return text with control characters escaped."""
        return super().render_str(printable(text), **how)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print tables at most as wide as the console, and lines whole, so that a path in them can be copied."""
        how.setdefault("soft_wrap", not any(isinstance(each, Table) for each in objects))
        super().print(*objects, **how)


console = _Plain(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH, markup=False, emoji=False)

BARS = " ▁▂▃▄▅▆▇█"


def inspection(config: InspectConfig, opened: Manifest, found: Inspection) -> None:
    """Print the contents of a data set and warnings."""
    words = config.data if isinstance(config.data, tuple) else (config.data,)
    manifest(opened, " ".join(map(str, words)))
    console.print(f"energies: {opened.provenance.energy_convention}\ncite: {opened.provenance.citation}")
    _distributions(opened, found)
    _periodic_table(found.frames_of_element)
    _work_check("stress", found.stress_check, "3")
    _work_check("forces", found.force_check, "1.5")
    for warning in found.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), printable(warning)))
    if config.verify:
        console.print("every file has its checksum")
    if config.out is not None:
        console.print(f"page: {config.out / 'index.html'}")


def _distributions(opened: Manifest, found: Inspection) -> None:
    table = Table(title="Distributions over all splits", title_justify="left")
    for name in ("quantity", "≈ 1 %", "≈ median", "≈ 99 %"):  # to the width of a bin
        table.add_column(name, justify="left" if name == "quantity" else "right")
    table.add_column("histogram", no_wrap=True)
    for name, row in found.distributions.items():
        if name in ("stress_ratio", "force_ratio"):
            continue
        counts = np.sum([split.statistics.histogram(name) for split in opened.splits.values()], axis=0)
        unit = f", {row.unit}" if row.unit else ""
        low, middle, high = (f"{row.quantiles[fraction]:g}" for fraction in ("0.01", "0.5", "0.99"))
        table.add_row(f"{row.quantity}{unit}", low, middle, high, sparkline(counts))
    console.print(table)


def sparkline(counts: np.ndarray, width: int = 20) -> str:
    """Return a histogram as one line of bars, from the first to the last non-empty bin."""
    filled = np.flatnonzero(counts)
    if len(filled) == 0:
        return ""
    shown = counts[filled[0] : filled[-1] + 1]
    column = np.arange(len(shown)) * width // len(shown) if len(shown) > width else np.arange(len(shown))
    heights = np.bincount(column, weights=shown)
    # every non-empty bin is visible
    return "".join(BARS[int(np.ceil(8 * height / heights.max()))] for height in heights)


def _periodic_table(frames: dict[str, int]) -> None:
    most = max(frames.values())
    text = Text()
    for row in PERIODIC_TABLE:
        for start in range(0, len(row), 3):
            symbol = row[start : start + 3].strip()
            depth = np.log1p(frames.get(symbol, 0)) / np.log1p(most)
            red, green, blue = (int(235 + depth * (end - 235)) for end in (20, 80, 160))
            color = f"{'white' if depth > 0.5 else 'black'} on rgb({red},{green},{blue})"
            shown = symbol if symbol in frames else "·" * bool(symbol)
            text.append(f" {shown:<2}", style=color if symbol in frames else "dim")
        text.append("\n")
    console.print(text, end="")
    ranked = [f"{symbol} {number:,}" for symbol, number in frames.items()]
    listed = ranked if len(ranked) <= 16 else [*ranked[:8], "…", *ranked[-8:]]
    console.print(f"frames with each element: {', '.join(listed).replace(', …,', ' …')}")


def _work_check(label: str, check: WorkCheck, factor: str) -> None:
    pairs = check.num_pairs
    if pairs < MIN_PAIRS:
        console.print(f"{label} against energy: {pairs} pairs of neighbouring frames to compare, too few for a verdict")
        return
    console.print(
        f"{label} against energy: in {pairs:,} pairs of neighbouring frames the sign is right in "
        f"{check.num_same_sign / pairs:.0%}, the size within a factor of {factor} in "
        f"{check.num_same_size / pairs:.0%}"
    )


def manifest(opened: Manifest, words: str = "") -> None:
    """Print the splits of a data set, as it was named or with its folder, its provenance and its elements."""
    table = Table(title=f"{opened.provenance.name} ({words or opened.root})", title_justify="left")
    for name in ("split", "frames", "atoms", "forces", "stress", "MB", "rms F, eV/Å"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in ordered_splits(opened).items():
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
    if opened.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in opened.rejected.items())
        console.print(f"left out: {reasons} (rejects.jsonl names each frame)")
    train = trained_on(opened)
    shown, where = (train, "training") if train else (all_statistics(opened), "all frames")
    neighbors = ", ".join(
        f"{shown.mean_neighbors(cutoff):.1f} within {cutoff} Å{' of centres' * isinstance(cutoff, MoleculeCutoff)}"
        for cutoff in shown.cutoffs
    )
    console.print(f"mean neighbours in {where}: {neighbors}")
    provenance, elements = opened.provenance, shown.elements
    console.print(f"level of theory: {provenance.level_of_theory}\nlicence: {provenance.licence}")
    console.print(f"{len(elements)} elements in {where}: {' '.join(SYMBOLS[z] for z in elements)}")


def remarks(shown: Sequence[str]) -> None:
    """Print remarks on a data set, line by line."""
    for line in shown:
        console.print(line, highlight=False)


def errors(found: Evaluation) -> None:
    """Print held-out errors and those of the trivial predictors."""
    table = Table(title=f"Errors on the {found.split} split of {found.dataset}", title_justify="left")
    for name in ("", "potential", "trivial predictor", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows(found.errors):
        table.add_row(*row)
    console.print(table)


def evaluation(config: EvaluateConfig, found: Evaluation | SuitesRecord) -> None:
    """Print the result of an evaluation."""
    if isinstance(found, Evaluation):
        errors(found)
    if found.suites:
        table = Table(title="Suites", title_justify="left")
        for name in ("", "value", "reference"):
            table.add_column(name, justify="right" if name else "left")
        for row in suite_rows(found.suites):
            table.add_row(row.title, *row.values, row.reference)
        console.print(table)
    evaluation_page(config)


def evaluation_page(config: EvaluateConfig) -> None:
    """Print the path of an evaluation's page."""
    console.print(f"report: {report_folder(config) / 'index.html'}")


def discovery(config: DiscoveryConfig, found: DiscoveryRecord | None) -> None:
    """Print the metrics of a discovery benchmark, or that other parts are missing."""
    if found is None:
        console.print(f"part {config.part} is finished: {config.out}")
        return
    for title, value in summary_rows(found):
        console.print(f"{title}: {value}", highlight=False)
    if rows := discovery_rows(found):
        table = Table(title="Stability", title_justify="left")
        for name in ("", *found.stability):
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in found.notes:
        console.print(Text.assemble(("remark: ", "bold yellow"), printable(note)))
    console.print(f"report: {config.out / 'index.html'}")


def campaign(config: CampaignConfig, found: Summary | None) -> None:
    """Print what became of many structures, and the files of the results; or that other parts are missing."""
    if found is None:
        console.print(f"part {config.part} is finished: {config.out}")
        return
    aside = [each for each in found.outcomes if each.error is not None]
    remarked = [each for each in found.outcomes if each.warnings]
    console.print(f"structures: {len(found.outcomes)}", highlight=False)
    for title, some in (("put aside", aside), ("with remarks", remarked)):
        if some:
            console.print(f"{title}: {len(some)}", highlight=False)
    for each in aside[:SHOWN]:
        console.print(Text.assemble(("put aside: ", "bold yellow"), printable(f"{each.id}: {each.error}")))
    for file in found.files:
        console.print(f"results: {file}")


def training(config: ReportConfig, facts: list[RunFacts]) -> None:
    """Print the facts of runs, remarks, and the path of the page."""
    shown = Table(title="Training", title_justify="left")
    shown.add_column("")
    for values in facts:
        shown.add_column(values.name, justify="right")
    for name, cells in summary_table(facts):
        shown.add_row(name, *cells)
    console.print(shown)
    for values in facts:
        for remark in remarks_on_run(values):
            console.print(Text.assemble(("remark: ", "bold yellow"), printable(f"{values.name}: {remark}")))
    console.print(f"page: {curves_folder(config) / 'index.html'}")
    for run in config.runs:
        trained(run)


def tradeoff(config: TradeoffConfig, found: Tradeoff) -> None:
    """Print the trade-off of fine-tuning methods, and the path of the page."""
    metric = found.metric
    title = f"{QUANTITIES[metric].title}; of retained sets its change"
    shown = Table(title=title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for name, row in found.sets.items():
        shown.add_column(f"{name}\n{row.role}", justify="right")
    shown.add_column("s/step", justify="right")
    shown.add_row("start", *(_error(found.start.errors[name], metric) for name in found.sets), "")
    for method in found.methods:
        cells = [
            percent(method.result.sets[name].change[metric].alone)
            if row.role == "retained"
            else _error(method.result.sets[name].errors, metric)
            for name, row in found.sets.items()
        ]
        time = "–" if method.seconds_per_step is None else f"{method.seconds_per_step:.3g}"
        style = "" if method.result.dominated_by else "bold"
        shown.add_row(Text(printable(method.name), style=style), *cells, time)
    console.print(shown)
    console.print(f"not dominated: {'; '.join(found.non_dominated)}")
    console.print(f"page: {config.out / 'index.html'}")


def _error(errors: dict[str, Estimate], metric: str) -> str:
    return QUANTITIES[metric].text(errors[metric].value) if metric in errors else "–"


def exported(config: ExportForConfig, out: Path) -> None:
    """Print the folder or file of an export, and its use."""
    words = {"library": "compiled library", "torch": "torch package", "metatomic": "metatomic model"}
    console.print(f"{words[config.for_]} of {config.model}, compared with it: {out}")
    uses = {
        "library": ("pair_style foundation", f"pair_coeff * * {out} ELEMENT...    # of every atom type"),
        "torch": (f'package = torch._inductor.aoti_load_package("{out}")',),
        "metatomic": (f'calculator = metatomic_ase.MetatomicCalculator("{out}")',),
    }
    for line in uses[config.for_]:
        console.print(f"    {line}", highlight=False)


def engines(config: EnginesConfig, checks: Sequence[Check]) -> int:
    """Print the engines that are installed, and checks of a potential in them; return 1 if one is bad."""
    installed = Table("engine", "installed", "tested with", "install")
    for engine in ENGINES.values():
        installed.add_row(engine.name, engine.version or "no", engine.tested, engine.install)
    console.print(installed)
    if config.check is None:
        return 0
    title = f"{config.check} in each engine, by {checks[0].reference}; drifts in eV/atom/ps"
    moved = [path.stem for path in config.drift]
    table = Table("engine", title=title, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("energy", "forces", "stress", *(f"drift, {name}" for name in moved)):
        table.add_column(name, justify="right", min_width=6)  # a number is never cut
    table.add_column("verdict")
    for check in checks:
        values = (check.energy, check.force, check.stress, *(check.drift.get(name) for name in moved))
        numbers = ["–" if value is None else f"{value:.0e}" for value in values]
        table.add_row(f"{check.engine}, {check.way}", *numbers, check.verdict)
    console.print(table)
    return int(any(check.bad for check in checks))


def converted(config: ConvertConfig, path: Path) -> None:
    """Print the result of a conversion and its use."""
    if config.from_:
        potential(path)
    else:
        console.print(f"checkpoint of sevenn: {path}")
        console.print(f"    sevenn get_model {path}    # for LAMMPS", highlight=False)
        console.print(f'    atoms.calc = sevenn.calculator.SevenNetCalculator("{path}")', highlight=False)


def example(config: ExampleDataConfig, file: Path) -> None:
    """Print the path of an example file and the command that trains on it."""
    potential = "--start sevennet-0" if config.name == "lpsc" else "--irreps 32x0e+16x1e"
    verb = "finetune" if config.name == "lpsc" else "pretrain"
    console.print(f"{config.frames} frames with energy, forces and stress: {file}")
    console.print(f"    foundation {verb} {potential} --data {file} --out runs/{file.stem}", highlight=False)


def trained(run: Path) -> None:
    """Print the potential of a finished run in its first process, and the two lines that use it."""
    if is_rank_zero() and (run / "potential").is_dir():
        potential(run)


def release(folder: Path) -> None:
    """Print the path of a release and the two lines that use it."""
    potential(folder, "release")


def protected(folder: Path) -> None:
    """Print the path of a potential with its protection, and the line that uses it."""
    console.print(f"protected potential: {folder}")
    console.print(f"    foundation finetune --start {folder} --data FILES --out FOLDER --recipe reewc", highlight=False)


def trusted(folder: Path) -> None:
    """Print the path of a potential with its uncertainty, and the lines that use it."""
    console.print(f"potential with uncertainty: {folder}")
    console.print('    atoms.calc.results["forces_uncertainty"]', highlight=False)
    console.print(f"    foundation predict --model {folder} --data FILES --out FOLDER", highlight=False)


def potential(word: Path, kind: str = "potential") -> None:
    """Print the path of a potential, as one names it, and the two lines that use it."""
    console.print(f"{kind}: {word}")
    console.print(f'    atoms.calc = foundation.Calculator("{word}")', highlight=False)
    console.print(f"    foundation evaluate --model {word} --data <file>", highlight=False)
