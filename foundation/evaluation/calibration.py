"""Calibration of uncertainties: sums over training data in one pass, and the errors of held-out frames.

Sums of parts of the data add up to those of the whole. The sum of products of features is shrunk: one atom of their
mean is added for each feature, and a small multiple of the unit matrix, so that it can be inverted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.optimize import lsq_linear

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.graphs.packing import Refused, packed
from data_pipeline.structure import SYMBOLS, Structure
from foundation.evaluation.coverage import pairs_of
from foundation.evaluation.suites.extrapolation import rank_correlation, ranking_area
from foundation.last_layer import KINDS, UNSCALED, Judged, LastLayer, Scale, TrustFacts, scaled, score
from foundation.potential import Potential

EDGE_BUDGET = 10_000
"""Number of directed edges of a batch."""
RIDGE = 1e-4
"""Multiple of the mean variance of features that is added to each: on SevenNet-0, 1e-6 to 1e-2 rank errors the same."""
LEVEL = 0.683
"""Share of the errors that do not exceed their uncertainty."""
WITHIN = 0.999
"""Share of the held-out atoms within whose distance an atom counts as covered."""
FALSE_ALARMS = 0.05
"""Share of the held-out frames like the training data above which a way to leave the coverage is not told."""
KNOTS = 8
"""Largest number of knots of a table; each is of twice as many errors or more."""
SMALLEST_ERROR = {"energy": 5e-4, "forces": 2e-3}
"""Error that is added to each before its logarithm is fitted [eV/atom, eV/Å]: exact zeros are by symmetry."""
LARGE = 3.0
"""Multiple of the median from which an error is large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSums:
    """Sums over frames of the training data; arrays over elements follow the potential's."""

    products: Float64[np.ndarray, "groups features features"]
    """Sum of f fᵀ over the atoms, of all or of each element."""
    counts: Int64[np.ndarray, " elements"]
    """Number of atoms of each element."""
    shortest: Float32[np.ndarray, "elements elements"]
    """Shortest distance of every pair of elements [Å]; infinite if it was not seen."""
    num_frames: int
    """Number of frames."""
    largest_force: float = -np.inf
    """Largest force on an atom [eV/Å]; -inf without labels."""
    lowest_pressure: float = np.inf
    """Lowest pressure [eV/Å³]; inf without labels."""
    highest_pressure: float = -np.inf
    """Highest pressure [eV/Å³]; -inf without labels."""

    def __add__(self, other: "TrainingSums") -> "TrainingSums":
        """Return the sums over the frames of both."""
        return TrainingSums(
            products=self.products + other.products,
            counts=self.counts + other.counts,
            shortest=np.minimum(self.shortest, other.shortest),
            num_frames=self.num_frames + other.num_frames,
            lowest_pressure=min(self.lowest_pressure, other.lowest_pressure),
            largest_force=max(self.largest_force, other.largest_force),
            highest_pressure=max(self.highest_pressure, other.highest_pressure),
        )

    @property
    def whitening(self) -> Float64[np.ndarray, "groups features features"]:
        """Matrices W for which |f W|² is fᵀ (Σ f fᵀ)⁻¹ f times the number of atoms over that of features, shrunk."""
        num_atoms, size = int(self.counts.sum()), self.products.shape[-1]
        mean = self.products.sum(axis=0) / num_atoms
        shrunk = (self.products + size * mean) / num_atoms + RIDGE * np.trace(mean) / size * np.eye(size)
        variances, axes = np.linalg.eigh(shrunk)
        return axes / np.sqrt(size * np.maximum(variances, RIDGE**2 * np.trace(mean) / size))[:, None, :]


