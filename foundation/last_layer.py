"""Uncertainty of a potential from its last layer, and the coverage of its training data: a trust signal in a release.

A network reads energies linearly from its last features f, so their variance under retraining is proportional to
fᵀ (Σ f fᵀ)⁻¹ f with the sum over the atoms of the training data (Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.:
Sci. Technol. 5, 045018 (2024)). Its root is an atom's distance d. Errors grow with d and with the sizes of forces F:
the score exp(a + b log d + c log(F + 0.05 eV/Å)) is fitted to held-out errors, and a table turns it into an
uncertainty that 68.3 % of the errors of equal score do not exceed.
"""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, check_finite, read_bytes, read_json, refusing, typed

FACTS, TENSORS, FIGURE = "uncertainty.json", "uncertainty.safetensors", "uncertainty.png"
"""Files in a release folder."""
SMALLEST_FORCE = 0.05
"""Force that is added to the sizes of forces in a score [eV/Å]."""
SMALLEST_DISTANCE = 1e-6
"""Smallest distance in a score."""
CLOSER = 0.95
"""Part of the shortest distance of a pair below which atoms count as closer than any."""
FORMAT = 1
MAX_TENSORS = 256 * 2**20
"""Largest uncertainty.safetensors [bytes]; 128 features take 0.2 MB."""
KINDS = (
    "an element that is not in the training data",
    "neighbours of two elements that never were in the training data",
    "atoms closer than any such pair in the training data",
    "an environment unlike 99.9 % of the held-out ones",
    "a force larger than any in the training data",
    "a pressure outside of the training data's",
)
"""Ways in which a structure leaves the coverage of the training data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """Uncertainties of the predictions for a batch; 68.3 % of the held-out errors do not exceed theirs."""

    energy: Float64[Tensor, " graphs"]
    """Of the total energy [eV]."""
    atom_energies: Float64[Tensor, " atoms"]
    """Of the energy of each atom [eV]: shares of the total's, in proportion to the distances."""
    forces: Float64[Tensor, " atoms"]
    """Of the force on each atom, the length of its error [eV/Å]."""
    distances: Float64[Tensor, " atoms"]
    """Distance of each atom from the training data in the last features, whose root mean square there is about 1."""
    outside: Bool[Tensor, "graphs kinds"]
    """True where a structure leaves the coverage of the training data, by KINDS."""

    def split(self, num_atoms: list[int]) -> "list[Uncertainty]":
        """Return the uncertainties of each structure, by their numbers of atoms."""
        by_atom = (each.split(num_atoms) for each in (self.atom_energies, self.forces, self.distances))
        return [
            Uncertainty(energy=energy, atom_energies=atoms, forces=forces, distances=distances, outside=outside)
            for energy, atoms, forces, distances, outside in zip(
                self.energy.split(1), *by_atom, self.outside.split(1), strict=True
            )
        ]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Ways in which any of the structures leaves the coverage, in words."""
        return tuple(kind for kind, left in zip(KINDS, self.outside.any(dim=0).tolist(), strict=True) if left)


@dataclass(frozen=True, kw_only=True)
class Scale(OpenRecord):
    """Uncertainty as a function of distance and force: the coefficients of the score, and its table."""

    constant: float
    """Constant of the logarithm of the score."""
    distance: float
    """Exponent of the distance."""
    force: float
    """Exponent of the size of forces."""
    scores: tuple[float, ...]
    """Scores of the table, increasing."""
    errors: tuple[float, ...]
    """Errors that 68.3 % of the held-out ones at these scores do not exceed: of the energy [eV/atom], or of a force
    [eV/Å]."""

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.errors) or len(self.scores) < 2:
            raise ValueError("scores and errors must be two or more, and equally many")
        if min(*self.scores, *self.errors) <= 0 or any(a >= b for a, b in itertools.pairwise(self.scores)):
            raise ValueError("scores must be positive and increase, and errors be positive")


UNSCALED = Scale(constant=0.0, distance=1.0, force=0.0, scores=(1.0, 2.0), errors=(1.0, 2.0))
"""Scale by which an uncertainty is the distance itself."""


@dataclass(frozen=True, kw_only=True)
class Judged(OpenRecord):
    """Uncertainties beside the errors of held-out frames that had no part in their calibration."""

    num_frames: int
    """Number of frames."""
    energy_correlation: float | None
    """Rank correlation (Spearman) of energy uncertainties with errors per atom; None if undefined."""
    force_correlation: float | None
    """Rank correlation of the means of force uncertainties and force errors of the frames."""
    energy_within: float
    """Share of energy errors below their uncertainty."""
    force_within: float
    """Share of force errors below their uncertainty."""
    outside: float
    """Share of frames that leave the coverage."""


@dataclass(frozen=True, kw_only=True)
class TrustFacts(OpenRecord):
    """Content of uncertainty.json: coverage, calibration and judgement."""

    format: int
    """Version of the format."""
    weights_sha256: str
    """Checksum of the potential's weights."""
    tensors_sha256: str = ""
    """Checksum of uncertainty.safetensors."""
    data: str
    """Name of the training data."""
    manifest_fingerprint: str
    """Checksum of their manifest."""
    theories: tuple[str, ...]
    """Levels of theory seen."""
    num_frames: int
    """Number of frames read."""
    num_atoms: int
    """Number of their atoms."""
    elements: dict[str, int]
    """Number of atoms of each element by symbol."""
    largest_force: float | None
    """Largest force on an atom [eV/Å]; None without labels."""
    lowest_pressure: float | None
    """Lowest pressure [eV/Å³]; None without labels."""
    highest_pressure: float | None
    """Highest pressure [eV/Å³]."""
    limit: float
    """Distance within which 99.9 % of the atoms of the held-out data are that are like the training data."""
    unjudged: tuple[str, ...] = ()
    """Ways to leave the coverage, of KINDS, that are not told: the training data read are too few to know them."""
    energy: Scale
    """Uncertainty of the energy per atom, from the means of distances and forces over the atoms."""
    forces: Scale
    """Uncertainty of the force on an atom."""
    calibration_split: str = ""
    """Split of the held-out data sets; "" in files that do not say."""
    judged: dict[str, Judged] = field(default_factory=dict)
    """Judgement on held-out frames, by name of their data."""
    energy_area: float | None = None
    """Chance that a frame whose energy error is above three times the median has a larger uncertainty than another one
    (AUROC), over all held-out frames; None if undefined."""
    force_area: float | None = None
    """The same of the means of forces."""


