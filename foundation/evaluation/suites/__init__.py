"""Suites: one file per physical property, computed from predictions alone and compared with references."""

from foundation.evaluation.suites.composition import Composition
from foundation.evaluation.suites.crystals.conductivity import Conductivity
from foundation.evaluation.suites.crystals.elastic import Elastic
from foundation.evaluation.suites.crystals.equation_of_state import EquationOfState
from foundation.evaluation.suites.crystals.force_constants import ForceConstants
from foundation.evaluation.suites.crystals.phonons import Phonons
from foundation.evaluation.suites.crystals.surfaces import Surfaces
from foundation.evaluation.suites.crystals.vacancies import Vacancies
from foundation.evaluation.suites.diffusion import Diffusion
from foundation.evaluation.suites.disagreement import Disagreement
from foundation.evaluation.suites.disorder import Disorder
from foundation.evaluation.suites.energy_conservation import EnergyConservation
from foundation.evaluation.suites.errors import Errors
from foundation.evaluation.suites.extrapolation import Extrapolation
from foundation.evaluation.suites.likeness import Likeness
from foundation.evaluation.suites.pairs.coulomb import CoulombLaw
from foundation.evaluation.suites.pairs.diatomics import Diatomics
from foundation.evaluation.suites.pairs.dimers import Dimers
from foundation.evaluation.suites.softening import Softening
from foundation.evaluation.suites.suite import (
    Chart,
    Curve,
    Finding,
    Findings,
    HeatMap,
    Subject,
    Suite,
    check_suites,
    run_suites,
)
from foundation.evaluation.suites.unseen_element import UnseenElement

__all__ = [
    "Chart",
    "Composition",
    "Conductivity",
    "CoulombLaw",
    "Curve",
    "Diatomics",
    "Diffusion",
    "Dimers",
    "Disagreement",
    "Disorder",
    "Elastic",
    "EnergyConservation",
    "EquationOfState",
    "Errors",
    "Extrapolation",
    "Finding",
    "Findings",
    "ForceConstants",
    "HeatMap",
    "Likeness",
    "Phonons",
    "Softening",
    "Subject",
    "Suite",
    "SuiteConfig",
    "Surfaces",
    "UnseenElement",
    "Vacancies",
    "check_suites",
    "run_suites",
]

SuiteConfig = (
    Composition
    | Conductivity
    | CoulombLaw
    | Diatomics
    | Diffusion
    | Dimers
    | Disagreement
    | Disorder
    | Elastic
    | EnergyConservation
    | EquationOfState
    | Errors
    | Extrapolation
    | ForceConstants
    | Likeness
    | Phonons
    | Softening
    | Surfaces
    | Vacancies
    | UnseenElement
)
"""The suites of a YAML file, distinguished by their first field."""
