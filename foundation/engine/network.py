"""C source of a whole equivariant network, and its numbers in the order in which the source finds them."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import copy
import hashlib
import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from e3nn import o3
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.sources.random_crystals import RADII
from foundation.engine.convolution import layer_source, part
from foundation.engine.harmonics import harmonics_source
from foundation.engine.table import Table, radial_polynomials
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import parts
from foundation.last_layer import constants_of
from foundation.models.equivariant import EquivariantNetwork
from foundation.nn import repulsion
from foundation.nn.computation import Computation
from foundation.nn.interaction import InteractionBlock
from foundation.nn.linear import Linear
from foundation.nn.radial import activation_scale
from foundation.potential import Potential


class Unsupported(ValueError):
    """A potential that an engine or a form of export cannot take; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkSource:
    """C source of a network, and its numbers."""

    sources: tuple[str, ...]
    """C files."""
    layout: int
    """Fingerprint of the source, by which a file of numbers is known to belong to it."""
    constants: Float64[np.ndarray, " constants"]
    """Constant of the readout, scale and reference energy of every element [eV], and those of uncertainties."""
    numbers: Float64[np.ndarray, " numbers"]
    """Matrices, tables and all else."""


@dataclass
class _Numbers:
    """Numbers of the file, and room for packed matrices, collected one after the other."""

    parts: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    packed: list[tuple[int, int]] = field(default_factory=list)

    def add(self, values: Tensor) -> int:
        """Append values and return the place of the first."""
        place, flat = self.size, values.detach().double().cpu().numpy().ravel()
        self.parts.append(flat)
        self.size += len(flat)
        return place

    def pack(self, rows: int, columns: int) -> str:
        """Return the C expression for the place of a packed matrix."""
        self.packed.append((rows, columns))
        return f"PACKED_{len(self.packed) - 1}"

    def places(self) -> list[str]:
        """Return C constants for the places of the packed matrices, which depend on the machine's vectors."""
        lines, before = [], "0"
        for number, (rows, columns) in enumerate(self.packed):
            lines.append(f"#define PACKED_{number} ({before})")
            before = f"PACKED_{number} + PACKED_SIZE({columns}, {rows})"
        return [*lines, f"#define NUM_PACKED ({before})"]


def network_source(potential: Potential, theory: int, *, table: bool) -> NetworkSource:
    """Return the source of a potential's network at one level of theory.

    Args:
        potential: The potential.
        theory: Number of its level of theory.
        table: Take radial functions from a table of polynomials.

    Raises:
        Unsupported: its network is not an equivariant one.
    """
    network = copy.deepcopy(potential.network).double().cpu().eval()
    if not isinstance(network, EquivariantNetwork):
        raise Unsupported(f"networks of the architecture {network.config.architecture} cannot be compiled as a library")
    network.compute_as(Computation())
    numbers, blocks = _Numbers(), [block for block in network.blocks if isinstance(block, InteractionBlock)]
    polynomials = radial_polynomials(network) if table else None
    names = [block.convolution.paths.name for block in blocks]
    distinct = list(dict.fromkeys(names))
    embedding = network.element_vectors() * len(potential.elements) ** -0.5
    places = {"EMBEDDING": numbers.add(embedding), "WAVE_NUMBERS": numbers.add(network.radial_basis.wave_numbers)}
    declared, layers = [], []
    for number, block in enumerate(blocks):
        rows = None if polynomials is None else polynomials.coefficients[number]
        lines, initializer = _layer(number, block, theory, numbers, rows, distinct.index(names[number]))
        declared += lines
        layers.append(initializer)
    readout, constant = _readout(network, theory)
    places["READOUT"] = numbers.add(readout)
    if potential.last_layer is not None:
        places |= {
            "WHITENING": numbers.add(potential.last_layer.get_buffer("whitening")[0]),
            "FORCE_SCALE": 1 + 2 * len(potential.elements),
        }
    constants = np.concatenate(
        [
            [constant],
            potential.get_buffer("scale").cpu().numpy(),
            potential.get_buffer("reference_energies")[theory].cpu().numpy(),
            [] if potential.last_layer is None else constants_of(potential.last_layer),
        ]
    )
    sizes = _sizes(network, blocks, potential.elements, len(constants), numbers.size) | places
    declared = [*numbers.places(), *declared, *_repulsion(potential)]
    main = _main(network, sizes, potential.elements, polynomials, declared, layers, len(distinct))
    sources = (main, *(layer_source(TensorProductPaths.named(name), n) for n, name in enumerate(distinct)))
    return NetworkSource(
        sources=sources,
        layout=int.from_bytes(hashlib.sha256("".join(sources).encode()).digest()[:8], "little"),
        constants=constants,
        numbers=np.concatenate(numbers.parts),
    )


