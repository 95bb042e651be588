"""Contract of networks: EnergyModel, the interface of a network, and Architecture, that of its config.

A new architecture is one file with a class for each of the two, and one more member of ModelConfig. The first field of
its config has no default and a name unique among architectures, by which a YAML selects it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.kernels.edges import EdgeIndex
from foundation.nn.computation import Computation


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of the training data by which a new network is scaled.

    A network keeps values derived from them in buffers, which are stored with its weights. One whose weights are read
    from a file takes the defaults.
    """

    mean_neighbors: float = 1.0
    """Mean number of neighbours of an atom, at the network's cutoff."""


NO_FACTS = DataFacts()
"""Placeholder for a network whose weights are read from a file."""


class Architecture(ABC):
    """Description of a network: a frozen dataclass of its hyperparameters."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    architecture: ClassVar[str]
    """Name of the architecture in config.json."""

    cutoff: float
    """Distance below which atoms are neighbours [Å]."""

    @abstractmethod
    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters of a network for given numbers of elements and theories, without building it.

        A file that is smaller than this is refused before anything is allocated.
        """

    @abstractmethod
    def network(self, elements: tuple[int, ...], num_theories: int = 1, facts: DataFacts = NO_FACTS) -> "EnergyModel":
        """Return a network with random weights.

        Args:
            elements: Atomic numbers that it knows.
            num_theories: Number of levels of theory of the data.
            facts: Facts of the training data.

        Raises:
            ValueError: an atomic number is given twice, or is invalid.
        """


class EnergyModel(torch.nn.Module, ABC):
    """A network that gives each atom of a batch an energy."""

    computation = Computation()
    """Options of computing, set by compute_as()."""

    @property
    @abstractmethod
    def config(self) -> Architecture:
        """The architecture, with choices that depend on the data resolved."""

    @property
    def cutoff(self) -> float:
        """Distance below which atoms are neighbours [Å]."""
        return self.config.cutoff

    @property
    @abstractmethod
    def reach(self) -> float:
        """Distance to the farthest atom that the energy of an atom depends on [Å]."""

    @property
    @abstractmethod
    def parity(self) -> bool:
        """True if the energies of mirror images are exactly the same."""

    @abstractmethod
    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale.

        Args:
            batch: The structures.
            elements: Index of each atom's element among the elements that the network knows.
        """

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms features"]:
        """Return invariant features of each atom's environment, from which its energy is read; optional for a network.

        Raises:
            ValueError: the network has no features.
        """
        raise ValueError(f"a network of the architecture {self.config.architecture} has no features of atoms")

    def energies_and_features(
        self, batch: GraphBatch, elements: Int[Tensor, " atoms"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms features"]]:
        """Return what forward() and features() return; a network may compute both at once.

        Raises:
            ValueError: the network has no features.
        """
        return self(batch, elements), self.features(batch, elements)

    reads_by_element: ClassVar[bool] = False
    """True if the energies of each element are read from the features by weights of its own."""

    def element_vectors(self) -> Float[Tensor, "elements channels"]:
        """Return the weights that tell elements apart, a row for each, in the network's order; optional for a network.

        The rows are a view: what is written into them changes the network.

        Raises:
            ValueError: the network has no such rows.
        """
        raise ValueError(f"a network of the architecture {self.config.architecture} has no embedding of elements")

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Sequences of atomic numbers that structures are made of, if only these are known; none if any atoms are."""
        return ()

    recordable: ClassVar[bool] = False
    """True if the numbers of atoms and edges of a batch decide the sizes of all that is computed."""
    weights_are_kept = False
    """True if the weights do not change any more: what is made of them outside training is made once, unchecked."""
    standardizes: ClassVar[bool] = False
    """True if a new network scales its inputs by a sample of the training data (see standardize)."""

    def standardize(self, sample: Iterable[tuple[GraphBatch, Int[Tensor, " atoms"]]]) -> None:
        """Scale the inputs of a new network by structures of its training data; optional for a network.

        Args:
            sample: Batches, with the position of each atom's element in the network's order.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the architecture in one phrase, for the model card."""

    @abstractmethod
    def parameter_stages(self) -> dict[str, tuple[str, ...]]:
        """Return the stages from the input to the energy, each with the patterns of its parameters' names.

        A pattern is a shell pattern over the names in named_parameters(). The last stage reads the energy; stages named
        'block 0', 'block 1' and so on repeat. Every parameter belongs to one stage.
        """

    @abstractmethod
    def with_elements(self, elements: tuple[int, ...], sources: Sequence[int]) -> "EnergyModel":
        """Return a network for other elements, each of which starts as a copy of one of this network's.

        For structures of the elements that remain, predictions are unchanged.

        Args:
            elements: Atomic numbers that it knows.
            sources: For each, the index of its source among this network's elements.
        """

    @abstractmethod
    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "EnergyModel":
        """Return a network for other levels of theory, each of which starts as a mixture of this network's.

        Args:
            mixture: Weights of the old levels in each of the new ones.
        """

    @abstractmethod
    def compute_as(self, computation: Computation) -> None:
        """Set the options of computing; the weights do not change.

        Raises:
            ValueError: the network does not support one; the message names it.
        """


Exchange = Callable[[Float[Tensor, "atoms features"]], Float[Tensor, "atoms features"]]
"""Function of the features of all atoms, by which processes share them."""


@runtime_checkable
class AlongEdges(Protocol):
    """A network whose energies can be computed along edges that another program found; optional for a network."""

    def atom_energies_along(
        self,
        vectors: Float64[Tensor, "pairs 3"],
        edges: EdgeIndex,
        elements: Int[Tensor, " atoms"],
        theory: Int[Tensor, " atoms"],
        exchange: Exchange | None = None,
    ) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale.

        Args:
            vectors: Vector of every pair's first edge [Å].
            edges: Edges of the atoms; ghosts of other processes have none of their own.
            elements: Index of each atom's element among the network's elements.
            theory: Level of theory of each atom.
            exchange: Function that replaces the features of ghosts by their owners' before each block but the first.
        """
        ...
