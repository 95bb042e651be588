"""Remarks on a data set: what was read, as what, how it is split, and what looks wrong, in short lines.

They follow from the data set alone, so every verb says the same of it. Frames that occur twice, and energies of several
zeros, are looked for in data sets of moderate size only, as every frame is read for it.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.building.duplicates import find_duplicates, fingerprint
from data_pipeline.building.edge_count import EdgeCounter, Edges
from data_pipeline.building.splits import SPLITS
from data_pipeline.inspection import all_statistics, inspect_manifest, ordered_splits
from data_pipeline.loading.datasets import Frames
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS

WIDTH = 80
"""Length of a line [characters]."""
MAX_CHECKED = 20_000
"""Number of frames up to which all are compared."""
CLOSE = 0.6
"""Distance of two atoms [Å] below which a frame is suspicious; the hydrogen molecule has 0.74 Å."""
SAME = 1e-3
"""Largest change of a position or a cell element of a frame that occurs twice [Å]."""
GAP = 1.0
"""Smallest distance between energies of two zeros [eV per atom]."""


def frames_of(number: int) -> str:
    """Return a number of frames in words."""
    return f"{number:,} frame{'s' * (number != 1)}"


def lines(remarks: Sequence[str]) -> list[str]:
    """Return remarks as lines of up to WIDTH characters; those that continue a remark are indented."""
    return [
        line
        for remark in remarks
        for line in textwrap.wrap(remark, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    ]


def remarks_on(manifest: Manifest) -> list[str]:
    """Return the contents, the split, the level of theory and the suspicious properties of a data set."""
    return [
        _about_size(manifest, all_statistics(manifest)),
        *choices_on(manifest),
        f"level of theory: {manifest.provenance.level_of_theory}",
        *_about_rejected(manifest),
        *checks_on(manifest),
    ]


def choices_on(manifest: Manifest) -> list[str]:
    """Return the entries that were read as labels, with the number of each, and the split."""
    return [*_about_labels(manifest, all_statistics(manifest)), _about_split(manifest)]


def checks_on(manifest: Manifest) -> list[str]:
    """Return the suspicious properties of a data set."""
    found = [each for each in inspect_manifest(manifest).warnings if not each.startswith("no frames in")]
    return [f"check: {each}" for each in (*found, *_about_frames(manifest, all_statistics(manifest)))]


def _about_size(manifest: Manifest, total: Statistics) -> str:
    atoms = np.concatenate([_atoms_of(manifest, name) for name in manifest.splits])
    each = f"{atoms.min():,}" if atoms.min() == atoms.max() else f"{atoms.min():,} to {atoms.max():,}"
    elements = " ".join(SYMBOLS[number] for number in total.elements)
    return f"{frames_of(total.num_frames)} of {each} atoms; elements: {elements}"


def _atoms_of(manifest: Manifest, split: str) -> np.ndarray:
    """Return the number of atoms of each frame of a split."""
    index = manifest.index(split)
    return index.counts(0, index.num_frames)[0] if index.num_frames else np.zeros(0, dtype=np.int32)


def _about_labels(manifest: Manifest, total: Statistics) -> Iterator[str]:
    keys = _read_keys(manifest.build_config)
    counts = {"energy": total.num_frames, "forces": total.num_force_frames, "stress": total.num_stress_frames}
    for kind, count in counts.items():
        names = ", ".join(keys[kind])
        where = f"{names}, " if names and count else ""
        yield f"{kind}: {where}{count:,} of {total.num_frames:,} frames" if count else f"{kind}: none in the files"


def _read_keys(build_config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the entries read as each label, in all sources of a data set."""
    found: dict[str, list[str]] = {"energy": [], "forces": [], "stress": []}
    source = build_config.get("source", {})
    joined = [each for name in SPLITS for each in source.get(name, [])]
    for each in joined or [source]:
        names = {
            "energy": each.get("energy_key") or "energy",
            "forces": each.get("forces_key") or "forces",
            "stress": each.get("virials_key") or each.get("stress_key") or "stress",
        }
        if each.get("virials_key") is None and each.get("stress_unit", "eV/A^3") != "eV/A^3":
            names["stress"] += f" [{each['stress_unit']}]"
        for kind, name in names.items():
            found[kind] += [] if name in found[kind] else [name]
    return found


