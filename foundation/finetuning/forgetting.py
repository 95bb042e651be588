"""What a potential forgets and learns in fine-tuning: its errors on held-out sets, frame by frame, before and after.

A measurement keeps sums for each frame instead of the means of each set: every statistic, its interval, and the
comparison with any other run are computed from these later (foundation/finetuning/comparison.py) without the data or
the weights. It costs one prediction of every held-out frame, and on disk 80 bytes a frame and 16 for each element.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Float64, UInt8

from data_pipeline.json_record import parse_json
from data_pipeline.manifest import open_manifest
from data_pipeline.stream import Dataset
from data_pipeline.structure import SYMBOLS
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.errors import Errors, compute_errors
from foundation.finetuning.fisher import weights_sha256
from foundation.potential import Potential
from foundation.theories import theory_of_data
from foundation.untrusted import CorruptFile, Layout, check_layout, read_layout, refusing, typed

Role = Literal["target", "retained", "transfer"]
"""What is adapted to, what was known before and has to stay known, and what was neither."""
ROLES: tuple[Role, ...] = ("target", "retained", "transfer")
"""The roles, in the order of a report."""

SCHEMA_VERSION = 1
BEFORE, AFTER = "before.safetensors", "after.safetensors"
"""Files of the measurements of the start and of the result in the folder of a report."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """A held-out split of a data set."""

    path: Path = field(metadata=MAY_CHANGE)
    """Manifest, or its folder."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split to predict."""
    theory: str | None = field(default=None, metadata=MAY_CHANGE)
    """Level of theory to predict, one of the potential's; when absent the one that the data set is described as, or the
    only one there is."""
    name: str | None = field(default=None, metadata=MAY_CHANGE)
    """What the report calls it; the data set's name when absent."""


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig:
    """What a fine-tuning is measured on, before and after."""

    target: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of what is adapted to; when empty, the test split of the fine-tuning's own data, or else val."""
    retained: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of the pretraining, which are in no rehearsal and no Fisher either."""
    transfer: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Data of neither, such as another temperature or a related chemistry."""
    alphas: tuple[float, ...] = field(default=(), metadata=MAY_CHANGE)
    """Interpolations of the weights between the start (0) and the result (1) that are measured as well."""
    edge_budget: int = field(default=20000, metadata=MAY_CHANGE)
    """Directed edges of a batch; a larger structure is a batch of its own."""
    before: Path | None = field(default=None, metadata=MAY_CHANGE)
    """forgetting/ folder of an earlier run from the same start with the same sets, whose measurement of the start is
    taken over instead of made again."""

    def __post_init__(self) -> None:
        outside = [alpha for alpha in self.alphas if not 0 < alpha < 1]
        if outside:
            raise ValueError(
                f"forgetting.alphas has {', '.join(map(str, outside))}: they lie between 0 (the start) and 1 (the "
                "result), which are measured anyway"
            )
        if self.edge_budget < 1:
            raise ValueError(f"forgetting.edge_budget must be positive, not {self.edge_budget}")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An opened held-out set."""

    name: str
    """What the report calls it."""
    role: Role
    """What it stands for."""
    dataset: Dataset
    """Data set, split and number of the level of theory to predict."""


def held_out_sets(config: ForgettingConfig, potential: Potential) -> list[HeldOut]:
    """Open the held-out sets of a fine-tuning: targets, then retained, then transfer.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: no such split, two sets of one name, or it has to be said which of several levels of theory to
            predict.
    """
    opened: list[HeldOut] = []
    chosen: Iterator[tuple[Role, HeldOutConfig]] = ((role, item) for role in ROLES for item in getattr(config, role))
    for role, item in chosen:
        manifest = open_manifest(item.path)
        manifest.split(item.split)  # refused here, not after hours of training
        theory = theory_of_data(potential, manifest.provenance.level_of_theory, item.theory)
        name = item.name or manifest.provenance.name
        if name in [other.name for other in opened]:
            raise ValueError(f"forgetting: two held-out sets are called {name!r}; give one of them another `name`")
        opened.append(
            HeldOut(name=name, role=role, dataset=Dataset(manifest=manifest, split=item.split, theory=theory))
        )
    return opened


@dataclass(frozen=True, kw_only=True, eq=False)
class SetErrors:
    """Errors of a potential on a held-out set, as sums for each frame; frames are in order of their ids."""

    name: str
    """What the report calls the set."""
    role: Role
    """What it stands for."""
    split: str
    """Split of the data set."""
    fingerprint: str
    """Fingerprint of the data set's manifest."""
    theory: str
    """Level of theory that was predicted."""
    num_skipped: int
    """Frames left out because the potential does not know an element."""
    elements: tuple[str, ...]
    """Symbols of the elements that have forces, in order of atomic number."""
    ids: tuple[str, ...]
    """Names of the frames."""
    num_atoms: Float64[np.ndarray, " frames"]
    """Atoms of each frame."""
    energy_error: Float64[np.ndarray, " frames"]
    """Prediction less label, per atom [eV]."""
    force_sum: Float64[np.ndarray, " frames"]
    """Sum of the absolute errors of the force components [eV/Å]."""
    force_count: Float64[np.ndarray, " frames"]
    """Number of force components; zero without forces."""
    force_product: Float64[np.ndarray, " frames"]
    """Σ F_label·F_predicted [eV²/Å²]."""
    force_square: Float64[np.ndarray, " frames"]
    """Σ |F_label|² [eV²/Å²]."""
    stress_sum: Float64[np.ndarray, " frames"]
    """Sum of the absolute errors of the nine stress components [eV/Å³]."""
    stress_count: Float64[np.ndarray, " frames"]
    """Number of stress components; zero without a stress."""
    element_sum: Float64[np.ndarray, "frames elements"]
    """As force_sum, of the atoms of each element."""
    element_count: Float64[np.ndarray, "frames elements"]
    """As force_count, of the atoms of each element."""


