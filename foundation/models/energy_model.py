"""The contract of networks: EnergyModel, all that the program may ask of one, and Architecture, the same of its config.

A new architecture is one file with a class for each of the two, and one more member of ModelConfig. The first field of
its config has no default and a name that no other architecture uses: by that field a YAML says which one it means.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.nn.computation import Computation


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of the training data that a new network is scaled by.

    A network keeps what it makes of them in buffers, which are stored with its weights. One whose weights are read from
    a file takes the defaults.
    """

    mean_neighbors: float = 1.0
    """Mean number of neighbours of an atom, at the network's cutoff."""


NO_FACTS = DataFacts()
"""Of a network whose weights are read from a file."""


class Architecture(ABC):
    """A network described before it is there: a frozen dataclass, whose fields are the hyperparameters."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    architecture: ClassVar[str]
    """Name of the architecture in config.json."""

    cutoff: float
    """Distance below which atoms are neighbours [Å]."""

    @abstractmethod
    def num_parameters(self, num_elements: int, num_theories: int = 1) -> int:
        """Return the number of parameters of a network for so many elements and levels of theory, without building it.

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
            ValueError: an atomic number is given twice, or is not an element's.
        """


class EnergyModel(torch.nn.Module, ABC):
    """A network that gives each atom of a batch an energy."""

    computation = Computation()
    """Way of computing; set by compute_as()."""

    @property
    @abstractmethod
    def config(self) -> Architecture:
        """The architecture, with every choice made that was left to the data."""

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
            elements: Position of each atom's element among the elements that the network knows.
        """

    def features(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms features"]:
        """Return the invariants of each atom's surroundings from which its energy is read; a network may have none.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"a network of the architecture {self.config.architecture} has no features of atoms")

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
        """Return a network for other elements, each of which begins as one of those that this network knows.

        For structures of the elements that stay, it predicts the same.

        Args:
            elements: Atomic numbers that it knows.
            sources: For each, the position among this network's elements of the one that it begins as.
        """

    @abstractmethod
    def with_theories(self, mixture: Float64[Tensor, "new old"]) -> "EnergyModel":
        """Return a network for other levels of theory, each of which begins as a mixture of this network's.

        Args:
            mixture: Weights of the old levels in each of the new ones.
        """

    @abstractmethod
    def compute_as(self, computation: Computation) -> None:
        """Compute in another way from now on; the weights stay the same.

        Raises:
            ValueError: the network cannot do so; the message names the option.
        """
