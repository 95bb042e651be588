"""Conversion of potentials of other programs to our folders, and back."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.store import lock
from foundation import checkpoint
from foundation.interop import n2p2
from foundation.interop.sevennet import to_sevennet
from foundation.naming import SevenNetPotential, resolve

Format = Literal["sevennet"]
Readable = Literal["sevennet", "n2p2"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Conversion from another program's file, or into one: give either --from or --to."""

    from_: Readable | None = None
    """Program that wrote the checkpoint to read (--from on the command line)."""
    to: Format | None = None
    """Program that will read the result."""
    checkpoint: Path | None = None
    """With --from: the file to read, or the name of a model in the sevenn package, such as sevennet-0; of n2p2 the
    folder."""
    model: Path | None = None
    """With --to: potential to read, by its folder, run or published name."""
    theory: str | None = None
    """With --from: name of the level of theory, for a file that names none."""
    units: n2p2.Units | None = None
    """With --from n2p2: units of length and energy, which its files do not state."""
    out: Path
    """Folder (--from) or file (--to) to write; an older one of the same kind is replaced."""

    def __post_init__(self) -> None:
        if (self.from_ is None) == (self.to is None):
            raise ValueError("give either --from or --to")
        if self.from_ and (self.checkpoint is None or self.model):
            raise ValueError(f"--from {self.from_} reads a --checkpoint and writes the folder --out; it has no --model")
        if (self.from_ == "n2p2") != (self.units is not None):
            raise ValueError(f"--units {' or '.join(n2p2.SIZES)} belongs to --from n2p2, whose files do not state them")
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
        if config.units is not None:
            potential = n2p2.potential_in(config.checkpoint, config.units, config.theory or "unknown")
            provenance = n2p2.provenance_of_n2p2(config.checkpoint, config.units, potential)
            checkpoint.save(potential, config.out, provenance)
            return config.out
        found = resolve(config.checkpoint)
        if not isinstance(found, SevenNetPotential):
            raise IsADirectoryError(f"{config.checkpoint} is a folder, not a file of SevenNet")
        found = replace(found, theory=config.theory)
        potential, described = found.read()
        checkpoint.save(potential, config.out, described.provenance)
    elif config.model is not None:
        if config.out.is_dir():
            raise FileExistsError(f"{config.out} is a folder; --out is the file to write")
        if config.out.exists():
            raise FileExistsError(f"{config.out} exists and is not replaced; remove it or choose another --out")
        potential = resolve(config.model).load()
        config.out.parent.mkdir(parents=True, exist_ok=True)
        to_sevennet(potential, config.out)
    return config.out
