"""Options and weights in a checkpoint of SevenNet that no training could have written are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundation.checkpoint import CorruptCheckpoint
from foundation.interop import sevennet
from foundation.interop.sevennet import from_sevennet, read_checkpoint, to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential

CONFIG = EquivariantConfig(
    irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(4,), readout_channels=2, cutoff_function="polynomial"
)
WEIGHT = "0_self_interaction_1.linear.weight"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "x.pth"
    theories = ("PBE", "SCAN")
    to_sevennet(Potential(EquivariantNetwork(CONFIG, (1, 8, 29), 4.0, 2), (1, 8, 29), theories).eval(), path)
    return path


def written(small: Path, folder: Path, edit: Callable[[dict, dict], object]) -> Path:
    """Write a checkpoint with edited weights and options."""
    values = read_checkpoint(small)
    edit(values["model_state_dict"], values["config"])
    torch.save(values, folder / "x.pth")
    return folder / "x.pth"


OPTIONS = [
    ("cutoff", float("nan"), "cutoff is nan"),
    ("cutoff", float("inf"), "cutoff is inf"),
    ("cutoff", -5.0, "cutoff must be a length"),
    ("cutoff", True, "cutoff is True"),
    ("cutoff", "5", "cutoff is '5'"),
    ("cutoff_function", {"cutoff_function_name": "XPLOR", "cutoff_on": float("nan")}, "cutoff_on is nan"),
    ("cutoff_function", {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 10**9}, "cutoff_power"),
    ("cutoff_function", [], "cutoff_function is a list"),
    ("radial_basis", {"radial_basis_name": "bessel", "bessel_basis_num": 10**9}, "num_basis must be at most"),
    ("_type_map", {1: 0, 8: 1, 29: 1}, "_type_map does not number its 3 entries from 0 on"),
    ("_type_map", {1: 0, 8: 1, 29: 3}, "_type_map does not number"),
    ("_type_map", {1: 0, 8: 1, 300: 2}, "300 is not an atomic number"),
    ("_type_map", {1: 0, 8: 1, "Cu": 2}, "'Cu' is not an atomic number"),
    ("_type_map", {1: 0, 8: 1, 29: 2.0}, "_type_map.29 is 2.0"),
    ("_type_map", {}, "elements: 0 of them"),
    ("_type_map", [1, 8, 29], "_type_map is a list"),
    ("_number_of_species", 4, "_number_of_species"),
    ("_modal_map", {"PBE": 0, "SCAN": 0}, "_modal_map does not number"),
    ("_modal_map", {"PBE": 0, "a\nb": 1}, "not a name of 1 to"),
    ("use_modality", torch.ones(2), "use_modality is"),
    ("channel", 10**9, "irreps"),
    ("irreps_manual", ["1000000000x0e"] * 3, "irreps '1000000000x0e'"),
    ("irreps_manual", ["4x0e"] * 1000, "irreps_manual has 1000 entries"),
    ("irreps_manual", 5, "irreps_manual is 5"),
    ("lmax", 10**9, "lmax is 1000000000"),
    ("lmax", 1.0, "lmax is 1.0"),
    ("num_convolution_layer", 10**6, "num_blocks must be at most"),
    ("weight_nn_hidden_neurons", [10**9], "radial_sizes"),
    ("is_parity", 0, "is_parity is 0"),
    ("version", "9" * 6000, "version is"),
    ("version", [0, 11], "version is"),
]


@pytest.mark.parametrize(("name", "value", "message"), OPTIONS, ids=lambda value: str(value)[:24])
def test_an_option_that_cannot_be_is_refused_by_its_name(
    small: Path, tmp_path: Path, name: str, value: object, message: str
) -> None:
    def edit(state: dict, config: dict) -> None:
        config[name] = value
        if name in ("channel", "lmax"):
            config["irreps_manual"] = False

    with pytest.raises(CorruptCheckpoint, match=rf"x\.pth: its weights are not .*{message}") as caught:
        from_sevennet(written(small, tmp_path, edit))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.update({WEIGHT: state[WEIGHT] * float("nan")}), "NaN or infinite"),
        (lambda state: state.update({WEIGHT: state[WEIGHT].long()}), f"'{WEIGHT}' is not a tensor of floating"),
        (lambda state: state.update({WEIGHT: [1.0]}), f"'{WEIGHT}' is not a tensor of floating"),
        (lambda state: state.update({WEIGHT: state[WEIGHT][1:]}), "size mismatch"),
        (lambda state: state.update({7: torch.ones(1)}), "7 is not a tensor"),
        (lambda state: state.update({"surprise.weight": torch.ones(1)}), "'surprise.weight' is unknown"),
        (lambda state: state.update({WEIGHT.replace("_", " "): torch.ones(1)}), f"'{WEIGHT}' occurs twice"),
        (lambda state: state.update({"0_convolution.denominator": torch.zeros(1)}), "denominator must be positive"),
        (lambda state: state.update({"rescale_atomic_energy.shift": torch.ones(5)}), "expand"),
    ],
    ids=["NaN", "integers", "list", "shape", "name", "surplus", "twice", "denominator", "shift"],
)  # fmt: skip
def test_weights_that_cannot_be_are_refused_by_their_name(
    small: Path, tmp_path: Path, edit: Callable[[dict], object], message: str
) -> None:
    with pytest.raises(CorruptCheckpoint, match=rf"x\.pth: .*{message}"):
        from_sevennet(written(small, tmp_path, lambda state, config: edit(state)))


def test_a_network_larger_than_the_file_is_not_built(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sevennet, "EquivariantNetwork", None)  # would be called

    def edit(state: dict, config: dict) -> None:
        config.update(irreps_manual=False, channel=4000, num_convolution_layer=8)

    with pytest.raises(CorruptCheckpoint, match=r"it has \d+ numbers, of at least \d+"):
        from_sevennet(written(small, tmp_path, edit))
