"""Words that name a potential: a release folder, a run folder, a checkpoint of SevenNet (.pth), a name, an address.

Every verb and function that takes a potential takes these words, and they are read here alone. An existing folder or
file comes before a name. A name (sevennet-0, sevennet-0@1) is a release of the registry, from this package, the cache
or its addresses; hf:org/name@revision and https://... are addresses of releases that the registry does not know. An
unfinished run is the potential of its newest checkpoint; of every run another checkpoint can be chosen.
"""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_pipeline.store.untrusted import OpenRecord, typed
from foundation.checkpoint import CONFIG, WEIGHTS, Description, describe, description_of, find, load
from foundation.configuration import COMPARED
from foundation.interop import sevennet
from foundation.interop.published import PUBLISHED, find_published
from foundation.interop.sevennet import read_checkpoint
from foundation.interop.sevennet_provenance import provenance_of_sevennet
from foundation.potential import Potential
from foundation.provenance import CheckpointFacts
from foundation.releases.addresses import is_address
from foundation.releases.cache import folder_at, folder_of
from foundation.releases.registry import registry
from foundation.training.fault_tolerance.reading import CHECKPOINTS, WholeCheckpoint, newest_checkpoint, steps_in
from foundation.training.fault_tolerance.stored_potential import best_checkpoint, checkpoint_of_step, potential_in

log = logging.getLogger(__name__)

RUN = "run.json"
"""Record of every run; run_folder.py, which names it too, imports Lightning."""


class NamedPotential:
    """A potential that was found, but not yet read."""

    def read(self) -> tuple[Potential, Description]:
        """Return the potential, ready to predict, and its description with its origin.

        Raises:
            CorruptCheckpoint: a file is damaged or refused.
            UnsupportedSevenNet: this program lacks the network for the options of a SevenNet checkpoint.
        """
        raise NotImplementedError

    def load(self) -> Potential:
        """Return the potential; see read()."""
        return self.read()[0]

    def describe(self) -> Description:
        """Return the description; see read()."""
        return self.read()[1]


@dataclass(frozen=True)
class SavedPotential(NamedPotential):
    """A potential saved as a folder."""

    folder: Path
    """Folder with its files."""

    def read(self) -> tuple[Potential, Description]:
        """Return the potential and its description; see NamedPotential."""
        return load(self.folder), describe(self.folder)


@dataclass(frozen=True)
class SevenNetPotential(NamedPotential):
    """A potential in a checkpoint of SevenNet, described as its converted folder would be."""

    file: Path
    """The .pth."""
    theory: str | None = None
    """Name of its level of theory, if the file names none; None: that of a published model, or "unknown"."""

    def read(self) -> tuple[Potential, Description]:
        """Return the potential and its description; see NamedPotential."""
        values = read_checkpoint(self.file)
        potential = sevennet.potential_in(self.file, values, self.theory)
        return potential, description_of(potential, provenance_of_sevennet(self.file, values, potential))


@dataclass(frozen=True)
class RunCheckpoint(NamedPotential):
    """A potential in a checkpoint of a run, with the average of its weights."""

    checkpoint: WholeCheckpoint
    """The checkpoint."""
    reason: str
    """Reason of the choice."""

    def read(self) -> tuple[Potential, Description]:
        """Return the potential and its description; see NamedPotential."""
        potential, described = potential_in(self.checkpoint)
        steps = described.origin.run.fit.steps
        facts = CheckpointFacts(step=self.checkpoint.step, steps=steps, reason=self.reason, finished=False)
        return potential, replace(described, provenance=described.provenance | {"checkpoint": asdict(facts)})


Choice = Literal["best", "newest"] | int | None
"""Checkpoint of a run: the best by its validation, the newest, that of a step; None: the potential of a finished run,
and the newest checkpoint of an unfinished one."""


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """Weights with which a run began, as it recorded them."""

    weights_sha256: str = field(metadata=COMPARED)
    """Checksum of the weights."""
    checkpoint_step: int | None = field(default=None, metadata=COMPARED)
    """Step of their checkpoint, if the start was a run, and not the potential that it saved at its end."""


@dataclass(frozen=True, kw_only=True)
class _BegunWith(OpenRecord):
    """Weights of the start in the record of a run."""

    start_weights: StartWeights | None = None
    """The weights; None in the record of an older version."""


