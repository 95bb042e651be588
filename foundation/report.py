"""Report of training: a page of curves from one or several run folders."""

from dataclasses import dataclass
from pathlib import Path

from foundation.reports.run_report import RunFacts, write_run_report
from foundation.training.monitoring.metrics_file import write_csv


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Runs to draw; the report of an unfinished run shows its log so far.

    A finished fine-tuning whose report of learning and forgetting failed or is missing gets it again.
    """

    run: Path | tuple[Path, ...]
    """Run folder, or several to overlay; also without the option: `foundation report FOLDER`."""
    out: Path | None = None
    """Folder of the page; None: curves/ in the run folder. Required for several runs."""

    def __post_init__(self) -> None:
        if not isinstance(self.run, Path) and len(self.run) != 1 and self.out is None:
            raise ValueError("several runs have no common folder for the report: name one with --out")

    @property
    def runs(self) -> tuple[Path, ...]:
        """Return the run folders."""
        return (self.run,) if isinstance(self.run, Path) else self.run


def report(config: ReportConfig) -> list[RunFacts]:
    """Write index.html, training.json, the figures and every run's metrics.csv; return the facts of each run.

    Raises:
        FileNotFoundError: a folder is not a run folder.
        ValueError: a run has logged nothing yet.
    """
    facts = write_run_report(config.runs, curves_folder(config))
    for run in config.runs:
        write_csv(run / "logs")
    return facts


def curves_folder(config: ReportConfig) -> Path:
    """Return the folder of the page."""
    if config.out is not None:
        return config.out
    return config.runs[0] / "curves"
