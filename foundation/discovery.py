"""Discovery: Matbench Discovery's test set is relaxed, and its submission and metrics are written.

Every structure is relaxed as the benchmark's own scripts do: positions and cell, ASE's FIRE with its FrechetCellFilter.
A potential of this project takes the same steps for many structures at a time.
A stopped command goes on; several processes share the work by `--part`, and the one that finds all structures relaxed
writes the results. A structure that cannot be relaxed stays in every file, without an energy.
"""

import datetime
import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.materials import ID, Material, read_materials
from data_pipeline.store import lock
from data_pipeline.store.untrusted import OpenRecord
from data_pipeline.structure import InvalidStructure
from foundation.evaluation.discovery import (
    combined_score,
    energies_above_hull,
    mean_conductivity_error,
    mean_deviation,
)
from foundation.interop.calculator import DTYPES, AseCalculator, Calculator, tabulate
from foundation.interop.conductivity import MODES, can_conduct, conduct_all, error_of
from foundation.interop.conductivity import WITHOUT as WITHOUT_PHONO3PY
from foundation.interop.conductivity import read_references as read_modes
from foundation.interop.matbench import (
    Reference,
    formation_energy,
    read_summary,
    write_conductivities,
    write_energies,
    write_structures,
)
from foundation.interop.matching import WITHOUT, can_match, deviation
from foundation.interop.relaxations import FOLDER, Relaxed, Relaxer, one_by_one, read_relaxed, relax_all
from foundation.interop.subject import CalculatorSubject
from foundation.kernels.memory import keep_freed_memory
from foundation.naming import Choice, resolve
from foundation.reports.discovery_report import ALL, UNIQUE, DiscoveryRecord, Prediction, stability_of, write_discovery
from foundation.simulation.materials import in_batches
from foundation.simulation.settings import part_of, settled

log = logging.getLogger(__name__)

"""File with the settings of the relaxations in a folder."""
TOLD = 100
"""Number of relaxations between two lines of the log."""
DIGEST = "sha256"


@dataclass(frozen=True, kw_only=True)
class DiscoveryConfig:
    """Structures to relax, references to compare with, and the potential."""

    structures: Path
    """Structures to relax: extended XYZ, a zip of it, or pymatgen's dictionaries in JSON, such as the benchmark's
    wbm-initial-atoms.extxyz.zip."""
    out: Path
    """Folder of the relaxations, the submission and the report."""
    model: Path | None = None
    """Potential: its folder, run or published name."""
    calculator: str | None = None
    """Calculator of another program in place of a model: the module and name of an ASE calculator's class, or of a
    function that returns one. Its module is imported and so run."""
    references: Path | None = None
    """Reference energies: the benchmark's wbm-summary.csv.gz or a table with its columns; None: no formation energies
    and no metrics."""
    relaxed: Path | None = None
    """Structures relaxed by the reference, in a file such as `structures`; None: no deviations of structures."""
    conductivity: Path | None = None
    """Crystals whose thermal conductivity is computed, the benchmark's phononDB-PBE-103-structures.extxyz; None: none.
    It needs phono3py."""
    conductivity_references: Path | None = None
    """Reference conductivities of their modes, the benchmark's kappas-phononDB-PBE-noNAC.json.gz."""
    name: str | None = None
    """Name of the model in file and column names; None: the last part of the model's."""
    id_key: str = ID
    """Entry of a structure with its name."""
    max_force: float = 0.05
    """Largest force at which a relaxation ends [eV/Å]."""
    max_steps: int = 500
    """Largest number of steps of a relaxation."""
    dtype: Literal["float32", "float64"] = "float32"
    """Float type of the network; float32 has tabulated radial functions as well, where the network can."""
    device: str = "cpu"
    """torch's name of the device."""
    theory: str | None = None
    """Level of theory to predict, one of the potential's; None: its only one."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    part: str = "1/1"
    """Share of this process, such as 3/32 for the third of 32: every structure is relaxed by one of them."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.calculator is None):
            raise ValueError("--model NAME or --calculator MODULE:CLASS is needed, and only one of them")
        if self.max_force <= 0 or self.max_steps < 0:
            raise ValueError("max_force must be positive, and max_steps not negative")
        part_of(self.part)


