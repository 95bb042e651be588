"""Behler-Parrinello networks of n2p2 and RuNNer: a folder with input.nn, scaling.data and weights.ZZZ.data.

Singraber, Behler and Dellago, J. Chem. Theory Comput. 15, 1827 (2019). The formulas are those of n2p2's documentation.
The files do not state their units.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from ase import units as ase_units
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.store.untrusted import CorruptFile, refusing
from data_pipeline.structure import SYMBOLS, atomic_number
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

Units = Literal["bohr-hartree", "angstrom-ev"]
SIZES: dict[Units, tuple[float, float]] = {
    "bohr-hartree": (ase_units.Bohr, ase_units.Hartree),
    "angstrom-ev": (1.0, 1.0),
}
"""Unit of length [Å] and of energy [eV]."""
ACTIVATIONS = {"t": "tanh", "s": "sigmoid", "p": "softplus"}
CUTOFFS = {"1": ("cosine", 6), "6": ("polynomial", 3)}
"""Cutoff functions by n2p2's number; its sixth is 1 - 10 x³ + 15 x⁴ - 6 x⁵."""
SETTINGS, SCALING = "input.nn", "scaling.data"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Content of input.nn that decides predictions."""

    elements: tuple[int, ...]
    """Atomic numbers, ascending."""
    functions: dict[int, list[Function]]
    """Symmetry functions of each element, in order and in the file's unit."""
    hidden_sizes: tuple[int, ...]
    """Sizes of the hidden layers."""
    activation: str
    """Our name of their activation function."""
    cutoff_function: str
    """Number of the cutoff function."""
    references: dict[int, float]
    """Reference energy of each element, in the file's unit."""
    words: dict[str, list[list[str]]]
    """All keywords with their arguments."""

    def number(self, keyword: str, default: float) -> float:
        """Return the argument of a keyword."""
        return float(self.words[keyword][-1][0]) if keyword in self.words else default


def potential_in(folder: Path, units: Units, theory: str = "unknown") -> Potential:
    """Return the potential of a folder, in float64.

    Raises:
        FileNotFoundError: a file is missing.
        CorruptFile: a file cannot be read.
        UnsupportedNetwork: the network has options that this program lacks.
    """
    length, energy = SIZES[units]
    try:
        with refusing(folder / SETTINGS, CorruptFile, "not the settings of n2p2 ({})", UnsupportedNetwork):
            settings = read_settings(_text(folder / SETTINGS))
        with refusing(folder / SCALING, CorruptFile, "not the scaling of these symmetry functions ({})"):
            rows = _scaling(_text(folder / SCALING), settings)
        networks = {number: _network(folder, number, settings, length, rows[number]) for number in settings.elements}
        name, power = CUTOFFS[settings.cutoff_function]
        potential = potential_of(
            networks, cutoff_function=name, cutoff_power=power, activation=settings.activation, theory=theory
        )
    except UnsupportedNetwork as error:
        raise UnsupportedNetwork(f"{folder / SETTINGS}: {error}") from error
    potential.get_buffer("scale").fill_(energy / settings.number("conv_energy", 1.0))
    offset = settings.number("mean_energy", 0.0)
    references = [energy * (settings.references.get(number, 0.0) + offset) for number in settings.elements]
    potential.get_buffer("reference_energies").copy_(torch.tensor([references], dtype=torch.float64))
    return potential


def _network(
    folder: Path, number: int, settings: Settings, length: float, rows: Float64[Tensor, "functions 2"]
) -> ElementNetwork:
    """Return the network of an element."""
    file = folder / f"weights.{number:03d}.data"
    functions = tuple(
        each._replace(cutoff=each.cutoff * length, width=each.width / length**2, shift=each.shift * length)
        for each in settings.functions[number]
    )
    with refusing(file, CorruptFile, "not the weights of such a network ({})"):
        layers = _layers(_text(file), len(functions), settings)
    return ElementNetwork(functions=functions, shift=rows[:, 0], divisor=rows[:, 1], layers=tuple(layers))


def provenance_of_n2p2(folder: Path, units: Units, potential: Potential) -> dict:
    """Return the provenance of a converted folder, as JSON; unknown facts read 'not stated'."""
    files = [file for file in folder.iterdir() if file.name in (SETTINGS, SCALING) or _is_weights(file)]
    return provenance_of(folder, files, f"converted from n2p2, in units of {units}", potential)


def _is_weights(file: Path) -> bool:
    return file.name.startswith("weights.") and file.suffix == ".data"


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a network of n2p2 has {SETTINGS}, {SCALING} and weights.ZZZ.data")
    return read_text(file)


