"""Rehearsal: pretraining data that a fine-tuning continues to train on (experience replay); checks of held-out data.

Rehearsed frames are a part of a manifest, chosen when the run starts; nothing is rebuilt. Errors on held-out frames
measure learning or forgetting only if neither training, rehearsal nor Fisher has seen them, so all are compared with
them frame by frame: by atoms, cell and positions, not by names, which the same frame may have several of and different
frames share, and not by labels, which may be the start's. Two splits of one unmerged manifest are not read: a build of
plain files says which frames they have in common. From other data sets, frames with as many atoms as a held-out one are
read.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Int64

from data_pipeline.building.duplicates import content_keys, frames_in_both
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import open_manifest
from data_pipeline.structure import SYMBOLS, Structure
from foundation.configuration import COMPARED, DECIDES
from foundation.datasets import Data, DatasetConfig, of_run, refuse_unlabelled
from foundation.finetuning.fisher import Fisher
from foundation.finetuning.selection import farthest_points, frame_features, random_part, with_elements
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data
from foundation.training.additions import Mode
from foundation.training.loss import LossConfig

log = logging.getLogger(__name__)

MAX_NAMED = 3
"""Number of frames that an error names."""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """Pretraining data to continue training on, and options."""

    data: Data | None = field(default=None, metadata=COMPARED)
    """Manifest of the pretraining's data, or its folder; or several data sets. The level of theory is one of the
    start's: the named one, the one in the data set's provenance, or its only one. None: the generated structures that
    the start carries (`foundation protect`); if it carries none, the run makes some."""
    split: str = field(default="train", metadata=DECIDES)
    """Split to rehearse."""
    ratio: float = field(default=1.0, metadata=DECIDES)
    """Edge budget of a rehearsal micro-batch over fit.edge_budget, its share of the computation."""
    weight: float = field(default=1.0, metadata=DECIDES)
    """Weight of the rehearsal loss."""
    loss: LossConfig | None = field(default=None, metadata=DECIDES)
    """Loss for rehearsal; None: the run's. Energies, which are forgotten first, may be weighted more than in the
    run's."""
    mode: Mode = field(default="joint", metadata=DECIDES)
    """Order of steps: on target and rehearsal together (joint), on each in turn (alternate), or in turn with the
    target's gradient added to the rehearsal's, as in the published code of reEWC (reference)."""
    elements: tuple[str, ...] = field(default=(), metadata=DECIDES)
    """Elements of which a rehearsed structure must have at least one; empty: all structures."""
    fraction: float = field(default=1.0, metadata=DECIDES)
    """Fraction of those structures to rehearse, of each data set, chosen once for the whole run."""
    method: Literal["random", "farthest-point"] = field(default="random", metadata=DECIDES)
    """Choice of the fraction: at random, or each structure farthest from the previous ones in the start's features."""
    seed: int = field(default=0, metadata=DECIDES)
    """Seed of the random choice."""
    labels: Literal["data", "start"] = field(default="data", metadata=DECIDES)
    """Source of labels: the data, or the start's predictions (distillation), for data without labels."""

    def __post_init__(self) -> None:
        for name, value in {"ratio": self.ratio, "weight": self.weight}.items():
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"rehearsal.{name} must be positive, not {value}; leave rehearsal out instead")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rehearsal.fraction is above 0 (nothing) and at most 1 (all), not {self.fraction}")
        unknown = [symbol for symbol in self.elements if symbol not in SYMBOLS[1:]]
        if unknown:
            raise ValueError(f"rehearsal.elements: {', '.join(unknown)} is not a chemical symbol, such as Li or Cl")
        if self.seed < 0:
            raise ValueError(f"rehearsal.seed must not be negative, but is {self.seed}")
        if self.data is None and self.labels == "data":
            raise ValueError(
                "rehearsal without data rehearses generated structures, which have no labels: set --rehearsal.labels "
                "start, or name data with --rehearsal.data"
            )
        if self.data == ():
            raise ValueError("rehearsal.data is empty; leave rehearsal out instead")


def rehearsal_datasets(config: RehearsalConfig, potential: Potential) -> list[Dataset]:
    """Open and choose the data to rehearse; their levels of theory are numbered as the potential's.

    Structures with elements unknown to the potential are left out. Only the manifest is read if all frames are kept.
    All processes of a run make the same choice independently.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: no such split or one without frames, a level of theory or element that the potential does not know,
            labels required but missing, or no structure remains.
    """
    configs = () if config.data is None else of_run(config.data)
    wanted = [z for z, symbol in enumerate(SYMBOLS) if symbol in config.elements]
    unknown = [SYMBOLS[z] for z in wanted if z not in potential.elements]
    if unknown:
        raise ValueError(f"rehearsal.elements: the potential does not know {', '.join(unknown)}; leave them out")
    datasets = []
    for place, item in enumerate(configs):
        dataset = _opened(item, config.split, potential)
        if config.labels == "data":
            refuse_unlabelled([dataset])
        chosen = _chosen(config, dataset, wanted, potential, place)
        if chosen is not None:
            total = dataset.manifest.split(config.split).statistics.num_frames
            log.info("rehearsal: %d of %d frames of %s", len(chosen), total, dataset.manifest.provenance.name)
            dataset = replace(dataset, subset=Subset(chosen))
        datasets.append(dataset)
    return datasets


