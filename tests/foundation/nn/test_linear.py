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


THEORY_CASES = {
    "scalars": ("5x0e", "3x0e"),
    "even": ("4x0e+3x1e+2x2e", "2x0e+5x1e+1x2e"),
    "parity": ("2x0o+4x0e+3x1o+1x1e", "3x0o+1x0e+2x1o+2x1e"),
}


def one_hot_reference(ours: Linear, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> o3.Linear:
    """e3nn's linear map of the features and the one-hot vector of the theory, with the same weights."""
    reference = o3.Linear(irreps_in + o3.Irreps([(ours.num_theories, "0e")]), irreps_out).double()
    # the one-hot vector is the last input, so the rows of the theories are the last of the flat weight
    reference.weight.data.copy_(torch.cat([ours.weight.data, ours.theory_weight.data.flatten()]))
    return reference


@pytest.mark.parametrize("case", THEORY_CASES)
@pytest.mark.parametrize("num_theories", [1, 3])
def test_a_theory_is_one_more_scalar_input_of_e3nns(case: str, num_theories: int) -> None:
    torch.manual_seed(0)
    irreps_in, irreps_out = (o3.Irreps(text) for text in THEORY_CASES[case])
    ours = Linear(irreps_in, irreps_out, num_theories).double()
    reference = one_hot_reference(ours, irreps_in, irreps_out)
    features, theory = torch.randn(7, irreps_in.dim, dtype=torch.float64), torch.arange(7) % num_theories
    one_hot = torch.nn.functional.one_hot(theory, num_theories).double()
    inputs = torch.cat([swap_layout(features, irreps_in, to_e3nn=True), one_hot], dim=1)
    expected = swap_layout(reference(inputs), irreps_out, to_e3nn=False)
    torch.testing.assert_close(ours(features, theory), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_theories", [0, 2])
def test_weights_for_other_theories_give_the_mixed_biases(num_theories: int) -> None:
    torch.manual_seed(0)
    irreps = o3.Irreps("4x0e+3x1e")
    before, after = Linear(irreps, irreps, num_theories).double(), Linear(irreps, irreps, 3).double()
    mixture = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    after.load_state_dict(before.mixed_theories(mixture))
    features = torch.randn(1, irreps.dim, dtype=torch.float64)
    old = torch.cat([before(features, torch.tensor([theory])) for theory in (0, 1)])
    new = torch.cat([after(features, torch.tensor([theory])) for theory in (0, 1, 2)])
    torch.testing.assert_close(new, mixture @ old, rtol=1e-13, atol=1e-13)


def test_theories_without_a_scalar_to_bias_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no even scalars that a level of theory could bias"):
        Linear(o3.Irreps("3x1o"), o3.Irreps("2x1o"), 2)
