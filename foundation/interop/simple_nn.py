"""Behler-Parrinello networks of SIMPLE-NN: the file potential_saved, which LAMMPS reads as `pair_style nn`.

Lee et al., Comput. Phys. Commun. 242, 95 (2019). Lengths are in Å and energies in eV; energies are total ones, without
references. The first layer may be a rotation to principal components: layers without an activation function become a
part of the next.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.store.untrusted import CorruptFile, refusing
from data_pipeline.structure import atomic_number
from foundation.interop.behler_parrinello import (
    NEAR,
    RADIAL,
    WIDE,
    ElementNetwork,
    Function,
    UnsupportedNetwork,
    potential_of,
    provenance_of,
    read_text,
)
from foundation.potential import Potential

KINDS = {"2": RADIAL, "4": NEAR, "5": WIDE}
"""Types of symmetry functions."""
ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "swish": "silu"}
"""Our activation functions by the names of theirs."""
LINEAR = "linear"
"""Their name of a layer without an activation function."""


def potential_in(file: Path, theory: str = "unknown") -> Potential:
    """Return the potential of a file, in float64.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it cannot be read.
        UnsupportedNetwork: the network has options that this program lacks.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file; SIMPLE-NN writes potential_saved, or potential_saved_bestmodel")
    try:
        with refusing(file, CorruptFile, "not a network of SIMPLE-NN ({})", UnsupportedNetwork):
            networks, activation = read_networks(read_text(file))
            return potential_of(
                networks, cutoff_function="cosine", cutoff_power=6, activation=activation, theory=theory
            )
    except UnsupportedNetwork as error:
        raise UnsupportedNetwork(f"{file}: {error}") from error


def provenance_of_simple_nn(file: Path, potential: Potential) -> dict:
    """Return the provenance of a converted file, as JSON; unknown facts read 'not stated'."""
    return provenance_of(file, [file], "converted from SIMPLE-NN", potential)


def read_networks(text: str) -> tuple[dict[int, ElementNetwork], str]:
    """Return the networks by atomic number, and our name of the activation function of their hidden layers.

    Raises:
        UnsupportedNetwork: they have options that this program lacks.
        ValueError: the text cannot be read.
    """
    rows = iter([words for line in text.splitlines() if (words := line.partition("#")[0].split())])
    elements = [atomic_number(symbol) for symbol in _row(rows, "ELEM_LIST")]
    networks: dict[int, ElementNetwork] = {}
    activations: set[str] = set()
    for words in rows:
        number = atomic_number(_words(words, "POT")[0])
        networks[number], names = _network(rows)
        activations |= names
    if sorted(networks) != sorted(elements):
        raise ValueError("elements of ELEM_LIST and of the networks differ")
    if len(activations) != 1 or not activations <= ACTIVATIONS.keys():
        found = ", ".join(sorted(activations)) or "none"
        raise UnsupportedNetwork(
            f"activation functions {found}: hidden layers must all be one of {', '.join(ACTIVATIONS)}"
        )
    return networks, ACTIVATIONS[activations.pop()]


def _words(words: list[str], name: str) -> list[str]:
    if words[0] != name or len(words) < 2:
        raise ValueError(f"a line {name} is expected, not {words[0]}")
    return words[1:]


def _row(rows: Iterator[list[str]], name: str) -> list[str]:
    """Return the words of the next line, behind its name."""
    words = next(rows, None)
    if words is None:
        raise ValueError(f"it ends before a line {name}")
    return _words(words, name)


def _numbers(rows: Iterator[list[str]], name: str, count: int) -> Tensor:
    values = torch.tensor([float(word) for word in _row(rows, name)], dtype=torch.float64)
    if len(values) != count or not bool(values.isfinite().all()):
        raise ValueError(f"a line {name} has {len(values)} numbers, not {count} finite ones")
    return values


def _network(rows: Iterator[list[str]]) -> tuple[ElementNetwork, set[str]]:
    """Return the network of an element, and the activation functions of its hidden layers."""
    count = int(_row(rows, "SYM")[0])
    functions = tuple(_function(next(rows, [])) for _ in range(count))
    shift, divisor = _numbers(rows, "scale1", count), _numbers(rows, "scale2", count)
    if not bool((divisor > 0).all()):
        raise ValueError("scale2 must be positive")
    num_hidden, *sizes = map(int, _row(rows, "NET"))
    if len(sizes) != num_hidden + 1 or sizes[-1] != 1:
        raise ValueError(f"NET {num_hidden} {' '.join(map(str, sizes))}: not {num_hidden} layers and an energy")
    found: list[tuple[str, Tensor, Tensor]] = []
    for number, (before, after) in enumerate(pairwise([count, *sizes])):
        place, name, *_ = [*_row(rows, "LAYER"), ""]
        if int(place) != number:
            raise ValueError(f"LAYER {place} is where LAYER {number} should be")
        weights = [(_numbers(rows, f"w{node}", before), _numbers(rows, f"b{node}", 1)) for node in range(after)]
        found.append((name, torch.stack([w for w, _ in weights], dim=1), torch.cat([b for _, b in weights])))
    if found[-1][0] != LINEAR:
        raise UnsupportedNetwork(f"the energy has the activation function {found[-1][0]}")
    layers = tuple(_without_linear(found))
    if len(layers) == 1:
        raise UnsupportedNetwork("a network without hidden layers")
    names = {name for name, _, _ in found[:-1]} - {LINEAR}
    return ElementNetwork(functions=functions, shift=shift, divisor=divisor, layers=layers), names


def _without_linear(layers: list[tuple[str, Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weights and biases, with layers that have no activation function as a part of the next."""
    before: tuple[Tensor, Tensor] | None = None
    for place, (name, weight, bias) in enumerate(layers):
        if before is not None:
            weight, bias = before[0] @ weight, before[1] @ weight + bias
        before = (weight, bias) if name == LINEAR else None
        if before is None or place == len(layers) - 1:
            yield weight, bias


def _function(words: list[str]) -> Function:
    """Return a symmetry function from its line."""
    if not words:
        raise ValueError("it ends before the last symmetry function")
    kind, line = KINDS.get(words[0]), " ".join(words)
    if kind is None:
        raise UnsupportedNetwork(f"symmetry function {line}: only types {', '.join(KINDS)} are read")
    symbols = words[5:]
    if len(words) < 6 or len(symbols) != (1 if kind == RADIAL else 2):
        raise ValueError(f"symmetry function {line}: need its type, four numbers and its neighbours")
    cutoff, width, first, second = map(float, words[1:5])
    neighbors = tuple(sorted(map(atomic_number, symbols)))
    if kind == RADIAL:
        return Function(kind, cutoff, width, first, 0.0, 0.0, neighbors)
    return Function(kind, cutoff, width, 0.0, first, second, neighbors)