def read_settings(text: str) -> Settings:
    """Return the content of input.nn.

    Raises:
        UnsupportedNetwork: it has options that this program lacks.
        ValueError: it cannot be read.
    """
    words: dict[str, list[list[str]]] = defaultdict(list)
    for line in text.splitlines():
        keyword, *arguments = line.partition("#")[0].split() or [""]
        if keyword:
            words[keyword].append(arguments)
    for needed in ("elements", "global_nodes_short", "global_activation_short", "cutoff_type", "symfunction_short"):
        if not words.get(needed):
            raise ValueError(f"the keyword {needed} is missing")
    if int(words["nnp_type"][-1][0][0] if "nnp_type" in words else 2) > 2:
        raise UnsupportedNetwork(
            f"nnp_type {words['nnp_type'][-1][0]}: only networks of the second generation are read"
        )
    kinds, *alpha = words["cutoff_type"][-1]
    if kinds not in CUTOFFS or any(float(each) for each in alpha):
        raise UnsupportedNetwork(f"cutoff_type {' '.join((kinds, *alpha))}: only 1 and 6, without α, are read")
    *hidden, last = words["global_activation_short"][-1]
    if last != "l" or len(set(hidden)) != 1 or hidden[0] not in ACTIVATIONS:
        raise UnsupportedNetwork(
            f"global_activation_short {' '.join((*hidden, last))}: hidden layers must all be one of "
            f"{', '.join(ACTIVATIONS)}, and the last l"
        )
    elements = tuple(sorted(map(atomic_number, words["elements"][-1])))
    functions: dict[int, list[Function]] = {number: [] for number in elements}
    for arguments in words["symfunction_short"]:
        functions[atomic_number(arguments[0])].append(_function(arguments))
    return Settings(
        elements=elements,
        functions={number: sorted(each) for number, each in functions.items()},
        hidden_sizes=tuple(map(int, words["global_nodes_short"][-1])),
        activation=ACTIVATIONS[hidden[0]],
        cutoff_function=kinds,
        references={atomic_number(symbol): float(value) for symbol, value in words.get("atom_energy", [])},
        words=dict(words),
    )


def _function(arguments: Sequence[str]) -> Function:
    """Return a symmetry function from its line, without the keyword."""
    kind, rest = int(arguments[1]), arguments[2:]
    if kind == RADIAL and len(rest) == 4:
        width, shift, cutoff = map(float, rest[1:])
        return Function(kind, cutoff, width, shift, 0.0, 0.0, (atomic_number(rest[0]),))
    if kind in (NEAR, WIDE) and len(rest) in (6, 7):
        width, sign, exponent, cutoff, *shift = map(float, rest[2:])
        if any(shift):
            raise UnsupportedNetwork(f"symfunction_short {' '.join(arguments)}: functions of angles have no shift here")
        return Function(kind, cutoff, width, 0.0, exponent, sign, tuple(sorted(map(atomic_number, rest[:2]))))
    raise UnsupportedNetwork(f"symfunction_short {' '.join(arguments)}: only types 2, 3 and 9 are read")


def _scaling(text: str, settings: Settings) -> dict[int, Float64[Tensor, "functions 2"]]:
    """Return shift and divisor of the functions of every element."""
    found: dict[int, dict[int, tuple[float, float]]] = {number: {} for number in settings.elements}
    least, most = settings.number("scale_min_short", 0.0), settings.number("scale_max_short", 1.0)
    scaled, centred, by_sigma = (
        keyword in settings.words
        for keyword in ("scale_symmetry_functions", "center_symmetry_functions", "scale_symmetry_functions_sigma")
    )
    for line in text.splitlines():
        entries = line.partition("#")[0].split()
        if len(entries) != 6:
            continue
        low, high, mean, sigma = map(float, entries[2:])
        width = sigma if by_sigma else high - low
        divisor = width / (most - least) if scaled or by_sigma else 1.0
        origin = mean if centred or by_sigma else low if scaled else 0.0
        if not divisor > 0:
            raise ValueError(f"function {entries[1]} of element {entries[0]} does not vary")
        shift = origin - least * divisor if scaled or by_sigma else origin
        found[settings.elements[int(entries[0]) - 1]][int(entries[1])] = shift, divisor
    for number, rows in found.items():
        if sorted(rows) != list(range(1, len(settings.functions[number]) + 1)):
            raise ValueError(
                f"{len(rows)} rows for {SYMBOLS[number]}, which has {len(settings.functions[number])} functions"
            )
    return {
        number: torch.tensor([rows[place] for place in sorted(rows)], dtype=torch.float64)
        for number, rows in found.items()
    }


def _layers(text: str, num_inputs: int, settings: Settings) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases of every layer of an element."""
    sizes = [num_inputs, *settings.hidden_sizes, 1]
    layers = [
        (torch.full((before, after), torch.nan).double(), torch.full((after,), torch.nan).double())
        for before, after in itertools.pairwise(sizes)
    ]
    for line in text.splitlines():
        entries = line.partition("#")[0].split()
        if len(entries) < 5:
            continue
        value, kind, places = float(entries[0]), entries[1], [int(entry) for entry in entries[3:]]
        if kind == "a":
            before, source, _, target = places
            layers[before][0][source - 1, target - 1] = value
        elif kind == "b":
            layer, target = places
            layers[layer - 1][1][target - 1] = value
    if any(bool(tensor.isnan().any()) for layer in layers for tensor in layer):
        raise ValueError(f"weights of layers of {' and '.join(map(str, sizes))} are missing")
    if "normalize_nodes" in settings.words:
        return [(weight / len(weight), bias / len(weight)) for weight, bias in layers]
    return layers
