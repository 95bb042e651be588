"""Rehearsal: data of the pretraining that a fine-tuning goes on to train on (experience replay), and what it may not.

Rehearsed frames are a part of a manifest, chosen when the run begins; nothing is built again. Errors on held-out frames
tell what is learned or forgotten only if neither the training, the rehearsal nor the Fisher has seen them, so all are
compared with them frame by frame. Two splits of one manifest that is no merged one have no frame in common and are not
read; of other data sets those frames are read that have as many atoms as a held-out one.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import open_manifest
from data_pipeline.structure import SYMBOLS, Structure
from foundation.configuration import COMPARED, DECIDES
from foundation.datasets import DatasetConfig, refuse_unlabelled
from foundation.finetuning.fisher import Fisher
from foundation.finetuning.frame_keys import frame_key
from foundation.finetuning.selection import farthest_points, frame_features, random_part, with_elements
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data
from foundation.training.additions import Mode
from foundation.training.loss import LossConfig

log = logging.getLogger(__name__)

MAX_NAMED = 3
"""Frames that an error names."""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """Data of the pretraining to go on training on, and how."""

    data: Path | tuple[DatasetConfig, ...] = field(metadata=COMPARED)
    """Manifest of the pretraining's data, or its folder; or several data sets. A level of theory is one of the start's:
    the one that is named, or that a data set is described as, or the only one there is."""
    split: str = field(default="train", metadata=DECIDES)
    """Split that is rehearsed."""
    ratio: float = field(default=1.0, metadata=DECIDES)
    """Edge budget of a micro-batch of it over fit.edge_budget: its share of the computing."""
    weight: float = field(default=1.0, metadata=DECIDES)
    """Factor of its loss."""
    loss: LossConfig | None = field(default=None, metadata=DECIDES)
    """Its loss; the run's when absent. Energies may count more in it than in the run's, which are forgotten first."""
    mode: Mode = field(default="joint", metadata=DECIDES)
    """One step on target and rehearsal together (joint), on each in turn (alternate), or in turn with the target's
    gradient added to the rehearsal's, as in the code published with reEWC (reference)."""
    elements: tuple[str, ...] = field(default=(), metadata=DECIDES)
    """Rehearse only structures with at least one of these elements; all when empty."""
    fraction: float = field(default=1.0, metadata=DECIDES)
    """Rehearse this part of those structures, chosen once for the whole run; of several data sets, of each."""
    method: Literal["random", "farthest-point"] = field(default="random", metadata=DECIDES)
    """Choice of the part: at random, or each as far as possible from those before in the start's own features."""
    seed: int = field(default=0, metadata=DECIDES)
    """Seed of the random choice."""
    labels: Literal["data", "start"] = field(default="data", metadata=DECIDES)
    """Where labels come from: the data, or predictions of the start (distillation), for which the data need none."""

    def __post_init__(self) -> None:
        for name, value in {"ratio": self.ratio, "weight": self.weight}.items():
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"rehearsal.{name} must be positive, not {value}; leave rehearsal out instead")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rehearsal.fraction is above 0 (nothing) and at most 1 (all), not {self.fraction}")
        unknown = [symbol for symbol in self.elements if symbol not in SYMBOLS[1:]]
        if unknown:
            raise ValueError(f"rehearsal.elements: {', '.join(unknown)} is no chemical symbol, such as Li or Cl")
        if self.seed < 0:
            raise ValueError(f"rehearsal.seed must not be negative, and is {self.seed}")
        if not isinstance(self.data, Path) and not self.data:
            raise ValueError("rehearsal.data is empty; leave rehearsal out instead")


def rehearsal_datasets(config: RehearsalConfig, potential: Potential) -> list[Dataset]:
    """Open and choose the data to rehearse; their levels of theory are numbered as the potential's.

    Structures of elements that the potential does not know are left out. Nothing but the manifest is read where all
    frames are kept. Every process of a run chooses by itself, and the same.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: no such split or one without frames, a level of theory or element that the potential does not know,
            no labels although they are asked for, or no structure is left.
    """
    configs = (DatasetConfig(path=config.data),) if isinstance(config.data, Path) else config.data
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
    """Return the frames to rehearse of a split, the place-th that is rehearsed; None if these are all."""
    statistics = dataset.manifest.split(dataset.split).statistics
    name, left = dataset.manifest.provenance.name, sorted(set(statistics.elements) - set(potential.elements))
    candidates = np.arange(statistics.num_frames)
    if left:
        log.warning("rehearsal: structures of %s that have %s are left out", name, ", ".join(SYMBOLS[z] for z in left))
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
    """Refuse to train on held-out frames.

    Args:
        trained: Data whose frames training sees.
        held_out: Data whose frames it must not see.
        what: What is done with the former, for the message: 'rehearsed' or 'trained on'.

    Raises:
        ValueError: a frame is in both; the message names data sets and ids.
    """
    for kept in held_out:
        shared = [each for each in trained if not _apart(each.split, each.manifest.fingerprint, kept)]
        if not shared:
            continue
        ids, sizes = {}, set[int]()
        for frame in kept.frames():
            ids[frame_key(frame.id, frame.numbers)] = frame.id
            sizes.add(frame.num_atoms)
        for each in shared:
            found = [ids[key] for key in map(_key, _of_sizes(each, sizes)) if key in ids]
            if found:
                raise ValueError(
                    f"{_place(each)} is {what} and {_place(kept)} is held out, and they have {_in_words(found)} in "
                    "common: errors on them would not tell what is learned or forgotten. Hold out another split."
                )


def refuse_fisher_held_out(fisher: Fisher, held_out: Sequence[Dataset]) -> None:
    """Refuse a Fisher that was computed on held-out frames.

    Raises:
        ValueError: it was; the message names data sets and ids.
    """
    used = set(fisher.structures.tolist())
    for kept in held_out:
        if all(_apart(part["split"], part["fingerprint"], kept) for part in fisher.data):
            continue
        found = [frame.id for frame in kept.frames() if _key(frame) in used]
        if found:
            data = ", ".join(f"{part['name']} ({part['split']})" for part in fisher.data)
            raise ValueError(
                f"the Fisher was computed on {data} and {_place(kept)} is held out, and they have {_in_words(found)} "
                "in common: errors on them would not tell what is forgotten. Hold out another split, or compute the "
                "Fisher on one."
            )


def _apart(split: str, fingerprint: str, other: Dataset) -> bool:
    """Return whether data are another split of the same manifest, which has no frame in common by construction.

    Of a merged manifest this is not so: what is train in one of its parts may be test in another.
    """
    merged = "merged" in other.manifest.build_config
    return split != other.split and fingerprint == other.manifest.fingerprint and not merged


def _of_sizes(dataset: Dataset, sizes: set[int]) -> Iterator[Structure]:
    """Yield the frames of a data set that have one of some numbers of atoms, which its index tells without the rest."""
    index = dataset.index()
    places = np.flatnonzero(np.isin(index.counts(0, index.num_frames)[0], list(sizes)))
    if len(places) == 0:
        return
    numbers = places if dataset.subset is None else dataset.subset.numbers[places]
    yield from replace(dataset, subset=Subset(numbers)).frames()


def _key(frame: Structure) -> int:
    return frame_key(frame.id, frame.numbers)


def _place(dataset: Dataset) -> str:
    return f"{dataset.manifest.provenance.name} ({dataset.split})"


def _in_words(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f"{len(ids)} frame{'s' if len(ids) > 1 else ''} ({', '.join(ids[:MAX_NAMED])}{more})"
