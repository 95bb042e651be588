"""Export of a finished, evaluated run as a release folder.

The release holds model.safetensors, config.json, golden.json, README.md (the model card), SHA256SUMS, and what protects
it in fine-tunings, if the run's potential carries that. It is loaded back and must reproduce the golden predictions
before it gets its name.
"""

import datetime
import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.datasets import Frames
from data_pipeline.store import durable, lock
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.store.manifest import Provenance as DataProvenance
from data_pipeline.store.untrusted import read_json, refusing, require, typed
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.checkpoint import Description
from foundation.evaluation.held_out import read
from foundation.finetuning.protection import copy_into as protection_into
from foundation.naming import resolve
from foundation.potential import Potential
from foundation.provenance import FINE_TUNING, DataRecord, Interpolated, Provenance
from foundation.reports.card import CardFacts, check_facts, render_card
from foundation.reports.card_of_fine_tuning import card_section
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.forgetting_report import curve_file, curve_files
from foundation.reports.suite_table import suite_table
from foundation.run_folder import PROTECTION
from foundation.surgery.theories import keep_theory
from foundation.surgery.weight_interpolation import interpolate

log = logging.getLogger(__name__)

MAX_GOLDEN_ATOMS = 40
"""Largest number of atoms of a structure that may be one of several golden ones."""
TOLERANCE = 1e-9
"""Largest allowed difference from the golden energies per atom, forces and stresses in float64, relative to 1 +
|value|: only rounding may differ between machines."""


class GoldenMismatch(ValueError):
    """A release that does not reproduce its own golden predictions."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Run to release, and options."""

    run: Path
    """Finished run folder, with potential/ and report/, or forgetting/ if it is a fine-tuning."""
    out: Path
    """Release folder to write; an older release there is replaced once the new one is verified."""
    card: CardFacts | None = None
    """Facts of the model card; None: those of the run's configuration."""
    data: Path | None = None
    """Manifest for the golden structures; None: the run's own or, for a fine-tuning whose target has only large
    structures or no licence to pass them on, a retained or rehearsed set."""
    num_golden: int = 3
    """Number of structures of up to 40 atoms in golden.json; if all are larger, it gets only the smallest."""
    theory: str | None = None
    """Level of theory to release alone, which must be that of the report; None: all of the potential's."""
    alpha: float = 1.0
    """Position between the start (0) and the result (1) of a fine-tuning, one of the run's forgetting.alphas."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 (the start) and at most 1 (the result), not {self.alpha}")
        if self.num_golden < 1:
            raise ValueError(f"num_golden must be at least 1, not {self.num_golden}: a release is verified with them")


def export(config: ExportConfig) -> Path:
    """Write a release and return its folder.

    Raises:
        FileExistsError: the folder exists and is not a release, or holds other files too.
        FileNotFoundError: the run is not finished, was not evaluated (at alpha), or its data or start are gone.
        MissingFact: the model card lacks a fact.
        CorruptCheckpoint: the run's potential is damaged, or lacks its provenance.
        GoldenMismatch: the exported files do not reproduce the golden predictions; nothing is left behind.
        ValueError: the report belongs to other weights or another level of theory, the potential has no such level, no
            data for golden structures may be passed on, or alpha is given for a run that is not a fine-tuning.
        InUse: another process writes a release there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        return _export(config)


def _export(config: ExportConfig) -> Path:
    checkpoint.refuse_to_replace(config.out, "release")
    source = checkpoint.find(config.run)
    described = checkpoint.describe(source)
    with refusing(source / checkpoint.CONFIG, checkpoint.CorruptCheckpoint):
        needed = ("config", "method", "datasets", "num_parameters", "versions", "hardware")
        require(described.provenance, needed)
        card = config.card or CardFacts(**described.origin.card)
        _ = described.origin.run
    check_facts(card)
    potential = checkpoint.load(source)
    if config.alpha != 1:
        potential, described = _interpolated(config, potential, described)
    if config.theory is not None:
        potential = keep_theory(potential, config.theory)
    measured = _measured(config, described)
    golden_of, structures = _golden_structures(_golden_sources(config, described.origin), potential, config.num_golden)
    with durable.whole_folder(lock.real(config.out)) as partial:
        if config.theory is None and config.alpha == 1:
            for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
                shutil.copyfile(source / name, partial / name)
            protection = protection_into(partial, source, described)
        else:
            made_from = described.provenance if config.theory is None else _of_one_theory(potential, described)
            # a protection belongs to the weights of the run
            checkpoint.write_into(partial, potential, {k: v for k, v in made_from.items() if k != PROTECTION})
            described, protection = checkpoint.describe(partial), ""
        golden = [golden_record(potential, s, theory) for s in structures for theory in potential.theories]
        (partial / checkpoint.GOLDEN).write_text(json.dumps(golden) + "\n")
        facts = _card_facts(potential, described) | measured
        facts |= {"num_golden": len(structures), "golden_of": asdict(golden_of)}
        (partial / checkpoint.CARD).write_text(render_card(card, facts) + protection)
        checkpoint.write_checksums(partial)
        verify_golden(partial)
    return config.out


