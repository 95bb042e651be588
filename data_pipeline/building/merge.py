"""Several data sets as one: a manifest that names the shards of others, so that nothing is copied and sums just add.

For parts of one corpus, or corpora of one level of theory and one energy convention. Data sets that differ in either
keep their own manifests and are trained on together, each with its own element references.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from data_pipeline.store import durable, lock
from data_pipeline.store.index import BlockIndex
from data_pipeline.store.manifest import Manifest, Provenance, Shard, Split, open_manifest, split_index_path
from data_pipeline.store.replacing import refuse_inside
from data_pipeline.store.shards import sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Data sets to merge into one."""

    manifests: tuple[Path, ...]
    """Manifests, or their folders, in the order in which they are read."""
    out: Path
    """Folder to write: a manifest and one index per split. The shards stay where they are and must not move away."""
    name: str
    """Short name of the merged data set."""


def merge(manifests: Sequence[Path], out: Path, name: str) -> Manifest:
    """Write a manifest that holds the shards of several, split by split in the order given, and return it.

    Raises:
        InUse: another process writes to the same target.
        FileExistsError: the target exists, or a data set to merge lies in `<out>.partial`.
        FileNotFoundError: a manifest, a shard or an index is missing.
        ValueError: fewer than two, not on a local disk, the same shard twice, an index that differs from its checksum,
            or data sets that differ in cutoffs, level of theory or energy convention.
    """
    parts = [open_manifest(_local(path)) for path in manifests]
    target = lock.real(out)
    refuse_inside([part.root for part in parts], [durable.partial_of(target)])
    with lock.hold(lock.beside(out), out):
        if target.exists():
            raise FileExistsError(f"{out} already exists; choose another --out")
        _check(parts)
        _warn_of_leaks(parts)
        return _merged(parts, target, name, root=out)


def _merged(parts: list[Manifest], target: Path, name: str, root: Path) -> Manifest:
    with durable.whole_folder(target) as folder:
        merged = Manifest(
            provenance=_joined_provenance(parts, name),
            splits={split: _merge_split(parts, split, folder, target) for split in _split_names(parts)},
            build_config={"merged": [_origin(part) for part in parts]},
            rejected=dict(reduce(add, (Counter(part.rejected) for part in parts))),
            root=root,
        )
        (folder / "manifest.json").write_text(merged.to_text())
    return merged


def _local(path: Path) -> Path:
    # pathlib makes one slash of two
    if re.match(r"\w{2,}:/", str(path)):
        raise ValueError(f"{path}: only data sets on a local disk can be merged; copy it there first")
    return path


def _check(parts: list[Manifest]) -> None:
    if len(parts) < 2:
        raise ValueError(f"merging takes two manifests or more, not {len(parts)}")
    beside = "train them together as two data sets, each with a `theory` of its own, instead of merging them"
    _agree(parts, "edge cutoffs [Å]", lambda part: part.split("train").statistics.cutoffs, "build one of them again")
    _agree(parts, "level of theory", lambda part: part.provenance.level_of_theory, beside)
    _agree(parts, "energy convention", lambda part: part.provenance.energy_convention, beside)
    _agree(parts, "labels (True: labelled)", lambda part: part.labelled, "keep them apart")
    owner: dict[str, Manifest] = {}
    for part in parts:
        for shard in (shard for split in part.splits.values() for shard in split.shards):
            if shard.sha256 in owner:
                other = owner[shard.sha256]
                raise ValueError(f"{part.root / shard.name} is also in {other.root}; its frames would count twice")
            owner[shard.sha256] = part


def _agree(parts: list[Manifest], what: str, read: Callable[[Manifest], object], advice: str) -> None:
    for part in parts[1:]:
        if read(part) != read(parts[0]):
            raise ValueError(
                f"{parts[0].root} and {part.root} differ in their {what}: {read(parts[0])!r} and {read(part)!r}; "
                f"{advice}"
            )


def _warn_of_leaks(parts: list[Manifest]) -> None:
    rules = set().union(*(_split_rules(part.build_config) for part in parts))
    if len(rules) > 1 or any("order" in rule for rule in rules):
        log.warning(
            "warning: the data sets were split by different rules (seed or fractions) or in the order of their frames, "
            "so a group in two of them can be in train of one and in test of the other"
        )


def _split_rules(build_config: dict) -> set[tuple]:
    if "merged" in build_config:
        return set().union(*(_split_rules(part["build_config"]) for part in build_config["merged"]))
    dealt = build_config.get("split_by", "group")  # missing in data sets built before the option existed
    return {(dealt, *(build_config.get(key) for key in ("split_seed", "val_fraction", "test_fraction")))}


def _split_names(parts: list[Manifest]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.splits))


def _merge_split(parts: list[Manifest], name: str, folder: Path, target: Path) -> Split:
    """Write the index of a split into the folder, and return the split as seen from the target."""
    holders = [part for part in parts if name in part.splits]
    statistics = reduce(add, (part.splits[name].statistics for part in holders))
    shards, indexes, numbers = [], [], [np.zeros(0, np.int32)]
    for part in holders:
        index = part.index(name).blocks
        numbers.append(index.shard + np.int32(len(shards)))
        indexes.append(index)
        shards += [_seen_from(target, part, shard) for shard in part.splits[name].shards]
    joined = replace(BlockIndex.joined(indexes, len(statistics.cutoffs)), shard=np.concatenate(numbers))
    path = split_index_path(folder, name)
    joined.save(path)
    return Split(shards=tuple(shards), statistics=statistics, index_sha256=sha256(path))


def _seen_from(target: Path, part: Manifest, shard: Shard) -> Shard:
    # both resolved: the system follows `..` from the target of a link, not from the link
    path = (part.root / shard.name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {part.root} names this shard, but it is missing")
    return replace(shard, name=Path(os.path.relpath(path, target)).as_posix())


def _joined_provenance(parts: list[Manifest], name: str) -> Provenance:
    first = parts[0].provenance

    def joined(read: Callable[[Provenance], str]) -> str:
        return "; ".join(Counter(read(part.provenance) for part in parts))

    return Provenance(
        name=name,
        licence=joined(lambda p: p.licence),
        level_of_theory=first.level_of_theory,
        energy_convention=first.energy_convention,
        citation=joined(lambda p: p.citation),
        source=joined(lambda p: p.source),
    )


def _origin(part: Manifest) -> dict:
    return {"name": part.provenance.name, "fingerprint": part.fingerprint, "build_config": part.build_config}
