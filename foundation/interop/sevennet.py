"""SevenNet's checkpoints (.pth) as potentials and back, with the same numbers.

A .pth is a pickle. It is read by our own interpreter (torch_file.py), which builds tensors, numbers, strings and
containers and refuses everything else before building it; sevenn itself is not needed. Weights are SevenNet's with
other names, except for the order and the signs of those per edge (sevennet_paths.py).
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from data_pipeline.quoting import abbreviated, one_line
from data_pipeline.store import durable
from data_pipeline.store.shards import sha256
from data_pipeline.store.untrusted import refusing
from data_pipeline.structure import SYMBOLS
from foundation.checkpoint import CorruptCheckpoint
from foundation.interop.published import published_of
from foundation.interop.sevennet_paths import (
    block_of,
    columns_of,
    couplings,
    degrees_of,
    paths_of,
    places,
    wigner_symbols,
)
from foundation.interop.sevennet_settings import (
    UnsupportedSevenNet,
    elements_of,
    layers_of,
    model_config,
    theories_of,
    version_of,
)
from foundation.interop.torch_file import read_torch_file
from foundation.interop.torch_pickle import UnwantedName
from foundation.models.equivariant import EquivariantNetwork
from foundation.nn.linear import Linear
from foundation.potential import Potential, check_weights
from foundation.surgery.theories import add_theory

CONTENTS = ("model_state_dict", "config")
"""Entries of a checkpoint that are read."""
ADVICE = "Nothing in it was run; get the file from where its authors publish it."
MISFIT = "its weights are not those of its configuration ({})"
CONSTANT = re.compile(r"(\.output_mask|\._w3j(_[0-9]+){3})$")
"""Pattern of the names of SevenNet's constants, which are not weights."""


