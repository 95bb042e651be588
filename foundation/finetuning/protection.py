"""Protection that a release carries: what a fine-tuning needs so as not to forget, made of nothing but the potential.

It is `rehearsal/`, a data set of generated crystals without labels (generated.py), which the start labels itself
(distillation.py), and `fisher.safetensors`, their Fisher for any loss (fisher_by_term.py). Neither holds data of the
pretraining, so no licence applies. A fine-tuning whose start carries none makes its own and keeps it in its run folder.
"""

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store import durable, lock
from data_pipeline.store.manifest import open_manifest
from data_pipeline.store.untrusted import read_json
from foundation import checkpoint
from foundation.checkpoint import FISHER, REHEARSAL, Description
from foundation.datasets import DatasetConfig
from foundation.finetuning import fisher_by_term
from foundation.finetuning.generated import build_generated
from foundation.naming import SavedPotential, resolve
from foundation.potential import Potential
from foundation.provenance import ProtectionFacts
from foundation.run_folder import PROTECTION
from foundation.training.strategy import cluster_environment

log = logging.getLogger(__name__)

TITLE = "## Protection in fine-tunings"
"""Title of the section of the card, the last one."""
NUM_STRUCTURES = 640
"""Number of generated crystals: some 6,500 atoms, 0.4 MB."""


@dataclass(frozen=True, kw_only=True)
class ProtectConfig:
    """Protection to make for a potential, and to add to its folder."""

    model: Path
    """Release folder or run folder; a protection that it carries already is replaced."""
    num_structures: int = NUM_STRUCTURES
    """Number of random crystals to generate."""
    seed: int = 0
    """Seed of the crystals."""
    device: str = "cpu"
    """torch's name of the device."""

    def __post_init__(self) -> None:
        if self.num_structures < 1 or self.seed < 0:
            raise ValueError("num_structures must be at least 1, and seed not negative")


def protect(config: ProtectConfig) -> Path:
    """Add a protection to the folder of a potential, and return the folder.

    Raises:
        FileNotFoundError: no potential in the folder.
        CorruptCheckpoint: the potential is damaged.
        FileExistsError: the folder holds other files, which would be lost.
        InUse: another process writes there.
    """
    folder = checkpoint.find(config.model)
    with lock.hold(lock.beside(folder), folder):
        checkpoint.refuse_to_replace(folder, "potential")
        potential, described = checkpoint.load(folder), checkpoint.describe(folder)
        with durable.whole_folder(lock.real(folder)) as partial:
            kept = (checkpoint.WEIGHTS, checkpoint.GOLDEN, checkpoint.LICENCE, checkpoint.EVALUATION, *checkpoint.TRUST)
            for name in kept:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, partial / name)
            facts = make(potential.to(torch.device(config.device)), partial, config.num_structures, config.seed)
            provenance = described.provenance | {PROTECTION: asdict(facts)}
            config = read_json(folder / checkpoint.CONFIG) | {"provenance": provenance}
            (partial / checkpoint.CONFIG).write_text(json.dumps(config, indent=1) + "\n")
            if (folder / checkpoint.CARD).is_file():
                text = (folder / checkpoint.CARD).read_text().partition(f"\n{TITLE}\n")[0]
                (partial / checkpoint.CARD).write_text(text + card_section(facts))
            checkpoint.write_checksums(partial)
            checkpoint.load(partial)
    return folder


def make(potential: Potential, folder: Path, num_structures: int, seed: int = 0) -> ProtectionFacts:
    """Write the protection of a potential into a folder that gets its name when it is whole, and return its facts."""
    began = time.monotonic()
    manifest = build_generated(potential, folder / REHEARSAL, num_structures=num_structures, seed=seed)
    relaxed = time.monotonic()
    datasets = [Dataset(manifest=manifest, theory=number) for number in range(len(potential.theories))]
    fisher = fisher_by_term.fisher_by_term(potential, datasets, seed=seed)
    fisher_by_term.save(fisher, folder / FISHER)
    statistics = manifest.split("train").statistics
    log.info(
        "protection: %d generated crystals in %.0f s, their Fisher in %.0f s",
        *(statistics.num_frames, relaxed - began, time.monotonic() - relaxed),
    )
    return ProtectionFacts(num_structures=statistics.num_frames, num_atoms=statistics.num_atoms, seed=seed)


