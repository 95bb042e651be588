"""Behler-Parrinello networks of other programs, as ours.

There each element has functions of its own; ours share one set, so that a function that an element lacks has the weight
zero.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.store.shards import sha256
from data_pipeline.store.untrusted import read_bytes
from foundation.interop.published import NOT_STATED
from foundation.models import SymmetryFunctionsConfig, SymmetryFunctionsNetwork
from foundation.potential import Potential

RADIAL, NEAR, WIDE = 2, 3, 9
"""Numbers of the types of symmetry functions in n2p2: G2, G4 and G5."""
MAX_BYTES = 1 << 28
"""Largest size of a file."""


class UnsupportedNetwork(ValueError):
    """A network with options that this program lacks; the message names them."""


class Function(NamedTuple):
    """A symmetry function of an element, in the order in which n2p2 numbers them."""

    kind: int
    """Type."""
    cutoff: float
    """Cutoff [Å]."""
    width: float
    """η [1/Å²]."""
    shift: float
    """r_s [Å]; 0 of a function of angles."""
    exponent: float
    """ζ; 0 of a radial function."""
    sign: float
    """λ; 0 of a radial function."""
    neighbors: tuple[int, ...]
    """Atomic numbers of the neighbours, ascending."""

    @property
    def parameters(self) -> tuple[float, ...]:
        """The parameters in our configuration."""
        return (self.width, self.shift) if self.kind == RADIAL else (self.width, self.exponent, self.sign)


@dataclass(frozen=True, kw_only=True)
class ElementNetwork:
    """The network of an element."""

    functions: tuple[Function, ...]
    """Its symmetry functions."""
    shift: Float64[Tensor, " functions"]
    """Values that are subtracted from them."""
    divisor: Float64[Tensor, " functions"]
    """Values by which they are divided then."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Weights (inputs, outputs) and biases (outputs) of each layer."""


def potential_of(
    networks: Mapping[int, ElementNetwork], *, cutoff_function: str, cutoff_power: int, activation: str, theory: str
) -> Potential:
    """Return the potential of the networks of its elements, in float64, without reference energies.

    Args:
        networks: The networks by atomic number.
        cutoff_function: Name of the cutoff function in our configuration.
        cutoff_power: Its power, of a polynomial.
        activation: Name of the activation function in our configuration.
        theory: Name of the level of theory.

    Raises:
        UnsupportedNetwork: there are several cutoffs, hidden layers of several sizes, or parameters that our functions
            may not have.
    """
    elements = tuple(sorted(networks))
    every = [function for network in networks.values() for function in network.functions]
    cutoffs = sorted({function.cutoff for function in every})
    if len(cutoffs) > 1:
        raise UnsupportedNetwork(f"symmetry functions of several cutoffs ({', '.join(map(str, cutoffs))}); one is read")
    hidden = {tuple(len(bias) for _, bias in network.layers[:-1]) for network in networks.values()}
    if len(hidden) > 1:
        raise UnsupportedNetwork(f"hidden layers of several sizes ({', '.join(map(str, sorted(hidden)))}); one is read")
    by_kind: dict[int, Any] = {
        kind: tuple(dict.fromkeys(each.parameters for each in every if each.kind == kind))
        for kind in (RADIAL, NEAR, WIDE)
    }
    options: dict[str, Any] = {"cutoff_function": cutoff_function, "activation": activation}
    try:
        config = SymmetryFunctionsConfig(
            radial_functions=by_kind[RADIAL],
            angular_functions=by_kind[NEAR],
            wide_functions=by_kind[WIDE],
            cutoff=cutoffs[0],
            cutoff_power=cutoff_power,
            hidden_sizes=hidden.pop(),
            **options,
        )
    except ValueError as error:
        raise UnsupportedNetwork(str(error)) from error
    network = config.network(elements).double()
    assert isinstance(network, SymmetryFunctionsNetwork)
    for place, number in enumerate(elements):
        columns = [_column(config, elements, function) for function in networks[number].functions]
        _fill(network, place, columns, networks[number])
    return Potential(network, elements, (theory,)).cast(torch.float64).eval()


def read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: it is too large or no text.
    """
    return read_bytes(file, MAX_BYTES).decode()


def provenance_of(source: Path, files: Sequence[Path], method: str, potential: Potential) -> dict:
    """Return the provenance of a converted network, as JSON; unknown facts read 'not stated'."""
    facts = ("name", "licence", "level_of_theory", "energy_convention", "citation", "source", "num_frames", "num_atoms")
    unknown = dict.fromkeys((*facts, "manifest_fingerprint"), NOT_STATED)
    sums = {file.name: sha256(file) for file in sorted(files)}
    lines = "".join(f"{each}  {name}\n" for name, each in sums.items())
    return {
        "method": method,
        "converted_from": {"file": source.name, "sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": sums},
        "datasets": [{"repeat": 1.0, **unknown, "theory": theory} for theory in potential.theories],
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "hardware": NOT_STATED,
        "versions": {name: importlib.metadata.version(name) for name in ("foundation", "torch")},
        "config": {},
    }


def _column(config: SymmetryFunctionsConfig, elements: Sequence[int], function: Function) -> int:
    """Return the input of the network that a function is."""
    sets: list[list[tuple[float, ...]]] = [[*each] for each in config.functions[:3]]
    radial, near, wide = sets
    kinds, count = [elements.index(number) for number in function.neighbors], len(elements)
    if function.kind == RADIAL:
        return kinds[0] * len(radial) + radial.index(function.parameters)
    low, high = sorted(kinds)
    pair = low * (2 * count - low + 1) // 2 + high - low
    begin, own = count * len(radial), near
    if function.kind == WIDE:
        begin, own = begin + count * (count + 1) // 2 * len(near), wide
    return begin + pair * len(own) + own.index(function.parameters)


def _fill(network: SymmetryFunctionsNetwork, place: int, columns: Sequence[int], element: ElementNetwork) -> None:
    """Write the weights of an element into a network."""
    state: Mapping[str, Tensor] = network.state_dict()
    with torch.no_grad():
        for number, (weight, bias) in enumerate(element.layers):
            of_layer = state[f"layers.{number}.weight"][place]
            if number == 0:
                of_layer.zero_()
                of_layer[list(columns)] = weight
            else:
                of_layer.copy_(weight)
            state[f"layers.{number}.bias"][place] = bias
        state["mean"][place].zero_()
        state["deviation"][place].fill_(1.0)
        state["mean"][place, list(columns)] = element.shift
        state["deviation"][place, list(columns)] = element.divisor
