"""Coulomb's law as a suite: exact charges follow it, truncated ones as far as they go, networks as far as they see."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator

from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.sources import CoulombMedia
from data_pipeline.sources.coulomb import CHARGES, COULOMB
from data_pipeline.statistics.sums import Statistics
from data_pipeline.structure import SYMBOLS, Structure
from foundation.evaluation.suites import CoulombLaw, Findings
from foundation.evaluation.suites.suite import Predicted, run_suites
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.models import EquivariantConfig
from foundation.potential import new_potential

DISTANCES = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
NARROW = (22.0, 5.0, 5.0)


class Charges(CalculatorSubject):
    """Point charges with a factor on Coulomb's force that depends on the distance."""

    def __init__(self, factor: Callable[[np.ndarray], np.ndarray], elements: set[int] | None = None) -> None:
        super().__init__(Calculator())
        self.factor, self.elements = factor, elements

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        found = []
        for structure in structures:
            charges = np.array([CHARGES[SYMBOLS[number]] for number in structure.numbers])
            vectors = structure.positions[:, None] - structure.positions
            distances = np.linalg.norm(vectors, axis=-1) + np.diag(np.full(len(charges), 1e30))
            sizes = COULOMB * np.outer(charges, charges) * self.factor(distances) / distances**3
            forces = (sizes[..., None] * vectors).sum(axis=1)
            found.append(Predicted(energy=0.0, forces=forces, stress=np.zeros((3, 3))))
        return found


def measured(subject: CalculatorSubject | PotentialSubject, **options: Any) -> Findings:
    options = {"probe_distances": DISTANCES, "num_media": 4, "box": NARROW, **options}
    return run_suites([CoulombLaw(**options)], subject)["coulomb"]


@pytest.mark.parametrize("medium", ["charged", "neutral"])
@pytest.mark.parametrize("against", ["removed", "alike"])
def test_charges_have_the_ratio_one_and_the_slope_of_coulombs_law(medium: str, against: str) -> None:
    found = measured(Charges(np.ones_like), medium=medium, against=against)
    values = {name: each.value for name, each in found.quantities.items()}
    assert values.pop("slope 4-8 Å") == pytest.approx(-2, abs=1e-9)
    assert values.pop("deviation 4-8 Å") == pytest.approx(0, abs=1e-9)
    assert values.pop("reach") == 16.0
    assert list(values) == [f"ratio at {d:g} Å" for d in DISTANCES]
    assert list(values.values()) == pytest.approx([1] * len(DISTANCES), abs=1e-9)
    force, ratio = found.charts["Force"].curves, found.charts["Ratio"].curves
    assert force[""].y == pytest.approx([COULOMB / d**2 for d in DISTANCES], abs=1e-9)
    assert force["k/d²"].y == pytest.approx(force[""].y, abs=1e-9)
    assert ratio[""].y == pytest.approx(ratio["Coulomb's law"].y, abs=1e-9)


def test_a_law_that_ends_has_a_reach_and_a_steeper_slope() -> None:
    found = measured(Charges(lambda r: np.where(r < 11, (4 / r) ** 0.2, 0.0)), medium="charged").quantities
    assert found["slope 4-8 Å"].value == pytest.approx(-2.2, abs=1e-9)
    assert found["ratio at 10 Å"].value == pytest.approx(0.4**0.2, abs=1e-9)
    assert found["ratio at 12 Å"].value == pytest.approx(0, abs=1e-9)
    assert found["reach"].value == 10.0
    assert measured(Charges(lambda r: np.where(r < 7, 1.0, 0.0)), medium="charged").quantities["reach"].value is None


def test_intervals_hold_the_scatter_of_the_media() -> None:
    class Noisy(Charges):
        def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
            found = super().predict(structures)
            for number, each in enumerate(found[::2]):
                each.forces[0, 0] *= 1 + 0.1 * (-1) ** number
            return found

    found = measured(Noisy(np.ones_like), medium="neutral", num_media=16).quantities["ratio at 8 Å"]
    assert found.interval is not None
    assert found.interval[0] < 1 < found.interval[1]
    width = 2 * 1.96 * 0.1 / np.sqrt(16)
    assert found.interval[1] - found.interval[0] == pytest.approx(width, rel=0.2)


def test_the_medium_is_the_one_whose_elements_the_subject_knows() -> None:
    probes, charged, neutral = {11, 17}, {19, 35}, {18}
    seen: list[set[int]] = []

    class Seen(Charges):
        def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
            seen.append({int(number) for structure in structures for number in structure.numbers})
            return super().predict(structures)

    measured(Seen(np.ones_like, probes | charged))
    measured(Seen(np.ones_like, probes | neutral))
    assert seen[0] == probes | charged
    assert seen[-1] == probes | neutral
    for elements in (probes, probes | charged | neutral, None):
        with pytest.raises(ValueError, match="give medium: charged or medium: neutral"):
            measured(Seen(np.ones_like, elements))
    with pytest.raises(ValueError, match="has Ar, unknown to the potential"):
        measured(Seen(np.ones_like, probes | charged), medium="neutral")


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_force_is_zero_beyond_the_receptive_field(blocks: int) -> None:
    frames = list(CoulombMedia(medium="charged", num_media=4, box=NARROW))
    statistics = Statistics(cutoffs=(3.5,))
    statistics.add(frames, np.array([[len(neighbor_list(frame, 3.5).senders)] for frame in frames]))
    network = EquivariantConfig(
        irreps="4x0e+2x1o",
        num_blocks=blocks,
        max_degree=1,
        cutoff=3.5,
        cutoff_function="polynomial",
        radial_sizes=(8,),
        readout_channels=4,
    )
    torch.manual_seed(0)
    subject = PotentialSubject(new_potential(network, {"charges": statistics}))
    # a force is the derivative of every energy within the field, so that it reaches twice as far as an energy
    ratios = [measured(subject).quantities[f"ratio at {d} Å"] for d in (6, 8, 16)]
    felt = [abs(each.value or 0.0) > 1e-12 for each in ratios]  # below, the rounding of sums
    assert felt == [True, blocks == 2, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_media": 1}, "num_media"),
        ({"probe_distances": (4.0, 8.0, 6.0)}, "must increase"),
        ({"probe_distances": (4.0, 6.0, 10.0)}, "need 8 Å"),
        ({"probe_distances": (8.0, 10.0)}, "another between it and 4 Å"),
        ({"density": 1.0}, "random places"),
    ],
)
def test_options_that_measure_nothing_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CoulombLaw(**{"probe_distances": DISTANCES, **options})
