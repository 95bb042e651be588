"""Potential to folder and back: config.json and model.safetensors. Nothing is unpickled, every byte is checked."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from data_pipeline import lock
from data_pipeline.shards import sha256
from foundation.models import EquivariantNetwork, ModelConfig
from foundation.potential import Potential

SCHEMA_VERSION = 2
WEIGHTS, CONFIG, CHECKSUMS = "model.safetensors", "config.json", "SHA256SUMS"


def _from_one_dataset(config: dict) -> dict:
    """Return the config of schema 1, which knew one data set and one level of theory, in schema 2."""
    provenance = dict(config["provenance"])
    moved = {name: provenance.pop(name) for name in ("num_frames", "num_atoms", "manifest_fingerprint")}
    dataset = provenance.pop("dataset")
    dataset |= moved | {"theory": dataset["level_of_theory"], "repeat": 1.0}
    return config | {"theories": [dataset["theory"]], "provenance": provenance | {"datasets": [dataset]}}


MIGRATIONS: dict[int, Callable[[dict], dict]] = {1: _from_one_dataset}
"""From each older schema version, what turns its config.json into the next one's."""


class CorruptCheckpoint(ValueError):
    """A folder that is not the potential that was saved; the message names the file."""


def save(potential: Potential, folder: Path, provenance: dict) -> None:
    """Write a potential; the folder appears, or replaces an older one, only when it is complete.

    Args:
        potential: What to write.
        folder: Where.
        provenance: What the potential was made from and how, as JSON.

    Raises:
        ValueError: the potential has adapters, which are part of training only.
    """
    if any(".adapter." in name for name, _ in potential.named_parameters()):
        raise ValueError(f"{folder}: the potential has adapters; merge_adapters() makes it one that can be saved")
    folder = lock.real(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {name: tensor.contiguous().cpu() for name, tensor in potential.state_dict().items()}
    safetensors.torch.save_file(state, partial / WEIGHTS)
    config = {
        "schema_version": SCHEMA_VERSION,
        "model": asdict(potential.network.config),
        "elements": list(potential.elements),
        "theories": list(potential.theories),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "weights_sha256": sha256(partial / WEIGHTS),
        "provenance": provenance,
    }
    (partial / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    write_checksums(partial)
    replace_folder(partial, folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Give a finished folder its name; an older folder of that name is gone only once the new one is in place."""
    for file in new.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path | str) -> Potential:
    """Read a potential from a released folder or a run folder, ready to predict.

    Raises:
        FileNotFoundError: there is no potential in the folder.
        CorruptCheckpoint: a checksum differs or a file cannot be read.
        ValueError: the folder was written by a newer version of the program.
    """
    folder = find(folder)
    verify_checksums(folder)
    config = read_config(folder)
    try:
        model: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config["model"].items()}
        elements, theories = tuple(config["elements"]), tuple(config["theories"])
        network = EquivariantNetwork(ModelConfig(**model), elements, 1.0, len(theories))
        potential = Potential(network, elements, theories)
        potential.cast(getattr(torch, config["dtype"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptCheckpoint(f"{folder / CONFIG}: does not describe a potential ({error})") from error
    weights = folder / WEIGHTS
    if sha256(weights) != config["weights_sha256"]:
        raise CorruptCheckpoint(f"{weights}: the checksum differs from config.json's; copy or download it again")
    try:
        state = safetensors.torch.load_file(weights)
        # schema 1 had the references of a single theory
        state["reference_energies"] = state["reference_energies"].reshape(len(theories), len(elements))
        potential.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CorruptCheckpoint(f"{weights}: not the weights that config.json describes ({error})") from error
    return potential.eval()


def read_config(folder: Path) -> dict:
    """Return a folder's config.json in the current schema.

    Raises:
        CorruptCheckpoint: it cannot be read.
        ValueError: it was written by a newer version of the program.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        version, _ = int(config["schema_version"]), config["weights_sha256"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"{folder / CONFIG}: cannot be read ({error}); copy or download it again") from error
    if version > SCHEMA_VERSION:
        raise ValueError(f"{folder}: schema {version} is newer than this program's {SCHEMA_VERSION}; update it")
    for old in range(version, SCHEMA_VERSION):
        if old not in MIGRATIONS:
            raise CorruptCheckpoint(f"{folder / CONFIG}: there never was a schema {old}; copy or download it again")
        config = MIGRATIONS[old](config)
    return config


def verify_checksums(folder: Path) -> None:
    """Compare every file that SHA256SUMS lists.

    Raises:
        CorruptCheckpoint: a file is missing or differs, or SHA256SUMS itself does.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise CorruptCheckpoint(f"{sums}: missing, so nothing can be checked; copy or download the folder again")
    for line in sums.read_text(errors="replace").splitlines():
        expected, separator, name = line.partition("  ")
        if not separator:
            raise CorruptCheckpoint(f"{sums}: cannot be read; copy or download it again")
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise CorruptCheckpoint(f"{folder / name}: missing or altered; copy or download it again")


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over the files of a folder, in the format of the sha256sum command."""
    files = sorted(file for file in folder.iterdir() if file.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text("".join(f"{sha256(file)}  {file.name}\n" for file in files))


def find(folder: Path | str) -> Path:
    """Return the folder of a potential, given that folder or the run folder that holds it.

    Raises:
        FileNotFoundError: there is no potential.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "potential"):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder}: no potential there (a release folder has {CONFIG} and {WEIGHTS}; a finished run has potential/)"
    )