class _Weights(dict[str, Tensor]):
    """Weights of a checkpoint, with a record of those that were read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self._read.add(name)
        return super().__getitem__(name)

    def check_all_read(self) -> None:
        """Refuse weights that the network does not have.

        Raises:
            ValueError: some are left; the message names the first.
        """
        for name, value in self.items():
            if name not in self._read and value.numel() and not CONSTANT.search(name):
                raise ValueError(f"{abbreviated(name)} is unknown")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of SevenNet's .pth, without running anything in it.

    Raises:
        FileNotFoundError: no such file. CorruptCheckpoint: it holds objects other than tensors, numbers, strings and
            containers, or is not a SevenNet checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values = read_torch_file(path)
    except UnwantedName as error:
        raise CorruptCheckpoint(f"{path}: refused, {error}. {ADVICE}") from error
    except ValueError as error:
        reason = one_line(str(error))
        raise CorruptCheckpoint(f"{path}: refused, not a checkpoint ({reason}). {ADVICE}") from error
    if not isinstance(values, dict) or not all(isinstance(values.get(name), dict) for name in CONTENTS):
        raise CorruptCheckpoint(f"{path}: not a checkpoint of SevenNet (it has no model_state_dict and config)")
    return values


def from_sevennet(path: Path, theory: str | None = None) -> Potential:
    """Return the potential of a SevenNet checkpoint, in float32 as it was trained.

    Args:
        path: The .pth.
        theory: Name of the level of theory of a file that names none; None: that of a published model, or "unknown".

    Raises:
        FileNotFoundError: no such file.
        UnsupportedSevenNet: this program lacks the network for options of its architecture.
        CorruptCheckpoint: the file is refused or damaged.
        ValueError: a theory is given, but the file names its own.
    """
    return potential_in(path, read_checkpoint(path), theory)


def potential_in(path: Path, values: dict[str, Any], theory: str | None = None) -> Potential:
    """Return the potential of a SevenNet checkpoint whose content was read; see from_sevennet()."""
    settings = values["config"]
    try:
        with refusing(path, CorruptCheckpoint, MISFIT, let_through=UnsupportedSevenNet):
            named = theories_of(settings)
            if not (named and theory):
                return _potential(settings, values["model_state_dict"], named or (theory or _theory_of(path),)).eval()
    except UnsupportedSevenNet as error:
        raise UnsupportedSevenNet(f"{path}: {error}") from error
    raise ValueError(f"{path} names its own levels of theory ({', '.join(named)}); leave out {theory}")


def _theory_of(path: Path) -> str:
    published = published_of(sha256(path))
    return published.datasets[0]["theory"] if published else "unknown"


def _potential(settings: dict[str, Any], weights: dict[str, Any], theories: tuple[str, ...]) -> Potential:
    state = _Weights(_renamed(weights))
    config = model_config(settings, state["reduce_hidden_to_energy.linear.weight"].numel())
    elements = elements_of(settings)
    stored, needed = sum(t.numel() for t in state.values()), config.num_parameters(len(elements), len(theories))
    if needed > stored:
        raise ValueError(f"it has {stored} numbers, of at least {needed}")
    network = EquivariantNetwork(config, elements, 1.0, len(theories))
    _check_layers(settings, network)
    potential = Potential(network, elements, theories)
    network.load_state_dict(our_weights(state, network, version_of(settings)))
    scale, shift = (state[f"rescale_atomic_energy.{name}"].double() for name in ("scale", "shift"))
    potential.get_buffer("scale").copy_(scale.expand(len(elements)))
    potential.get_buffer("reference_energies").copy_(shift.expand(len(theories), len(elements)))
    state.check_all_read()
    check_weights(potential)
    return potential


def _renamed(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the weights under the names of sevenn 0.10 and later."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{abbreviated(name)} is not a tensor of floating-point numbers")
        module, _, rest = name.partition(".")
        module = {
            "EdgeEmbedding": "edge_embedding",
            "reducing nn input to hidden": "reduce_input_to_hidden",
            "reducing nn hidden to energy": "reduce_hidden_to_energy",
        }.get(module, module.replace(" ", "_"))
        new = f"{module}.{rest}".replace("denumerator", "denominator")
        if new in renamed:
            raise ValueError(f"{abbreviated(new)} occurs twice")
        renamed[new] = value
    return renamed


def _check_layers(settings: Mapping[str, Any], network: EquivariantNetwork) -> None:
    """Refuse irreps that change from layer to layer other than by reachability."""
    layers = layers_of(settings)
    if layers and layers != _layers(network):
        raise UnsupportedSevenNet(
            f"this program has no network for irreps_manual: {reprlib.repr(layers)}; the nearest one has "
            f"{reprlib.repr(_layers(network))}"
        )


def _layers(network: EquivariantNetwork) -> list[str]:
    """Return the irreps of the features before the first and after every block."""
    blocks = [block_of(network, number) for number in range(network.config.num_blocks)]
    return [str(irreps) for irreps in (network.embedding.irreps_out, *(block.irreps_out for block in blocks))]


def our_weights(
    state: Mapping[str, Tensor], network: EquivariantNetwork, version: tuple[int, int]
) -> dict[str, Tensor]:
    """Return SevenNet's weights with the names and in the order of the network.

    Args:
        state: Weights and buffers under the names of sevenn 0.10 and later.
        network: The target network.
        version: Version of sevenn that wrote them.

    Raises:
        KeyError: one is missing, or the order of the Wigner 3j symbols is unknown.
    """
    converted = {
        "radial_basis.wave_numbers": state["edge_embedding.basis_function.coeffs"],
        "embedding.weight": state["onehot_to_feature_x.linear.weight"],
        "readout.1.weight": state["reduce_hidden_to_energy.linear.weight"],
        **_linear(state, "reduce_input_to_hidden", network, "readout.0"),
    }
    for number in range(network.config.num_blocks):
        ours, convolution = f"blocks.{number}", f"{number}_convolution"
        converted |= _linear(state, f"{number}_self_connection_intro", network, f"{ours}.self_connection")
        converted |= _linear(state, f"{number}_self_interaction_1", network, f"{ours}.self_interaction_1")
        converted |= _linear(state, f"{number}_self_interaction_2", network, f"{ours}.self_interaction_2")
        converted[f"{ours}.denominator"] = state[f"{convolution}.denominator"]
        last = len(network.config.radial_sizes)
        for layer in range(last):
            converted[f"{ours}.radial.layer{layer}.weight"] = state[f"{convolution}.weight_nn.layer{layer}.weight"]
        columns, signs = columns_of(wigner_symbols(state, convolution), *paths_of(network, number), version)
        weights = state[f"{convolution}.weight_nn.layer{last}.weight"]
        converted[f"{ours}.radial.layer{last}.weight"] = weights[:, columns] * signs.to(weights)
    return converted


def _linear(state: Mapping[str, Tensor], theirs: str, network: EquivariantNetwork, ours: str) -> dict[str, Tensor]:
    """Return the weight of one linear layer; its last rows, of the levels of theory, are separate in ours."""
    weight, layer = state[f"{theirs}.linear.weight"], network.get_submodule(ours)
    if not isinstance(layer, Linear) or not layer.num_theories:
        return {f"{ours}.weight": weight}
    count = layer.theory_weight.numel()
    return {f"{ours}.weight": weight[:-count], f"{ours}.theory_weight": weight[-count:].view_as(layer.theory_weight)}


def to_sevennet(potential: Potential, path: Path) -> None:
    """Write a potential as a checkpoint of sevenn >= 0.11, in float32, for its LAMMPS and ASE interfaces.

    Raises:
        UnsupportedSevenNet: sevenn does not support a feature of the network.
    """
    if potential.repulsion is not None:
        raise UnsupportedSevenNet("sevenn has no repulsion between close atoms; convert the potential without it")
    network = _network(potential)
    config, scalars = network.config, network.embedding.irreps_out.dim
    if config.readout_channels != scalars // 2:
        raise UnsupportedSevenNet(
            f"readout_channels: {config.readout_channels}; sevenn's readout has half of the {scalars} even scalars"
        )
    if config.theory_biases and len(potential.theories) == 1:
        # sevenn uses the biases only with several levels of theory
        again = f"{potential.theories[0]}-again"
        return to_sevennet(add_theory(potential, again), path)
    state = {name: value.detach().float().cpu() for name, value in network.state_dict().items()}
    written = {
        "edge_embedding.basis_function.coeffs": state["radial_basis.wave_numbers"],
        **_linear_state("onehot_to_feature_x", network, state, "embedding"),
    }
    for number in range(config.num_blocks):
        written |= _block_state(number, network, state)
    written |= _linear_state("reduce_input_to_hidden", network, state, "readout.0")
    written |= _linear_state("reduce_hidden_to_energy", network, state, "readout.1")
    shift = potential.get_buffer("reference_energies").float().cpu()
    written["rescale_atomic_energy.shift"] = shift if len(potential.theories) > 1 else shift[0]
    written["rescale_atomic_energy.scale"] = potential.get_buffer("scale").float().cpu()
    checkpoint = {
        "model_state_dict": {name: value.clone().contiguous() for name, value in written.items()},
        "optimizer_state_dict": {},
        "scheduler_state_dict": {},
        "config": _settings(potential),
        "epoch": 0,
    }
    with durable.whole_file(path) as partial:
        torch.save(checkpoint, partial)


def _network(potential: Potential) -> EquivariantNetwork:
    """Return the network of a potential, if sevenn has its architecture."""
    network = potential.network
    if not isinstance(network, EquivariantNetwork):
        raise UnsupportedSevenNet(
            f"the potential's architecture is {network.config.architecture}; sevenn has equivariant networks only"
        )
    return network


def _block_state(number: int, network: EquivariantNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an interaction block with SevenNet's names, and the constants that sevenn checks."""
    ours, convolution = f"blocks.{number}", f"{number}_convolution"
    block = block_of(network, number)
    ours_paths, paths = paths_of(network, number)
    tensor_product = f"{convolution}.convolution"
    written = {
        **_linear_state(
            f"{number}_self_connection_intro", network, state, f"{ours}.self_connection", block.gate.irreps_in
        ),
        **_linear_state(f"{number}_self_interaction_1", network, state, f"{ours}.self_interaction_1"),
        f"{convolution}.denominator": state[f"{ours}.denominator"],
        f"{tensor_product}.weight": torch.zeros(0),
        f"{tensor_product}.output_mask": torch.ones(paths.irreps_out.dim),
    }
    degrees, order = degrees_of(paths), range(len(paths.paths))
    for coupling in couplings(order, degrees):
        name = "_".join(map(str, coupling))
        written[f"{tensor_product}._compiled_main_left_right._w3j_{name}"] = o3.wigner_3j(
            *coupling, dtype=torch.float32
        )
    last = len(network.config.radial_sizes)
    for layer in range(last + 1):
        written[f"{convolution}.weight_nn.layer{layer}.weight"] = state[f"{ours}.radial.layer{layer}.weight"]
    weights = state[f"{ours}.radial.layer{last}.weight"]
    padded = weights.new_zeros(weights.shape[0], paths.num_weights)
    padded[:, places(ours_paths, paths, order)] = weights
    written[f"{convolution}.weight_nn.layer{last}.weight"] = padded
    written |= _linear_state(f"{number}_self_interaction_2", network, state, f"{ours}.self_interaction_2")
    gated = sum(item.dim for item in block.gate.irreps_out if item.ir.l > 0)
    gate = f"{number}_equivariant_gate.gate.mul"
    return written | {f"{gate}.weight": torch.zeros(0), f"{gate}.output_mask": torch.ones(gated)}


