"""The public check of the laws finds every law broken that is broken, and says which and by how much."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.structure import Structure
from foundation.models import Architecture, EnergyModel
from foundation.nn.computation import Computation
from foundation.potential import Potential
from foundation.testing import LAWS, check_laws
from tests.small_networks import SMALL_NETWORKS

ELEMENTS = (8, 13)
CONFIG = SMALL_NETWORKS["parity-sqrt"]


class Springs(EnergyModel):
    """An energy that obeys every law, and what breaks each of them."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.broken, self.weight = broken, torch.nn.Parameter(torch.ones(1))

    @property
    def config(self) -> Architecture:
        return CONFIG

    @property
    def reach(self) -> float:
        return self.cutoff

    @property
    def parity(self) -> bool:
        return True

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        vectors = batch.edge_vectors()
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        tail = (1 - lengths / self.cutoff) ** 3
        if self.broken == "rotation":
            tail = tail * (1 + 0.1 * vectors[:, 2] ** 2)
        if self.broken == "smoothness":
            tail = tail + 0.1
        if self.broken == "stress":
            tail = tail * self._unless_strained(batch)
        energies = torch.zeros_like(batch.positions[:, 0]).index_add(0, batch.receivers, tail)
        if self.broken == "mirror":
            energies = energies + 0.1 * self._handedness(batch, vectors, tail)
        if self.broken == "translation":
            energies = energies + 0.1 * torch.linalg.vector_norm(batch.positions, dim=1)
        if self.broken == "permutation":
            energies = energies * (1 + 0.1 * torch.arange(len(energies)))
        if self.broken == "extensivity":
            energies = energies * (1 + 0.1 * len(energies))
        if self.broken == "forces":
            energies = energies.detach() + 0.5 * (energies - energies.detach())
        if self.broken == "locality":
            energies = energies + 0.1 * energies.mean()
        return self.weight * energies * (1 + elements)

    def _handedness(self, batch: GraphBatch, vectors: Tensor, tail: Tensor) -> Tensor:
        """Return a pseudoscalar of each atom: a triple product of differently weighted sums over its neighbours."""
        sums = []
        for power in (1, 2, 3):
            weighted = vectors * (tail**power).unsqueeze(1)
            sums.append(torch.zeros_like(batch.positions).index_add(0, batch.receivers, weighted))
        return (sums[0] * torch.linalg.cross(sums[1], sums[2])).sum(dim=1)

    def _unless_strained(self, batch: GraphBatch) -> Tensor:
        """Return one, with a gradient for the cell that no energy has."""
        volume = torch.linalg.det(batch.cell).abs().sum()
        return 1.0 + 0.1 * (volume - volume.detach())

    def describe(self) -> str:
        return "springs"

    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        return {"readout": ("weight",)}

    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "Springs":
        return self

    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "Springs":
        return self

    def compute_as(self, computation: Computation) -> None:
        self.computation = computation


def springs(broken: str) -> Potential:
    return Potential(Springs(broken), ELEMENTS, ("EMT",)).eval()


def test_what_obeys_all_laws_passes_and_every_deviation_is_told() -> None:
    found = check_laws(springs("nothing"))
    assert list(found) == list(LAWS)
    assert all(0 <= deviation <= LAWS[law][1] for law, deviation in found.items())


@pytest.mark.parametrize("law", LAWS)
def test_a_broken_law_is_named_with_its_deviation(law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{law}: the deviation is [0-9.e+-]+, and at most"):
        check_laws(springs(law), [law])


def test_a_potential_that_says_nothing_is_no_proof() -> None:
    potential = springs("nothing")
    torch.nn.init.zeros_(potential.network.weight)
    with pytest.raises(AssertionError, match="nothing is checked"):
        check_laws(potential)


def test_the_potential_is_left_alone() -> None:
    potential = Potential(CONFIG.network(ELEMENTS), ELEMENTS, ("EMT",)).train()
    check_laws(potential, ["rotation", "permutation"], seed=3)
    assert potential.training
    assert potential.dtype == torch.float32


def test_an_unknown_law_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="unknown law 'gravity'; the laws are rotation, mirror"):
        check_laws(springs("nothing"), ["gravity"])


def test_a_network_that_has_no_features_says_so() -> None:
    structure = Structure.checked(
        numbers=np.array([8]), positions=np.zeros((1, 3)), cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), energy=0.0
    )
    with pytest.raises(ValueError, match="a network of the architecture equivariant has no features of atoms"):
        springs("nothing").atom_features(collate([structure], 4.0))
