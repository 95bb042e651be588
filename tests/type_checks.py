"""Plugin of pytest: types and shapes are checked at run time in the first calls that a test makes of each function.

Checks of all calls would take two thirds of the time of the tests, and after some calls the next is hardly news.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from beartype import beartype

CHECKED = 3
"""Number of calls of a function that are checked in a test."""
SKIPPED = "__no_type_check__"
"""Attribute of a function by which jaxtyping leaves it out."""

_calls: Counter[Callable] = Counter()
_skipped: set[Callable] = set()


def first_calls(signature: Callable) -> Callable:
    """Return a function that checks its arguments, and leaves out the function that it is made for after some calls.

    jaxtyping makes two of each function, and calls one before it and the other, with the result, after it.

    Args:
        signature: A function without a body that has the parameters to check.
    """
    check = beartype(signature)

    @functools.wraps(check)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _calls[counted] += 1
        if _calls[counted] == CHECKED:
            # jaxtyping's name of the function itself; a frame in a variable would keep all its arguments alive
            function = sys._getframe(1).f_locals["fn"]
            setattr(function, SKIPPED, True)
            _skipped.add(function)
        return check(*args, **kwargs)

    return counted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Check the first calls of every function anew, before the fixtures of a test."""
    for function in _skipped:
        delattr(function, SKIPPED)
    _skipped.clear()
    _calls.clear()