def _about_split(manifest: Manifest) -> str:
    counts = {name: split.statistics.num_frames for name, split in ordered_splits(manifest).items()}
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    filled = [name for name, count in counts.items() if count]
    if len(filled) == 1:
        return f"split: all in {filled[0]}" + ", so that errors cannot be measured" * (filled == ["train"])
    return f"split: {text} ({_read_rule(manifest.build_config)})"


def _read_rule(build_config: Mapping[str, Any]) -> str:
    """Return the rule of a split in words."""
    source = build_config.get("source", {})
    named = " and ".join(name for name in ("val", "test") if source.get(name))
    rule = {
        "group": "whole groups, at random",
        "order": "in the order of the frames",
        "blocks": "blocks of each composition, in the order of its frames",
        "random": "single frames, at random",
    }.get(build_config.get("split_by", "group"), "")
    return f"{rule}; {named} of the files named" if named else rule


def _about_rejected(manifest: Manifest) -> list[str]:
    """Return the number of frames left out by reason, each with its first example."""
    if not manifest.rejected or manifest.remote is not None:
        return []
    first = _read_rejects(manifest.root / "rejects.jsonl")
    return [
        f"left out: {frames_of(count)} ({reason.replace('_', ' ')}); the first: {first.get(reason, 'not listed')}"
        for reason, count in manifest.rejected.items()
    ]


def _read_rejects(path: Path) -> dict[str, str]:
    """Return the detail of the first rejected frame for each reason."""
    first = dict[str, str]()
    for line in path.read_text().splitlines() if path.is_file() else ():
        reject = json.loads(line)
        first.setdefault(reject["reason"], reject["detail"])
    return first


def _about_frames(manifest: Manifest, total: Statistics) -> list[str]:
    """Return suspicious properties of single frames, and of frames compared with each other."""
    if manifest.remote is not None or not 0 < total.num_frames <= MAX_CHECKED or not manifest.labelled:
        return []
    splits = {name: Frames(manifest, name) for name in ordered_splits(manifest)}
    prints, origin, energies, compositions, close = [], [], [], [], []
    count = EdgeCounter((CLOSE,), isolated=False)
    for name, frames in splits.items():
        for number, frame in enumerate(frames):
            found = fingerprint(frame)
            prints.append(found)
            origin.append((name, number))
            energies.append(frame.energy / frame.num_atoms)
            compositions.append(np.bincount(frame.numbers, minlength=len(SYMBOLS)) / frame.num_atoms)
            close += [(frame.id, each.closest) for each in count([frame]) if isinstance(each, Edges)]
    repeats = find_duplicates(
        np.array([each.key for each in prints], dtype=np.uint64),
        np.array([each.projections for each in prints]),
        np.array([each.steepness for each in prints]),
        SAME,
        lambda place: splits[origin[place][0]][origin[place][1]],
    )
    return [
        *_about_close(close),
        *_about_repeats(repeats, origin),
        *_about_zeros(np.array(energies), np.array(compositions)),
    ]


def _about_close(close: Sequence[tuple[str, float]]) -> list[str]:
    near = [each for each in close if each[1] < CLOSE]
    if not near:
        return []
    name, distance = min(near, key=lambda each: each[1])
    return [f"{frames_of(len(near))} with atoms closer than {CLOSE} Å (the closest, {distance:.2f} Å, in {name})"]


def _about_repeats(repeats: Mapping[int, int], origin: Sequence[tuple[str, int]]) -> list[str]:
    pairs = Counter((origin[first][0], origin[second][0]) for second, first in repeats.items())
    return [
        f"{frames_of(count)} of {second} also in {first}, so that errors on {second} are too small"
        if first != second
        else f"{frames_of(count)} of {first} the same as an earlier one"
        for (first, second), count in sorted(pairs.items())
    ]


def _about_zeros(energies: np.ndarray, compositions: np.ndarray) -> list[str]:
    """Return a warning if the energies, without what composition explains, fall into groups far apart."""
    present = compositions[:, compositions.any(axis=0)]
    fitted = np.linalg.lstsq(present, energies, rcond=None)[0]
    rest = np.sort(energies - present @ fitted)
    gaps = np.diff(rest)
    if not len(gaps):
        return []
    place = int(gaps.argmax())
    sides = rest[: place + 1], rest[place + 1 :]
    spread = max(float(np.ptp(side)) for side in sides)
    if gaps[place] < GAP or gaps[place] < 3 * spread:
        return []
    return [
        f"the energies fall into two groups {gaps[place]:.3g} eV/atom apart ({len(sides[0]):,} and {len(sides[1]):,} "
        "frames) that composition does not explain, as if files had different zeros of energy"
    ]
