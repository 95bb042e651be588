"""The equivariant linear map against e3nn's, with the same flat weight."""

import pytest
import torch
from e3nn import o3

from foundation.nn.linear import Linear
from tests.foundation.layout import swap_layout

CASES = {
    "scalars": ("5x0e", "3x0e"),
    "even": ("4x0e+3x1e+2x2e", "2x0e+5x1e+1x2e"),
    "parity": ("2x0o+4x0e+3x1o+1x1e", "3x0o+1x0e+2x1o+2x1e"),
    "input-dropped": ("4x0e+3x1e+2x2e", "2x0e+3x2e"),
    "other-order": ("3x1e+4x0e+2x2e", "2x0e+1x2e+5x1e"),
    "split-input": ("2x0e+3x0e+2x1e", "4x0e+1x1e+1x1e"),
}


@pytest.mark.parametrize("case", CASES)
def test_same_weight_gives_the_result_of_e3nn(case: str) -> None:
    torch.manual_seed(0)
    irreps_in, irreps_out = (o3.Irreps(text).simplify() for text in CASES[case])
    ours = Linear(*map(o3.Irreps, CASES[case])).double()
    reference = o3.Linear(irreps_in, irreps_out).double()
    assert ours.weight.shape == reference.weight.shape
    reference.weight.data.copy_(ours.weight.data)
    features = torch.randn(7, irreps_in.dim, dtype=torch.float64)
    expected = swap_layout(reference(swap_layout(features, irreps_in, to_e3nn=True)), irreps_out, to_e3nn=False)
    assert ours.irreps_out == irreps_out
    torch.testing.assert_close(ours(features), expected, rtol=1e-12, atol=1e-12)


def test_an_irrep_that_the_input_lacks_is_left_out() -> None:
    linear = Linear(o3.Irreps("4x0e"), o3.Irreps("3x0e+2x1e"))
    assert str(linear.irreps_out) == "3x0e"
    assert linear(torch.ones(2, 4)).shape == (2, 3)


def test_many_channels_keep_the_variance() -> None:
    torch.manual_seed(0)
    linear = Linear(o3.Irreps("300x0e+200x1e"), o3.Irreps("300x0e+200x1e"))
    output = linear(torch.randn(200, 900))
    assert output[:, :300].var().item() == pytest.approx(1.0, abs=0.05)
    assert output[:, 300:].var().item() == pytest.approx(1.0, abs=0.05)


def test_an_irrep_given_twice_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"1x0e\+2x1e\+3x0e: an irrep occurs twice; sort the irreps"):
        Linear(o3.Irreps("1x0e+2x1e+3x0e"), o3.Irreps("1x0e"))