class LastLayer(torch.nn.Module):
    """Uncertainties and coverage for the last features of a potential's network."""

    def __init__(
        self,
        facts: TrustFacts,
        whitening: Float64[Tensor, "groups features features"],
        shortest: Float[Tensor, "elements elements"],
    ) -> None:
        """Take what was found in training and held-out data.

        Args:
            facts: Coverage and calibration.
            whitening: Matrices W by which an atom's distance is |f W|: a single one, or one for each of the potential's
                elements.
            shortest: Shortest distance of every pair of the potential's elements [Å]; 0 for one never seen.

        Raises:
            ValueError: shapes contradict each other.
        """
        super().__init__()
        groups, rows, columns = whitening.shape
        if rows != columns or groups not in (1, len(shortest)) or shortest.shape != (len(shortest),) * 2:
            raise ValueError(f"whitening {tuple(whitening.shape)} and shortest {tuple(shortest.shape)} do not fit")
        self.facts, self.shortest = facts, shortest.double().cpu().numpy()
        # not among the weights of the potential, whose checksum it must not change
        self.register_buffer("whitening", whitening.double(), persistent=False)
        low, high = facts.lowest_pressure, facts.highest_pressure
        self._seen = np.any(self.shortest > 0, axis=1)
        self._told = np.array([each not in facts.unjudged for each in KINDS])
        self._largest_force = np.inf if facts.largest_force is None else facts.largest_force
        self._pressures = (-np.inf if low is None else low, np.inf if high is None else high)

    def forward(
        self,
        distances: Float64[Tensor, " atoms"],
        surroundings: "Surroundings",
        elements: Int[Tensor, " atoms"],
        forces: Float[Tensor, "atoms 3"],
        stress: Float[Tensor, "graphs 3 3"],
    ) -> Uncertainty:
        """Return the uncertainties of the predictions for some structures.

        Args:
            distances: Distance of each atom from the training data, by distances().
            surroundings: The structures and their neighbours.
            elements: Index of each atom's element among the potential's.
            forces: Predicted forces [eV/Å].
            stress: Predicted stresses [eV/Å³].
        """
        # many small steps, which NumPy takes in a tenth of torch's time
        atoms = _Atoms(
            distances=_array(distances),
            forces=np.sqrt((_array(forces.double()) ** 2).sum(axis=1)),
            elements=_array(elements),
            owners=surroundings.owners,
            counts=surroundings.counts,
        )
        mean = atoms.mean(atoms.distances)
        per_atom = scaled(self.facts.energy, mean, atoms.mean(atoms.forces))
        found = {
            "energy": per_atom * atoms.counts,
            "atom_energies": (per_atom / mean)[atoms.owners] * atoms.distances,
            "forces": scaled(self.facts.forces, atoms.distances, atoms.forces),
            "outside": self._outside(surroundings, atoms, _array(stress.double())),
        }
        tensors = {name: torch.from_numpy(value).to(distances.device) for name, value in found.items()}
        return Uncertainty(**tensors, distances=distances)

    @property
    def judges_pairs(self) -> bool:
        """True if it can tell which pairs of neighbours the training data had."""
        return bool(self._told[1:3].any())

    def distances(
        self, features: Float[Tensor, "atoms features"], elements: Int[Tensor, " atoms"]
    ) -> Float64[Tensor, " atoms"]:
        """Return the distance of each atom from the training data."""
        values, whitening = features.double(), self.get_buffer("whitening")
        if len(whitening) == 1:
            placed = values @ whitening[0]
        else:
            placed = torch.zeros_like(values)
            for element in elements.unique().tolist():
                own = (elements == element).nonzero().squeeze(1)
                placed = placed.index_copy(0, own, values[own] @ whitening[element])
        return torch.linalg.vector_norm(placed, dim=1).clamp(min=SMALLEST_DISTANCE)

    def _outside(
        self, surroundings: "Surroundings", atoms: "_Atoms", stress: Float64[np.ndarray, "graphs 3 3"]
    ) -> Bool[np.ndarray, "graphs kinds"]:
        """Return where each structure leaves the coverage, by KINDS."""
        outside = np.zeros((len(stress), len(KINDS)), dtype=bool)
        outside[atoms.owners[~self._seen[atoms.elements]], 0] = True
        outside[atoms.owners[atoms.distances > self.facts.limit], 3] = True
        outside[atoms.owners[atoms.forces > self._largest_force], 4] = True
        pressure = -np.trace(stress, axis1=1, axis2=2) / 3
        outside[:, 5] = (pressure < self._pressures[0]) | (pressure > self._pressures[1])
        if len(surroundings.lengths) and self.judges_pairs:
            first, second = surroundings.first, surroundings.second
            known, graphs = self.shortest[atoms.elements[first], atoms.elements[second]], atoms.owners[first]
            both = self._seen[atoms.elements[first]] & self._seen[atoms.elements[second]]
            outside[graphs[(known == 0) & both], 1] = True
            outside[graphs[surroundings.lengths < CLOSER * known], 2] = True
        return outside & self._told


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """Atoms of some structures, and the pairs of them that are neighbours, none where these are not judged."""

    numbers: Int[np.ndarray, " atoms"]
    """Atomic numbers."""
    owners: Int[np.ndarray, " atoms"]
    """Structure that each atom belongs to."""
    counts: Int[np.ndarray, " graphs"]
    """Number of atoms of each structure."""
    first: Int[np.ndarray, " pairs"]
    """One atom of each pair."""
    second: Int[np.ndarray, " pairs"]
    """The other."""
    lengths: Float64[np.ndarray, " pairs"]
    """Distance of each pair [Å]."""

    @classmethod
    def of(cls, batch: GraphBatch, *, judged: bool) -> "Surroundings":
        """Return those of a batch, with pairs if they are judged and atoms: edges of molecules join their centres."""
        judged = judged and batch.molecule is None
        pairs = batch.pair_edges if judged else batch.pair_edges[:0]
        lengths = batch.pair_vectors().detach().norm(dim=1) if judged else batch.energy[:0]
        return cls(
            numbers=_array(batch.numbers),
            owners=_array(batch.graph_of_atom),
            counts=_array(batch.num_atoms),
            first=_array(batch.receivers[pairs]),
            second=_array(batch.senders[pairs]),
            lengths=_array(lengths),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Atoms:
    """Atoms of a batch."""

    distances: Float64[np.ndarray, " atoms"]
    forces: Float64[np.ndarray, " atoms"]
    elements: Int[np.ndarray, " atoms"]
    owners: Int[np.ndarray, " atoms"]
    counts: Int[np.ndarray, " graphs"]

    def mean(self, values: Float64[np.ndarray, " atoms"]) -> Float64[np.ndarray, " graphs"]:
        """Return the mean of values over the atoms of each structure."""
        return np.bincount(self.owners, values, minlength=len(self.counts)) / self.counts


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def score(
    scale: Scale, distances: Float64[np.ndarray, " n"], forces: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Return the logarithm of the score of distances and sizes of forces [eV/Å]."""
    near = np.log(np.maximum(distances, SMALLEST_DISTANCE))
    return scale.constant + scale.distance * near + scale.force * np.log(forces + SMALLEST_FORCE)


def scaled(
    scale: Scale, distances: Float64[np.ndarray, " n"], forces: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Return uncertainties: the table is interpolated in logarithms, and goes on in proportion to the score.

    Args:
        scale: That of forces, or of energies per atom.
        distances: Distances of atoms, or their means.
        forces: Sizes of the predicted forces [eV/Å], or their means.
    """
    logarithm, scores = score(scale, distances, forces), np.log(scale.scores)
    inside = np.clip(logarithm, scores[0], scores[-1])
    return np.exp(np.interp(inside, scores, np.log(scale.errors)) + logarithm - inside)


def constants_of(last_layer: LastLayer) -> Float64[np.ndarray, " constants"]:
    """Return what the compiled library needs for the uncertainty of forces: coefficients, bounds, and the table."""
    scale = last_layer.facts.forces
    bounds = (SMALLEST_DISTANCE, SMALLEST_FORCE, float(len(scale.scores)))
    coefficients = [scale.constant, scale.distance, scale.force, *bounds]
    return np.concatenate([coefficients, np.log(scale.scores), np.log(scale.errors)])


def save(last_layer: LastLayer, folder: Path) -> None:
    """Write the files of a trust signal into a folder from durable.whole_folder()."""
    shortest = torch.from_numpy(last_layer.shortest.astype(np.float32))
    tensors = {"whitening": last_layer.get_buffer("whitening").cpu().contiguous(), "shortest": shortest}
    content = safetensors.torch.save(tensors)
    facts = asdict(last_layer.facts) | {"tensors_sha256": hashlib.sha256(content).hexdigest()}
    (folder / TENSORS).write_bytes(content)
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def read(
    folder: Path, weights_sha256: str, num_elements: int, kind: type[CorruptFile] = CorruptFile
) -> LastLayer | None:
    """Return the trust signal in the folder of a potential; None if there is none.

    Args:
        folder: The folder.
        weights_sha256: Checksum of the potential's weights.
        num_elements: Number of elements that the potential knows.
        kind: Class of the errors.

    Raises:
        CorruptFile: of the given kind; a file was changed, or belongs to other weights.
    """
    file = folder / FACTS
    if not file.is_file():
        return None
    again = "not the uncertainty of this potential ({}); make it again with `foundation uncertainty`"
    with refusing(file, kind, again):
        facts = typed(TrustFacts, read_json(file), "")
        if facts.format != FORMAT:
            raise ValueError(f"its format is {facts.format}, not {FORMAT}")
        if facts.weights_sha256 != weights_sha256:
            raise ValueError("it belongs to other weights")
        content = read_bytes(folder / TENSORS, MAX_TENSORS)
        if hashlib.sha256(content).hexdigest() != facts.tensors_sha256:
            raise ValueError(f"the checksum of {TENSORS} differs")
        tensors = safetensors.torch.load(content)
        check_finite(tensors)
        found = LastLayer(facts, tensors["whitening"], tensors["shortest"])
        if len(tensors["shortest"]) != num_elements:
            raise ValueError(f"it has {len(tensors['shortest'])} elements, not {num_elements}")
        return found
