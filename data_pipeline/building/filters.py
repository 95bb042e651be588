"""Filters: frames to leave out, with reasons. Decided over all frames at once, from the columns of the staged parts.

An energy is an outlier only relative to all others, and a duplicate is one of a pair; so nothing is decided while
reading. Memory is a few columns of 8 bytes per frame; with duplicates, some 100 bytes per frame.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from data_pipeline.building.duplicates import find_duplicates
from data_pipeline.building.staging import StagedFrames
from data_pipeline.sources import Part
from data_pipeline.statistics.element_energies import element_energies
from data_pipeline.statistics.sums import SIZE, reference_energies
from data_pipeline.store import durable
from data_pipeline.structure import InvalidStructure, Structure

IMPLAUSIBLE_STRESS = 10.0
"""Implausibly large stress [eV/Å³] (1,602 GPa): over four times the pressure in the Earth's centre."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Frames to leave out. Each is listed in rejects.jsonl with the reason, and counted in the manifest."""

    invalid: Literal["error", "reject"] = "error"
    """Treatment of a frame that cannot be trained on (no energy, NaN, atoms at the same place): end the build, or leave
    it out."""
    max_force: float | None = None
    """Largest force on an atom [eV/Å]."""
    max_stress: float | None = None
    """Largest stress component [eV/Å³]."""
    max_energy_residual: float | None = None
    """Largest deviation of the energy from the sum of element energies fitted to all frames [eV per atom]."""
    min_distance: float | None = None
    """Smallest distance of two atoms [Å], below the largest cutoff; under 0.1 Å a frame is invalid in any case."""
    isolated_atoms: Literal["keep", "reject"] = "keep"
    """Treatment of a frame with an atom that has no neighbour within the largest cutoff."""
    duplicates: Literal["keep", "reject"] = "keep"
    """Treatment of a frame with the same atoms, cell and positions as an earlier kept one."""
    duplicate_tolerance: float = 1e-3
    """Largest change of a cell element or of a position in a duplicate [Å]."""
    stress_check: bool = True
    """Stop if the stress looks like kbar or GPa: over 1 % of the frames above 10 eV/Å³."""

    def __post_init__(self) -> None:
        for name in ("max_force", "max_stress", "max_energy_residual", "min_distance", "duplicate_tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"filters.{name} must be positive, not {value}")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Frames that are left out for one reason."""

    reason: str
    """Name of the reason: the option of the filter."""
    frames: Int64[np.ndarray, " rejected"]
    """Numbers of the frames, ascending."""
    values: np.ndarray
    """Measured value of each; for a duplicate, the number of the earlier frame."""
    detail: str
    """Sentence with a placeholder for the value."""


def check_ids(frames: StagedFrames) -> None:
    """Refuse a name that occurs twice.

    Raises:
        InvalidStructure: two frames have the same name.
    """
    hashes = frames.column("id")
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]).tolist():
        # equal hashes of different names are possible, but unlikely
        name, other = (frames.structure(int(order[place + step])).id for step in (0, 1))
        if name == other:
            raise InvalidStructure(f"two frames are called {name!r}; give the source an id_key that is unique")


def check_stress(frames: StagedFrames) -> None:
    """Refuse stress that must be in another unit.

    Raises:
        InvalidStructure: more than 1 % of the frames with stress have a component above 10 eV/Å³.
    """
    stress = frames.column("stress")
    stress = stress[stress >= 0]
    number = int(np.count_nonzero(stress > IMPLAUSIBLE_STRESS))
    if number > 0.01 * len(stress):
        raise InvalidStructure(
            f"the stress looks like kbar or GPa given as eV/Å³: {number:,} of {len(stress):,} frames have a component "
            f"above {IMPLAUSIBLE_STRESS:g} eV/Å³ (1,602 GPa); the median of their largest components is "
            f"{np.median(stress):.3g}. Set the source's unit (--source.stress_unit kbar), or set "
            "--filters.stress_check false if it is right."
        )


def decide(frames: StagedFrames, filters: FilterConfig) -> list[Rejection]:
    """Return the rejected frames, each for the first reason that applies in the order of FilterConfig's options."""
    kept = np.ones(int(frames.first_frame[-1]), dtype=bool)
    result: list[Rejection] = []
    if len(kept) == 0:
        return result

    def reject(reason: str, wrong: Callable[[np.ndarray], np.ndarray], values: np.ndarray, detail: str) -> None:
        chosen = np.flatnonzero(kept & wrong(values))
        kept[chosen] = False
        result.append(Rejection(reason=reason, frames=chosen, values=values[chosen], detail=detail))

    def limit(reason: str, column: str, detail: str) -> None:
        bound = getattr(filters, reason)
        if bound is not None:
            smaller = reason.startswith("min")
            values = frames.column(column)
            reject(reason, lambda v: v < bound if smaller else v > bound, values, f"{detail}; the limit is {bound:g}")

    limit("max_force", "force", "the largest force is {:.6g} eV/Å")
    limit("max_stress", "stress", "the largest stress component is {:.6g} eV/Å³")
    limit("min_distance", "distance", "two atoms are {:.4f} Å apart")
    if filters.isolated_atoms == "reject":
        detail = "{:.0f} atoms have no neighbour within the largest cutoff"
        reject("isolated_atoms", lambda v: v > 0, frames.column("isolated"), detail)
    if filters.max_energy_residual is not None:
        bound = filters.max_energy_residual
        detail = "the energy is {:.4f} eV per atom from the sum of the element energies; the limit is " + f"{bound:g}"
        reject("max_energy_residual", lambda v: np.abs(v) > bound, _energy_residuals(frames, kept, bound), detail)
    if filters.duplicates == "reject":
        result.append(_duplicates(frames, kept, filters.duplicate_tolerance))
    return result


