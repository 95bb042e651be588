"""Conversion of potentials of other programs to our folders, and back."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.store import lock
from data_pipeline.store.shards import sha256
from foundation import checkpoint
from foundation.interop.published import NOT_STATED, PUBLISHED, find_published, published_of
from foundation.interop.sevennet import from_sevennet, read_checkpoint, to_sevennet
from foundation.potential import Potential

Format = Literal["sevennet"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Conversion from another program's file, or into one: give either --from or --to."""

    from_: Format | None = None
    """Program that wrote the checkpoint to read (--from on the command line)."""
    to: Format | None = None
    """Program that will read the result."""
    checkpoint: Path | None = None
    """With --from: the file to read, or the name of a model in the sevenn package, such as sevennet-0."""
    model: Path | None = None
    """With --to: release folder or run folder to read."""
    theory: str | None = None
    """With --from: name of the level of theory, for a file that names none."""
    out: Path
    """Folder (--from) or file (--to) to write; an older one of the same kind is replaced."""

    def __post_init__(self) -> None:
        if (self.from_ is None) == (self.to is None):
            raise ValueError("give either --from or --to")
        if self.from_ and (self.checkpoint is None or self.model):
            raise ValueError(f"--from {self.from_} reads a --checkpoint and writes the folder --out; it has no --model")
        if self.to and (self.model is None or self.checkpoint or self.theory):
            raise ValueError(
                f"--to {self.to} reads a --model and writes the file --out; it has no --checkpoint and no --theory"
            )


def convert(config: ConvertConfig) -> Path:
    """Convert a potential and return the written path.

    Raises:
        FileExistsError: the name to write is taken by a folder or file of another kind.
        FileNotFoundError: the input is missing.
        ValueError: the input is refused or damaged, or the other program has no such network.
        InUse: another process writes there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        return _convert(config)


def _convert(config: ConvertConfig) -> Path:
    if config.checkpoint is not None:
        checkpoint.refuse_to_replace(config.out, "potential")
        file = find_published(config.checkpoint.name) if str(config.checkpoint) in PUBLISHED else config.checkpoint
        potential = from_sevennet(file, config.theory)
        checkpoint.save(potential, config.out, provenance_of_sevennet(file, potential))
    elif config.model is not None:
        if config.out.is_dir():
            raise FileExistsError(f"{config.out} is a folder; --out is the file to write")
        if config.out.exists():
            raise FileExistsError(f"{config.out} exists and is not replaced; remove it or choose another --out")
        potential = checkpoint.load(config.model)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        to_sevennet(potential, config.out)
    return config.out


def provenance_of_sevennet(path: Path, potential: Potential) -> dict:
    """Return the provenance of a SevenNet checkpoint, as JSON; unknown facts read 'not stated'."""
    digest, values = sha256(path), read_checkpoint(path)
    epoch = values.get("epoch")
    facts = ("name", "licence", "level_of_theory", "energy_convention", "citation", "source")
    unknown = dict.fromkeys(facts, NOT_STATED)
    published = published_of(digest)
    known = published.datasets if published else [unknown | {"theory": name} for name in potential.theories]
    not_counted = {"repeat": 1.0, **dict.fromkeys(("num_frames", "num_atoms", "manifest_fingerprint"), NOT_STATED)}
    return {
        "method": "converted from SevenNet",
        "converted_from": {
            "file": path.name,
            "sha256": digest,
            "sevenn": values["config"]["version"],
            "epoch": epoch if isinstance(epoch, int) else NOT_STATED,
            "citation": published.citation if published else NOT_STATED,
        },
        "datasets": [not_counted | dataset for dataset in known],
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "hardware": NOT_STATED,
        "versions": {name: importlib.metadata.version(name) for name in ("foundation", "torch", "e3nn")},
        "config": {},
    }
