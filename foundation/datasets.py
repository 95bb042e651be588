"""Data of a run: data sets that are trained on together, each at its level of theory, and plain files.

Plain files are built into data sets first, in the run folder, so that a run keeps the frames that it began with.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig, build_plain, is_dataset, plain_fingerprint, plain_name
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.structure import SYMBOLS
from foundation.configuration import COMPARED
from foundation.potential import Potential

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One of several data sets that are trained on together."""

    path: Path = field(metadata=COMPARED)
    """Data set (its folder or manifest), or a plain file, glob or folder of files."""
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


Data = Path | tuple[Path | DatasetConfig, ...]
"""Data sets, plain files, globs or folders of files; plain ones without options are one data set together."""
LAUNCHED = ("WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Environment variables with the number of processes that a launcher started."""


def of_run(data: Data) -> tuple[DatasetConfig, ...]:
    """Return each data set of a run with its options, all defaults where only its path is given.

    Raises:
        ValueError: there is none.
    """
    items = (data,) if isinstance(data, Path) else data
    if not items:
        raise ValueError("data is empty: name at least one file or data set")
    return tuple(DatasetConfig(path=item) if isinstance(item, Path) else item for item in items)


@dataclass(frozen=True, kw_only=True)
class PlainFiles:
    """Place and settings of the data sets that are built from plain files."""

    folder: Path
    """Folder of the data sets."""
    read: ReadConfig
    """Settings of reading."""
    cutoff: float
    """Cutoff of the potential [Å]."""
    begun: tuple[Path, ...] = ()
    """Data sets that a resumed run began with."""

    def all_in(self, split: str) -> "PlainFiles":
        """Return the same with all frames in one split: train, val or test."""
        fractions = {f"{name}_fraction": float(split == name) for name in ("val", "test")}
        return replace(self, read=replace(self.read, **fractions))

    def build(self, files: Sequence[Path], *, val: Sequence[Path] = (), test: Sequence[Path] = ()) -> Path:
        """Build a data set, unless an earlier start of the run did, and return its folder.

        Args:
            files: Files, globs or folders of files to train on.
            val: Those for validation.
            test: Those for the final evaluation.

        Raises:
            FileNotFoundError: a file is missing, or a glob has no match.
            InvalidStructure: a frame is refused, or the files hold no labels.
            ValueError: the labels are ambiguous, or several processes would build at the same time.
        """
        words, of_val, of_test = ([str(path) for path in group] for group in (files, val, test))
        name, fingerprint = plain_name(words, self.read), "gone"
        begun = [path for path in self.begun if path.name.rpartition("-")[0] == name]
        with suppress(FileNotFoundError) if begun else nullcontext():
            fingerprint = plain_fingerprint(words, self.read, val=of_val, test=of_test, cutoffs=(self.cutoff,))
        out = self.folder / f"{name}-{fingerprint}"
        if out.exists():
            return out
        if begun:
            log.warning("%s changed since the run began; it goes on with its own copy, %s", words[0], begun[0])
            return begun[0]
        if any(int(os.environ.get(name, "1")) > 1 for name in LAUNCHED):
            raise ValueError(
                f"{words[0]} is not a data set yet, and one process has to make it: `foundation build --data FILES "
                "--out FOLDER` first, then give the folder as --data"
            )
        built = build_plain(words, out, self.read, val=of_val, test=of_test, cutoffs=(self.cutoff,))
        for remark in built.remarks:
            log.info("%s", remark)
        return out


def with_plain_built(
    data: Data, plain: PlainFiles, *, val: Sequence[Path] = (), test: Sequence[Path] = (), theory: str | None = None
) -> Data:
    """Return the data sets of a run, those of plain files newly built.

    Args:
        data: Data sets, files, globs and folders of files.
        plain: Place and settings of the data sets to build.
        val: Plain files for validation.
        test: Plain files for the final evaluation.
        theory: Level of theory of data given without one.

    Raises:
        ValueError: files for validation or evaluation beside data sets only; or see PlainFiles.build().
    """
    items = (data,) if isinstance(data, Path) else data
    files = [item for item in items if isinstance(item, Path) and not is_dataset(item)]
    if (val or test) and not files:
        raise ValueError("--val and --test go with plain files; a data set that is built has its own splits")
    alone = [each for item, each in zip(items, of_run(data), strict=True) if item not in files]
    if theory is None and not files and all(is_dataset(each.path) for each in alone):
        return data
    found = [DatasetConfig(path=plain.build(files, val=val, test=test))] if files else []
    found += [each if is_dataset(each.path) else replace(each, path=plain.build([each.path])) for each in alone]
    return tuple(replace(item, theory=item.theory or theory) for item in found)


@contextmanager
def one_split(files: Path | tuple[Path, ...], read: ReadConfig, *, split: str, cutoff: float) -> Iterator[Manifest]:
    """Open a data set, or one made of plain files while it is open, with all of their frames in one split.

    Args:
        files: The data set, or plain files, globs or folders of files.
        read: Settings of reading plain files.
        split: The split of their frames: train, val or test.
        cutoff: Cutoff of the potential [Å].

    Raises:
        ValueError: a data set is not alone.
    """
    paths = (files,) if isinstance(files, Path) else files
    ready = [path for path in paths if is_dataset(path)]
    if ready and len(paths) > 1:
        raise ValueError(f"{ready[0]} is a data set: give it alone, or merge several with `foundation merge`")
    if ready:
        yield open_manifest(ready[0])
        return
    with tempfile.TemporaryDirectory(prefix="foundation-") as folder:
        plain = PlainFiles(folder=Path(folder), read=read, cutoff=cutoff)
        yield open_manifest(plain.all_in(split).build(paths))


def open_datasets(data: Data) -> tuple[list[Dataset], tuple[str, ...]]:
    """Open the data sets of a run, and return them with the names of their levels of theory.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: no data set, one without training frames, or data sets at different levels of theory without names.
    """
    configs = of_run(data)
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


def dataset_facts(dataset: Dataset, theories: Sequence[str]) -> dict:
    """Return facts of a training data set for a card, as JSON; for a subset, counts are of its frames."""
    statistics = dataset.manifest.split(dataset.split).statistics
    num_frames, num_atoms = statistics.num_frames, statistics.num_atoms
    if dataset.subset is not None:
        index = dataset.index()
        num_frames, num_atoms = index.num_frames, int(index.counts(0, index.num_frames)[0].sum())
    return asdict(dataset.manifest.provenance) | {
        "theory": theories[dataset.theory_number],
        "repeat": dataset.repeat,
        "weight": dataset.weight,
        "num_frames": num_frames,
        "num_atoms": num_atoms,
        "manifest_fingerprint": dataset.manifest.fingerprint,
    }
