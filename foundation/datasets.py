"""Data sets of a run: one manifest, or several that are trained on together, each at its level of theory."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.loading.datasets import Dataset
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.structure import SYMBOLS
from foundation.configuration import COMPARED
from foundation.potential import Potential


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One of several data sets that are trained on together."""

    path: Path = field(metadata=COMPARED)
    """Manifest, or its folder."""
    repeat: float = field(default=1.0, metadata=COMPARED)
    """Number of times that a pass reads each of its frames; with 0.1, a different tenth of them every time."""
    theory: str | None = field(default=None, metadata=COMPARED)
    """Name of its level of theory; data sets of the same name share reference energies. None: the description in the
    manifest."""
    weight: float = field(default=1.0, metadata=COMPARED)
    """Weight of its frames in the loss; to weight a whole level of theory, set it for all of its data sets."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"{self.path}: weight must be positive, not {self.weight}; leave the data set out instead")


def open_datasets(data: Path | Sequence[DatasetConfig]) -> tuple[list[Dataset], tuple[str, ...]]:
    """Open the data sets of a run, and return them with the names of their levels of theory.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: no data set, one without training frames, or data sets at different levels of theory without names.
    """
    configs = [DatasetConfig(path=data)] if isinstance(data, Path) else list(data)
    if not configs:
        raise ValueError("data is empty: name at least one data set")
    manifests = [open_manifest(config.path) for config in configs]
    for config, manifest in zip(configs, manifests, strict=True):
        if manifest.split("train").statistics.num_frames == 0:
            raise ValueError(
                f"{config.path}: no frames in the training split, all are for evaluation; build the data set again "
                "with a smaller val_fraction or test_fraction to train on it"
            )
    descriptions = [manifest.provenance.level_of_theory for manifest in manifests]
    names = [config.theory or text for config, text in zip(configs, descriptions, strict=True)]
    if len(set(names)) > 1 and not all(config.theory for config in configs):
        found = "; ".join(f"{config.path}: {text}" for config, text in zip(configs, descriptions, strict=True))
        raise ValueError(
            f"the data sets are at different levels of theory ({found}). Their energies differ by more than chemistry: "
            "name the level of each with `theory` (the same name where they are compatible)."
        )
    theories = tuple(dict.fromkeys(names))
    datasets = [
        Dataset(manifest=manifest, repeat=config.repeat, theory=theories.index(name), weight=config.weight)
        for config, manifest, name in zip(configs, manifests, names, strict=True)
    ]
    return datasets, theories


def refuse_unlabelled(datasets: Sequence[Dataset]) -> None:
    """Refuse data sets built without labels, where labels are needed for training or comparison.

    Raises:
        ValueError: a data set has no labels; the message names it.
    """
    for dataset in datasets:
        if not dataset.manifest.labelled:
            raise ValueError(
                f"{dataset.manifest.provenance.name} was built without labels (source.labels none), so there is "
                "nothing to learn from or to compare with: use it only for rehearsal with labels from the start "
                "(--rehearsal.labels start)"
            )


def left_out(manifest: Manifest, split: str, number: int, known: Sequence[int]) -> list[str]:
    """Return a sentence on the frames of a split with elements that a potential does not know; [] if number is 0.

    Args:
        manifest: The data set.
        split: The split.
        number: Number of frames left out.
        known: Atomic numbers that the potential knows.
    """
    if number == 0:
        return []
    statistics = manifest.split(split).statistics
    unknown = ", ".join(SYMBOLS[z] for z in sorted(set(statistics.elements) - set(known)))
    total, name = statistics.num_frames, manifest.provenance.name
    return [f"{name} ({split}): {number:,} of {total:,} frames are left out, the potential does not know {unknown}"]


def statistics_by_theory(datasets: Sequence[Dataset], theories: Sequence[str]) -> dict[str, Statistics]:
    """Return the sums over the training frames at each level of theory."""
    sums: dict[str, Statistics] = {}
    for dataset in datasets:
        theory, statistics = theories[dataset.theory_number], dataset.manifest.split(dataset.split).statistics
        sums[theory] = sums[theory] + statistics if theory in sums else statistics
    return sums


def numbered_as_in(potential: Potential, datasets: Sequence[Dataset], theories: Sequence[str]) -> list[Dataset]:
    """Return data sets with the numbers that a potential has for their levels of theory, in place of those in a list.

    Raises:
        ValueError: the potential does not know one of them.
    """
    return [replace(each, theory=potential.theory_number(theories[each.theory_number])) for each in datasets]
