"""Options in a checkpoint of SevenNet: checked, and converted to the architecture or refused by name."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import reprlib
from collections.abc import Mapping
from typing import Any

from e3nn import o3

from data_pipeline.quoting import abbreviated, one_line
from data_pipeline.store.untrusted import typed
from foundation.models.equivariant import EquivariantConfig
from foundation.models.limits import MAX_BLOCKS, MAX_DEGREE, check_elements, check_theories, parse_irreps

REQUIRED = {
    "_model_type": ("E3_equivariant_model",),
    "interaction_type": ("nequip", None),
    "self_connection_type": ("linear",),
    "act_radial": ("silu",),
    "act_scalar": ({"e": "silu", "o": "tanh"},),
    "act_gate": ({"e": "silu", "o": "tanh"},),
    "readout_as_fcn": (False, None),
    "use_bias_in_linear": (False, None),
    "use_modal_node_embedding": (False, None),
    "use_modal_wise_scale": (False, None),
    "use_flash_tp": (False, None),
    "use_oeq": (False, None),
    "cuequivariance_config": ({}, {"use": False}, None),
}
"""Supported values of the architecture's options; None means a missing option."""


class UnsupportedSevenNet(ValueError):
    """A SevenNet checkpoint with an unsupported architecture; the message names the options."""


def version_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the version of sevenn that wrote a checkpoint; the first development state of 0.11 counts as 0.10."""
    version = typed(str, settings["version"], "version")
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        raise ValueError(f"version is {abbreviated(version)}") from None
    return (0, 10) if version == "0.11.0.dev0" else (major, minor)


def elements_of(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the atomic numbers in the order of the one-hot vectors.

    Raises:
        ValueError: they are not elements, or not numbered from zero without gaps.
    """
    elements = _in_order(settings["_type_map"], "_type_map")
    check_elements(elements)
    if settings.get("_number_of_species", len(elements)) != len(elements):
        raise ValueError(f"_number_of_species is not the {len(elements)} of _type_map")
    return elements


def theories_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the levels of theory; most files name none.

    Raises:
        ValueError: they are not names, or not numbered from zero without gaps.
    """
    if not typed(bool | None, settings.get("use_modality"), "use_modality") or not settings.get("_modal_map"):
        return ()
    theories = _in_order(settings["_modal_map"], "_modal_map")
    check_theories(theories)
    return theories


def _in_order(numbers: Any, name: str) -> tuple:
    """Return the keys of a mapping to 0, 1, 2, ... in this order."""
    typed(dict[Any, int], numbers, name)
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ValueError(f"{name} does not number its {len(numbers)} entries from 0 on")
    return tuple(sorted(numbers, key=numbers.__getitem__))


def model_config(settings: dict[str, Any], readout_channels: int) -> EquivariantConfig:
    """Return the architecture.

    Args:
        settings: The options.
        readout_channels: Number of channels between the two layers of the readout, which the options lack.

    Raises:
        UnsupportedSevenNet: an option is not supported.
        KeyError: an option is missing.
        ValueError: an option has an impossible value.
    """
    lmax = typed(int, settings["lmax"], "lmax")
    if not 0 <= lmax <= MAX_DEGREE:
        raise ValueError(f"lmax is {abbreviated(lmax)}, not from 0 to {MAX_DEGREE}")
    wrong = [f"{name}: {reprlib.repr(settings.get(name))}" for name in REQUIRED if not _is_required(settings, name)]
    modal = [f"use_modal_{place}" for place in ("self_inter_intro", "self_inter_outro", "output_block")]
    biased = {bool(typed(bool | None, settings.get(name), name)) for name in modal}
    if not theories_of(settings):
        biased = {False}
    if len(biased) > 1:
        wrong.append(f"{' and '.join(modal)} differ")
    for name in ("lmax_edge", "lmax_node"):
        if typed(int, settings.get(name, -1), name) not in (-1, lmax):
            wrong.append(f"{name}: {settings[name]}")
    cutoff, basis = (typed(dict[str, Any], settings[name], name) for name in ("cutoff_function", "radial_basis"))
    cutoff_name = {"XPLOR": "xplor", "poly_cut": "polynomial"}.get(_name(cutoff, "cutoff_function_name"))
    if cutoff_name is None:
        wrong.append(f"cutoff_function_name: {abbreviated(cutoff['cutoff_function_name'])}")
    if _name(basis, "radial_basis_name") != "bessel":
        wrong.append(f"radial_basis_name: {abbreviated(basis['radial_basis_name'])}")
    hidden, problem = _hidden_irreps(settings, lmax)
    wrong += problem
    if wrong or cutoff_name is None:
        raise UnsupportedSevenNet(f"this program has no network for {one_line('; '.join(wrong))}")
    length, power = typed(float, settings["cutoff"], "cutoff"), cutoff.get("poly_cut_p_value", 6)
    return EquivariantConfig(
        irreps=hidden,
        num_blocks=typed(int, settings["num_convolution_layer"], "num_convolution_layer"),
        max_degree=lmax,
        unit_harmonics=typed(bool, settings.get("_normalize_sph", version_of(settings) >= (0, 10)), "_normalize_sph"),
        cutoff=length,
        num_basis=typed(int, basis["bessel_basis_num"], "bessel_basis_num"),
        radial_sizes=typed(tuple[int, ...], settings["weight_nn_hidden_neurons"], "weight_nn_hidden_neurons"),
        cutoff_function=cutoff_name,
        cutoff_onset=typed(float, cutoff["cutoff_on"], "cutoff_on") if cutoff_name == "xplor" else 0.9 * length,
        cutoff_power=typed(int, power, "poly_cut_p_value"),
        readout_channels=readout_channels,
        theory_biases=biased.pop(),
    )


def _name(options: Mapping[str, Any], name: str) -> str:
    return typed(str, options[name], name)


def _is_required(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name)
    return any(type(value) is type(allowed) and value == allowed for allowed in REQUIRED[name])


def layers_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the irreps of the features before the first and after every block, empty if the options name none."""
    layers = settings["irreps_manual"]
    if layers is False or layers is None:
        return []
    layers = typed(list[str], layers, "irreps_manual")
    if len(layers) > MAX_BLOCKS + 1:
        raise ValueError(f"irreps_manual has {len(layers)} entries")
    return [str(parse_irreps(text)) for text in layers]


def _hidden_irreps(settings: Mapping[str, Any], lmax: int) -> tuple[str, list[str]]:
    """Return the irreps of the hidden layers, and the unsupported ones of the layers."""
    layers, parity = layers_of(settings), typed(bool, settings["is_parity"], "is_parity")
    if not layers:
        channels = typed(int, settings["channel"], "channel")
        wrong = ["is_parity without irreps_manual"] if parity else []
        return "+".join(f"{channels}x{degree}e" for degree in range(lmax + 1)), wrong
    irreps = [o3.Irreps(text) for text in layers]
    hidden = max(irreps[1:-1] or irreps, key=lambda layer: layer.dim)
    wrong = []
    if hidden.sort().irreps.simplify() != hidden or o3.Irrep("0e") not in hidden:
        wrong.append(f"irreps_manual: {reprlib.repr(layers)}")
    if parity != any(item.ir.p == -1 for item in hidden):
        wrong.append(f"is_parity: {parity} with irreps {hidden}")
    return str(hidden), wrong
