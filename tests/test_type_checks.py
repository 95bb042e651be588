"""The checks of types and shapes are at work in tests."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from foundation.evaluation.displacements import height
from tests.type_checks import CHECKED


@pytest.mark.parametrize("time", [1, 2])
def test_the_first_calls_of_every_test_are_checked(time: int) -> None:
    for _ in range(CHECKED):
        with pytest.raises(TypeCheckError, match="height"):
            height(np.zeros((2, 2)))


def test_later_calls_are_not_checked() -> None:
    for _ in range(CHECKED):
        height(np.eye(3))
    assert height(np.eye(3, dtype=np.float32)) == 1.0