def _sizes(
    network: EquivariantNetwork,
    blocks: list[InteractionBlock],
    elements: tuple[int, ...],
    num_constants: int,
    num_numbers: int,
) -> dict[str, int]:
    paths = [block.convolution.paths for block in blocks]
    widths = [*(each.irreps_in.dim for each in paths), *(block.irreps_out.dim for block in blocks)]
    return {
        "NUM_LAYERS": len(blocks),
        "NUM_ELEMENTS": len(elements),
        "NUM_CONSTANTS": num_constants,
        "NUM_NUMBERS": num_numbers,
        "NUM_BASIS": network.config.num_basis,
        "WIDEST_RADIAL": max(network.config.num_basis, 1, *network.config.radial_sizes),
        "DY": network.irreps_harmonics.dim,
        "UNIT_HARMONICS": int(network.config.unit_harmonics),
        "MOST_WEIGHTS": max(each.num_weights for each in paths),
        "MOST_SUMS": max(each.irreps_out.dim for each in paths),
        "MOST_FEATURES": max(widths),
    }


def _main(
    network: EquivariantNetwork,
    sizes: dict[str, int],
    elements: tuple[int, ...],
    polynomials: Table | None,
    declared: list[str],
    layers: list[str],
    num_distinct: int,
) -> str:
    breaks = [0.0, network.cutoff] if polynomials is None else polynomials.breaks.tolist()
    functions = [
        f"void layer_{name}_{n}(const Rows *, int64_t, int64_t, const T *, {rest});"
        for n in range(num_distinct)
        for name, rest in (("sum", "T *"), ("differentiate", "const T *, const T *, T *"))
    ]
    return "\n".join(
        [
            parts.part("prologue.c"),
            part("foundation_model.h"),
            part("engine.h"),
            parts.exponential("both"),
            "#define EXPORTED static",
            parts.part("gemm.c"),
            *functions,
            *(f"#define {name} {value}" for name, value in sizes.items()),
            f"#define CUTOFF {network.cutoff!r}",
            f"#define NUM_INTERVALS {len(breaks) - 1}",
            _array("double", "breaks", breaks),
            _array("int32_t", "atomic_numbers", elements),
            *declared,
            "static const Layer layers[NUM_LAYERS] = {" + ",\n".join(layers) + "};",
            _cutoff(network),
            harmonics_source(network.irreps_harmonics),
            *(part(name) for name in ("dense.c", "gate.c", "radial.c", "network.c", "repulsion.c", "api.c")),
        ]
    )


def _array(kind: str, name: str, values: object) -> str:
    given = [repr(each) for each in values]  # pyright: ignore[reportGeneralTypeIssues]
    return f"static const {kind} {name}[] = {{{', '.join(given) or '0'}}};"


def _repulsion(potential: Potential) -> list[str]:
    """Return the constants of the repulsion in C; without one its code is never reached."""
    terms = ", ".join(f"{{{factor!r}, {exponent!r}}}" for factor, exponent in repulsion.SCREENING)
    return [
        f"#define REPELS {int(potential.repulsion is not None)}",
        f"#define REPULSION_OUTER {repulsion.OUTER!r}",
        f"#define REPULSION_INNER {repulsion.INNER!r}",
        f"#define COULOMB {repulsion.COULOMB!r}",
        f"#define BOHR {repulsion.BOHR!r}",
        f"#define NUM_SCREENING {len(repulsion.SCREENING)}",
        f"static const double screening_terms[][2] = {{{terms}}};",
        _array("double", "covalent_radii", [float(RADII[number]) for number in potential.elements]),
    ]


def _cutoff(network: EquivariantNetwork) -> str:
    """Return the cutoff function in C, with its derivative."""
    config = network.config
    lines = ["static void cutoff_function(double r, double *value, double *slope) {"]
    lines.append(f"*value = 0, *slope = 0; if (r >= {config.cutoff!r}) return;")
    if config.cutoff_function == "xplor":
        end, begin = config.cutoff**2, config.cutoff_onset**2
        lines += [
            f"*value = 1; if (r < {config.cutoff_onset!r}) return;",
            f"const double q = r * r, a = {end!r} - q, b = {end - 3 * begin!r} + 2 * q, k = {(end - begin) ** -3!r};",
            "*value = a * a * b * k; *slope = 4 * r * a * (a - b) * k;",
        ]
    else:
        p = config.cutoff_power
        lines += [
            f"const double x = r / {config.cutoff!r}, y = pow(x, {p - 1});",
            f"const double a = {-(p + 1) * (p + 2) / 2!r}, b = {float(p * (p + 2))!r}, c = {-p * (p + 1) / 2!r};",
            "*value = 1 + y * x * (a + x * (b + x * c));",
            f"*slope = {-p * (p + 1) * (p + 2) / 2 / config.cutoff!r} * y * (1 - x) * (1 - x);",
        ]
    return "\n".join([*lines, "}"])


