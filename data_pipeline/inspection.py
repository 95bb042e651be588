"""Inspection: the contents of a data set and warnings about them, from its manifest alone.

No shard is opened, so the time is the same for 10³ frames and for 10⁸. Terminal and HTML page show these results.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from data_pipeline.graphs.molecules import described
from data_pipeline.statistics.histograms import BINS, magnitudes
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, Provenance, Split
from data_pipeline.structure import SYMBOLS

PERIODIC_TABLE = """
H                                                  He
Li Be                               B  C  N  O  F  Ne
Na Mg                               Al Si P  S  Cl Ar
K  Ca Sc Ti V  Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y  Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I  Xe
Cs Ba    Hf Ta W  Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra    Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
      La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
      Ac Th Pa U  Np Pu Am Cm Bk Cf Es Fm Md No Lr
""".strip("\n").splitlines()
"""Rows of the periodic table, three characters an element."""
ZERO_FRACTION = 0.05
"""Share of labels that are exactly zero above which a warning is given."""
MIN_FRAMES = 5
"""Minimum number of training frames of an element: with fewer, its reference energy follows the noise of single
frames."""
LARGE_FORCE = 10**1.7
"""About 50 eV/Å, far beyond what a structure near equilibrium shows."""
LARGE_STRESS = 100 / 160.2177
"""100 GPa in eV/Å³."""
MIN_PAIRS = 10
"""Minimum number of pairs of frames to judge stress or forces."""
STRESS_FACTOR = 10**0.5
"""Largest ratio of stress work to energy change that passes (about 3)."""
FORCE_FACTOR = 10 ** (1.5 / 9)
"""Largest ratio of the work of forces to the energy change that passes (1.5); in published data it is below 1.2."""
FORCE_UNITS = {
    0.019447: "as if forces in Hartree/Bohr were taken for eV/Å",
    0.037: "as if forces in Hartree/Å or Rydberg/Bohr were taken for eV/Å",
    0.0735: "as if forces in Rydberg/Å were taken for eV/Å",
    0.0434: "as if energies in kcal/mol were taken for eV",
    0.529177: "as if forces in eV/Bohr were taken for eV/Å",
    1.889726: "as if forces in eV/Å were taken for eV/Bohr",
    10.0: "as if forces in eV/nm were taken for eV/Å",
    13.6057: "as if energies in Rydberg were taken for eV",
    25.0: "as if forces in kcal/mol/Å or energies in Hartree were taken for those in eV",
    51.4221: "as if forces in eV/Å were taken for Hartree/Bohr",
    96.4853: "as if forces in kJ/mol/Å were taken for eV/Å",
    964.853: "as if forces in kJ/mol/nm were taken for eV/Å",
    1000.0: "as if forces in meV/Å were taken for eV/Å",
}
"""Mistakes that make the work of forces wrong by these factors."""
UNITS = {
    1602.1766: "as if kbar were taken for eV/Å³",
    160.21766: "as if GPa were taken for eV/Å³",
    10.0: "as if kbar were taken for GPa",
    0.1: "as if GPa were taken for kbar",
}
"""Mistakes that make stresses wrong by these factors."""


def ordered_splits(manifest: Manifest) -> dict[str, Split]:
    """Return the splits in the usual order: train, val, test, then others."""
    usual = ["train", "val", "test"]
    names = sorted(manifest.splits, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
    return {name: manifest.splits[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class SplitContents:
    """Contents of a split."""

    num_frames: int
    """Number of frames."""
    num_atoms: int
    """Number of atoms."""
    num_force_frames: int
    """Number of frames with forces."""
    num_zero_force_frames: int
    """Number of these whose forces are all zero."""
    num_stress_frames: int
    """Number of frames with stress."""
    num_zero_stress_frames: int
    """Number of these whose stress is all zero."""
    num_shards: int
    """Number of shards."""
    num_bytes: int
    """Size of the shards."""
    force_rms: float | None
    """Root mean square of force components [eV/Å]; None without forces."""
    num_elements: int
    """Number of elements."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Distribution of a quantity over all splits."""

    quantity: str
    """Name of the quantity."""
    unit: str
    """Its unit."""
    count: int
    """Number of values."""
    quantiles: dict[str, float]
    """Quantiles by their fraction, to two digits: bins are no finer than that."""


@dataclass(frozen=True, kw_only=True)
class WorkCheck:
    """Work of a label against the change of the energy, between neighbouring frames."""

    num_pairs: int
    """Number of pairs of frames."""
    num_same_sign: int
    """Number of pairs where the sign is right."""
    num_same_size: int
    """Number of pairs where the size is about right."""
    median_size: float | None
    """Median ratio of the two; None without pairs."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Contents of a data set, and what looks wrong with it."""

    provenance: Provenance
    """Origin of the data."""
    manifest_fingerprint: str
    """Fingerprint of the manifest."""
    num_frames: int
    """Number of frames."""
    num_atoms: int
    """Number of atoms."""
    num_bytes: int
    """Size of the shards."""
    mean_neighbors: dict[str, float]
    """Mean number of neighbours by cutoff [Å], in training frames where there are some."""
    splits: dict[str, SplitContents]
    """Splits by name."""
    distributions: dict[str, Distribution]
    """Distributions of all quantities with values, by name."""
    frames_of_element: dict[str, int]
    """Number of frames that hold each element, most frequent first."""
    stress_check: WorkCheck
    """Work of the stress; see stress_work.py."""
    force_check: WorkCheck
    """Work of the forces; see force_work.py."""
    rejected: dict[str, int]
    """Number of frames left out by reason."""
    warnings: list[str]
    """Warnings, a sentence each."""


