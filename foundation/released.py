"""`foundation models`: potentials that have a name, and the copies of them on this machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.quoting import one_line
from data_pipeline.store import durable, lock
from foundation import checkpoint, last_layer
from foundation.checkpoint import Description
from foundation.evaluation.quantities import QUANTITIES
from foundation.evaluation.suites.errors import Errors
from foundation.evaluation.suites.likeness import SPEED
from foundation.golden import verify_golden
from foundation.naming import RunCheckpoint, SavedPotential, resolve
from foundation.releases import cache
from foundation.releases.addresses import is_address
from foundation.releases.lineage import Ancestor, lineage
from foundation.releases.registry import Registry, Release, registry
from foundation.reports.evaluation_report import Evaluation

BEGIN, END = "<!-- table of potentials -->", "<!-- end of the table -->"
"""Marks in a page between which the table is written."""
MEASURED = ("energy_mae", "force_mae", "stress_mae")
"""Quantities of the table."""
BY_SET_MEASURED = ("force_mae", "energy_mae")
"""Quantities of the table of errors on further data."""


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Choice of the named potentials to list."""

    elements: tuple[str, ...] = ()
    """Symbols of elements that they must know."""
    theory: str | None = None
    """Level of theory that they must know."""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Potential to describe."""

    name: str
    """Name, name@version, address or folder."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Potentials to have on this machine."""

    name: tuple[str, ...]
    """Names or addresses."""
    out: Path | None = None
    """Folder for a copy to work with, of a single potential; an older release there is replaced."""
    anew: bool = False
    """Ask an address again what it holds, for a branch that moved on."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Copies to compare with the registry, and with their golden predictions."""

    name: tuple[str, ...] = ()
    """Names, addresses or folders; none: all named potentials on this machine."""


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Potential whose folder is asked for."""

    name: str
    """Name, name@version or address; it is downloaded if need be."""


@dataclass(frozen=True, kw_only=True)
class LineageConfig:
    """Potential whose origin is asked for."""

    name: str
    """Name, name@version, address or folder."""
    configuration: bool = False
    """Print the resolved configuration of its run as well."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Table of the released potentials that are on this machine."""

    out: Path | None = None
    """Page with two comments between which the table is written; None: it is printed."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A named potential."""

    release: Release
    place: str
    """"package", "cache", or "" if it has to be downloaded."""


def listed(config: ListConfig) -> list[Listed]:
    """Return the named potentials that know elements and a level of theory."""
    found = []
    for release in registry().releases:
        if set(config.elements) <= set(release.elements) and config.theory in (None, *release.theories):
            place = "package" if release.shipped else "cache" if cache.cached(release.sha256) else ""
            found.append(Listed(release=release, place=place))
    return found


def described(name: str) -> tuple[Path, Description]:
    """Return the folder of a potential and its description; it is downloaded if need be.

    Raises:
        FileNotFoundError: there is no such potential.
        ValueError: it is no release, but a file or the checkpoint of a run, or is damaged.
    """
    found = resolve(name)
    if not isinstance(found, SavedPotential):
        kind = "checkpoint of a run" if isinstance(found, RunCheckpoint) else "file of another program"
        raise ValueError(f"{name} is a {kind}, not a release: export or convert it")
    return found.folder, found.describe()


def download(config: DownloadConfig) -> list[Path]:
    """Return the folders of potentials, downloaded if need be, or of the copy.

    Raises:
        ValueError: a copy of several is asked for.
        FileNotFoundError: there is no such potential, or nothing may be downloaded.
        NotDownloaded: no address gave it.
        FileExistsError: the folder for the copy is not a release.
    """
    if config.out is not None and len(config.name) != 1:
        raise ValueError("--out is the folder for a copy of a single potential")
    folders = []
    for name in config.name:
        if config.anew and is_address(name):
            cache.folder_at(name, anew=True)
        folders.append(described(name)[0])
    if config.out is None:
        return folders
    copy(folders[0], config.out)
    return [config.out]


def copy(release: Path, out: Path) -> None:
    """Copy a release to a folder, which appears only when it is complete.

    Raises:
        FileExistsError: the folder exists and is not a release.
    """
    with lock.hold(lock.beside(out), out):
        checkpoint.refuse_to_replace(out, "release")
        with durable.whole_folder(lock.real(out)) as partial:
            for name in (checkpoint.CHECKSUMS, *checkpoint.checksums_in(release)):
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(release / name, partial / name)
            checkpoint.verify_checksums(partial)


def verify(config: VerifyConfig) -> list[tuple[str, Path, str]]:
    """Return name, folder and finding of each copy: "ok", or what is wrong with it."""
    names = config.name or tuple(each.release.title for each in listed(ListConfig()) if each.place)
    found = []
    for name in names:
        folder = Path(name)
        try:
            folder, _ = described(name)
            if (folder / checkpoint.GOLDEN).is_file():
                verify_golden(folder)
            found.append((name, folder, "ok"))
        except (OSError, ValueError) as error:
            found.append((name, folder, one_line(str(error))))
    return found