def _layer(
    number: int, block: InteractionBlock, theory: int, numbers: _Numbers, table: Tensor | None, functions: int
) -> tuple[list[str], str]:
    """Return the declarations of a layer and its initializer."""
    paths, gate = block.convolution.paths, block.gate
    lines, maps = [], []
    for name, layer, target in (
        ("first", block.self_interaction_1, block.self_interaction_1.irreps_out),
        ("second", block.self_interaction_2, gate.irreps_in),
        ("connect", block.self_connection, gate.irreps_in),
    ):
        declared, initializer = _map(f"{name}_{number}", layer, target, theory, numbers)
        lines += declared
        maps.append(initializer)
    gated = [item for item in gate.irreps_out if item.ir.l > 0]
    lines.append(_array("int32_t", f"components_{number}", [item.ir.dim for item in gated]))
    lines.append(_array("int32_t", f"channels_{number}", [item.mul for item in gated]))
    odd, even = (sum(item.mul for item in gate.irreps_out if item.ir == o3.Irrep(name)) for name in ("0o", "0e"))
    silu, tanh = activation_scale(torch.nn.functional.silu), activation_scale(torch.tanh)
    gates = f"{{{odd}, {even}, {len(gated)}, components_{number}, channels_{number}, (T){silu!r}, (T){tanh!r}}}"
    declared, radial = _radial(number, block, numbers, table is None)
    place = -1 if table is None else numbers.add(table)
    widths = (paths.irreps_in.dim, paths.irreps_out.dim, gate.irreps_in.dim, block.irreps_out.dim, paths.num_weights)
    called = f"layer_sum_{functions}, layer_differentiate_{functions}"
    text = f"{{{', '.join(map(str, widths))},\n {', '.join(maps)},\n {gates}, {radial}, {place}, {called}}}"
    return [*lines, *declared], text


def _map(name: str, layer: Linear, target: o3.Irreps, theory: int, numbers: _Numbers) -> tuple[list[str], str]:
    """Return the declaration of a linear map's blocks, and the map's initializer."""
    starts = {item.ir: part.start for item, part in zip(target, target.slices(), strict=True)}
    blocks, bias, num_bias, bias_to = [], 0, 0, 0
    for irrep, start, matrix, own_bias in layer.matrices(theory):
        rows, columns = matrix.shape
        packed = numbers.pack(rows, columns), numbers.pack(columns, rows)
        place = numbers.add(matrix)
        blocks.append(
            f"{{{rows}, {columns}, {irrep.dim}, {start}, {starts[irrep]}, {place}, {{{packed[0]}, {packed[1]}}}}}"
        )
        if own_bias is not None:
            bias, num_bias, bias_to = numbers.add(own_bias), columns, starts[irrep]
    declared = f"static const Block blocks_{name}[] = {{{', '.join(blocks)}}};"
    text = f"{{{len(blocks)}, {layer.irreps_in.dim}, blocks_{name}, {bias}, {num_bias}, {bias_to}}}"
    return [declared], text


def _radial(number: int, block: InteractionBlock, numbers: _Numbers, needed: bool) -> tuple[list[str], str]:
    """Return the declarations of a radial network's matrices and its initializer; without numbers if not needed."""
    if not needed:
        return [], "{0, NULL, NULL, NULL}"
    matrices = block.radial.matrices(block.get_buffer("denominator"))
    sizes = [matrices[0].shape[0], *(matrix.shape[1] for matrix in matrices)]
    packed = [numbers.pack(*pair) for pair in itertools.pairwise(sizes)]
    places = [numbers.add(matrix) for matrix in matrices]
    return [
        _array("int32_t", f"radial_sizes_{number}", sizes),
        _array("int64_t", f"radial_matrices_{number}", places),
        f"static const int64_t radial_packed_{number}[] = {{{', '.join(packed)}}};",
    ], f"{{{len(sizes)}, radial_sizes_{number}, radial_matrices_{number}, radial_packed_{number}}}"


def _readout(network: EquivariantNetwork, theory: int) -> tuple[Tensor, float]:
    """Return the vector by which features become an energy, and the constant beside it: both layers are linear."""
    hidden, energy = network.readout
    assert isinstance(hidden, Linear)
    assert isinstance(energy, Linear)
    ((_, _, first, bias),), ((_, _, second, _),) = hidden.matrices(theory), energy.matrices(theory)
    return first @ second, float(bias @ second) if bias is not None else 0.0
