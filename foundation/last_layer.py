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
        self.facts = facts
        low, high = facts.lowest_pressure, facts.highest_pressure
        tensors = {
            "whitening": whitening.double(),
            "shortest": shortest.double(),
            "energy_table": torch.tensor([facts.energy.scores, facts.energy.errors], dtype=torch.float64).log(),
            "force_table": torch.tensor([facts.forces.scores, facts.forces.errors], dtype=torch.float64).log(),
        }
        for name, tensor in tensors.items():
            # not among the weights of the potential, whose checksum they must not change
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("told", torch.tensor([each not in facts.unjudged for each in KINDS]), persistent=False)
        self._largest_force = torch.inf if facts.largest_force is None else facts.largest_force
        self._pressures = (-torch.inf if low is None else low, torch.inf if high is None else high)

    def forward(
        self,
        distances: Float64[Tensor, " atoms"],
        batch: GraphBatch,
        elements: Int[Tensor, " atoms"],
        forces: Float[Tensor, "atoms 3"],
        stress: Float[Tensor, "graphs 3 3"],
    ) -> Uncertainty:
        """Return the uncertainties of the predictions for a batch.

        Args:
            distances: Distance of each atom from the training data, by distances().
            batch: The structures.
            elements: Index of each atom's element among the potential's.
            forces: Predicted forces [eV/Å].
            stress: Predicted stresses [eV/Å³].
        """
        sizes = torch.linalg.vector_norm(forces.double(), dim=1)
        owners, num_atoms = batch.graph_of_atom, batch.num_atoms.double()
        sums = torch.zeros(batch.num_graphs, 2, dtype=torch.float64, device=distances.device)
        means = sums.index_add(0, owners, torch.stack([distances, sizes], dim=1)) / num_atoms.unsqueeze(1)
        per_atom = self.energies_per_atom(means[:, 0], means[:, 1])
        return Uncertainty(
            energy=per_atom * num_atoms,
            atom_energies=(per_atom / means[:, 0])[owners] * distances,
            forces=self.of_forces(distances, sizes),
            distances=distances,
            outside=self._outside(batch, elements, distances, sizes, stress.double()),
        )

    def energies_per_atom(
        self, distances: Float64[Tensor, " graphs"], forces: Float64[Tensor, " graphs"]
    ) -> Float64[Tensor, " graphs"]:
        """Return the uncertainty of energies per atom [eV] from the means of distances and sizes of forces [eV/Å]."""
        return _scaled(self.facts.energy, self.get_buffer("energy_table"), distances, forces)

    def of_forces(
        self, distances: Float64[Tensor, " atoms"], forces: Float64[Tensor, " atoms"]
    ) -> Float64[Tensor, " atoms"]:
        """Return the uncertainty of forces [eV/Å] from the distances of their atoms, and their sizes [eV/Å]."""
        return _scaled(self.facts.forces, self.get_buffer("force_table"), distances, forces)

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
        self,
        batch: GraphBatch,
        elements: Int[Tensor, " atoms"],
        distances: Float64[Tensor, " atoms"],
        sizes: Float64[Tensor, " atoms"],
        stress: Float64[Tensor, "graphs 3 3"],
    ) -> Bool[Tensor, "graphs kinds"]:
        """Return where each structure leaves the coverage, by KINDS."""
        shortest = self.get_buffer("shortest")
        seen = (shortest > 0).any(dim=1)[elements]
        of_atoms = torch.stack([~seen, distances > self.facts.limit, sizes > self._largest_force], dim=1)
        unseen, far, strong = _any_of(of_atoms, batch.graph_of_atom, batch.num_graphs).unbind(dim=1)
        strange, close = self._pairs(batch, elements, seen)
        pressure = -stress.diagonal(dim1=1, dim2=2).sum(dim=1) / 3
        squeezed = (pressure < self._pressures[0]) | (pressure > self._pressures[1])
        return torch.stack([unseen, strange, close, far, strong, squeezed], dim=1) & self.get_buffer("told")

    def _pairs(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"], seen: Bool[Tensor, " atoms"]
    ) -> tuple[Bool[Tensor, " graphs"], Bool[Tensor, " graphs"]]:
        """Return whether a structure has neighbours that never were, and whether some are closer than ever."""
        # in a graph of molecules edges join these
        if batch.molecule is not None or {*KINDS[1:3]} <= {*self.facts.unjudged}:
            none = torch.zeros(batch.num_graphs, dtype=torch.bool, device=elements.device)
            return none, none
        first, second = batch.receivers[batch.pair_edges].long(), batch.senders[batch.pair_edges].long()
        known = self.get_buffer("shortest")[elements[first], elements[second]]
        lengths = torch.linalg.vector_norm(batch.pair_vectors().detach(), dim=1)
        flags = torch.stack([(known == 0) & seen[first] & seen[second], lengths < CLOSER * known], dim=1)
        strange, close = _any_of(flags, batch.graph_of_atom[first], batch.num_graphs).unbind(dim=1)
        return strange, close


def constants_of(last_layer: LastLayer) -> Float64[np.ndarray, " constants"]:
    """Return what the compiled library needs for the uncertainty of forces: coefficients, bounds, and the table."""
    scale, table = last_layer.facts.forces, last_layer.get_buffer("force_table").cpu().numpy()
    bounds = (SMALLEST_DISTANCE, SMALLEST_FORCE, float(table.shape[1]))
    return np.concatenate([[scale.constant, scale.distance, scale.force, *bounds], *table])


def score(scale: Scale, distances: Float64[Tensor, " n"], forces: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Return the logarithm of the score of distances and sizes of forces [eV/Å]."""
    near = distances.clamp(min=SMALLEST_DISTANCE).log()
    return scale.constant + scale.distance * near + scale.force * (forces + SMALLEST_FORCE).log()


def _scaled(
    scale: Scale, table: Float64[Tensor, "2 knots"], distances: Float64[Tensor, " n"], forces: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return uncertainties: the table is interpolated in logarithms, and goes on in proportion to the score."""
    logarithm, (scores, errors) = score(scale, distances, forces), table
    upper = torch.searchsorted(scores, logarithm).clamp(1, len(scores) - 1)
    low, high = scores[upper - 1], scores[upper]
    inside = logarithm.clamp(scores[0], scores[-1])
    between = torch.lerp(errors[upper - 1], errors[upper], (inside - low) / (high - low))
    return (between + logarithm - inside).exp()


def _any_of(
    flags: Bool[Tensor, "items kinds"], owners: Int[Tensor, " items"], num_graphs: int
) -> Bool[Tensor, "graphs kinds"]:
    """Return for each structure whether any of its items has a flag."""
    counts = torch.zeros(num_graphs, flags.shape[1], dtype=torch.int32, device=flags.device)
    return counts.index_add(0, owners, flags.int()) > 0


def save(last_layer: LastLayer, folder: Path) -> None:
    """Write the files of a trust signal into a folder from durable.whole_folder()."""
    tensors = {name: last_layer.get_buffer(name).cpu().contiguous() for name in ("whitening", "shortest")}
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
