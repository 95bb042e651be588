"""Coverage: the environments of atoms that a potential has seen in training, in one small file.

An environment is described by the features from which a network reads an atom's energy. For each element some
environments of the training data are kept, far from each other; an atom's distance to the nearest of them tells how far
it is from what was seen (as in the nearest-neighbour distances of Janet et al., Chem. Sci. 10, 7913 (2019)). Features
are compared in their principal components within elements, each with unit variance. The shortest and longest distances
of every pair of elements are kept as well. Nothing here needs labels.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, read_layout, refusing
from data_pipeline.structure import MAX_ATOMIC_NUMBER, Structure
from foundation.potential import Potential

COMPONENTS = 16
"""Largest number of principal components: in a trial, 32 and 128 ranked errors of forces no better."""
KEPT = 128
"""Largest number of environments kept of an element."""
SAMPLED = 2000
"""Largest number of environments of an element among which they are chosen."""
BATCH_ATOMS = 1000
"""Number of atoms above which a batch ends."""
QUANTILES = (*(0.01 * place for place in range(100)), 0.995, 0.999, 1.0)
"""Shares of the training data's atoms whose distances are stored."""
LIMIT = 0.999
"""Share of the training data's atoms within whose distance an atom counts as covered."""
UNSEEN = 99.0
"""Distance of an atom whose element was not seen, and the largest one that is given."""
FORMAT = "coverage 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Distances:
    """Distances of the atoms of structures from the training data, in their order."""

    features: Float64[np.ndarray, " atoms"]
    """Distance to the nearest kept environment over that within which 99.9 % of the training data are; above one, an
    atom is beyond, and UNSEEN is an element that was not seen."""
    contact: Float64[np.ndarray, " atoms"]
    """Shortest distance of the training data over the atom's own, for its pair of elements that is closest to it or
    beyond it; above one, atoms are closer than ever; 0 without neighbours."""
    far: Bool[np.ndarray, " atoms"]
    """True if a neighbour is farther than any of its pair of elements in the training data."""
    strange: Bool[np.ndarray, " atoms"]
    """True if a neighbour is of an element that was never a neighbour of the atom's in the training data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Coverage:
    """Content of the file; arrays over elements follow `elements`, and a pair that was not seen is infinite."""

    elements: Int64[np.ndarray, " elements"]
    """Atomic numbers seen."""
    counts: Int64[np.ndarray, " elements"]
    """Number of atoms of each."""
    means: Float32[np.ndarray, "elements features"]
    """Mean features."""
    projection: Float32[np.ndarray, "features components"]
    """Principal components within elements, over their standard deviations."""
    kept: Float32[np.ndarray, "environments components"]
    """Kept environments in these components, relative to the mean of their element."""
    element_of: Int64[np.ndarray, " environments"]
    """Index of the element of each."""
    quantiles: Float64[np.ndarray, " quantiles"]
    """Quantiles of the distances of training atoms to kept environments of other groups, at QUANTILES."""
    shortest: Float32[np.ndarray, "elements elements"]
    """Shortest distance of a pair of elements [Å]."""
    longest: Float32[np.ndarray, "elements elements"]
    """Longest distance of a pair of elements within the cutoff [Å]."""
    weights: str
    """Fingerprint of the potential's weights, to whose features the file belongs."""
    data: str
    """Name of the data."""

    @property
    def limit(self) -> float:
        """Distance within which 99.9 % of the training data are."""
        return float(self.quantiles[QUANTILES.index(LIMIT)])

    def save(self, path: Path) -> None:
        """Write the file."""
        names = [each.name for each in fields(self) if each.name not in ("weights", "data")]
        # safetensors writes the bytes of an array as they lie
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        metadata = {"format": FORMAT, "weights": self.weights, "data": self.data}
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_whole(path, safetensors.numpy.save(tensors, metadata=metadata))

    @staticmethod
    def read(path: Path) -> "Coverage":
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptFile: it is not such a file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; make it with `foundation coverage`")
        with refusing(path, CorruptFile, "not the coverage of training data ({}); make it with `foundation coverage`"):
            _, facts = read_layout(path)
            if facts.get("format") != FORMAT:
                raise ValueError(f"it is not of the format {FORMAT!r}")
            tensors = safetensors.numpy.load_file(path)
            return Coverage(**tensors, weights=facts["weights"], data=facts["data"])

    def distances(self, potential: Potential, structures: Sequence[Structure]) -> Distances:
        """Return the distances of all atoms of structures from the training data.

        Raises:
            ValueError: the potential is another one, or its network has no features.
        """
        if fingerprint(potential) != self.weights:
            raise ValueError(
                "the coverage belongs to other weights, whose features are not comparable; make it again for this "
                "potential with `foundation coverage`"
            )
        index = self._index()
        found: list[Distances] = []
        for batch, features in environments(potential, structures):
            numbers = batch.numbers.numpy()
            own = index[numbers]
            feature = self._nearest(features, own)
            contact, far, strange = self._pairs(batch, own)
            found.append(Distances(features=feature, contact=contact, far=far, strange=strange))
        return Distances(
            **{each.name: np.concatenate([getattr(part, each.name) for part in found]) for each in fields(Distances)}
        )

    def _index(self) -> Int64[np.ndarray, " numbers"]:
        """Return the index of every atomic number among the elements, -1 for one that was not seen."""
        index = np.full(MAX_ATOMIC_NUMBER + 1, -1)
        index[self.elements] = np.arange(len(self.elements))
        return index

    def _nearest(
        self, features: Float[np.ndarray, "atoms features"], own: Int64[np.ndarray, " atoms"]
    ) -> Float64[np.ndarray, " atoms"]:
        found = np.full(len(own), UNSEEN)
        for element in np.unique(own[own >= 0]):
            atoms = np.flatnonzero(own == element)
            places = (features[atoms] - self.means[element]) @ self.projection
            kept = self.kept[self.element_of == element]
            found[atoms] = np.minimum(np.sqrt(squares(places, kept).min(axis=1)) / self.limit, UNSEEN)
        return found

    def _pairs(
        self, batch: GraphBatch, own: Int64[np.ndarray, " atoms"]
    ) -> tuple[Float64[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"]]:
        """Return shortest seen over own distance, and whether a neighbour is too far or of a pair never seen."""
        first, second, lengths = pairs_of(batch)
        contact, far, strange = (np.zeros(len(own), kind) for kind in (np.float64, bool, bool))
        known = (own[first] >= 0) & (own[second] >= 0)
        shortest = np.full(len(lengths), np.inf)
        longest = np.zeros(len(lengths))
        shortest[known] = self.shortest[own[first[known]], own[second[known]]]
        longest[known] = self.longest[own[first[known]], own[second[known]]]
        seen = np.isfinite(shortest)
        for atoms in (first, second):
            np.maximum.at(contact, atoms[seen], shortest[seen] / lengths[seen])
            np.logical_or.at(far, atoms[seen], (lengths > longest * (1 + 1e-6))[seen])
            np.logical_or.at(strange, atoms, ~seen)
        return contact, far, strange


def coverage_of(potential: Potential, frames: Iterable[Structure], data: str) -> Coverage:
    """Return the coverage of training data by a potential.

    Args:
        potential: The potential.
        frames: Training data, each frame with its group: the frames of one are alike.
        data: Name of the data.

    Raises:
        ValueError: there is no frame, or the network has no features.
    """
    sums: dict[int, _Element] = {}
    shortest = np.full((MAX_ATOMIC_NUMBER + 1, MAX_ATOMIC_NUMBER + 1), np.inf, dtype=np.float32)
    longest = np.zeros_like(shortest)
    random, groups = np.random.default_rng(0), dict[str, int]()
    for some in _batches(frames):
        ((batch, features),) = environments(potential, some)
        numbers, graphs = batch.numbers.numpy(), batch.graph_of_atom.numpy()
        of_frames = np.array([groups.setdefault(each.group or each.id, len(groups)) for each in some])
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            sums.setdefault(number, _Element(features.shape[1])).add(
                features[chosen], of_frames[graphs[chosen]], random
            )
        first, second, lengths = pairs_of(batch)
        for one, other in ((first, second), (second, first)):
            np.minimum.at(shortest, (numbers[one], numbers[other]), lengths)
            np.maximum.at(longest, (numbers[one], numbers[other]), lengths)
    if not sums:
        raise ValueError("there is no frame to learn the coverage from")
    elements = np.array(sorted(sums))
    projection = _projection(list(sums.values()))
    kept, element_of, quantiles = _kept([sums[number] for number in elements.tolist()], projection)
    return Coverage(
        elements=elements,
        counts=np.array([sums[number].count for number in elements.tolist()]),
        means=np.array([sums[number].mean for number in elements.tolist()], dtype=np.float32),
        projection=projection.astype(np.float32),
        kept=kept.astype(np.float32),
        element_of=element_of,
        quantiles=quantiles,
        shortest=shortest[np.ix_(elements, elements)],
        longest=longest[np.ix_(elements, elements)],
        weights=fingerprint(potential),
        data=data,
    )


class _Element:
    """Sums over the environments of an element, and a random sample of them."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self._sum, self.products = np.zeros(num_features), np.zeros((num_features, num_features))
        self.sample, self.groups = np.zeros((0, num_features), np.float32), np.zeros(0, dtype=np.int64)
        self._keys = np.zeros(0)

    def add(
        self,
        features: Float[np.ndarray, "atoms features"],
        groups: Int64[np.ndarray, " atoms"],
        random: np.random.Generator,
    ) -> None:
        """Add environments: the sample is of those with the smallest random numbers."""
        exact = features.astype(np.float64)
        self.count += len(exact)
        self._sum += exact.sum(axis=0)
        self.products += exact.T @ exact
        keys = np.concatenate([self._keys, random.random(len(exact))])
        order = np.argsort(keys, kind="stable")[:SAMPLED]
        self._keys = keys[order]
        self.sample = np.concatenate([self.sample, features.astype(np.float32)])[order]
        self.groups = np.concatenate([self.groups, groups])[order]

    @property
    def mean(self) -> Float64[np.ndarray, " features"]:
        """Mean features."""
        return self._sum / self.count


def _projection(elements: Sequence[_Element]) -> Float64[np.ndarray, "features components"]:
    """Return the leading principal components of features about the means of their elements, with unit variance."""
    total = sum(each.count for each in elements)
    products = [each.products - each.count * np.outer(each.mean, each.mean) for each in elements]
    sizes, axes = np.linalg.eigh(np.sum(products, axis=0) / total)
    leading = np.argsort(-sizes)[:COMPONENTS]
    leading = leading[sizes[leading] > 1e-9 * max(sizes.max(), 1e-12)]
    return axes[:, leading] / np.sqrt(sizes[leading])


def _kept(
    elements: Sequence[_Element], projection: Float64[np.ndarray, "features components"]
) -> tuple[
    Float64[np.ndarray, "environments components"], Int64[np.ndarray, " environments"], Float64[np.ndarray, " q"]
]:
    """Return the kept environments, their elements, and quantiles of the distances to those of other groups."""
    kept, distances, weights = [], [], []
    for element in elements:
        places = (element.sample - element.mean) @ projection
        chosen = farthest(places, KEPT)
        kept.append(places[chosen])
        between = squares(places, places[chosen])
        between[element.groups[:, None] == element.groups[chosen]] = np.inf
        nearest = np.sqrt(between.min(axis=1))
        known = np.isfinite(nearest)  # an element of a single group has no other to compare with
        distances.append(nearest[known])
        weights.append(np.full(int(known.sum()), element.count / len(places)))
    all_kept = np.concatenate(kept)
    element_of = np.repeat(np.arange(len(elements)), [len(each) for each in kept])
    if not sum(map(len, distances)):
        raise ValueError("no element is in two groups of frames: the data are too few to measure distances in")
    return all_kept, element_of, _weighted_quantiles(np.concatenate(distances), np.concatenate(weights))


def _weighted_quantiles(values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"]) -> np.ndarray:
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) / weights.sum()
    return values[order][np.minimum(np.searchsorted(shares, QUANTILES), len(values) - 1)]


def farthest(places: Float[np.ndarray, "points components"], count: int) -> Int64[np.ndarray, " chosen"]:
    """Return points of which each is the farthest from those before, the first from the mean; copies are left out."""
    chosen = [int(((places - places.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    nearest = ((places - places[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(places)) and nearest.max() > 1e-12:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((places - places[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def squares(
    one: Float[np.ndarray, "points components"], other: Float[np.ndarray, "others components"]
) -> Float64[np.ndarray, "points others"]:
    """Return squared distances between all points of two sets."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    products = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.maximum(products, 0.0)


def pairs_of(
    batch: GraphBatch,
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Float64[np.ndarray, " pairs"]]:
    """Return the atoms of all pairs within the cutoff, and their distances [Å]."""
    edges = batch.pair_edges
    lengths = torch.linalg.vector_norm(batch.pair_vectors(), dim=1)
    return batch.receivers[edges].long().numpy(), batch.senders[edges].long().numpy(), lengths.double().numpy()


def environments(
    potential: Potential, structures: Iterable[Structure]
) -> Iterator[tuple[GraphBatch, Float[np.ndarray, "atoms features"]]]:
    """Yield batches of structures on the CPU with the features of their atoms.

    Raises:
        ValueError: the network has no features.
        UnknownElement: the potential does not know an element.
    """
    for some in _batches(structures):
        batch = collate(some, potential.cutoff, potential.dtype)
        with torch.no_grad():
            features = potential.atom_features(batch.to(potential.device))
        yield batch, features.cpu().numpy()


def fingerprint(potential: Potential) -> str:
    """Return a checksum of the network's weights in float32, the same whatever float type they have now."""
    digest = hashlib.sha256()
    for name, tensor in sorted(potential.network.state_dict().items()):
        values = tensor.detach().cpu()
        digest.update(name.encode())
        digest.update((values.float() if values.is_floating_point() else values).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _batches(structures: Iterable[Structure]) -> Iterator[list[Structure]]:
    some: list[Structure] = []
    for structure in structures:
        if some and sum(each.num_atoms for each in some) + structure.num_atoms > BATCH_ATOMS:
            yield some
            some = []
        some.append(structure)
    if some:
        yield some
