"""Schedule-free AdamW against the algorithm of the paper, written out in numpy."""

import numpy as np
import pytest
import torch

from foundation.training.schedule_free import ScheduleFree

CURVATURE = np.array([1.0, 10.0, 100.0])


def by_the_paper(steps: int, rates: list[float], decay: float) -> tuple[np.ndarray, np.ndarray]:
    """y and x after some steps on Σ c y² / 2 (Defazio et al., arXiv:2405.15682, algorithm 1)."""
    beta1, beta2, eps = 0.9, 0.99, 1e-8
    z = x = y = np.ones(3)
    v, total = np.zeros(3), 0.0
    for t in range(1, steps + 1):
        g = CURVATURE * y
        v = beta2 * v + (1 - beta2) * g**2
        rate = rates[t - 1] * np.sqrt(1 - beta2**t)
        z = z - rate * (g / (np.sqrt(v) + eps) + decay * y)
        total += rate**2
        c = rate**2 / total
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x
    return y, x


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_those_of_the_paper(decay: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    rates = [0.01 * min(1.0, (step + 1) / 4) for step in range(12)]
    optimizer = ScheduleFree([{"params": [weight], "weight_decay": decay}], lr=0.01, betas=(0.9, 0.99))
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(CURVATURE) * weight.detach()
        optimizer.step()
    y, x = by_the_paper(12, rates, decay)
    np.testing.assert_allclose(weight.detach().numpy(), y, rtol=1e-12)
    with optimizer.averaged():
        np.testing.assert_allclose(weight.detach().numpy(), x, rtol=1e-12)
    assert not np.allclose(x, y, rtol=1e-3)
    np.testing.assert_allclose(weight.detach().numpy(), y, rtol=1e-12)


def test_looking_at_the_average_changes_no_bit_of_what_follows() -> None:
    weights = []
    for look in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = ScheduleFree([{"params": [weight]}], lr=0.1, betas=(0.9, 0.999))
        for _ in range(20):
            weight.grad = weight.detach().sin()
            optimizer.step()
            if look:
                with optimizer.averaged():
                    pass
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_an_interrupted_look_gives_the_weights_back() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = ScheduleFree([{"params": [weight]}], lr=0.1, betas=(0.9, 0.999))
    for _ in range(3):
        weight.grad = weight.detach().clone()
        optimizer.step()
    before = weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        raise KeyboardInterrupt
    assert torch.equal(weight, before)


def test_before_the_first_step_the_average_is_the_start() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with ScheduleFree([{"params": [weight]}], lr=0.1, betas=(0.9, 0.999)).averaged():
        assert torch.equal(weight, torch.ones(3))