def _interpolated(config: ExportConfig, tuned: Potential, described: Description) -> tuple[Potential, Description]:
    """Return the potential at alpha between the start and the result of a fine-tuning, as measured by the run.

    Raises:
        FileNotFoundError: nothing was measured at alpha, or the start is gone.
        ValueError: the run is not a fine-tuning, or the potential at alpha is not the measured one.
    """
    run, alpha = config.run, config.alpha
    if described.origin.method != FINE_TUNING:
        raise ValueError(f"--alpha needs a fine-tuning run, and {run} is not one")
    file = curve_file(run / "forgetting", alpha)
    if not file.is_file():
        there = ", ".join(f"{each:g}" for each in curve_files(run / "forgetting")) or "none"
        raise FileNotFoundError(
            f"{file}: the run has not measured alpha {alpha:g} (measured: {there}); name it in "
            "forgetting.alphas and fine-tune again"
        )
    start = Path(described.origin.start.folder)
    potential = interpolate(resolve(start).load(), tuned, alpha)
    sha256 = checkpoint.weights_sha256(potential)
    if read(file).weights_sha256 != sha256:
        raise ValueError(
            f"{file}: the potential at alpha {alpha:g} between {start} and {run} is not the measured one: another "
            "potential is there now, or the run gave the start other reference energies"
        )
    between = Interpolated(alpha=alpha, weights_sha256=described.weights_sha256)
    provenance = described.provenance | {"interpolated": asdict(between)}
    return potential, replace(described, weights_sha256=sha256, provenance=provenance)


def _measured(config: ExportConfig, described: Description) -> dict:
    """Return the held-out errors for the card: before and after for a fine-tuning, else the evaluation."""
    sha256 = described.weights_sha256
    if described.origin.method == FINE_TUNING:
        section = card_section(config.run, described.origin, sha256, config.theory, config.alpha)
        return {"finetuning": section}
    evaluation = _evaluation(config.run, sha256)
    if config.theory is not None and evaluation.theory != config.theory:
        raise ValueError(
            f"the report is for {evaluation.theory}; measure the errors of {config.theory} with `foundation "
            f"evaluate --theory {config.theory}` to release it"
        )
    suites = suite_table(evaluation.suites) if evaluation.suites else None
    return {"evaluation": evaluation, "errors": evaluation.errors, "suites": suites}


def _of_one_theory(potential: Potential, described: Description) -> dict:
    """Return the provenance of a potential reduced to one level of theory."""
    return described.provenance | {
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "kept_of": {"theories": described.theories, "weights_sha256": described.weights_sha256},
    }