def training_sums(potential: Potential, frames: Iterable[Structure], theory: int = 0) -> TrainingSums:
    """Return the sums over frames whose elements the potential knows, in one pass.

    Raises:
        InvalidStructure: a frame has no neighbour list.
        ValueError: there is no frame, or the network has no features.
    """
    total: TrainingSums | None = None
    for structures, batch in _batches(potential, frames, theory):
        with torch.no_grad():
            features = potential.atom_features(batch.to(potential.device)).double().cpu().numpy()
        own = _of_batch(potential, structures, batch, features)
        total = own if total is None else total + own
    if total is None:
        raise ValueError("there is no training frame whose elements the potential knows")
    return total


def _of_batch(
    potential: Potential,
    structures: Sequence[Structure],
    batch: GraphBatch,
    features: Float64[np.ndarray, "atoms features"],
) -> TrainingSums:
    num_elements = len(potential.elements)
    position = np.full(len(SYMBOLS), -1)
    position[list(potential.elements)] = np.arange(num_elements)
    elements = position[batch.numbers.numpy()]
    groups = range(num_elements) if potential.network.reads_by_element else (slice(None),)
    chosen = [features[elements == each] if isinstance(each, int) else features for each in groups]
    shortest = np.full((num_elements, num_elements), np.inf, np.float32)
    if batch.molecule is None:
        first, second, lengths = pairs_of(batch)
        for one, other in ((first, second), (second, first)):
            np.minimum.at(shortest, (elements[one], elements[other]), lengths)
    sizes = [float(np.linalg.norm(each.forces, axis=1).max()) for each in structures if each.has_forces]
    pressures = [-float(np.trace(each.stress)) / 3 for each in structures if each.has_stress]
    return TrainingSums(
        products=np.stack([each.T @ each for each in chosen]),
        counts=np.bincount(elements, minlength=num_elements),
        shortest=shortest,
        num_frames=len(structures),
        largest_force=max(sizes, default=-np.inf),
        lowest_pressure=min(pressures, default=np.inf),
        highest_pressure=max(pressures, default=-np.inf),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Errors of held-out frames, with what uncertainties are made of."""

    energy_errors: Float64[np.ndarray, " frames"]
    """Absolute error of the energy per atom [eV/atom]."""
    mean_distances: Float64[np.ndarray, " frames"]
    """Mean distance of the atoms."""
    mean_forces: Float64[np.ndarray, " frames"]
    """Mean size of the predicted forces [eV/Å]."""
    outside: Bool[np.ndarray, "frames kinds"]
    """True where a frame leaves the coverage."""
    frame_of: Int64[np.ndarray, " atoms"]
    """Frame of each atom."""
    force_errors: Float64[np.ndarray, " atoms"]
    """Length of the error of each force [eV/Å]."""
    distances: Float64[np.ndarray, " atoms"]
    """Distance of each atom."""
    forces: Float64[np.ndarray, " atoms"]
    """Size of each predicted force [eV/Å]."""

    def part(self, first: int) -> "HeldOut":
        """Return every second frame, from the first (0) or the second one (1) on."""
        frames = np.arange(len(self.energy_errors)) % 2 == first
        atoms = frames[self.frame_of]
        kept = {name: getattr(self, name)[frames] for name in OF_FRAMES}
        kept |= {name: getattr(self, name)[atoms] for name in OF_ATOMS}
        return HeldOut(**kept, frame_of=(np.cumsum(frames) - 1)[self.frame_of[atoms]])

    def mean(self, values: Float64[np.ndarray, " atoms"]) -> Float64[np.ndarray, " frames"]:
        """Return the mean of values over the atoms of each frame."""
        return np.bincount(self.frame_of, values) / np.bincount(self.frame_of)


OF_FRAMES = ("energy_errors", "mean_distances", "mean_forces", "outside")
OF_ATOMS = ("force_errors", "distances", "forces")


def with_facts(potential: Potential, sums: TrainingSums, facts: TrustFacts) -> LastLayer:
    """Return the last layer of a potential for the sums over its training data and facts on them."""
    shortest = np.where(np.isfinite(sums.shortest), sums.shortest, 0.0).astype(np.float32)
    return LastLayer(facts, torch.from_numpy(sums.whitening), torch.from_numpy(shortest)).to(potential.device)


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """Return the frames of all parts."""
    kept = {name: np.concatenate([getattr(each, name) for each in parts]) for name in (*OF_FRAMES, *OF_ATOMS)}
    starts = np.cumsum([0, *(len(each.energy_errors) for each in parts)])
    return HeldOut(**kept, frame_of=np.concatenate([each.frame_of + n for each, n in zip(parts, starts, strict=False)]))


def held_out(potential: Potential, frames: Iterable[Structure], theory: int = 0) -> HeldOut:
    """Return the errors of a potential with distances on frames with forces whose elements it knows.

    Raises:
        InvalidStructure: a frame has no neighbour list.
        ValueError: there is no such frame.
    """
    assert potential.last_layer is not None
    parts: list[HeldOut] = []
    for structures, batch in _batches(potential, (each for each in frames if each.has_forces), theory):
        predicted = potential(batch.to(potential.device))
        assert predicted.uncertainty is not None
        forces = predicted.forces.double().cpu().numpy()
        errors = forces - np.concatenate([each.forces for each in structures])
        num_atoms, energies = batch.num_atoms.numpy(), np.array([each.energy for each in structures])
        found = HeldOut(
            energy_errors=np.abs(predicted.energy.cpu().numpy() - energies) / num_atoms,
            mean_distances=np.zeros(len(num_atoms)),
            mean_forces=np.zeros(len(num_atoms)),
            outside=predicted.uncertainty.outside.cpu().numpy(),
            frame_of=batch.graph_of_atom.numpy().astype(np.int64),
            force_errors=np.linalg.norm(errors, axis=1),
            distances=predicted.uncertainty.distances.cpu().numpy(),
            forces=np.linalg.norm(forces, axis=1),
        )
        means = {"mean_distances": found.mean(found.distances), "mean_forces": found.mean(found.forces)}
        parts.append(replace(found, **means))
    if not parts:
        raise ValueError("there is no held-out frame with forces whose elements the potential knows")
    return joined(parts)


def calibrated(facts: TrustFacts, parts: Sequence[HeldOut]) -> TrustFacts:
    """Return facts with the scales of energies and forces, and what can be told about coverage.

    Args:
        facts: Facts on the training data.
        parts: Held-out frames; those of the first are like the training data.
    """
    like, found = parts[0], joined(parts)
    unjudged = [kind for kind, share in zip(KINDS, like.outside.mean(axis=0), strict=True) if share > FALSE_ALARMS]
    return replace(
        facts,
        energy=_scale("energy", found.energy_errors, found.mean_distances, found.mean_forces),
        forces=_scale("forces", found.force_errors, found.distances, found.forces),
        limit=float(np.quantile(like.distances, WITHIN)),
        unjudged=tuple(unjudged),
    )


def judged(last_layer: LastLayer, parts: Mapping[str, HeldOut]) -> TrustFacts:
    """Return the facts of a calibration, with its judgement on held-out frames by name of their data."""
    facts = last_layer.facts
    sizes = {name: uncertainties(last_layer, found) for name, found in parts.items()}
    each = {name: _judged(parts[name], facts, *sizes[name]) for name in parts}
    every = joined(list(parts.values()))
    energies = np.concatenate([energy for energy, _ in sizes.values()])
    forces = np.concatenate([parts[name].mean(forces) for name, (_, forces) in sizes.items()])
    energy_area = _area(energies, every.energy_errors)
    return replace(
        facts, judged=each, energy_area=energy_area, force_area=_area(forces, every.mean(every.force_errors))
    )


def _judged(
    found: HeldOut, facts: TrustFacts, energies: Float64[np.ndarray, " frames"], forces: Float64[np.ndarray, " atoms"]
) -> Judged:
    told = np.array([each not in facts.unjudged for each in KINDS])
    far = found.mean((found.distances > facts.limit).astype(np.float64)) > 0
    return Judged(
        num_frames=len(energies),
        energy_correlation=_finite(rank_correlation(energies, found.energy_errors)),
        force_correlation=_finite(rank_correlation(found.mean(forces), found.mean(found.force_errors))),
        energy_within=float((found.energy_errors <= energies).mean()),
        force_within=float((found.force_errors <= forces).mean()),
        outside=float((found.outside[:, told].any(axis=1) | far).mean()),
    )


def uncertainties(
    last_layer: LastLayer, found: HeldOut
) -> tuple[Float64[np.ndarray, " frames"], Float64[np.ndarray, " atoms"]]:
    """Return the uncertainty of each frame's energy per atom, and of each force."""
    frames, atoms = (found.mean_distances, found.mean_forces), (found.distances, found.forces)
    return scaled(last_layer.facts.energy, *frames), scaled(last_layer.facts.forces, *atoms)


def _area(scores: Float64[np.ndarray, " frames"], errors: Float64[np.ndarray, " frames"]) -> float | None:
    return _finite(ranking_area(scores, errors > LARGE * np.median(errors)))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _scale(
    quantity: str,
    errors: Float64[np.ndarray, " n"],
    distances: Float64[np.ndarray, " n"],
    forces: Float64[np.ndarray, " n"],
) -> Scale:
    """Return the score fitted to the logarithms of errors, and its table."""
    given = distances, forces
    columns = [score(replace(UNSCALED, distance=d, force=f), *given) for d, f in ((1.0, 0.0), (0.0, 1.0))]
    matrix = np.stack([np.ones(len(errors)), *columns], axis=1)
    bounds = ([-np.inf, 0.0, 0.0], np.inf)
    constant, distance, force = lsq_linear(matrix, np.log(errors + SMALLEST_ERROR[quantity]), bounds=bounds).x.tolist()
    fitted = Scale(constant=constant, distance=distance, force=force, scores=(1.0, 2.0), errors=(1.0, 2.0))
    scores, limits = _table(np.exp(score(fitted, *given)), errors + SMALLEST_ERROR[quantity])
    return replace(fitted, scores=scores, errors=limits)


def _table(
    scores: Float64[np.ndarray, " n"], errors: Float64[np.ndarray, " n"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scores, and the errors that a share of those with similar scores do not exceed.

    As in split conformal prediction the share is of one more than the errors (Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World (2005)).
    """
    order = np.argsort(scores, kind="stable")
    bins = np.array_split(order, max(1, min(KNOTS, len(order) // (2 * KNOTS))))
    knots = [float(np.median(scores[each])) for each in bins]
    places = [min(len(each), int(np.ceil(LEVEL * (len(each) + 1)))) - 1 for each in bins]
    limits = np.maximum.accumulate([float(np.sort(errors[each])[n]) for each, n in zip(bins, places, strict=True)])
    kept = [n for n in range(len(knots)) if n == 0 or knots[n] > knots[n - 1] * (1 + 1e-6)]
    found = [(knots[n], float(limits[n])) for n in kept]
    if len(found) == 1:
        found.append((2 * found[0][0], 2 * found[0][1]))
    return tuple(each for each, _ in found), tuple(each for _, each in found)


def _batches(
    potential: Potential, frames: Iterable[Structure], theory: int
) -> Iterator[tuple[list[Structure], GraphBatch]]:
    """Yield batches of the frames whose elements a potential knows, on the processor."""
    known = set(potential.elements)
    some = (each for each in frames if known.issuperset(each.numbers.tolist()))
    for pack in packed(some, potential.cutoff, edge_budget=EDGE_BUDGET):
        if isinstance(pack, Refused):
            raise pack.error
        yield pack.structures, pack.batch(potential.dtype, theory)