@dataclass(frozen=True, kw_only=True)
class Settings(OpenRecord):
    """Content of settings.json: everything that decides the relaxations in a folder."""

    subject: str
    """Name of the potential or calculator."""
    theory: str | None
    """Level of theory; None: a calculator of another program."""
    weights_sha256: str | None
    """Checksum of the potential's weights; None: a calculator of another program."""
    structures_sha256: str
    """Checksum of the file of structures."""
    max_force: float
    """Largest force at which a relaxation ends [eV/Å]."""
    max_steps: int
    """Largest number of steps."""
    dtype: str
    """Float type of the network."""
    date: str
    """Day of the first relaxation, in the names of the files of the submission."""


def discover(config: DiscoveryConfig) -> DiscoveryRecord | None:
    """Relax a part of the structures and, if it is the last one, write the submission and the report.

    Returns:
        The content of discovery.json; None if other parts are not finished.

    Raises:
        FileNotFoundError: a file, or the potential, is missing.
        CorruptFile: a file of relaxations is damaged.
        InvalidStructure: a file of structures is damaged.
        ValueError: the folder has relaxations with other settings, or the references are of other structures.
        BlockingIOError: another process works on the same part.
    """
    references = {} if config.references is None else read_summary(config.references)
    relaxer, exact, settings = _relaxer(config)
    # the same potential may be named by another path
    free = ("date",) if settings.weights_sha256 is None else ("date", "subject")
    settings = settled(settings, config.out, free=free)
    number, parts = part_of(config.part)
    name = f"{number}-of-{parts}"
    folder = config.out / FOLDER
    began = time.process_time()
    with lock.hold(config.out / f".{name}{lock.NAME}", config.out / FOLDER / name):
        total = relax_all(
            read_materials(config.structures, config.id_key, lambda place: place % parts == number - 1),
            relaxer,
            folder,
            name,
            tell=lambda count: log.info("%d structures are relaxed", count) if count % TOLD == 0 else None,
        )
        conducted = _conducted(config, exact, name, lambda place: place % parts == number - 1)
    seconds = time.process_time() - began
    found = read_relaxed(folder)
    if len(found) < total or not conducted.finished:
        log.info("%d of %d structures are relaxed; other parts are missing", len(found), total)
        return None
    return _written(config, settings, found, references, conducted, seconds)


@dataclass(frozen=True, kw_only=True)
class Conducted:
    """Thermal conductivities of the benchmark's crystals."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row for each crystal, of all processes."""
    finished: bool = True
    """True if no crystal is missing."""
    error: float | None = None
    """Mean error (κ_SRME); None without references."""
    note: str | None = None
    """Reason why something is missing."""


def _conducted(
    config: DiscoveryConfig, calculator: AseCalculator, name: str, chosen: Callable[[int], bool]
) -> Conducted:
    """Compute the conductivities of this process's crystals and return those of all."""
    if config.conductivity is None:
        return Conducted()
    if not can_conduct():
        log.warning("thermal conductivities: %s", WITHOUT_PHONO3PY)
        return Conducted(note=f"thermal conductivities: {WITHOUT_PHONO3PY}")
    crystals = read_materials(config.conductivity, config.id_key, chosen)
    folder = config.out / f"conductivity-{_digest(config.conductivity)[:8]}"
    rows, total = conduct_all(crystals, calculator, folder, name)
    if config.conductivity_references is None:
        return Conducted(rows=rows, finished=len(rows) == total, note="thermal conductivities have no references")
    modes = read_modes(config.conductivity_references)
    errors = [error_of(row, modes[row[ID]]) for row in rows if row[ID] in modes]
    missing = len(rows) - len(errors)
    return Conducted(
        rows=rows,
        finished=len(rows) == total,
        error=mean_conductivity_error(errors) if errors else None,
        note=f"{missing} crystals have no reference conductivity" if missing else None,
    )