@dataclass(frozen=True, kw_only=True)
class _SetFacts:
    """The fields of SetErrors that are JSON as they are."""

    name: str
    role: Role
    split: str
    fingerprint: str
    theory: str
    num_skipped: int
    elements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """The facts in the header of a measurement."""

    schema_version: int
    weights_sha256: str
    sets: tuple[_SetFacts, ...]


FACT_NAMES = ("name", "role", "split", "fingerprint", "theory", "num_skipped", "elements")
"""Fields of SetErrors that are JSON as they are."""
ARRAY_NAMES = (
    "num_atoms",
    "energy_error",
    "force_sum",
    "force_count",
    "force_product",
    "force_square",
    "stress_sum",
    "stress_count",
    "element_sum",
    "element_count",
)
"""Fields of SetErrors that are arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Errors of one potential on all held-out sets."""

    weights_sha256: str
    """Checksum of the potential's weights, the one in its config.json."""
    sets: dict[str, SetErrors]
    """Errors on each set, by its name."""


def measure(potential: Potential, held_out: Sequence[HeldOut], *, edge_budget: int) -> Measurement:
    """Predict every frame of the held-out sets once; frames with an element that is unknown are left out and counted.

    Raises:
        ValueError: a set has no frames that the potential knows all elements of.
    """
    training = potential.training
    try:
        sets = {item.name: _measure_set(potential, item, edge_budget) for item in held_out}
    finally:
        potential.train(training)
    return Measurement(weights_sha256=weights_sha256(potential), sets=sets)


def _measure_set(potential: Potential, item: HeldOut, edge_budget: int) -> SetErrors:
    dataset = item.dataset
    theory = dataset.theory_number
    errors = compute_errors(potential, dataset.manifest, dataset.split, edge_budget=edge_budget, theory=theory)
    order = np.argsort(np.array(errors.ids), kind="stable")
    sums: dict[str, Any] = {name: values[order] for name, values in frame_sums(errors).items()}
    return SetErrors(
        name=item.name,
        role=item.role,
        split=dataset.split,
        fingerprint=dataset.manifest.fingerprint,
        theory=potential.theories[theory],
        num_skipped=errors.num_skipped,
        elements=tuple(SYMBOLS[z] for z in np.unique(errors.numbers)),
        ids=tuple(errors.ids[place] for place in order),
        **sums,
    )


