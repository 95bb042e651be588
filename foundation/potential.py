"""Potential: a network with reference energies, scale and derivatives; higher layers use only this interface."""

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.graphs.molecules import MoleculeCutoff, molecule_labels
from data_pipeline.graphs.packing import EDGE_BUDGET, Refused, packed
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.untrusted import check_finite
from data_pipeline.structure import MAX_ATOMIC_NUMBER, SYMBOLS, InvalidStructure, Structure
from foundation.last_layer import LastLayer, Surroundings, Uncertainty
from foundation.models import Architecture, DataFacts, EnergyModel
from foundation.models.limits import check_elements, check_theories
from foundation.nn.computation import Computation
from foundation.nn.repulsion import Repulsion

log = logging.getLogger(__name__)


class UnknownElement(ValueError):
    """A structure with an element that the potential was not trained for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Predictions of a potential for a batch."""

    energy: Float64[Tensor, " graphs"]
    """Total energy [eV]."""
    forces: Float[Tensor, "atoms 3"]
    """Forces [eV/Å], minus the gradient of the energy."""
    stress: Float[Tensor, "graphs 3 3"]
    """Stress [eV/Å³], positive in tension; zero if the cell encloses no volume."""
    atom_energies: Float64[Tensor, " atoms"]
    """Energy of each atom [eV]; they add up to the total."""
    uncertainty: Uncertainty | None = None
    """Uncertainties and coverage, if the potential's release has them."""

    def split(self, num_atoms: Sequence[int]) -> "list[Prediction]":
        """Return the prediction of each structure, by their numbers of atoms."""
        whole = [None] * len(num_atoms) if self.uncertainty is None else self.uncertainty.split(list(num_atoms))
        return [
            Prediction(
                energy=energy, forces=forces, stress=stress, atom_energies=atom_energies, uncertainty=uncertainty
            )
            for energy, forces, stress, atom_energies, uncertainty in zip(
                self.energy.split(1),
                self.forces.split(list(num_atoms)),
                self.stress.split(1),
                self.atom_energies.split(list(num_atoms)),
                whole,
                strict=True,
            )
        ]


class Derived(NamedTuple):
    """Energies of a batch and their derivatives, in float64."""

    energy: Float64[Tensor, " graphs"]
    """Total energy [eV]."""
    forces: Float64[Tensor, "atoms 3"]
    """Forces [eV/Å]."""
    stress: Float64[Tensor, "graphs 3 3"]
    """Stress [eV/Å³]."""
    atom_energies: Float64[Tensor, " atoms"]
    """Energy of each atom [eV]."""
    distances: Float64[Tensor, " atoms"] | None
    """Distance of each atom from the training data, if uncertainties are computed from it."""


@runtime_checkable
class AtomsLike(Protocol):
    """Atoms of another library, such as ASE's, with lengths in Å."""

    @property
    def numbers(self) -> Any:
        """Atomic numbers."""

    @property
    def positions(self) -> Any:
        """Cartesian positions [Å]."""

    @property
    def cell(self) -> Any:
        """Lattice vectors as rows [Å]."""

    @property
    def pbc(self) -> Any:
        """Lattice vectors that repeat."""


