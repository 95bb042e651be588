"""The gate against e3nn's."""

import e3nn.nn
import pytest
import torch
from e3nn import o3

from foundation.nn.gate import Gate
from tests.foundation.layout import swap_layout

SILU = torch.nn.functional.silu


@pytest.mark.parametrize(
    ("odd", "even", "gated"),
    [("", "4x0e", ""), ("", "3x0e", "2x1e+3x2e"), ("2x0o", "3x0e", "2x1o+1x1e+3x2e"), ("2x0o", "5x0e", "")],
)
def test_gate_is_e3nns(odd: str, even: str, gated: str) -> None:
    irreps_gated = o3.Irreps(gated)
    gates = o3.Irreps([(item.mul, "0e") for item in irreps_gated])
    scalars = o3.Irreps(odd) + o3.Irreps(even)
    activations = [torch.tanh, SILU] if odd else [SILU]
    reference = e3nn.nn.Gate(scalars, activations, gates, [SILU] * len(gates), irreps_gated)
    ours = Gate(scalars + irreps_gated)
    assert ours.irreps_in == reference.irreps_in
    assert ours.irreps_out == reference.irreps_out.simplify()

    torch.manual_seed(0)
    features = torch.randn(9, ours.irreps_in.dim, dtype=torch.float64)
    expected = reference(swap_layout(features, ours.irreps_in, to_e3nn=True))
    expected = swap_layout(expected, ours.irreps_out, to_e3nn=False)
    torch.testing.assert_close(ours(features), expected, rtol=1e-12, atol=1e-12)


def test_odd_scalars_change_sign_with_their_input() -> None:
    gate = Gate(o3.Irreps("3x0o+2x0e"))
    odd, even = torch.linspace(-2, 2, 3).expand(1, -1), torch.ones(1, 2)
    plus, minus = gate(torch.cat([odd, even], dim=1)), gate(torch.cat([-odd, even], dim=1))
    torch.testing.assert_close(minus[:, :3], -plus[:, :3])
    assert torch.equal(minus[:, 3:], plus[:, 3:])


@pytest.mark.parametrize("irreps", ["2x1e", "2x0o+3x1o"])
def test_a_gate_without_even_scalars_is_refused(irreps: str) -> None:
    with pytest.raises(ValueError, match="the gate needs even scalars"):
        Gate(o3.Irreps(irreps))