def frame_sums(errors: Errors) -> dict[str, Float64[np.ndarray, "frames ..."]]:
    """Return the arrays of SetErrors, frames in the order that they have in the errors."""
    count, label, predicted = len(errors.ids), errors.forces[:, 0], errors.forces[:, 1]
    frames = np.repeat(np.arange(count), errors.num_atoms * errors.has_forces)
    absolute = np.abs(predicted - label).sum(axis=1)
    elements, column = np.unique(errors.numbers, return_inverse=True)
    places, size = frames * len(elements) + column, count * len(elements)
    stress_sum = np.zeros(count)
    stress_sum[errors.has_stress] = np.abs(errors.stress[:, 1] - errors.stress[:, 0]).sum(axis=(1, 2))
    sums = {
        "num_atoms": errors.num_atoms,
        "energy_error": errors.energy[:, 1] - errors.energy[:, 0],
        "force_sum": np.bincount(frames, absolute, count),
        "force_count": 3 * errors.num_atoms * errors.has_forces,
        "force_product": np.bincount(frames, (label * predicted).sum(axis=1), count),
        "force_square": np.bincount(frames, (label**2).sum(axis=1), count),
        "stress_sum": stress_sum,
        "stress_count": 9 * errors.has_stress,
        "element_sum": np.bincount(places, absolute, size).reshape(count, -1),
        "element_count": 3 * np.bincount(places, minlength=size).reshape(count, -1),
    }
    return {name: values.astype(np.float64) for name, values in sums.items()}


def save(measurement: Measurement, path: Path) -> None:
    """Write a measurement as safetensors with its facts in the header; the file appears only when it is complete."""
    facts: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "weights_sha256": measurement.weights_sha256}
    facts["sets"] = [{name: getattr(errors, name) for name in FACT_NAMES} for errors in measurement.sets.values()]
    arrays: dict[str, np.ndarray] = {}
    for number, errors in enumerate(measurement.sets.values()):
        arrays |= {f"{number}.{name}": np.ascontiguousarray(getattr(errors, name)) for name in ARRAY_NAMES}
        arrays[f"{number}.ids"] = np.frombuffer(json.dumps(errors.ids).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file(arrays, partial, metadata={"facts": json.dumps(facts, sort_keys=True)})
    os.replace(partial, path)


def read(path: Path) -> Measurement:
    """Return the measurement of a file; see load() for whether it is of a certain potential and certain sets.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it is no measurement, or was written by a newer version of the program.
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
        facts = typed(_Facts, values, "")
        check_layout(layout, _expected(facts, layout))
        arrays = safetensors.numpy.load_file(path)
        sets = [_set_errors(number, row, arrays) for number, row in enumerate(facts.sets)]
    return Measurement(weights_sha256=facts.weights_sha256, sets={errors.name: errors for errors in sets})


def _expected(facts: _Facts, layout: Layout) -> Layout:
    """Return type and shape of the arrays of a file: as many rows as the names of the frames will have to be."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for number, row in enumerate(facts.sets):
        (frames, *_), (length, *_) = (
            (*layout.get(f"{number}.{name}", (None, ()))[1], 0) for name in ("num_atoms", "ids")
        )
        for name in ARRAY_NAMES:
            columns = (len(row.elements),) if name.startswith("element_") else ()
            expected[f"{number}.{name}"] = (torch.float64, (frames, *columns))
        expected[f"{number}.ids"] = (torch.uint8, (length,))
    return expected


def _set_errors(number: int, facts: _SetFacts, arrays: dict[str, np.ndarray]) -> SetErrors:
    ids: UInt8[np.ndarray, " bytes"] = arrays[f"{number}.ids"]
    parts: dict[str, Any] = {name: arrays[f"{number}.{name}"] for name in ARRAY_NAMES}
    names = typed(tuple[str, ...], parse_json(ids.tobytes()), f"{number}.ids")
    if len(names) != len(parts["num_atoms"]):
        raise ValueError(f"{number}.ids has {len(names)} names of {len(parts['num_atoms'])} frames")
    return SetErrors(ids=names, **vars(facts), **parts)


def load(path: Path, potential: Potential, held_out: Sequence[HeldOut]) -> Measurement:
    """Return the measurement of a file, if it is of a potential and has the sets.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of other weights, or lacks a set, or has it from other data; the message says which.
    """
    measured = read(path)
    ours = weights_sha256(potential)
    if measured.weights_sha256 != ours:
        raise ValueError(
            f"{path} was measured of the weights {measured.weights_sha256[:12]}… and not of the start's, "
            f"{ours[:12]}…: leave forgetting.before out"
        )
    advice = "name the sets as there, or let the start be measured again (without this file or forgetting.before)"
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
