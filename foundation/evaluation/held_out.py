"""Errors of a potential on held-out sets, frame by frame, and the files that keep them.

A measurement holds sums for each frame instead of means of each set: every quantity, its interval, and the comparison
with any other potential are computed from these later (foundation/evaluation/comparison.py) without data or weights. It
costs one prediction of every held-out frame, and on disk 8 bytes per frame for each term of QUANTITIES and 16 for each
element.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import UInt8

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store import durable
from data_pipeline.store.json_record import parse_json
from data_pipeline.store.untrusted import CorruptFile, Layout, check_layout, read_layout, refusing, typed
from foundation.checkpoint import weights_sha256
from foundation.evaluation.frame_errors import FrameErrors
from foundation.evaluation.predictions import predict
from foundation.evaluation.quantities import ENERGY_SUM, FRAMES
from foundation.potential import Potential

Role = Literal["target", "retained", "transfer"]
"""Role of a set: learned in the fine-tuning (target), known before and to be kept (retained), or neither (transfer)."""
ROLES: tuple[Role, ...] = ("target", "retained", "transfer")
"""The roles, in the order of a report."""

BEFORE, AFTER = "before.safetensors", "after.safetensors"
"""Files with the measurements of the start and of the result in the folder of a report."""
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An opened held-out set."""

    name: str
    """Name in reports."""
    role: Role
    """Role in a comparison."""
    dataset: Dataset
    """Data set, split and number of the level of theory to predict."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SetErrors:
    """Errors of a potential on a held-out set."""

    name: str
    """Name of the set in reports."""
    role: Role
    """Role in a comparison."""
    split: str
    """Split of the data set."""
    fingerprint: str
    """Fingerprint of the data set's manifest."""
    theory: str
    """Level of theory of the predictions."""
    num_skipped: int
    """Number of frames left out because the potential does not know an element."""
    errors: FrameErrors
    """Sums by frame."""


@dataclass(frozen=True, kw_only=True)
class _SetFacts:
    """Facts of a set in the header of a file."""

    name: str
    role: Role
    split: str
    fingerprint: str
    theory: str
    num_skipped: int
    elements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Facts in the header of a file."""

    schema_version: int
    weights_sha256: str
    sets: tuple[_SetFacts, ...]
    terms: tuple[str, ...]
    element_terms: tuple[str, ...]


OLD_TERMS = (
    "energy_error",
    "force_sum",
    "force_count",
    "force_product",
    "force_square",
    "stress_sum",
    "stress_count",
)
"""Terms of files of schema 1, which does not name them."""
OLD_ELEMENT_ARRAYS = {"force_sum": "element_sum", "force_count": "element_count"}
"""Names of the arrays of terms by element in files of schema 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Errors of one potential on all held-out sets."""

    weights_sha256: str
    """Checksum of the potential's weights, as in its config.json."""
    sets: dict[str, SetErrors]
    """Errors on each set, by its name."""


def measure(potential: Potential, held_out: Sequence[HeldOut], *, edge_budget: int) -> Measurement:
    """Predict every frame of the held-out sets once; frames with unknown elements are left out and counted.

    Raises:
        ValueError: a set has no frame whose elements are all known to the potential.
    """
    sets = {item.name: _measure_set(potential, item, edge_budget) for item in held_out}
    return Measurement(weights_sha256=weights_sha256(potential), sets=sets)


def _measure_set(potential: Potential, item: HeldOut, edge_budget: int) -> SetErrors:
    dataset = item.dataset
    theory = dataset.theory_number
    predictions = predict(potential, dataset.manifest, dataset.split, edge_budget=edge_budget, theory=theory)
    return SetErrors(
        name=item.name,
        role=item.role,
        split=dataset.split,
        fingerprint=dataset.manifest.fingerprint,
        theory=potential.theories[theory],
        num_skipped=predictions.num_skipped,
        errors=predictions.errors(),
    )