def read_start(
    word: Path, checkpoint: Choice, begun: StartWeights | None, resumed: WholeCheckpoint | None
) -> tuple[Potential, Description, StartWeights]:
    """Return the start of a run with its description, and its weights for the record.

    A run that resumes takes the start that it began with, though a start that was unfinished has gone on since.

    Args:
        word: Folder, file or published name of the start.
        checkpoint: Checkpoint, if the start is a run.
        begun: Weights in the configuration; None: those that there are.
        resumed: Checkpoint from which the run resumes.

    Raises:
        FileNotFoundError: there is no such potential, or its checkpoint is gone.
        ValueError: it has other weights than the run began with.
    """
    record = resumed.config if resumed is not None and isinstance(resumed.config, dict) else {}
    begun = typed(_BegunWith, record, "config").start_weights or begun
    ways = "put it back, or begin a new run in another --out, without `start_weights`"
    try:
        named = resolve(word, checkpoint if begun is None or begun.checkpoint_step is None else begun.checkpoint_step)
    except FileNotFoundError as gone:
        if begun is None or begun.checkpoint_step is None:
            raise
        raise FileNotFoundError(
            f"{gone}. The run began with the weights of step {begun.checkpoint_step}: {ways}"
        ) from gone
    potential, described = named.read()
    potential.last_layer = None  # it belongs to weights that will change
    if begun is not None and begun.weights_sha256 != described.weights_sha256:
        raise ValueError(f"{word} has other weights than those that the run began with: {ways}")
    step = named.checkpoint.step if isinstance(named, RunCheckpoint) else None
    return potential, described, StartWeights(weights_sha256=described.weights_sha256, checkpoint_step=step)


def resolve(word: Path | str, checkpoint: Choice = None) -> NamedPotential:
    """Return the potential that a word names.

    Args:
        word: Folder, file, name or address.
        checkpoint: Checkpoint, if the word is a run folder.

    Raises:
        FileNotFoundError: there is none, the name was removed, it would have to be downloaded and must not be, or the
            package that has it is not installed; the message says what may have been meant. Or the run has no such
            checkpoint.
        NotDownloaded: no address gave it.
        IsADirectoryError: the word is a file of a potential, not its folder.
        ValueError: a checkpoint is chosen of something other than a run, it is damaged, or the word is no address.
    """
    path, name = Path(word), str(word)
    if path.is_dir() and (path / RUN).is_file():
        return _of_run(path, checkpoint)
    if checkpoint is not None:
        raise ValueError(f"checkpoint {checkpoint}: {name} is no run folder, so it has no checkpoints; leave it out")
    if path.is_dir():
        return _in_folder(path)
    if path.name in (CONFIG, WEIGHTS):
        raise IsADirectoryError(f"{path}: a potential is named by its folder: give {path.parent}")
    if path.is_file():
        return SevenNetPotential(path)
    if is_address(name):
        return SavedPotential(folder_at(name))
    if release := registry().find(name):
        return SavedPotential(folder_of(release))
    if name in PUBLISHED:
        return SevenNetPotential(find_published(name))
    raise FileNotFoundError(
        f"{name}: no potential there: neither a folder or file nor the name of a published potential"
        f"{_meant(name)}. Names: {', '.join(_names())}"
    )


def _names() -> list[str]:
    """Return all names of published potentials."""
    return list(dict.fromkeys([*registry().names, *PUBLISHED]))


def _of_run(run: Path, checkpoint: Choice) -> NamedPotential:
    """Return the potential of a run, or of one of its checkpoints, and log which."""
    if checkpoint is None and _has_potential(run):
        return SavedPotential(find(run))
    if not steps_in(run / CHECKPOINTS):
        raise FileNotFoundError(f"{run}: no potential there: the run has no checkpoint yet")
    if checkpoint == "best":
        found, reason = best_checkpoint(run)
    elif checkpoint in ("newest", None):
        found, reason = newest_checkpoint(run), "the newest"
    else:
        found, reason = checkpoint_of_step(run, checkpoint), "the chosen one"
    unfinished = "" if _has_potential(run) else " is unfinished"
    log.info("%s%s: its checkpoint of step %d is taken, %s", run, unfinished, found.step, reason)
    return RunCheckpoint(found, reason)


def _in_folder(folder: Path) -> NamedPotential:
    """Return the potential of a release folder or a run folder."""
    try:
        return SavedPotential(find(folder))
    except FileNotFoundError as error:
        inside = [each for each in sorted(folder.iterdir()) if each.is_dir() and _has_potential(each)]
        if not inside:
            raise
        raise FileNotFoundError(f"{error}; did you mean {' or '.join(map(str, inside[:3]))}?") from None


def _has_potential(folder: Path) -> bool:
    try:
        return find(folder).is_dir()
    except (FileNotFoundError, PermissionError):
        return False


def _meant(name: str) -> str:
    """Return a suggestion for a misspelt name or folder, or ''."""
    near = _nearest(name.partition("@")[0], _names()) or _near_path(Path(name))
    return f"; did you mean {near}?" if near else ""


def _near_path(path: Path) -> Path | None:
    """Return the existing path whose parts are most like those of a missing one, if each is similar."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).exists():
            there = [each.name for each in found.iterdir()] if found.is_dir() else []
            near = _nearest(part, there)
            if near is None:
                return None
            part = near
        found = found / part
    return found


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar name, capital letters apart, if any is similar."""
    by_lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