def golden_record(potential: Potential, structure: Structure, theory: str) -> dict:
    """Return a structure with its predictions in float64 as JSON: energy [eV], forces [eV/Å], stress [eV/Å³]."""
    dtype, number = potential.dtype, potential.theory_number(theory)
    prediction = potential.cast(torch.float64)(to_graph(structure, potential.cutoff, torch.float64, number))
    potential.cast(dtype)
    return {
        "theory": theory,
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist(),
        "pbc": structure.pbc.tolist(),
        "energy": float(prediction.energy),
        "forces": prediction.forces.tolist(),
        "stress": prediction.stress[0].tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class _Golden:
    """A structure with its predictions in golden.json."""

    theory: str
    numbers: list[int]
    positions: list[tuple[float, float, float]]
    cell: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    pbc: tuple[bool, bool, bool]
    energy: float
    forces: list[tuple[float, float, float]]
    stress: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


def verify_golden(folder: Path) -> None:
    """Recompute the golden predictions from the files of a release.

    Raises:
        CorruptCheckpoint: a file of the release is damaged.
        GoldenMismatch: one differs; the message names structure and quantity.
    """
    potential, file = checkpoint.load(folder), folder / checkpoint.GOLDEN
    with refusing(file, checkpoint.CorruptCheckpoint, let_through=GoldenMismatch):
        golden = typed(list[_Golden], read_json(file), "golden")
        if not golden:
            raise ValueError("no structure")
        for number, record in enumerate(golden):
            structure = Structure.checked(
                numbers=np.array(record.numbers),
                positions=np.array(record.positions),
                cell=np.array(record.cell),
                pbc=np.array(record.pbc),
                energy=0.0,
            )
            again = golden_record(potential, structure, record.theory)
            for name in ("energy", "forces", "stress"):
                expected, found = np.array(getattr(record, name)), np.array(again[name])
                if expected.shape != found.shape:
                    raise ValueError(f"structure {number} has {name} of shape {expected.shape}")
                if not (np.abs(found - expected) <= TOLERANCE * (structure.num_atoms + np.abs(expected))).all():
                    raise GoldenMismatch(
                        f"{file}, structure {number}: the {name} recomputed from the exported files differs by "
                        f"{np.abs(found - expected).max():.3g}; the release is not the trained potential"
                    )


def _golden_sources(config: ExportConfig, origin: Provenance) -> list[tuple[Path, str | None]]:
    """Return the manifests and splits for golden structures, the best first."""
    if config.data is not None:
        return [(config.data, None)]
    run = origin.run
    if run.data is None:
        raise FileNotFoundError("the potential was not trained here: give the data of its golden structures (--data)")
    found: list[tuple[Path, str | None]] = [(path, None) for path in _paths(run.data)]
    found += [(Path(each.path), each.split) for each in run.forgetting.retained]
    rehearsed = run.rehearsal
    return found + ([(path, rehearsed.split) for path in _paths(rehearsed.data or ())] if rehearsed else [])


def _paths(data: str | Sequence[DataRecord]) -> list[Path]:
    """Return the manifests of the data in the record of a run: one, or several data sets."""
    return [Path(data)] if isinstance(data, str) else [Path(each.path) for each in data]


def _evaluation(run: Path, weights_sha256: str) -> Evaluation:
    file = run / "report" / "evaluation.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: a release states its held-out errors; measure them with "
            f"`foundation evaluate --model {run} --data <manifest> --split test`"
        )
    evaluation = Evaluation.from_json(file)
    if evaluation.weights_sha256 != weights_sha256:
        raise ValueError(f"{file}: this report belongs to other weights; evaluate {run} again")
    return evaluation


def _golden_structures(
    sources: Sequence[tuple[Path, str | None]], potential: Potential, count: int
) -> tuple[DataProvenance, list[Structure]]:
    """Return golden structures and their provenance: small ones of the first data that have any, else the smallest.

    A split of None means test, or train without one. A release is passed on, so data that must not be are left out.
    """
    found: list[tuple[DataProvenance, list[Structure]]] = []
    for path, split in sources:
        manifest = open_manifest(path)
        if not manifest.provenance.redistributable:
            name, licence = manifest.provenance.name, manifest.provenance.licence
            log.info("no golden structures are taken from %s because of its licence: %r", name, licence)
            continue
        split = split or ("test" if manifest.split("test").shards else "train")
        structures = _smallest(manifest, split, potential, count)
        if structures:
            found.append((manifest.provenance, structures))
            if structures[0].num_atoms <= MAX_GOLDEN_ATOMS:
                break
    if not found:
        places = ", ".join(str(path) for path, _ in sources)
        raise ValueError(
            f"{places}: no structure that the potential can predict and whose licence allows copying into a release "
            "as a golden structure; give another --data"
        )
    provenance, structures = min(found, key=lambda each: max(MAX_GOLDEN_ATOMS, each[1][0].num_atoms))
    sizes = ", ".join(str(structure.num_atoms) for structure in structures)
    log.info("golden structures are from %s, with %s atoms", provenance.name, sizes)
    return provenance, structures


def _smallest(manifest: Manifest, split: str, potential: Potential, count: int) -> list[Structure]:
    """Return the first small structures of a split that can be predicted, else only the smallest one, if any."""
    frames, known = Frames(manifest, split), set(potential.elements)
    if not len(frames):
        return []
    num_atoms, _ = frames.index.counts(0, len(frames))
    order = np.argsort(np.maximum(num_atoms, MAX_GOLDEN_ATOMS), kind="stable")
    each = (frames[number] for number in order.tolist())
    found = list(itertools.islice((s for s in each if set(s.numbers.tolist()) <= known), count))
    return [structure for structure in found if structure.num_atoms <= MAX_GOLDEN_ATOMS] or found[:1]


def _card_facts(potential: Potential, described: Description) -> dict:
    origin = described.origin
    return {
        "datasets": list(origin.datasets),
        "num_parameters": origin.num_parameters,
        "versions": origin.versions,
        "method": origin.method,
        "rehearsed_datasets": list(origin.rehearsed),
        "earlier_datasets": list(origin.start.datasets),
        "hardware": origin.hardware,
        "steps": origin.run.fit.steps,
        "wall_time_s": origin.wall_time_s,
        "architecture": potential.network.describe(),
        "cutoff": potential.cutoff,
        "theories": potential.theories,
        "elements": [SYMBOLS[z] for z in potential.elements],
        "weights_sha256": described.weights_sha256,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