def save(measurement: Measurement, path: Path) -> None:
    """Write a measurement as safetensors with its facts in the header; the file appears only when it is complete.

    Raises:
        ValueError: the sets have different terms.
    """
    named = {(tuple(each.errors.sums), tuple(each.errors.of_elements)) for each in measurement.sets.values()}
    if len(named) > 1:
        raise ValueError("held-out sets with different terms cannot be in one file")
    terms, element_terms = next(iter(named), ((), ()))
    names = ("name", "role", "split", "fingerprint", "theory", "num_skipped")
    facts = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": measurement.weights_sha256,
        "terms": terms,
        "element_terms": element_terms,
        "sets": [
            {name: getattr(each, name) for name in names} | {"elements": each.errors.elements}
            for each in measurement.sets.values()
        ],
    }
    arrays: dict[str, np.ndarray] = {}
    for number, each in enumerate(measurement.sets.values()):
        errors = each.errors
        arrays[f"{number}.ids"] = np.frombuffer(json.dumps(errors.ids).encode(), dtype=np.uint8)
        arrays[f"{number}.num_atoms"] = errors.num_atoms
        arrays |= {f"{number}.{term}": sums for term, sums in errors.sums.items()}
        arrays |= {f"{number}.by_element.{term}": sums for term, sums in errors.of_elements.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with durable.whole_file(path) as partial:
        partial.write_bytes(safetensors.numpy.save(whole, metadata={"facts": json.dumps(facts, sort_keys=True)}))


def read(path: Path) -> Measurement:
    """Return the measurement of a file; load() also checks its potential and sets.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: it is not a measurement, or was written by a newer version of the program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no measurement there; a fine-tuning writes it into forgetting/ when it ends")
    with refusing(path, CorruptFile, "not a measurement of held-out errors ({}); make it again"):
        layout, header = read_layout(path)
        values = typed(dict[str, Any], parse_json(header["facts"].encode()), "facts")
        version = typed(int, values["schema_version"], "schema_version")
        if version > SCHEMA_VERSION:
            newer = f"schema {version} is newer than this program's {SCHEMA_VERSION}"
            raise CorruptFile(f"{path}: {newer}; update it")
        if version == 1:
            values |= {"terms": list(OLD_TERMS), "element_terms": list(OLD_ELEMENT_ARRAYS)}
        facts = typed(_Facts, values, "")
        if version > 1 and facts.sets and not {FRAMES.name, ENERGY_SUM.name} <= {*facts.terms}:
            raise ValueError(f"without the terms {FRAMES.name} and {ENERGY_SUM.name}")
        check_layout(layout, _expected(facts, layout))
        arrays = safetensors.numpy.load_file(path)
        sets = [_set_errors(number, facts, arrays) for number in range(len(facts.sets))]
    return Measurement(weights_sha256=facts.weights_sha256, sets={errors.name: errors for errors in sets})


def _element_array(facts: _Facts, term: str) -> str:
    """Return the name of the array of a term by element in a file."""
    return OLD_ELEMENT_ARRAYS[term] if facts.schema_version == 1 else f"by_element.{term}"


def _expected(facts: _Facts, layout: Layout) -> Layout:
    """Return type and shape of the arrays of a file; their rows give the expected number of names."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for number, row in enumerate(facts.sets):
        (frames, *_), (length, *_) = (
            (*layout.get(f"{number}.{name}", (None, ()))[1], 0) for name in ("num_atoms", "ids")
        )
        expected[f"{number}.ids"] = (torch.uint8, (length,))
        for name in ("num_atoms", *facts.terms):
            expected[f"{number}.{name}"] = (torch.float64, (frames,))
        for term in facts.element_terms:
            expected[f"{number}.{_element_array(facts, term)}"] = (torch.float64, (frames, len(row.elements)))
    return expected


def _set_errors(number: int, facts: _Facts, arrays: Mapping[str, np.ndarray]) -> SetErrors:
    row = dict(vars(facts.sets[number]))
    ids: UInt8[np.ndarray, " bytes"] = arrays[f"{number}.ids"]
    names, num_atoms = typed(tuple[str, ...], parse_json(ids.tobytes()), f"{number}.ids"), arrays[f"{number}.num_atoms"]
    if len(names) != len(num_atoms):
        raise ValueError(f"{number}.ids has {len(names)} names of {len(num_atoms)} frames")
    sums = {term: arrays[f"{number}.{term}"] for term in facts.terms}
    if facts.schema_version == 1:
        error = sums.pop("energy_error")
        sums |= {"frames": np.ones_like(error), "energy_sum": np.abs(error), "energy_square": error**2}
    errors = FrameErrors(
        ids=names,
        num_atoms=num_atoms,
        elements=row.pop("elements"),
        sums=sums,
        of_elements={term: arrays[f"{number}.{_element_array(facts, term)}"] for term in facts.element_terms},
    )
    return SetErrors(errors=errors, **row)


def load(path: Path, potential: Potential, held_out: Sequence[HeldOut]) -> Measurement:
    """Return the measurement of a file, if it belongs to a potential and contains the sets.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it belongs to other weights, lacks a set, or has it from other data; the message says which.
    """
    measured = read(path)
    ours = weights_sha256(potential)
    if measured.weights_sha256 != ours:
        raise ValueError(
            f"{path} was measured of the weights {measured.weights_sha256[:12]}… and not of the start's, "
            f"{ours[:12]}…: leave forgetting.before out"
        )
    advice = "name the sets as there, or measure the start again (without this file or forgetting.before)"
    for item in held_out:
        expected = {
            "split": item.dataset.split,
            "fingerprint": item.dataset.manifest.fingerprint,
            "theory": potential.theories[item.dataset.theory_number],
            "role": item.role,
        }
        if item.name not in measured.sets:
            raise ValueError(f"{path} has no held-out set {item.name!r}, only {', '.join(measured.sets)}: {advice}")
        found = {name: getattr(measured.sets[item.name], name) for name in expected}
        differ = [f"{name} {found[name]} there, {here} here" for name, here in expected.items() if found[name] != here]
        if differ:
            raise ValueError(f"{path} measured another held-out set {item.name!r}: {'; '.join(differ)}: {advice}")
    return Measurement(weights_sha256=ours, sets={item.name: measured.sets[item.name] for item in held_out})
