"""Export: a finished, evaluated run becomes a folder that people can download and trust.

The release holds model.safetensors, config.json, golden.json, README.md (the model card) and SHA256SUMS. It is loaded
back and has to reproduce the golden predictions before it gets its name.
"""

import datetime
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graph import to_graph
from data_pipeline.manifest import open_manifest
from data_pipeline.stream import Frames
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.card import CardFacts, check_facts, render_card
from foundation.potential import Potential
from foundation.theories import keep_theory

GOLDEN = "golden.json"
TOLERANCE = 1e-9
"""Largest difference allowed to the golden energies per atom, forces and stresses in float64, relative to 1 + |value|:
rounding alone may differ between machines."""


class GoldenMismatch(ValueError):
    """A release that does not reproduce its own golden predictions."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to release."""

    run: Path
    """Finished run folder, with potential/ and report/."""
    out: Path
    """Release folder to write; an older release there is replaced once the new one is verified."""
    card: CardFacts | None = None
    """Facts of the model card; those of the run's configuration when absent."""
    data: Path | None = None
    """Manifest to take the golden structures from; the run's own when absent."""
    num_golden: int = 3
    """Structures in golden.json."""
    theory: str | None = None
    """Level of theory to release alone; all of the potential's when absent. The report has to be of this one."""


def export(config: ExportConfig) -> Path:
    """Write a release and return its folder.

    Raises:
        FileExistsError: there is a folder under that name that is not a release.
        FileNotFoundError: the run is not finished, was not evaluated, or its data are gone.
        MissingFact: the model card lacks a fact.
        GoldenMismatch: the exported files do not give back the golden predictions; nothing is left behind.
        ValueError: the report is of other weights or of another level of theory, or the potential has no such level.
    """
    if config.out.exists() and not (config.out / checkpoint.CONFIG).is_file():
        raise FileExistsError(
            f"{config.out} has no config.json, so it is no release and stays as it is; choose another --out"
        )
    source = checkpoint.find(config.run)
    settings = checkpoint.read_config(source)
    provenance = settings["provenance"]
    card = config.card or CardFacts(**provenance["config"].get("card", {}))
    check_facts(card)
    evaluation = _evaluation(config.run, settings["weights_sha256"])
    potential = _released(checkpoint.load(source), config.theory, evaluation)
    structures = _golden_structures(config.data or _first_dataset(provenance), potential, config.num_golden)
    partial = config.out.with_name(config.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if config.theory is None:
            for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
                shutil.copyfile(source / name, partial / name)
        else:
            checkpoint.save(potential, partial, _of_one_theory(potential, settings))
            settings = checkpoint.read_config(partial)
        golden = [golden_record(potential, s, theory) for s in structures for theory in potential.theories]
        (partial / GOLDEN).write_text(json.dumps(golden) + "\n")
        facts = _card_facts(potential, settings, evaluation, len(golden))
        (partial / "README.md").write_text(render_card(card, facts))
        checkpoint.write_checksums(partial)
        verify_golden(partial)
        checkpoint.replace_folder(partial, config.out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return config.out


def _released(potential: Potential, theory: str | None, evaluation: dict) -> Potential:
    """Return what is to be released of a potential."""
    if theory is None:
        return potential
    kept = keep_theory(potential, theory)
    if evaluation.get("theory") != theory:
        raise ValueError(
            f"the report is of {evaluation.get('theory')}; measure the errors of {theory} with `foundation evaluate "
            f"--theory {theory}` to release it"
        )
    return kept


def _of_one_theory(potential: Potential, settings: dict) -> dict:
    """Return the provenance of a potential that one level of theory was kept of."""
    return settings["provenance"] | {
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "kept_of": {"theories": settings["theories"], "weights_sha256": settings["weights_sha256"]},
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


def verify_golden(folder: Path) -> None:
    """Recompute the golden predictions from the files of a release.

    Raises:
        GoldenMismatch: naming the first structure and quantity that differ.
    """
    potential = checkpoint.load(folder)
    for number, record in enumerate(json.loads((folder / GOLDEN).read_text())):
        inputs = {name: record[name] for name in ("numbers", "positions", "cell", "pbc")}
        structure = Structure.checked(**inputs, energy=0.0)
        again = golden_record(potential, structure, record["theory"])
        for name in ("energy", "forces", "stress"):
            expected, found = np.array(record[name]), np.array(again[name])
            if not (np.abs(found - expected) <= TOLERANCE * (structure.num_atoms + np.abs(expected))).all():
                raise GoldenMismatch(
                    f"{folder / GOLDEN}, structure {number}: the {name} recomputed from the exported files differs by "
                    f"{np.abs(found - expected).max():.3g}; the release is not what was trained"
                )


def _first_dataset(provenance: dict) -> Path:
    data = provenance["config"].get("data")
    if data is None:
        raise FileNotFoundError("the potential was not trained here: give the data of its golden structures (--data)")
    return Path(data if isinstance(data, str) else data[0]["path"])


def _evaluation(run: Path, weights_sha256: str) -> dict:
    file = run / "report" / "evaluation.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: a release states its held-out errors; measure them with "
            f"`foundation evaluate --model {run} --data <manifest> --split test`"
        )
    evaluation = json.loads(file.read_text())
    if evaluation["weights_sha256"] != weights_sha256:
        raise ValueError(f"{file}: this report is of other weights; evaluate {run} again")
    return evaluation


def _golden_structures(data: Path, potential: Potential, count: int) -> list[Structure]:
    """Return the first small structures of the test split (or of training, if there is none) that can be predicted."""
    manifest = open_manifest(data)
    split = "test" if manifest.split("test").shards else "train"
    known = set(potential.elements)
    found = [s for s in Frames(manifest, split) if s.num_atoms <= 40 and set(s.numbers.tolist()) <= known]
    if not found:
        raise ValueError(f"{data}: no structure of at most 40 atoms to take golden predictions of; give another --data")
    return found[:count]


def _card_facts(potential: Potential, settings: dict, evaluation: dict, num_golden: int) -> dict:
    provenance, model = settings["provenance"], settings["model"]
    copied = ("datasets", "num_parameters", "versions", "method")
    return {
        **{name: provenance[name] for name in copied},
        "earlier_datasets": provenance.get("start", {}).get("datasets", []),
        "hardware": provenance["hardware"],
        "steps": provenance["config"].get("fit", {}).get("steps"),
        "wall_time_s": provenance.get("wall_time_s"),
        "architecture": f"equivariant network, {model['num_blocks']} blocks of {model['irreps']}, "
        f"spherical harmonics to degree {model['max_degree']}",
        "cutoff": model["cutoff"],
        "theories": potential.theories,
        "elements": [SYMBOLS[z] for z in potential.elements],
        "weights_sha256": settings["weights_sha256"],
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "evaluation": evaluation,
        "errors": evaluation["errors"],
        "num_golden": num_golden,
    }