def _energy_residuals(
    frames: StagedFrames, kept: Bool[np.ndarray, " frames"], bound: float
) -> Float64[np.ndarray, " frames"]:
    """Return each frame's energy per atom above the sum of its element energies [eV].

    One absurd energy bends a least-squares fit for every frame that shares an element. So the fit is repeated without
    the frames beyond both the limit and five times the median residual, until nothing changes. Elements without
    remaining frames keep their energy.
    """
    fitted, residual, energies = kept, np.zeros(len(kept)), None
    for _ in range(20):
        if not fitted.any():
            break
        energies = _element_energies(frames, fitted, energies)
        residual = np.concatenate([_energy_residual(frames, chunk, energies) for chunk in range(len(frames.chunks))])
        usual = float(np.median(np.abs(residual[kept])))
        near = kept & (np.abs(residual) <= max(bound, 5 * usual))
        if np.array_equal(near, fitted):
            break
        fitted = near
    return residual


def _element_energies(
    frames: StagedFrames,
    chosen: Bool[np.ndarray, " frames"],
    before: Float64[np.ndarray, " elements"] | None,
) -> Float64[np.ndarray, " elements"]:
    gram, projection = np.zeros((SIZE, SIZE)), np.zeros(SIZE)
    for chunk in range(len(frames.chunks)):
        rows = chosen[frames.first_frame[chunk] : frames.first_frame[chunk + 1]]
        fractions = _compositions(frames, chunk)[rows]
        gram += fractions.T @ fractions
        projection += fractions.T @ frames.column_of(chunk, "energy")[rows]
    if before is None:
        return reference_energies(gram, projection, int(chosen.sum()))
    return element_energies(gram, projection, before)


def _energy_residual(
    frames: StagedFrames, chunk: int, energies: Float64[np.ndarray, " elements"]
) -> Float64[np.ndarray, " frames"]:
    return frames.column_of(chunk, "energy") - _compositions(frames, chunk) @ energies


def _compositions(frames: StagedFrames, chunk: int) -> Float64[np.ndarray, "frames elements"]:
    """Return the fraction of each element in each frame of a chunk (at most 62 MB)."""
    sizes = frames.column_of(chunk, "num_elements")
    result = np.zeros((len(sizes), SIZE))
    rows = np.repeat(np.arange(len(sizes)), sizes)
    result[rows, frames.column_of(chunk, "element")] = frames.column_of(chunk, "fraction")
    return result


def _duplicates(frames: StagedFrames, kept: Bool[np.ndarray, " frames"], tolerance: float) -> Rejection:
    numbers = np.flatnonzero(kept)
    keys, projections, steepness = (frames.column(name)[kept] for name in ("key", "projections", "steepness"))

    def structure(place: int) -> Structure:
        return frames.structure(int(numbers[place]))

    found = find_duplicates(keys, projections, steepness, tolerance, structure)
    repeats = np.array(sorted(found), dtype=np.int64)
    originals = np.array([found[place] for place in repeats.tolist()], dtype=np.int64)
    return Rejection(
        reason="duplicate",
        frames=numbers[repeats],
        values=numbers[originals],
        detail="the same atoms, cell and positions as {!r}" + f" to {tolerance:g} Å",
    )


def write_rejects(path: Path, frames: StagedFrames, parts: list[Part], rejections: list[Rejection]) -> dict[str, int]:
    """Write one line per rejected frame, in source order, and return the number of frames per reason."""
    counts: Counter[str] = Counter()
    places = np.concatenate([np.zeros(0, dtype=np.int64), *(r.frames for r in rejections)])
    owners = np.repeat(np.arange(len(rejections)), [len(r.frames) for r in rejections])
    within = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(len(r.frames)) for r in rejections)])
    order = np.argsort(places)
    parts_of = np.array(frames.part_of_chunk, dtype=np.int64)[
        np.searchsorted(frames.first_frame, places[order], side="right") - 1
    ]
    with durable.whole_file(path) as partial, partial.open("x") as file:
        for number, part in enumerate(parts):
            lines = [json.loads(line) for line in (frames.parts[number] / "refused.jsonl").read_text().splitlines()]
            for entry in order[parts_of == number].tolist():
                lines.append(_line(frames, int(places[entry]), rejections[owners[entry]], int(within[entry])))
            for line in sorted(lines, key=lambda line: line["frame"]):
                counts[line["reason"]] += 1
                file.write(json.dumps({"part": part.name, **line}, ensure_ascii=False) + "\n")
    return dict(sorted(counts.items()))


def _line(frames: StagedFrames, frame: int, rejection: Rejection, place: int) -> dict:
    value = rejection.values[place].item()
    return {
        "frame": frames.number_in_part(frame),
        "id": frames.structure(frame).id,
        "reason": rejection.reason,
        "detail": rejection.detail.format(frames.structure(value).id if rejection.reason == "duplicate" else value),
    }
