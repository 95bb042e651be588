"""A potential as a folder: config.json and model.safetensors. Nothing is unpickled, every byte is checked."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from data_pipeline.quoting import abbreviated
from data_pipeline.store import durable, lock
from data_pipeline.store.replacing import refuse_foreign
from data_pipeline.store.shards import sha256
from data_pipeline.store.untrusted import (
    CorruptFile,
    Layout,
    check_layout,
    read_bytes,
    read_json,
    read_layout,
    read_tensors,
    refusing,
    require,
    typed,
)
from foundation.last_layer import FACTS, FIGURE, TENSORS
from foundation.last_layer import read as read_last_layer
from foundation.models import Architecture, architecture_named
from foundation.models.limits import check_elements, check_theories
from foundation.potential import Potential, check_weights
from foundation.provenance import Provenance

SCHEMA_VERSION = 3
WEIGHTS, CONFIG, CHECKSUMS = "model.safetensors", "config.json", "SHA256SUMS"
GOLDEN, CARD, LICENCE = "golden.json", "README.md", "LICENSE"
EVALUATION = "evaluation.json"
"""Held-out errors that a release states."""
REPULSION = "repulsion"
"""Entry of the provenance of a potential with a repulsion between close atoms."""
REHEARSAL, FISHER = "rehearsal", "fisher.safetensors"
"""Protection that a release may carry (foundation/finetuning/protection.py): a data set, and a Fisher."""
TRUST = (FACTS, TENSORS, FIGURE)
"""Uncertainty and coverage that a release may carry (foundation/last_layer.py)."""
COVERED = (WEIGHTS, CONFIG, GOLDEN, CARD, LICENCE, EVALUATION, FISHER, *TRUST)
"""Files of a release: existing ones must be in SHA256SUMS, and so must those of the rehearsal's folder."""
SHA256 = "[0-9a-f]{64}"
"""A checksum."""
MAX_SUMS = 2**20
"""Largest SHA256SUMS [bytes]."""


def _from_one_dataset(config: dict) -> dict:
    """Return the config of schema 1, which knew one data set and one level of theory, in schema 2."""
    provenance = dict(config["provenance"])
    moved = {name: provenance.pop(name) for name in ("num_frames", "num_atoms", "manifest_fingerprint")}
    dataset = provenance.pop("dataset")
    dataset |= moved | {"theory": dataset["level_of_theory"], "repeat": 1.0}
    later = {"unit_harmonics": True, "theory_biases": None}
    return config | {
        "schema_version": 2,
        "model": later | config["model"],
        "theories": [dataset["theory"]],
        "provenance": provenance | {"datasets": [dataset]},
    }


def _from_one_architecture(config: dict) -> dict:
    """Return the config of schema 2, which knew one architecture and did not name it, in schema 3."""
    return config | {"schema_version": 3, "architecture": "equivariant"}


MIGRATIONS: dict[int, Callable[[dict], dict]] = {1: _from_one_dataset, 2: _from_one_architecture}
"""Functions that convert config.json of each older schema version to the next one."""