def copy_into(folder: Path, source: Path, described: Description) -> str:
    """Copy the protection that a potential carries into a folder, and return its section of the card; "" without one.

    Args:
        folder: Folder from whole_folder() to write into.
        source: Folder of the potential.
        described: Description of the potential.
    """
    if described.origin.protection is None:
        return ""
    shutil.copytree(source / REHEARSAL, folder / REHEARSAL)
    shutil.copyfile(source / FISHER, folder / FISHER)
    return card_section(described.origin.protection)


def card_section(facts: ProtectionFacts) -> str:
    """Return the section of the card on a protection."""
    return (
        f"\n{TITLE}\n\n`{REHEARSAL}/` holds {facts.num_structures:,} generated crystals ({facts.num_atoms:,} atoms), "
        f"relaxed by this potential, without labels; `{FISHER}` is their diagonal Fisher by term of the loss. Neither "
        "holds training data. With them a fine-tuning keeps what the potential knows:\n\n"
        "```bash\nfoundation finetune --start path/to/this/folder --data FILES --out FOLDER --recipe reewc\n```\n"
    )


def carried_by(start: Path) -> Path | None:
    """Return the folder in which a start carries its protection, or None."""
    if not start.exists():
        try:
            named = resolve(start)
        except FileNotFoundError:
            return None
        start = named.folder if isinstance(named, SavedPotential) else start
    return next((f for f in (start, start / "potential") if (f / REHEARSAL).is_dir() and (f / FISHER).is_file()), None)


def found_or_made(start: Path, potential: Potential, kept: Path) -> Path:
    """Return a folder with a protection for a start: its own, or the one kept in the run folder, made if missing.

    Args:
        start: Release folder or run folder of the start, or its name.
        potential: The start.
        kept: Folder for a protection that the run makes.

    Raises:
        CorruptFisher: the start carries a Fisher that is not its own.
        ValueError: it carries none, and several processes would make one at a time.
    """
    carried = carried_by(start)
    if carried is not None:
        log.info("protection: carried by %s", carried)
        return carried
    if _is_of(kept, potential):
        log.info("protection: made earlier by this run, in %s", kept)
        return kept
    if cluster_environment().world_size() > 1:
        raise ValueError(f"{start} carries no protection, and one process makes it: {_once_for_all(start)} first")
    log.warning(
        "%s carries no protection: it is made now from %d generated crystals, which takes some minutes, and kept in "
        "%s (once for all runs: %s)",
        *(start, NUM_STRUCTURES, kept, _once_for_all(start)),
    )
    with durable.whole_folder(kept) as partial:
        make(potential, partial, NUM_STRUCTURES)
    return kept


def _once_for_all(start: Path) -> str:
    """Return the command that adds a protection to a start; one without a folder of its own is copied before."""
    if start.is_dir():
        return f"`foundation protect --model {start}`"
    copied = f"`foundation models download {start} --out FOLDER`"
    if start.is_file():
        copied = f"`foundation convert --from sevennet --checkpoint {start} --out FOLDER`"
    return f"{copied} and `foundation protect --model FOLDER`"


def _is_of(folder: Path, potential: Potential) -> bool:
    """Return whether a folder holds a whole protection of a potential."""
    if not (folder / FISHER).is_file():
        return False
    try:
        open_manifest(folder / REHEARSAL)
        fisher = fisher_by_term.read(folder / FISHER, potential)
    except (ValueError, FileNotFoundError) as error:
        log.warning("%s: made again, because of: %s", folder, error)
        return False
    return fisher.facts.weights_sha256 == checkpoint.weights_sha256(potential)


def rehearsal_of(folder: Path, potential: Potential) -> tuple[DatasetConfig, ...]:
    """Return the data sets to rehearse of a protection: its structures at each level of theory of the start."""
    return tuple(DatasetConfig(path=folder / REHEARSAL, theory=theory) for theory in potential.theories)
