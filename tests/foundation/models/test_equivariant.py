"""The equivariant network: SevenNet-0's shapes by default, and configurations that cannot be."""

import math
from typing import Any

import pytest
import torch

from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.embedding import periodic_features

SEVENNET_0 = EquivariantConfig(irreps="128x0e+64x1e+32x2e")


@pytest.fixture(scope="module")
def sevennet_0() -> EquivariantNetwork:
    return EquivariantNetwork(SEVENNET_0, tuple(range(1, 90)), mean_neighbors=36.0)


def test_default_has_sevennet_0s_parameter_count(sevennet_0: EquivariantNetwork) -> None:
    assert sum(p.numel() for p in sevennet_0.parameters() if p.requires_grad) == 842_440


def test_default_has_sevennet_0s_radial_weights(sevennet_0: EquivariantNetwork) -> None:
    paths = [block.convolution.paths for block in sevennet_0.blocks]
    assert [p.num_weights for p in paths] == [384, 960, 960, 960, 224]
    inner = "224x0e+384x1e+352x2e"
    assert [str(p.irreps_out) for p in paths] == ["128x0e+128x1e+128x2e", inner, inner, inner, "224x0e"]


def test_default_has_sevennet_0s_irreps_between_blocks(sevennet_0: EquivariantNetwork) -> None:
    hidden = "128x0e+64x1e+32x2e"
    assert [str(block.irreps_out) for block in sevennet_0.blocks] == [hidden] * 4 + ["128x0e"]
    assert str(sevennet_0.irreps_harmonics) == "1x0e+1x1e+1x2e"


def test_with_odd_irreps_harmonics_have_their_own_parity() -> None:
    config = EquivariantConfig(irreps="2x0o+4x0e+2x1o+2x1e", num_blocks=3, max_degree=3, radial_sizes=(8,))
    network = EquivariantNetwork(config, (1, 8), mean_neighbors=4.0)
    assert config.parity
    assert not SEVENNET_0.parity
    assert str(network.irreps_harmonics) == "1x0e+1x1o+1x2e+1x3o"
    # odd scalars and even vectors come from products, so the first block cannot make them
    assert [str(block.irreps_out) for block in network.blocks] == ["4x0e+2x1o", "4x0e+2x1o+2x1e", "4x0e"]


@pytest.mark.parametrize(("normalization", "expected"), [("mean", 16.0), ("sqrt", 4.0)])
def test_sums_are_divided_by_the_mean_of_neighbours_or_its_root(normalization: str, expected: float) -> None:
    config = EquivariantConfig(irreps="2x0e+1x1e", num_blocks=2, radial_sizes=(4,), normalization=normalization)
    network = EquivariantNetwork(config, (1,), mean_neighbors=16.0)
    assert [block.denominator.item() for block in network.blocks] == [expected, expected]


def test_elements_start_from_their_periodic_features() -> None:
    config = EquivariantConfig(irreps="16x0e", num_blocks=1, max_degree=0, radial_sizes=(4,))
    elements = (3, 8, 26)
    torch.manual_seed(5)
    network = EquivariantNetwork(config, elements, mean_neighbors=1.0)
    embedded = network.embedding(torch.eye(3))
    # the draws before the features are those of the layer's own weight, which the features replace
    torch.manual_seed(5)
    torch.randn(3 * 16)
    torch.testing.assert_close(embedded, periodic_features(elements, 16), rtol=1e-5, atol=1e-6)
    assert embedded.abs().max() <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"irreps": "4x1e+8x0e"}, r"not sorted: write 8x0e\+4x1e"),
        ({"irreps": "4x0e+4x0e+2x1e"}, r"not sorted: write 8x0e\+2x1e"),
        ({"irreps": "4x0o+2x1o"}, "need even scalars"),
        ({"normalization": "median"}, "'mean' or 'sqrt', not 'median'"),
        ({"num_blocks": 0}, "num_blocks.*at least 1"),
        ({"num_basis": 0}, "num_basis.*at least 1"),
        ({"readout_channels": 0}, "readout_channels.*at least 1"),
        ({"max_degree": -1}, "max_degree at least 0"),
        ({"cutoff": 4.0}, "cutoff_onset < cutoff, not 4.5 and 4.0"),
        ({"cutoff_onset": 0.0}, "0 < cutoff_onset"),
        ({"cutoff": -1.0, "cutoff_function": "polynomial"}, "-1.0"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_impossible_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivariantConfig(**{"irreps": SEVENNET_0.irreps, **change})


def test_the_onset_matters_to_xplor_only() -> None:
    assert EquivariantConfig(irreps="4x0e", cutoff=4.0, cutoff_function="polynomial").cutoff == 4.0