def _written(
    config: DiscoveryConfig,
    settings: Settings,
    found: list[Relaxed],
    references: dict[str, Reference],
    conducted: Conducted,
    seconds: float,
) -> DiscoveryRecord:
    """Write the submission and the report, and return the content of discovery.json."""
    word = config.name or Path(settings.subject).name
    name = re.sub(r"[^\w.+-]+", "-", word)
    write_structures(found, config.out / f"{settings.date}-geo-opt.jsonl.gz")
    notes, predictions = [], []
    if references:
        formation = [formation_energy(each, references.get(each.id)) for each in found]
        write_energies(found, formation, name, config.out / f"{settings.date}-discovery.csv.gz")
        predictions = _predictions(found, formation, references)
    else:
        notes.append("without references there are no formation energies: the file discovery.csv.gz is not written")
    deviations, note = _deviations(config, found)
    notes += [each for each in (note, conducted.note) if each]
    if conducted.rows:
        write_conductivities(conducted.rows, config.out / f"{settings.date}-phonons-kappa-103.json.gz")
    metrics = stability_of(predictions)
    headline = metrics.get(UNIQUE, metrics.get(ALL))
    mean = mean_deviation(deviations) if len(deviations) else None
    record = DiscoveryRecord(
        subject=settings.subject,
        theory=settings.theory,
        weights_sha256=settings.weights_sha256,
        max_force=settings.max_force,
        max_steps=settings.max_steps,
        date=settings.date,
        num_materials=len(found),
        num_converged=sum(each.converged for each in found),
        num_steps=sum(each.num_steps for each in found),
        failures={each.id: each.error for each in found if each.error is not None},
        without_reference=tuple(each.id for each in found if references and each.id not in references),
        stability=metrics,
        deviation=mean,
        num_unmatched=int(np.isnan(deviations).sum()),
        conductivity=conducted.error,
        num_conductivities=len(conducted.rows),
        num_without_conductivity=sum(each.get(MODES) is None for each in conducted.rows),
        score=combined_score(headline.f1 if headline else None, conducted.error, mean),
        seconds=seconds,
        notes=tuple(notes),
    )
    write_discovery(record, predictions, config.out)
    return record


def _predictions(found: list[Relaxed], formation: list[float], references: dict[str, Reference]) -> list[Prediction]:
    """Return reference and predicted energies above the hull of the materials that have a reference."""
    pairs = [
        (references[each.id], value) for each, value in zip(found, formation, strict=True) if each.id in references
    ]
    above = energies_above_hull(
        [each.above_hull for each, _ in pairs], [each.formation for each, _ in pairs], [value for _, value in pairs]
    )
    return [
        Prediction(true=reference.above_hull, predicted=float(value), unique=reference.unique)
        for (reference, _), value in zip(pairs, above, strict=True)
    ]


def _deviations(config: DiscoveryConfig, found: list[Relaxed]) -> tuple[Float64[np.ndarray, " crystals"], str | None]:
    """Return the deviation of every structure from its reference, NaN after a failure, and a remark."""
    if config.relaxed is None:
        return np.array([]), None
    if not can_match():
        log.warning("deviations of structures: %s", WITHOUT)
        return np.array([]), f"deviations of structures: {WITHOUT}"
    own = {each.id: each for each in found}
    deviations = {}
    for material in read_materials(config.relaxed, config.id_key):
        assert isinstance(material, Material)
        mine = own.get(material.id)
        if mine is not None and not isinstance(material.structure, InvalidStructure):
            failed = mine.energy is None
            deviations[material.id] = np.nan if failed else deviation(mine.atoms(), to_atoms(material.structure))
    missing = len(own) - len(deviations)
    note = f"{missing} structures have no reference in {config.relaxed.name}" if missing else None
    return np.array(list(deviations.values()), dtype=np.float64), note


def _relaxer(config: DiscoveryConfig) -> tuple[Relaxer, AseCalculator, Settings]:
    """Return what relaxes, the calculator of force constants, and the settings with the day of today."""
    ends = {"max_force": config.max_force, "max_steps": config.max_steps}
    common = {
        "structures_sha256": _digest(config.structures),
        "max_force": config.max_force,
        "max_steps": config.max_steps,
        "date": datetime.date.today().isoformat(),
    }
    if config.calculator is not None:
        subject = CalculatorSubject.named(config.calculator)
        settings = Settings(subject=subject.name, theory=None, weights_sha256=None, dtype="its own", **common)
        return one_by_one(subject.calculator(), **ends), subject.calculator(), settings
    assert config.model is not None
    potential, described = resolve(config.model, config.checkpoint).read()
    theory = potential.theory_number(config.theory)
    settings = Settings(
        subject=str(config.model),
        theory=potential.theories[theory],
        weights_sha256=described.weights_sha256,
        dtype=config.dtype,
        **common,
    )
    exact = Calculator(potential, config.device, "float64", settings.theory)
    potential = potential.to(torch.device(config.device)).cast(DTYPES[config.dtype])
    if config.dtype == "float32":
        tabulate(potential)
    keep_freed_memory()
    return in_batches(potential, theory, **ends), exact, settings


def _digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGEST).hexdigest()