class Potential(torch.nn.Module):
    """An interatomic potential: E = Σ_atoms (scale_z · network + reference_tz), forces and stress by differentiation.

    The reference energies belong to a level of theory t: data at several levels can be trained on together, each
    structure with the references of its level. In training mode the derivatives can themselves be differentiated;
    otherwise they are detached, also inside torch.no_grad().
    """

    def __init__(self, network: EnergyModel, elements: tuple[int, ...], theories: tuple[str, ...]) -> None:
        """Wrap a network; references are zero and the scale one until set.

        Args:
            network: Network of the energies of the atoms.
            elements: Atomic numbers that the network knows, in its order.
            theories: Names of the levels of theory that its energies can be referred to.

        Raises:
            ValueError: an element or a level of theory occurs twice or is invalid.
        """
        super().__init__()
        check_elements(elements)
        check_theories(theories)
        self.network, self.elements, self.theories = network, elements, theories
        self.repulsion: Repulsion | None = None
        self.last_layer: LastLayer | None = None
        references = torch.zeros(len(theories), len(elements), dtype=torch.float64)
        self.register_buffer("reference_energies", references)
        self.register_buffer("scale", torch.ones(len(elements), dtype=torch.float64))
        position = torch.full((MAX_ATOMIC_NUMBER + 1,), -1)
        position[list(elements)] = torch.arange(len(elements))
        self.register_buffer("_position", position, persistent=False)

    @property
    def cutoff(self) -> float:
        """Distance below which atoms are neighbours [Å]."""
        return self.network.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the network; references, scale and sums over atoms are always float64."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.network.parameters()).device

    def cast(self, dtype: torch.dtype) -> "Potential":
        """Change the float type of the network in place and return the potential."""
        self.network.to(dtype)
        return self

    def repel(self) -> "Potential":
        """Add a repulsion between atoms much closer than a bond, in place, and return the potential.

        Raises:
            ValueError: the network's graphs are not of atoms.
        """
        if isinstance(self.cutoff, MoleculeCutoff):
            raise ValueError("a repulsion between atoms needs their pairs, and a network of grains has those of grains")
        self.repulsion = Repulsion().to(self.device)
        return self

    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Raises:
            ValueError: the network does not support one; the message names it.
        """
        self.network.compute_as(computation)

    def forward(self, batch: GraphBatch) -> Prediction:
        """Return energies, forces and stresses from one backward pass through positions and strain.

        Stress is (1/V) ∂E/∂ε for a symmetric strain ε of positions and cell (Knuth et al., Comput. Phys. Commun.
        190, 33 (2015), equation 7). Vectors between atoms are subtracted in float64 and cast afterwards, so the digits
        of a float32 network's forces do not depend on the size of the cell.

        Raises:
            UnknownElement: an atom's element is not among the potential's (checked outside training).
        """
        if torch.is_inference_mode_enabled() or batch.positions.is_inference():
            # derivatives need records that inference mode leaves out
            with torch.inference_mode(False):
                return self.forward(_with_derivatives(batch))
        if not self.training:
            self._element_positions(batch.numbers)
        return self.judged(self.derived(batch), batch)

    def derived(self, batch: GraphBatch) -> "Derived":
        """Return energies and their derivatives, of elements that the potential knows, without asking the device."""
        elements = self.get_buffer("_position")[batch.numbers]
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            strain = torch.zeros_like(batch.cell, requires_grad=True)
            deformation = 0.5 * (strain + strain.transpose(1, 2))
            moved = positions + torch.einsum("ai,aij->aj", positions, deformation[batch.graph_of_atom])
            strained = replace(batch, positions=moved, cell=batch.cell + batch.cell @ deformation)
            atom_energies, features = self._energies_and_features(strained, elements)
            energy = torch.zeros_like(batch.energy).index_add(0, batch.graph_of_atom, atom_energies)
            position_gradient, strain_gradient = torch.autograd.grad(
                energy.sum(), (positions, strain), create_graph=self.training, materialize_grads=True
            )
        # not by det(), for which a GPU may ask whether a factorization went well
        first, second, third = batch.cell.unbind(1)
        volume = (torch.linalg.cross(first, second) * third).sum(dim=1).abs().view(-1, 1, 1)
        inverse = torch.where(volume > 0, 1.0 / torch.where(volume > 0, volume, 1.0), 0.0)
        if not self.training:
            energy, atom_energies = energy.detach(), atom_energies.detach()
        distances = None
        if self.last_layer is not None and features is not None:
            distances = self.last_layer.distances(features.detach(), elements)
        return Derived(energy, -position_gradient, strain_gradient * inverse, atom_energies, distances)

    def judged(self, derived: "Derived", batch: GraphBatch) -> Prediction:
        """Return the prediction for a batch, with uncertainties if the potential's release has them."""
        uncertainty = None
        if self.last_layer is not None and derived.distances is not None:
            surroundings = Surroundings.of(batch, judged=self.last_layer.judges_pairs)
            found = derived.forces.detach(), derived.stress.detach()
            uncertainty = self.uncertainty(derived.distances, surroundings, *found)
        return Prediction(
            energy=derived.energy,
            forces=derived.forces.to(self.dtype),
            stress=derived.stress.to(self.dtype),
            atom_energies=derived.atom_energies,
            uncertainty=uncertainty,
        )

    def predict(
        self,
        structures: Iterable[Structure | AtomsLike],
        *,
        theory: str | int | None = None,
        edge_budget: int = EDGE_BUDGET,
    ) -> list[Prediction]:
        """Predict many structures, in batches, and return their predictions in order.

        Each is independent of the others to rounding, and detached. A batch of a few hundred atoms takes less time per
        structure than a single one.

        Args:
            structures: Structures, or ASE's Atoms.
            theory: Level of theory, by name or number; None: the only one.
            edge_budget: Number of directed edges of a batch; a larger structure is a batch of its own.

        Raises:
            InvalidStructure: two atoms at the same place, or a periodic cell without volume.
            UnknownElement: an atom's element is not among the potential's.
            ValueError: the level of theory is unknown, or one of several must be named.
        """
        number = theory if isinstance(theory, int) else self.theory_number(theory)
        found: dict[int, Prediction] = {}
        was_training = self.training
        try:
            self.eval()
            for pack in packed(_structures(structures), self.cutoff, edge_budget=edge_budget):
                if isinstance(pack, Refused):
                    raise pack.error
                prediction = self(pack.batch(self.dtype, number).to(self.device))
                parts = prediction.split([each.num_atoms for each in pack.structures])
                found.update(zip(pack.places, parts, strict=True))
        finally:
            self.train(was_training)
        return [found[place] for place in range(len(found))]

    def atom_energies(self, batch: GraphBatch) -> Float64[Tensor, " atoms"]:
        """Return the energy of each atom [eV].

        Raises:
            UnknownElement: an atom's element is not among the potential's (checked outside training).
        """
        return self._energies_and_features(batch, self._element_positions(batch.numbers))[0]

    def _energies_and_features(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> tuple[Float64[Tensor, " atoms"], Float[Tensor, "atoms features"] | None]:
        """Return the energy of each atom [eV], and the last features if uncertainties are computed from them."""
        if self.last_layer is None or self.training:
            network, features = self.network(batch, elements), None
        else:
            network, features = self.network.energies_and_features(batch, elements)
        energies = self.get_buffer("scale")[elements] * network.to(torch.float64) + self._references(batch, elements)
        return (energies if self.repulsion is None else energies + self.repulsion(batch)), features

    def uncertainty(
        self,
        distances: Float64[Tensor, " atoms"],
        surroundings: Surroundings,
        forces: Float[Tensor, "atoms 3"],
        stress: Float[Tensor, "graphs 3 3"],
    ) -> Uncertainty:
        """Return uncertainties from the distances of atoms and predicted forces [eV/Å] and stresses [eV/Å³].

        Raises:
            ValueError: the potential's release has none.
        """
        if self.last_layer is None:
            raise ValueError("the potential has no uncertainty; add it with `foundation uncertainty`")
        numbers = torch.from_numpy(surroundings.numbers).to(self.device)
        return self.last_layer(distances, surroundings, self._element_positions(numbers), forces, stress)

    def atom_features(self, batch: GraphBatch) -> Float[Tensor, "atoms features"]:
        """Return invariant features of each atom's environment, from which the network reads its energy.

        Raises:
            ValueError: the network has no features.
            UnknownElement: an atom's element is not among the potential's (checked outside training).
        """
        return self.network.features(batch, self._element_positions(batch.numbers))

    def standardize(self, sample: Iterable[GraphBatch]) -> None:
        """Scale the inputs of a new network by structures of its training data, if it does so."""
        if self.network.standardizes:
            self.network.standardize((batch, self._element_positions(batch.numbers)) for batch in sample)

    def composition_energy(self, batch: GraphBatch) -> Float64[Tensor, " graphs"]:
        """Return the sum of each structure's reference energies [eV], the prediction from composition alone.

        Raises:
            UnknownElement: an atom's element is not among the potential's (checked outside training).
        """
        references = self._references(batch, self._element_positions(batch.numbers))
        return torch.zeros_like(batch.energy).index_add(0, batch.graph_of_atom, references)

    def theory_number(self, theory: str | None) -> int:
        """Return the index of a level of theory among the potential's; None means the only one.

        Raises:
            ValueError: the name is unknown, or None is given and there are several.
        """
        if theory is None and len(self.theories) == 1:
            return 0
        if theory not in self.theories:
            raise ValueError(f"the potential's levels of theory are {', '.join(self.theories)}; name one, not {theory}")
        return self.theories.index(theory)

    def _references(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float64[Tensor, " atoms"]:
        return self.get_buffer("reference_energies")[batch.theory[batch.graph_of_atom], elements]

    def _element_positions(self, numbers: Int[Tensor, " atoms"]) -> Int[Tensor, " atoms"]:
        positions = self.get_buffer("_position")[numbers]
        # in training the manifest guarantees the elements, and a check would stall an accelerator every step
        if not self.training and bool((positions < 0).any()):
            self.check_elements(numbers)
        return positions

    def check_elements(self, numbers: Int[Tensor, " atoms"]) -> None:
        """Check that the potential knows all elements.

        Raises:
            UnknownElement: it does not know one; the message names it.
        """
        unknown = sorted(set(numbers.tolist()) - set(self.elements))
        if unknown:
            raise UnknownElement(
                f"the potential does not know {', '.join(SYMBOLS[z] for z in unknown)}; "
                f"it was trained on {len(self.elements)} elements: {' '.join(SYMBOLS[z] for z in self.elements)}"
            )


def _structures(given: Iterable[Structure | AtomsLike]) -> Iterator[Structure]:
    for place, each in enumerate(given):
        if isinstance(each, Structure):
            yield each
            continue
        try:
            yield to_structure(each)
        except InvalidStructure as error:
            raise InvalidStructure(f"structure {place}: {error}") from error


def to_structure(atoms: AtomsLike) -> Structure:
    """Return atoms as a Structure for prediction: without forces and stress, with zero energy.

    Raises:
        InvalidStructure: Structure.checked refuses it.
    """
    return Structure.checked(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.asarray(atoms.cell),
        pbc=atoms.pbc,
        energy=0.0,
        molecules=molecule_labels(getattr(atoms, "arrays", {})),
    )


def check_weights(potential: Potential) -> None:
    """Refuse weights that cannot predict.

    Raises:
        ValueError: a number is not finite, or a divisor or scale is not positive.
    """
    state = potential.state_dict()
    check_finite(state)
    for name, tensor in state.items():
        if name.split(".")[-1] in ("denominator", "scale") and not bool((tensor > 0).all()):
            raise ValueError(f"{name} must be positive")


def _with_derivatives(batch: GraphBatch) -> GraphBatch:
    """Return a batch whose tensors can be differentiated, copies of those made in inference mode."""
    made = batch.tensors()
    return replace(batch, **{name: tensor.clone() for name, tensor in made.items() if tensor.is_inference()})


def _one_thread_in_a_fork() -> None:
    """Compute with one thread in a forked process: it lacks the threads that OpenMP assumes."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_one_thread_in_a_fork)


def new_potential(config: Architecture, statistics: Mapping[str, Statistics]) -> Potential:
    """Return an untrained potential with references, scale and mean number of neighbours of the training data.

    The scale is the root mean square force component times 1 Å.

    Args:
        config: The architecture.
        statistics: The training data's, by level of theory.

    Raises:
        ValueError: the data have no forces or neighbours, or edges were not counted at the model's cutoff.
    """
    everything = functools.reduce(Statistics.__add__, statistics.values())
    elements, neighbors = everything.elements, everything.mean_neighbors(config.cutoff)
    for theory, sums in statistics.items():
        if sums.undetermined_elements:
            log.warning(
                "warning: the training data at %s have %s in proportions that never change: their reference energies "
                "are divided arbitrarily, and other compositions will be wrong.",
                theory,
                ", ".join(SYMBOLS[z] for z in sums.undetermined_elements),
            )
    if neighbors == 0:
        raise ValueError(f"no two atoms of the training data are within {config.cutoff} Å; enlarge the cutoff")
    network = config.network(elements, len(statistics), DataFacts(mean_neighbors=neighbors))
    potential = Potential(network, elements, tuple(statistics))
    references = reference_energies(list(statistics.values()))[:, list(elements)]
    potential.get_buffer("reference_energies").copy_(torch.from_numpy(np.ascontiguousarray(references)))
    potential.get_buffer("scale").fill_(everything.force_rms)
    return potential


def reference_energies(statistics: Sequence[Statistics]) -> Float64[np.ndarray, "theories elements"]:
    """Return the reference energy of every element at every level of theory [eV].

    An element without data at one level takes its reference from the first level with data, shifted by the mean
    difference between the two levels over their common elements.
    """
    seen = np.array([sums.atoms_of_element > 0 for sums in statistics])
    fitted = np.array([sums.reference_energies() for sums in statistics])
    filled = fitted.copy()
    for theory, donor in itertools.product(range(len(fitted)), reversed(range(len(fitted)))):
        both = seen[theory] & seen[donor]
        missing = seen[donor] & ~seen[theory]
        shift = (fitted[theory] - fitted[donor])[both].mean() if both.any() else 0.0
        filled[theory, missing] = fitted[donor, missing] + shift
    return filled
