"""Statistics of a data set as sums that merge: element reference energies, force scale, neighbour counts, histograms.

Only sums are kept; everything else is derived from them. So two shards, or two manifests, merge by addition: exactly
for counts, to rounding for sums of floats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64

from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.quoting import abbreviated
from data_pipeline.statistics.element_energies import element_energies, undetermined
from data_pipeline.statistics.force_work import force_ratios
from data_pipeline.statistics.histograms import BINS, LATER
from data_pipeline.statistics.stress_work import stress_ratios
from data_pipeline.store.json_record import Record
from data_pipeline.structure import MAX_ATOMIC_NUMBER, Structure

SIZE = MAX_ATOMIC_NUMBER + 1
SAME_CUTOFF = 1e-6
"""Largest difference of cutoffs that count as the same [Å]; edge counts only plan batches."""


@dataclass
class Statistics:
    """Sums over the frames of a data set; index Z of an array belongs to the element with atomic number Z."""

    cutoffs: tuple[float, ...]
    """Cutoffs at which edges were counted [Å]."""
    num_frames: int = 0
    """Number of frames."""
    num_atoms: int = 0
    """Number of atoms."""
    num_edges: list[int] = field(default_factory=list)
    """Number of directed edges at each cutoff."""
    num_force_atoms: int = 0
    """Number of atoms with forces."""
    num_force_frames: int = 0
    """Number of frames with forces."""
    num_zero_force_frames: int = 0
    """Number of frames whose forces are all exactly zero."""
    num_stress_frames: int = 0
    """Number of frames with stress."""
    num_zero_stress_frames: int = 0
    """Number of frames with a stress that is exactly zero."""
    force_square_sum: float = 0.0
    """Sum of squared force components [eV²/Å²]."""
    energy_square_sum: float = 0.0
    """Sum of squared energies per atom [eV²]."""
    atoms_of_element: Float64[np.ndarray, " elements"] = field(default_factory=lambda: np.zeros(SIZE))
    """Number of atoms of each element."""
    frames_of_element: Float64[np.ndarray, " elements"] = field(default_factory=lambda: np.zeros(SIZE))
    """Number of frames with each element."""
    composition_gram: Float64[np.ndarray, "elements elements"] = field(default_factory=lambda: np.zeros((SIZE, SIZE)))
    """Sum over frames of x xᵀ, with x the fraction of each element."""
    composition_energy: Float64[np.ndarray, " elements"] = field(default_factory=lambda: np.zeros(SIZE))
    """Sum over frames of x times the energy per atom [eV]."""
    histograms: dict[str, Int64[np.ndarray, " bins"]] = field(
        default_factory=lambda: {name: np.zeros(bins.size, np.int64) for name, bins in BINS.items()}
    )
    """Counts in the bins of histograms.BINS, without histograms that were not measured."""

    def __post_init__(self) -> None:
        self.num_edges = list(self.num_edges) or [0] * len(self.cutoffs)

    def add(self, structures: Sequence[Structure], num_edges: Int[np.ndarray, "frames cutoffs"]) -> None:
        """Add frames in reading order, with their edge counts at the cutoffs.

        Neighbours in a trajectory are compared with each other, so they should be in one call.
        """
        structures = list(structures)
        num_atoms = np.array([s.num_atoms for s in structures])
        energy = np.array([s.energy for s in structures]) / num_atoms
        frame_of_atom = np.repeat(np.arange(len(structures)), num_atoms)
        cells = frame_of_atom * SIZE + np.concatenate([s.numbers for s in structures])
        counts = np.bincount(cells, minlength=len(structures) * SIZE).reshape(-1, SIZE)
        present = np.flatnonzero(counts.any(axis=0))
        fractions = counts[:, present] / num_atoms[:, None]
        self.num_frames += len(structures)
        self.num_atoms += int(num_atoms.sum())
        self.num_edges = [a + int(b) for a, b in zip(self.num_edges, num_edges.sum(axis=0), strict=True)]
        self.atoms_of_element += counts.sum(axis=0)
        self.frames_of_element += (counts > 0).sum(axis=0)
        self.composition_gram[np.ix_(present, present)] += fractions.T @ fractions
        self.composition_energy[present] += fractions.T @ energy
        self.energy_square_sum += float(np.square(energy).sum())
        self._count("energy", energy)
        self._count("size", num_atoms.astype(np.float64))
        self._add_forces([s.forces for s in structures if s.has_forces])
        self._add_stress([s.stress for s in structures if s.has_stress])
        self._count("stress_ratio", stress_ratios(structures))
        self._count("force_ratio", force_ratios(structures))

    def _add_forces(self, labels: list[np.ndarray]) -> None:
        if not labels:
            return
        square = np.square(np.concatenate(labels), dtype=np.float64).sum(axis=1)
        starts = np.cumsum([0, *(len(forces) for forces in labels[:-1])])
        self.num_force_frames += len(labels)
        self.num_zero_force_frames += int((np.maximum.reduceat(square, starts) == 0).sum())
        self.num_force_atoms += len(square)
        self.force_square_sum += float(square.sum())
        self._count("force", np.sqrt(square))

    def _add_stress(self, labels: list[np.ndarray]) -> None:
        if not labels:
            return
        stress = np.stack(labels).astype(np.float64)
        self.num_stress_frames += len(labels)
        self.num_zero_stress_frames += int((~stress.any(axis=(1, 2))).sum())
        self._count("stress", np.trace(stress, axis1=1, axis2=2) / 3)

    def _count(self, name: str, values: Float64[np.ndarray, " values"]) -> None:
        self.histograms[name] = self.histogram(name) + BINS[name].count(values)

    def histogram(self, name: str) -> Int64[np.ndarray, " bins"]:
        """Return the counts in the bins of one of histograms.BINS; zeros if it was not measured."""
        return self.histograms.get(name, np.zeros(BINS[name].size, np.int64))

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both data sets combined.

        Raises:
            ValueError: the two counted edges at different cutoffs.
        """
        if self.cutoffs != other.cutoffs:
            raise ValueError(f"cannot merge statistics at cutoffs {self.cutoffs} Å and {other.cutoffs} Å")
        return Statistics(
            cutoffs=self.cutoffs,
            num_edges=[a + b for a, b in zip(self.num_edges, other.num_edges, strict=True)],
            histograms={n: self.histogram(n) + other.histogram(n) for n in self.histograms | other.histograms},
            **{name: getattr(self, name) + getattr(other, name) for name in _ADDITIVE},
        )

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(int(z) for z in np.flatnonzero(self.atoms_of_element))

    @property
    def force_rms(self) -> float:
        """Root mean square of the force components [eV/Å].

        Raises:
            ValueError: no frame has forces.
        """
        if self.num_force_atoms == 0:
            raise ValueError("no frame has forces, so the force scale is undefined; add labelled frames")
        return float(np.sqrt(self.force_square_sum / (3 * self.num_force_atoms)))

    def mean_neighbors(self, cutoff: float) -> float:
        """Return the mean number of neighbours of an atom within the cutoff [Å].

        Raises:
            ValueError: edges were not counted at this cutoff, or the data has no atoms.
        """
        number = self.cutoff_number(cutoff)
        if self.num_atoms == 0:
            raise ValueError("no atoms, so the mean number of neighbours is undefined")
        return self.num_edges[number] / self.num_atoms

    def cutoff_number(self, cutoff: float) -> int:
        """Return the index of a cutoff [Å] among those at which edges were counted.

        A cutoff converted from Bohr is no round number, and rarely exactly the one given to build.

        Raises:
            ValueError: it is not among them.
        """
        of_molecules = isinstance(cutoff, MoleculeCutoff)
        alike = [n for n, each in enumerate(self.cutoffs) if isinstance(each, MoleculeCutoff) == of_molecules]
        same = [number for number in alike if abs(self.cutoffs[number] - cutoff) <= SAME_CUTOFF]
        if not same:
            counted = ", ".join(str(self.cutoffs[number]) for number in alike)
            raise ValueError(
                f"edges{' between molecules' * of_molecules} were counted at {counted or 'no length in'} Å, "
                f"not at {cutoff} Å; build the data again with this cutoff among its "
                f"{'molecule_' * of_molecules}cutoffs"
            )
        return same[0]

    def reference_energies(self) -> Float64[np.ndarray, " elements"]:
        """Fit the energy per atom as a composition average of element energies and return those [eV].

        Least squares, so that a constant per atom of an element changes that element's energy and no residual. An
        element that never occurs gets the mean energy per atom; see element_energies.py for undetermined compositions.
        """
        return reference_energies(self.composition_gram, self.composition_energy, self.num_frames)

    @property
    def undetermined_elements(self) -> tuple[int, ...]:
        """Atomic numbers whose energies the compositions do not determine, ascending."""
        return tuple(np.flatnonzero(undetermined(self.composition_gram)).tolist())

    def to_json(self) -> dict:
        """Return the sums as JSON: dense arrays restricted to the elements that occur."""
        elements = list(self.elements)
        of_molecules = [float(each) for each in self.cutoffs if isinstance(each, MoleculeCutoff)]
        return {
            "cutoffs": [each for each in self.cutoffs if not isinstance(each, MoleculeCutoff)],
            **({"molecule_cutoffs": of_molecules} if of_molecules else {}),
            "num_edges": self.num_edges,
            "elements": elements,
            **{name: getattr(self, name) for name in _SCALARS},
            "atoms_of_element": self.atoms_of_element[elements].tolist(),
            "frames_of_element": self.frames_of_element[elements].tolist(),
            "histograms": {name: counts.tolist() for name, counts in self.histograms.items()},
            "composition_gram": self.composition_gram[np.ix_(elements, elements)].tolist(),
            "composition_energy": self.composition_energy[elements].tolist(),
        }

    @classmethod
    def from_json(cls, values: dict) -> "Statistics":
        """Return the statistics that to_json() wrote; see from_record()."""
        return cls.from_record(Record(values, "statistics"))

    @classmethod
    def from_record(cls, record: Record) -> "Statistics":
        """Return the statistics that to_json() wrote, read from a file.

        Raises:
            InvalidRecord: an entry is missing or of another kind, a histogram has other bins than this program's, or
                sums contradict each other.
        """
        of_molecules = [name for name in ("molecule_cutoffs",) if name in record.names()]
        record.only(*Statistics(cutoffs=()).to_json(), *of_molecules)
        cutoffs, elements = record.numbers("cutoffs"), record.counts("elements")
        cutoffs += [MoleculeCutoff(each) for name in of_molecules for each in record.numbers(name)]
        if not cutoffs or min(cutoffs) <= 0:
            raise record.refuse("cutoffs", f"are {abbreviated(cutoffs)}, not positive lengths [Å]")
        if elements != sorted(set(elements) & set(range(1, SIZE))):
            raise record.refuse("elements", f"are not ascending atomic numbers from 1 to {SIZE - 1}")
        bins = record.record("histograms")
        # a manifest keeps its original histograms, so that its fingerprint stays
        kept = [name for name in BINS if name in bins.names() or name not in LATER]
        bins.only(*kept)
        for name in kept:
            if (found := len(bins.counts(name))) != BINS[name].size:
                problem = f"has {found} bins, this program's {BINS[name].size}; the data set is of another version"
                raise bins.refuse(name, f"{problem}, build it again")
        scalars: dict[str, Any] = {n: record.number(n) if n in _SUMS else record.count(n) for n in _SCALARS}
        result = cls(
            cutoffs=tuple(cutoffs),
            num_edges=record.counts("num_edges", len(cutoffs)),
            histograms={name: np.array(bins.raw(name), dtype=np.int64) for name in kept},
            **scalars,
        )
        result.frames_of_element[elements] = record.numbers("frames_of_element", len(elements))
        result.atoms_of_element[elements] = record.numbers("atoms_of_element", len(elements))
        result.composition_energy[elements] = record.numbers("composition_energy", len(elements))
        if elements:
            result.composition_gram[np.ix_(elements, elements)] = record.rows("composition_gram", len(elements))
        for name, problem in result._contradictions():
            raise record.refuse(name, problem)
        return result

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each sum that contradicts the others, and the problem."""
        for name, most in _AT_MOST.items():
            if getattr(self, name) > getattr(self, most):
                yield name, f"is {getattr(self, name)}, more than {most}, {getattr(self, most)}"
        for name, total in _COUNTED.items():
            counted = int(self.histograms[name].sum())
            if counted != getattr(self, total):
                yield f"histograms.{name}", f"counts {counted}, not {total}, {getattr(self, total)}"
        if float(self.atoms_of_element.sum()) != self.num_atoms:
            yield "atoms_of_element", f"adds up to {self.atoms_of_element.sum():.17g}, not num_atoms, {self.num_atoms}"
        frames = self.frames_of_element
        if (frames < 0).any() or (frames > np.minimum(self.num_frames, self.atoms_of_element)).any():
            yield "frames_of_element", "has a negative entry, or one above the number of frames or atoms"
        # fractions of one frame add up to one, and so do their products
        gram, slack = self.composition_gram, _ROUNDING * self.num_frames
        if (gram < 0).any() or abs(gram.sum() - self.num_frames) > slack or np.abs(gram - gram.T).max() > slack:
            yield "composition_gram", f"is not the sum of the compositions of {self.num_frames} frames"
        if (gram.sum(axis=1) > frames + slack).any():
            yield "composition_gram", "has more of an element than the frames that hold it"
        # Cauchy and Schwarz
        energy, squares = abs(float(self.composition_energy.sum())), self.energy_square_sum
        if energy > (1 + _ROUNDING) * np.sqrt(self.num_frames * squares):
            yield "composition_energy", "adds up to more than energy_square_sum allows"


_SCALARS = (
    "num_frames",
    "num_atoms",
    "num_force_atoms",
    "num_force_frames",
    "num_zero_force_frames",
    "num_stress_frames",
    "num_zero_stress_frames",
    "force_square_sum",
    "energy_square_sum",
)
_SUMS = ("force_square_sum", "energy_square_sum")
_AT_MOST = {
    "num_frames": "num_atoms",
    "num_force_atoms": "num_atoms",
    "num_force_frames": "num_frames",
    "num_zero_force_frames": "num_force_frames",
    "num_stress_frames": "num_frames",
    "num_zero_stress_frames": "num_stress_frames",
}
"""Counts, and the count that each cannot exceed."""
_COUNTED = {"energy": "num_frames", "size": "num_frames", "force": "num_force_atoms", "stress": "num_stress_frames"}
"""Histograms that count every instance, and the field with the total."""
_ROUNDING = 1e-6
"""Relative error far above that of sums over 10⁹ frames in any order."""
_ADDITIVE = (*_SCALARS, "atoms_of_element", "frames_of_element", "composition_gram", "composition_energy")


def reference_energies(
    gram: Float64[np.ndarray, "elements elements"], projection: Float64[np.ndarray, " elements"], num_frames: int
) -> Float64[np.ndarray, " elements"]:
    """Return element energies [eV] from sums over frames of x xᵀ and of x times the energy per atom (x: fractions)."""
    # each x sums to one, so the projection does to the sum of the energies per atom
    mean = float(projection.sum()) / max(num_frames, 1)
    return element_energies(gram, projection, np.full(len(projection), mean))
