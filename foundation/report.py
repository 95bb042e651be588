"""The report of training: one run folder, or several, become a page of curves."""

from dataclasses import dataclass
from pathlib import Path

from foundation.reports.run_report import RunFacts, write_run_report
from foundation.training.monitoring.metrics_file import write_csv


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which runs to draw; while one goes on, its report is of what it has logged so far."""

    run: Path | tuple[Path, ...]
    """Run folder, or several to lay over each other; also without the option: `foundation report FOLDER`."""
    out: Path | None = None
    """Folder of the page; curves/ in the run folder when absent. For several runs it has to be given."""

    def __post_init__(self) -> None:
        if not isinstance(self.run, Path) and len(self.run) != 1 and self.out is None:
            raise ValueError("several runs have no folder of their own for the report: say where it goes with --out")


def report(config: ReportConfig) -> list[RunFacts]:
    """Write index.html, training.json and the figures, and every run's metrics.csv; return a run's facts for each.

    Raises:
        FileNotFoundError: a folder is no run's.
        ValueError: a run has logged nothing yet.
    """
    runs = (config.run,) if isinstance(config.run, Path) else config.run
    facts = write_run_report(runs, curves_folder(config))
    for run in runs:
        write_csv(run / "logs")
    return facts


def curves_folder(config: ReportConfig) -> Path:
    """Return the folder of the page."""
    if config.out is not None:
        return config.out
    return (config.run if isinstance(config.run, Path) else config.run[0]) / "curves"
