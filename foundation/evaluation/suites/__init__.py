"""Suites: one file per physical property, computed from predictions alone and compared with references."""

from foundation.evaluation.suites.coulomb import CoulombLaw
from foundation.evaluation.suites.dimers import Dimers
from foundation.evaluation.suites.disorder import Disorder
from foundation.evaluation.suites.equation_of_state import EquationOfState
from foundation.evaluation.suites.suite import (
    Chart,
    Curve,
    Finding,
    Findings,
    Subject,
    Suite,
    check_suites,
    run_suites,
)

__all__ = [
    "Chart",
    "CoulombLaw",
    "Curve",
    "Dimers",
    "Disorder",
    "EquationOfState",
    "Finding",
    "Findings",
    "Subject",
    "Suite",
    "SuiteConfig",
    "check_suites",
    "run_suites",
]

SuiteConfig = (
    CoulombLaw
    | Dimers
    | Disorder
    | EquationOfState
)
"""The suites of a YAML file, distinguished by their first field."""
