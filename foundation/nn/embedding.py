"""Initial features of elements, similar for neighbours in the periodic table, so that rare elements learn from them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)
GROUP_LENGTH, PERIOD_LENGTH = 3.0, 1.5
"""Correlation lengths of the initial features, in groups and in periods."""


def periodic_position(number: int) -> tuple[float, float]:
    """Return the group (1-18, lanthanides and actinides between 3 and 4) and the period of an atomic number."""
    period = next(row for row, gas in enumerate(NOBLE_GASES, start=1) if number <= gas)
    previous = 0 if period == 1 else NOBLE_GASES[period - 2]
    place, length = number - previous, NOBLE_GASES[period - 1] - previous
    if place <= 2 and number != 2:
        return float(place), float(period)
    f_elements = length - 18
    if f_elements > 0 and place <= 3 + f_elements:
        return 3.0 + (place - 3) / (f_elements + 1), float(period)
    return 18.0 - (length - place), float(period)


def periodic_features(elements: tuple[int, ...], num_channels: int) -> Float[Tensor, "elements channels"]:
    """Return random features of unit variance whose covariance falls off with distance in the periodic table.

    Random Fourier features of a Gaussian kernel (Rahimi and Recht, NeurIPS 2007) over group and period.
    """
    positions = torch.tensor([periodic_position(number) for number in elements])
    frequencies = torch.randn(2, num_channels) / torch.tensor([[GROUP_LENGTH], [PERIOD_LENGTH]])
    phases = 2 * math.pi * torch.rand(num_channels)
    return math.sqrt(2.0) * torch.cos(positions @ frequencies + phases)