def _linear_state(
    theirs: str,
    network: EquivariantNetwork,
    state: Mapping[str, Tensor],
    ours: str,
    wanted: o3.Irreps | None = None,
) -> dict[str, Tensor]:
    """Return a linear layer with e3nn's names; the input may lack some of the wanted irreps."""
    layer = network.get_submodule(ours)
    assert isinstance(layer, Linear)
    weight = state[f"{ours}.weight"]
    if f"{ours}.theory_weight" in state:
        weight = torch.cat([weight, state[f"{ours}.theory_weight"].flatten()])
    mask = [torch.full((item.dim,), float(item.ir in layer.irreps_out)) for item in wanted or layer.irreps_out]
    return {
        f"{theirs}.linear.weight": weight,
        f"{theirs}.linear.bias": torch.zeros(0),
        f"{theirs}.linear.output_mask": torch.cat(mask),
    }


def _settings(potential: Potential) -> dict[str, Any]:
    """Return the options of sevenn that describe the potential."""
    network = _network(potential)
    config = network.config
    cutoff = {"cutoff_function_name": "poly_cut", "poly_cut_p_value": config.cutoff_power}
    if config.cutoff_function == "xplor":
        cutoff = {"cutoff_function_name": "XPLOR", "cutoff_on": config.cutoff_onset}
    theories = potential.theories if len(potential.theories) > 1 else ()
    biased = bool(config.theory_biases)
    references = potential.get_buffer("reference_energies").tolist()
    activation = {"e": "silu", "o": "tanh"}
    return {
        "version": "0.11.0",
        "_model_type": "E3_equivariant_model",
        "_number_of_species": len(potential.elements),
        "_type_map": {number: place for place, number in enumerate(potential.elements)},
        "chemical_species": [SYMBOLS[number] for number in potential.elements],
        "cutoff": config.cutoff,
        "cutoff_function": cutoff,
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": config.num_basis},
        "channel": network.embedding.irreps_out.dim,
        "irreps_manual": _layers(network),
        "lmax": config.max_degree,
        "lmax_edge": -1,
        "lmax_node": -1,
        "is_parity": config.parity,
        "num_convolution_layer": config.num_blocks,
        "weight_nn_hidden_neurons": list(config.radial_sizes),
        "conv_denominator": [
            float(block_of(network, number).get_buffer("denominator")) for number in range(config.num_blocks)
        ],
        "act_radial": "silu",
        "act_scalar": activation,
        "act_gate": activation,
        "self_connection_type": "linear",
        "interaction_type": "nequip",
        "readout_as_fcn": False,
        "use_bias_in_linear": False,
        "_normalize_sph": config.unit_harmonics,
        "train_shift_scale": False,
        "train_denominator": False,
        "shift": references if theories else references[0],
        "scale": potential.get_buffer("scale").tolist(),
        "use_modality": bool(theories),
        "_modal_map": {theory: number for number, theory in enumerate(theories)},
        "_number_of_modalities": len(theories),
        "use_modal_wise_shift": bool(theories),
        "use_modal_wise_scale": False,
        "use_modal_node_embedding": False,
        **{f"use_modal_{place}": biased for place in ("self_inter_intro", "self_inter_outro", "output_block")},
    }