class CorruptCheckpoint(CorruptFile):
    """A folder that is not a saved potential; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Content of config.json."""

    schema_version: int
    """Version of the format."""
    architecture: str
    """Name of the architecture."""
    model: Any
    """Configuration of the network, of the architecture's class."""
    elements: tuple[int, ...]
    """Atomic numbers that the potential knows."""
    theories: tuple[str, ...]
    """Levels of theory that it knows."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    """Type of its weights."""
    weights_sha256: str
    """Checksum of its weights."""
    provenance: dict[str, Any]
    """Origin of the potential as in the file, including entries for people only."""

    def __post_init__(self) -> None:
        check_elements(self.elements)
        check_theories(self.theories)
        if not re.fullmatch(SHA256, self.weights_sha256):
            raise ValueError("weights_sha256 is not a checksum")
        _ = self.origin

    @property
    def origin(self) -> Provenance:
        """Origin of the potential, with the entries that are read."""
        return typed(Provenance, self.provenance, "provenance")


def save(potential: Potential, folder: Path, provenance: dict) -> None:
    """Write a potential; the folder appears, or replaces an older one, only when it is complete.

    Args:
        potential: Potential to write.
        folder: Folder to write.
        provenance: Origin of the potential, as JSON.

    Raises:
        ValueError: the potential has adapters, which are part of training only.
    """
    if any(".adapter." in name for name, _ in potential.named_parameters()):
        raise ValueError(f"{folder}: the potential has adapters; call merge_adapters() before saving")
    with durable.whole_folder(lock.real(folder)) as partial:
        write_into(partial, potential, provenance)


def refuse_to_replace(folder: Path, kind: str) -> None:
    """Refuse to replace a folder that holds more than a potential, or none; `kind` names the new content.

    Raises:
        FileExistsError: the folder exists and has no config.json, or holds files that would be lost.
    """
    refuse_foreign(folder, kind, CONFIG, lambda path: path.name in (*COVERED, REHEARSAL, CHECKSUMS))


def write_into(folder: Path, potential: Potential, provenance: dict) -> None:
    """Write the files of a potential into a folder from whole_folder(); see save()."""
    state = {name: tensor.contiguous().cpu() for name, tensor in potential.state_dict().items()}
    # save_file() would give a file that nobody else can read, whatever the user's umask
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(state))
    write_description(description_of(potential, provenance, sha256(folder / WEIGHTS)), folder)
    write_checksums(folder)


def write_description(described: Description, folder: Path) -> None:
    """Write config.json into a folder from whole_folder()."""
    (folder / CONFIG).write_text(json.dumps(asdict(described), indent=1) + "\n")


def description_of(potential: Potential, provenance: dict, weights: str | None = None) -> Description:
    """Return the description of a potential that config.json has once it is saved.

    Args:
        potential: The potential.
        provenance: Its origin, as JSON.
        weights: Checksum of its weights; None: computed.
    """
    return Description(
        schema_version=SCHEMA_VERSION,
        architecture=potential.network.config.architecture,
        model=potential.network.config,
        elements=potential.elements,
        theories=potential.theories,
        dtype=str(potential.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        weights_sha256=weights or weights_sha256(potential),
        provenance=provenance if potential.repulsion is None else provenance | {REPULSION: True},
    )


def weights_sha256(potential: Potential) -> str:
    """Return the checksum of a potential's weights, equal to that of their file."""
    state = {name: tensor.contiguous().cpu() for name, tensor in potential.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()


def load(folder: Path | str) -> Potential:
    """Read a potential from a released folder or a run folder, ready to predict.

    Raises:
        FileNotFoundError: no potential in the folder.
        CorruptCheckpoint: a checksum differs, a file cannot be read or does not describe a potential, or a newer
            version of the program wrote the folder.
    """
    folder = find(folder)
    verify_checksums(folder)
    config, weights = describe(folder), folder / WEIGHTS
    if sha256(weights) != config.weights_sha256:
        raise CorruptCheckpoint(f"{weights}: the checksum differs from config.json's; copy or download it again")
    with refusing(weights, CorruptCheckpoint, f"not the weights that {CONFIG} describes ({{}}); download them again"):
        layout, _ = read_layout(weights)
        potential = build(config, layout)
        check_layout(layout, {name: (t.dtype, tuple(t.shape)) for name, t in _state(potential, layout).items()})
        state = read_tensors(weights)
        # schema 1 had the references of a single theory
        state["reference_energies"] = state["reference_energies"].reshape(len(config.theories), len(config.elements))
        potential.load_state_dict(state)
        check_weights(potential)
    potential.last_layer = read_last_layer(folder, config.weights_sha256, len(config.elements), CorruptCheckpoint)
    return potential.eval()


def build(config: Description, layout: Layout) -> Potential:
    """Return a potential without its weights, if a file has enough numbers for them.

    Args:
        config: Its description.
        layout: Type and shape of each tensor of the file.

    Raises:
        ValueError: the file has too few numbers.
    """
    stored = sum(math.prod(shape) for _, shape in layout.values())
    model: Architecture = config.model
    needed = model.num_parameters(len(config.elements), len(config.theories))
    if needed > stored:
        raise ValueError(f"it has {stored} numbers, of at least {needed}")
    network = model.network(config.elements, len(config.theories))
    potential = Potential(network, config.elements, config.theories).cast(getattr(torch, config.dtype))
    return potential.repel() if config.origin.repulsion else potential


def _state(potential: Potential, layout: Layout) -> dict[str, torch.Tensor]:
    """Return the expected tensors of a file, with the references as in schema 1 if the file has them so."""
    state = potential.state_dict()
    references = state["reference_energies"]
    if layout.get("reference_energies") == (references.dtype, tuple(references.shape[1:])):
        state["reference_energies"] = references.view(-1)
    return state


def describe(folder: Path) -> Description:
    """Return a folder's config.json, migrated to the current schema.

    Raises:
        CorruptCheckpoint: it cannot be read, does not describe a potential, or was written by a newer version of the
            program.
    """
    with refusing(folder / CONFIG, CorruptCheckpoint):
        return read_description(read_json(folder / CONFIG), folder)


def read_description(content: Any, where: Path) -> Description:
    """Return a description from JSON, migrated to the current schema.

    Args:
        content: The JSON.
        where: Its place, for messages.

    Raises:
        CorruptCheckpoint: a newer version of the program wrote it.
        ValueError: it does not describe a potential.
        KeyError: it lacks an entry.
    """
    config = typed(dict[str, Any], content, "content")
    version = typed(int, config["schema_version"], "schema_version")
    if version > SCHEMA_VERSION:
        raise CorruptCheckpoint(f"{where}: schema {version} is newer than this program's {SCHEMA_VERSION}; update it")
    for old in range(version, SCHEMA_VERSION):
        if old not in MIGRATIONS:
            raise ValueError(f"schema {version} never existed")
        config = MIGRATIONS[old](config)
    known = {field.name for field in fields(Description)}
    # a migration may leave the sources of new entries behind
    described = config if version == SCHEMA_VERSION else {k: v for k, v in config.items() if k in known}
    require(described, ("architecture", "model"))
    kind = architecture_named(typed(str, described["architecture"], "architecture"))
    model = typed(kind, described["model"], "model")
    return typed(Description, described | {"model": model}, "")


def verify_checksums(folder: Path) -> None:
    """Compare every file in SHA256SUMS, which must list all files of a release.

    Raises:
        CorruptCheckpoint: a file is missing, not listed or differs, or SHA256SUMS itself does.
    """
    listed = checksums_in(folder)
    unlisted = [name for name in (*COVERED, *_below(folder, REHEARSAL)) if name not in listed]
    unlisted = [name for name in unlisted if (folder / name).exists()]
    if unlisted:
        raise CorruptCheckpoint(f"{folder / CHECKSUMS}: does not list {unlisted[0]}; copy or download it again")
    for name, expected in listed.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise CorruptCheckpoint(f"{folder / name}: missing or altered; copy or download it again")


def checksums_in(folder: Path) -> dict[str, str]:
    """Return the checksums in SHA256SUMS of a folder by the name of the file.

    Raises:
        CorruptCheckpoint: it is missing, or not such a list.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise CorruptCheckpoint(f"{sums}: missing, so nothing can be checked; copy or download the folder again")
    with refusing(sums, CorruptCheckpoint):
        return _listed(read_bytes(sums, MAX_SUMS).decode())


def _listed(text: str) -> dict[str, str]:
    """Return the checksums by the name of the file, a plain one or one in the rehearsal's folder.

    Raises:
        ValueError: a line is not a checksum of such a file, or a name occurs twice.
    """
    listed: dict[str, str] = {}
    for number, line in enumerate(text.rstrip("\n").splitlines(), start=1):
        # sha256sum marks binary files by *
        found = re.fullmatch(rf"({SHA256}) [ *]((?:{REHEARSAL}/)?[^/\\]+)", line)
        if not found or not found[2].isprintable() or found[2].split("/")[-1] in (".", "..", CHECKSUMS):
            raise ValueError(f"line {number} is not a checksum of a file of this folder")
        if found[2] in listed:
            raise ValueError(f"line {number} lists {abbreviated(found[2])} again")
        listed[found[2]] = found[1]
    return listed


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over the files of a folder, in the format of the sha256sum command."""
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS]
    names += _below(folder, REHEARSAL)
    (folder / CHECKSUMS).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(names)))


def _below(folder: Path, name: str) -> list[str]:
    """Return the names of the files of a folder in a folder, with its own name before each."""
    return [f"{name}/{path.name}" for path in (folder / name).glob("*")]


def find(folder: Path | str) -> Path:
    """Return the folder of a potential, given that folder or the run folder that holds it.

    Raises:
        FileNotFoundError: no potential there.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "potential"):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder}: no potential there (a release folder has {CONFIG} and {WEIGHTS}; a finished run has potential/)"
    )