def _opened(item: DatasetConfig, split: str, potential: Potential) -> Dataset:
    """Return the whole split of a data set to rehearse."""
    manifest = open_manifest(item.path)
    if manifest.split(split).statistics.num_frames == 0:
        raise ValueError(f"{item.path}: split {split!r} has no frames to rehearse; choose another rehearsal.split")
    try:
        theory = theory_of_data(potential, manifest.provenance.level_of_theory, item.theory)
    except ValueError as error:
        raise ValueError(f"rehearsal.data, {item.path}: {error}") from error
    return Dataset(manifest=manifest, split=split, repeat=item.repeat, theory=theory, weight=item.weight)


def _chosen(
    config: RehearsalConfig, dataset: Dataset, wanted: Sequence[int], potential: Potential, place: int
) -> Int64[np.ndarray, " chosen"] | None:
    """Return the frames to rehearse of a split, the place-th one to rehearse; None means all."""
    statistics = dataset.manifest.split(dataset.split).statistics
    name, left = dataset.manifest.provenance.name, sorted(set(statistics.elements) - set(potential.elements))
    candidates = np.arange(statistics.num_frames)
    if left:
        log.warning("rehearsal: structures of %s with %s are left out", name, ", ".join(SYMBOLS[z] for z in left))
    if wanted or left:
        candidates = with_elements(dataset, wanted, potential.elements)
    if len(candidates) == 0:
        having = f"have {' or '.join(config.elements)} and " if wanted else ""
        raise ValueError(f"rehearsal: no structures of {name} {having}consist of elements that the potential knows")
    if config.fraction < 1:
        count = max(1, round(config.fraction * len(candidates)))
        if config.method == "random":
            places = random_part(len(candidates), count, (config.seed, place))
        else:
            places = farthest_points(frame_features(potential, dataset, candidates), count)
        candidates = candidates[places]
    return None if len(candidates) == statistics.num_frames else np.sort(candidates)


def refuse_held_out(trained: Sequence[Dataset], held_out: Sequence[Dataset], what: str) -> None:
    """Check that no held-out frame is trained on.

    Args:
        trained: Training data.
        held_out: Data that must not be trained on.
        what: Use of the training data for the message: 'rehearsed' or 'trained on'.

    Raises:
        ValueError: a frame is in both; the message names data sets and ids.
    """
    for kept in held_out:
        shared = [each for each in trained if not _apart(each.split, each.manifest.fingerprint, kept)]
        if not shared:
            continue
        frames, sizes = kept.frames(), _sizes(kept)
        for each in shared:
            others = _of_sizes(each, sizes)
            pairs = [(others[theirs].id, frames[ours].id) for ours, theirs in frames_in_both(frames, others)]
            found = [other if other == own else f"{other} = {own}" for other, own in pairs]
            if found:
                raise ValueError(
                    f"{_place(each)} is {what} and {_place(kept)} is held out, but they have {_listed(found)} in "
                    "common: errors on them would not measure learning or forgetting. Hold out another split."
                )


def refuse_fisher_held_out(fisher: Fisher, held_out: Sequence[Dataset]) -> None:
    """Check that a Fisher was not computed on held-out frames.

    Raises:
        ValueError: a frame is in both; the message names data sets and ids.
    """
    used = set(fisher.structures.tolist())
    for kept in held_out:
        if all(_apart(part["split"], part["fingerprint"], kept) for part in fisher.data):
            continue
        found = [frame.id for frame in kept.frames() if not used.isdisjoint(content_keys(frame))]
        if found:
            data = ", ".join(f"{part['name']} ({part['split']})" for part in fisher.data)
            raise ValueError(
                f"the Fisher was computed on {data} and {_place(kept)} is held out, but they have {_listed(found)} "
                "in common: errors on them would not measure forgetting. Hold out another split, or compute the "
                "Fisher on another."
            )


def _apart(split: str, fingerprint: str, other: Dataset) -> bool:
    """Return whether data are another split of the same manifest, without common frames by construction.

    Not for a merged manifest: train of one of its parts may be test in another.
    """
    merged = "merged" in other.manifest.build_config
    return split != other.split and fingerprint == other.manifest.fingerprint and not merged


def _sizes(dataset: Dataset) -> Int64[np.ndarray, " frames"]:
    """Return the number of atoms of each frame, from the index."""
    index = dataset.index()
    return index.counts(0, index.num_frames)[0].astype(np.int64)


def _of_sizes(dataset: Dataset, sizes: Int64[np.ndarray, " some"]) -> Sequence[Structure] | Frames:
    """Return the frames of a data set that have one of these numbers of atoms."""
    places = np.flatnonzero(np.isin(_sizes(dataset), sizes))
    if len(places) == 0:
        return ()
    numbers = places if dataset.subset is None else dataset.subset.numbers[places]
    return replace(dataset, subset=Subset(numbers)).frames()


def _place(dataset: Dataset) -> str:
    return f"{dataset.manifest.provenance.name} ({dataset.split})"


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f"{len(ids)} frame{'s' if len(ids) > 1 else ''} ({', '.join(ids[:MAX_NAMED])}{more})"