def inspect_manifest(manifest: Manifest) -> Inspection:
    """Return what a data set holds and what looks wrong with it."""
    total = all_statistics(manifest)
    train = trained_on(manifest) or total
    checks = stress_check(total), force_check(total)
    return Inspection(
        provenance=manifest.provenance,
        manifest_fingerprint=manifest.fingerprint,
        num_frames=total.num_frames,
        num_atoms=total.num_atoms,
        num_bytes=sum(shard.num_bytes for split in manifest.splits.values() for shard in split.shards),
        mean_neighbors={described(cutoff): train.mean_neighbors(cutoff) for cutoff in train.cutoffs},
        splits={name: _split_contents(split) for name, split in ordered_splits(manifest).items()},
        distributions={name: _distribution(total, name) for name in BINS if total.histogram(name).any()},
        frames_of_element=_frames_of_elements(total),
        stress_check=checks[0],
        force_check=checks[1],
        rejected=manifest.rejected,
        warnings=warnings(manifest, total, *checks),
    )


def all_statistics(manifest: Manifest) -> Statistics:
    """Return the statistics of all splits together."""
    return reduce(add, (split.statistics for split in manifest.splits.values()))


def trained_on(manifest: Manifest) -> Statistics | None:
    """Return the statistics of the training split, or None if all frames are for evaluation."""
    train = manifest.split("train").statistics
    return train if train.num_frames else None


def _split_contents(split: Split) -> SplitContents:
    statistics = split.statistics
    return SplitContents(
        num_frames=statistics.num_frames,
        num_atoms=statistics.num_atoms,
        num_force_frames=statistics.num_force_frames,
        num_zero_force_frames=statistics.num_zero_force_frames,
        num_stress_frames=statistics.num_stress_frames,
        num_zero_stress_frames=statistics.num_zero_stress_frames,
        num_shards=len(split.shards),
        num_bytes=sum(shard.num_bytes for shard in split.shards),
        force_rms=statistics.force_rms if statistics.num_force_atoms else None,
        num_elements=len(statistics.elements),
    )


def _distribution(total: Statistics, name: str) -> Distribution:
    bins, counts = BINS[name], total.histogram(name)
    alone = name == "size" and np.count_nonzero(counts) == 1  # all near the mean, which is known exactly
    mean = total.num_atoms / max(total.num_frames, 1)
    quantiles = {
        f"{part:g}": float(round(mean)) if alone else float(f"{bins.quantile(counts, part):.2g}")
        for part in (0.01, 0.25, 0.5, 0.75, 0.99)
    }
    return Distribution(quantity=bins.quantity, unit=bins.unit, count=int(counts.sum()), quantiles=quantiles)


def _frames_of_elements(total: Statistics) -> dict[str, int]:
    """Return the number of frames with each element, most frequent first."""
    order = sorted(total.elements, key=lambda z: (-total.frames_of_element[z], z))
    return {SYMBOLS[z]: int(total.frames_of_element[z]) for z in order}


def stress_check(total: Statistics) -> WorkCheck:
    """Return how well the stress explains the energy between neighbouring frames; see stress_work.py."""
    return _work_check(total, "stress_ratio", 1 / STRESS_FACTOR, STRESS_FACTOR)


def force_check(total: Statistics) -> WorkCheck:
    """Return how well the forces explain the energy between neighbouring frames; see force_work.py."""
    return _work_check(total, "force_ratio", 1 / FORCE_FACTOR, FORCE_FACTOR)


def _work_check(total: Statistics, name: str, low: float, high: float) -> WorkCheck:
    bins, counts = BINS[name], total.histogram(name)
    size_bins, sizes = magnitudes(bins, counts)
    number = int(counts.sum())
    near = size_bins.number_from(sizes, low) - size_bins.number_from(sizes, high)
    return WorkCheck(
        num_pairs=number,
        num_same_sign=bins.number_from(counts, float(size_bins.edges[0])),
        num_same_size=near,
        median_size=size_bins.quantile(sizes, 0.5) if number else None,
    )


def warnings(manifest: Manifest, total: Statistics, stress: WorkCheck, forces: WorkCheck) -> list[str]:
    """Return a sentence for each suspicious property of a data set, given the results of the two checks."""
    if not manifest.labelled:
        return [*_about_splits(manifest), "the frames were built without labels; their energies are zero"]
    return [
        *_about_splits(manifest),
        *_about_zeros(total),
        *_about_stress(total, stress),
        *_about_work_of_forces(forces),
        *_about_forces(total),
        *_about_elements(manifest),
    ]


