"""Sizes that no machine could hold, and names that are none, are refused before anything is built of them."""

from typing import Any

import pytest

from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.models.limits import check_elements, check_theories, parse_irreps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"irreps": "1000000000x0e"}, r"irreps '1000000000x0e': write them as"),
        ({"irreps": "99999x0e"}, "1 to 16384 channels"),
        ({"irreps": "0x0e+4x1e"}, "1 to 16384 channels"),
        ({"irreps": "4x0e+" * 100_000 + "4x0e"}, "irreps of 500004 characters"),
        ({"irreps": "4x0e+4x99e"}, "degrees up to 8"),
        ({"irreps": ""}, "write them as 128x0e"),
        ({"irreps": "٣x0e"}, "write them as 128x0e"),
        ({"num_blocks": 10**6}, "num_blocks must be at most 64, not 1000000"),
        ({"max_degree": 200}, "max_degree must be at most 8, not 200"),
        ({"num_basis": 10**9}, "num_basis must be at most 16384"),
        ({"readout_channels": 10**9}, "readout_channels must be at most 16384"),
        ({"radial_sizes": (10**9,)}, "radial_sizes: at most 16 of 1 to 16384"),
        ({"radial_sizes": (64, 0)}, "radial_sizes: at most 16 of 1 to 16384"),
        ({"radial_sizes": (8,) * 100_000}, "radial_sizes: at most 16"),
        ({"irreps": "16384x0e+16384x1e", "num_blocks": 64, "max_degree": 8}, r"parameters; at most 1e\+10"),
        ({"cutoff": float("nan")}, "cutoff must be a length from 0.1 to 100.0 Å, not nan"),
        ({"cutoff": float("inf")}, "not inf"),
        ({"cutoff": 1e9}, "not 1000000000.0"),
        ({"cutoff_onset": float("nan")}, "0 < cutoff_onset < cutoff, not nan"),
        ({"cutoff_power": 0}, "cutoff_power must be from 1 to 100"),
        ({"cutoff_power": 10**9}, "cutoff_power must be from 1 to 100"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_that_cannot_be_are_refused_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        EquivariantConfig(**{"irreps": "128x0e+64x1e+32x2e", **change})
    assert len(str(caught.value)) < 300


def test_irreps_may_be_written_with_spaces_and_without_channels() -> None:
    assert str(parse_irreps(" 4x0e + 1o ")) == "4x0e+1x1o"


@pytest.mark.parametrize(
    ("changes", "num_theories"),
    [
        ({}, 1),
        ({"num_blocks": 2}, 3),
        ({"irreps": "2x0o+4x0e+2x1o+2x1e", "num_blocks": 3, "max_degree": 3, "radial_sizes": ()}, 2),
        ({"irreps": "4x0e+3x2e", "max_degree": 1, "num_blocks": 3, "theory_biases": False}, 2),
        ({"irreps": "4x0e", "num_blocks": 1, "max_degree": 0, "theory_biases": True}, 1),
    ],
    ids=["default", "theories", "parity", "unreachable", "one block"],
)
def test_parameters_are_counted_without_a_network(changes: dict, num_theories: int) -> None:
    config = EquivariantConfig(**{"irreps": "128x0e+64x1e+32x2e", **changes})
    network = EquivariantNetwork(config, (1, 6, 8), 10.0, num_theories)
    assert config.num_parameters(3, num_theories) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ((), "0 of them"),
        ((300,), "300 is not an atomic number"),
        ((0,), "0 is not an atomic number"),
        ((True,), "True is not an atomic number"),
        ((1, 8, 1), "1 occurs twice"),
        (tuple(range(10**6)), "1000000 of them"),
    ],
)
def test_what_is_no_list_of_elements_is_refused(elements: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_elements(elements)


@pytest.mark.parametrize("theories", [(), ("",), ("PBE", "PBE"), ("a\nb",), ("x" * 10**6,), (" ",)])
def test_what_is_no_list_of_theories_is_refused(theories: tuple) -> None:
    with pytest.raises(ValueError, match="theories: ") as caught:
        check_theories(theories)
    assert len(str(caught.value)) < 200