def ancestors(config: LineageConfig) -> tuple[Description, list[Ancestor]]:
    """Return the description of a potential and its ancestors."""
    _, found = described(config.name)
    return found, lineage(found, registry())


def table(known: Registry) -> str:
    """Return tables in Markdown of the released potentials on this machine, from their folders.

    The second has the errors on further data, of those that were judged by the suite `errors`.
    """
    here = [(each, folder) for each in known.releases if (folder := each.shipped or cache.cached(each.sha256))]
    names = ["errors measured on", *(QUANTITIES[key].title for key in MEASURED), "uncertainty", "speed"]
    head = ["name", "levels of theory", "elements", "parameters", "size [MB]", *names, "licence", "card"]
    text = _markdown([head, *(_row(release, folder) for release, folder in here)])
    by_set = {f"`{release.name}`": _errors_by_set(_evaluation(folder)) for release, folder in here}
    sets = list(dict.fromkeys(name for errors in by_set.values() for name in errors))
    if not sets:
        return text
    rows = [[name, *(errors.get(each, "–") for each in sets)] for name, errors in by_set.items() if errors]
    return f"{text}\n\n{_markdown([[' / '.join(QUANTITIES[key].title for key in BY_SET_MEASURED), *sets], *rows])}"


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _evaluation(folder: Path) -> Evaluation | None:
    file = folder / checkpoint.EVALUATION
    return Evaluation.from_json(file) if file.is_file() else None


def _errors_by_set(evaluation: Evaluation | None) -> dict[str, str]:
    """Return the errors of forces and energies by set of frames, as the suite `errors` found them."""
    findings = evaluation.suites.get(Errors.name) if evaluation else None
    measured: dict[str, dict[str, str]] = {}
    for name, finding in findings.quantities.items() if findings else ():
        label, _, quantity = name.rpartition(": ")
        for key in BY_SET_MEASURED:
            if quantity == QUANTITIES[key].name:
                value = None if finding.value is None else finding.value / QUANTITIES[key].unit.factor
                measured.setdefault(label, {})[key] = QUANTITIES[key].text(value)
    return {label: " / ".join(each.get(key, "–") for key in BY_SET_MEASURED) for label, each in measured.items()}


def _row(release: Release, folder: Path) -> list[str]:
    found = checkpoint.describe(folder)
    size = sum((folder / name).stat().st_size for name in checkpoint.checksums_in(folder))
    evaluation = _evaluation(folder)
    trust = last_layer.read(folder, found.weights_sha256, len(found.elements))
    areas = (trust.facts.force_area, trust.facts.energy_area) if trust else ()
    card = f"[card](../model_cards/releases/{release.folder}/README.md)" if release.shipped else "–"
    return [
        f"`{release.name}`",
        ", ".join(found.theories),
        str(len(found.elements)),
        f"{found.origin.num_parameters or 0:,}",
        f"{size / 1e6:.1f}",
        evaluation.dataset if evaluation else "–",
        *(QUANTITIES[key].text(evaluation.errors.get(key) if evaluation else None) for key in MEASURED),
        " / ".join("–" if area is None else f"{area:.2f}" for area in areas) or "–",
        _speed(evaluation),
        release.licence,
        card,
    ]


def _speed(evaluation: Evaluation | None) -> str:
    """Return the speed over that of the potential of which a student is alike."""
    suites = evaluation.suites.values() if evaluation else ()
    every = (each for findings in suites for each in findings.quantities.items())
    found = [finding.value for name, finding in every if name.endswith(SPEED) and finding.value is not None]
    return f"{min(found):.1f}" if found else "–"


def write_table(config: TableConfig) -> str:
    """Return the table, and write it into a page.

    Raises:
        ValueError: the page has not the two comments.
    """
    text = table(registry())
    if config.out is not None:
        before, begun, rest = config.out.read_text().partition(BEGIN)
        _, ended, after = rest.partition(END)
        if not begun or not ended:
            raise ValueError(f"{config.out}: the table belongs between two lines, {BEGIN} and {END}")
        durable.write_whole(config.out, f"{before}{BEGIN}\n{text}\n{END}{after}")
    return text


def release_of(name: str) -> Release | None:
    """Return the release of the registry that a name means, or None for a folder or an address."""
    return None if is_address(name) or Path(name).exists() else registry().find(name)


def licence_of(folder: Path) -> str:
    """Return the licence in the card of a release, '' if there is none."""
    file = folder / checkpoint.CARD
    lines = file.read_text().splitlines() if file.is_file() else []
    row = next((line for line in lines if line.startswith("| licence of the weights |")), "")
    return row.strip("| ").rpartition("|")[2].strip()