def _about_splits(manifest: Manifest) -> list[str]:
    empty = [name for name, split in ordered_splits(manifest).items() if split.statistics.num_frames == 0]
    return [f"no frames in {' and '.join(empty)}; nothing can be evaluated there"] if empty else []


def _about_zeros(total: Statistics) -> list[str]:
    found = []
    for label, zeros, frames in (
        ("forces", total.num_zero_force_frames, total.num_force_frames),
        ("stress", total.num_zero_stress_frames, total.num_stress_frames),
    ):
        if zeros > ZERO_FRACTION * frames:
            found.append(
                f"{zeros:,} of {frames:,} frames with {label} ({zeros / frames:.0%}) have {label} of exactly zero: "
                "right where symmetry forbids any, wrong if zeros stand for missing labels"
            )
    return found


def _about_stress(total: Statistics, check: WorkCheck) -> list[str]:
    pairs, found = check.num_pairs, []
    if pairs < MIN_PAIRS:
        bins, counts = magnitudes(BINS["stress"], total.histogram("stress"))
        median = bins.quantile(counts, 0.5)
        if median > LARGE_STRESS:
            found.append(
                f"half of the frames have a mean normal stress beyond {160.2177 * median:,.0f} GPa "
                f"({median:.3g} eV/Å³): right under extreme pressure, wrong if the unit is kbar or GPa"
            )
        return found
    wrong_sign = pairs - check.num_same_sign
    if wrong_sign > 0.7 * pairs:
        found.append(
            f"the sign of the stress contradicts how the energy depends on the volume, in {wrong_sign:,} of {pairs:,} "
            "pairs of neighbouring frames: positive must mean tension; change the sign in the source and build again"
        )
    median = check.median_size
    assert median is not None
    if not 1 / STRESS_FACTOR < median < STRESS_FACTOR:
        factor, guess = min(UNITS.items(), key=lambda item: abs(np.log(item[0] / median)))
        cause = f", {guess}" if 0.5 < factor / median < 2 else ""
        found.append(
            "the size of the stress contradicts how the energy depends on the volume: between neighbouring frames "
            f"({pairs:,} pairs) its work is about {float(f'{median:.2g}'):,g} times the energy change{cause}; correct "
            "the unit in the source and build again"
        )
    return found


def _about_work_of_forces(check: WorkCheck) -> list[str]:
    pairs, same_sign = check.num_pairs, check.num_same_sign
    if pairs < MIN_PAIRS:
        return []
    if 0.3 * pairs <= same_sign <= 0.7 * pairs:
        return [
            "the forces contradict how the energy changes: between neighbouring frames their work has the right sign "
            f"in only {same_sign:,} of {pairs:,} pairs; check that energies and forces belong to the same frames"
        ]
    turned, size = same_sign < 0.3 * pairs, check.median_size
    assert size is not None
    causes = ["the forces have the sign of gradients"] if turned else []
    if not 1 / FORCE_FACTOR < size < FORCE_FACTOR:
        factor, guess = min(FORCE_UNITS.items(), key=lambda item: abs(np.log(item[0] / size)))
        causes += [guess] if 0.8 < factor / size < 1.25 else []
    elif not turned:
        return []
    ratio = float(f"{-size if turned else size:.2g}")
    cause = f" ({', and '.join(causes)})" if causes else ""
    return [
        f"the forces contradict how the energy changes: between neighbouring frames ({pairs:,} pairs) their work is "
        f"about {ratio:,g} times the energy change, not 1{cause}; correct the source and build again"
    ]


def _about_forces(total: Statistics) -> list[str]:
    number = BINS["force"].number_from(total.histogram("force"), LARGE_FORCE)
    if number == 0:
        return []
    return [
        f"{number:,} of {total.num_force_atoms:,} atoms feel more than 50 eV/Å, which weighs on the force scale "
        "and on the loss"
    ]


def _about_elements(manifest: Manifest) -> list[str]:
    train, found = manifest.split("train").statistics.frames_of_element, []
    if not train.any():
        return []
    for name, split in ordered_splits(manifest).items():
        unseen = {z: int(split.statistics.frames_of_element[z]) for z in split.statistics.elements if train[z] == 0}
        if unseen:
            listed = ", ".join(f"{SYMBOLS[z]} ({number:,})" for z, number in unseen.items())
            found.append(f"elements in {name} that are not in train (frames): {listed}")
    rare = np.flatnonzero((train > 0) & (train < MIN_FRAMES))
    if len(rare):
        found.append(
            f"elements in fewer than {MIN_FRAMES} training frames, whose noise their reference energies follow: "
            + ", ".join(SYMBOLS[z] for z in rare)
        )
    undetermined = manifest.split("train").statistics.undetermined_elements
    if undetermined:
        found.append(
            "elements in proportions that never change, so that their reference energies are divided arbitrarily and "
            f"other compositions will be off: {', '.join(SYMBOLS[z] for z in undetermined)}"
        )
    return found
