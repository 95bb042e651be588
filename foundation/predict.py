"""Predict: energies, forces and stresses of many structures, from any files to a table and extended XYZ."""

from dataclasses import dataclass, replace

from data_pipeline.structure import Structure
from foundation.potential import Potential
from foundation.simulation.campaign import Begin, CampaignConfig, Summary, run_campaign
from foundation.simulation.driver import expected_edges
from foundation.simulation.outcome import Evaluated, Outcome, outcome, put_aside

LARGE_FORCE = 50.0
"""Force from which a remark is made [eV/Å]: potentials are rarely trained on larger ones."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CampaignConfig):
    """Structures to predict, and the potential."""


def predict(config: PredictConfig) -> Summary | None:
    """Predict the structures that are not yet predicted and, if none is left, write the results.

    Raises:
        FileNotFoundError, CorruptFile, ValueError, BlockingIOError: see run_campaign().
    """
    return run_campaign(config, "predict", _prepare, replace=False)


def _prepare(config: PredictConfig, potential: Potential) -> Begin:
    return lambda number, structure: _Predicting(number, structure, potential.cutoff)


class _Predicting:
    """A structure to be predicted once."""

    def __init__(self, number: int, structure: Structure, cutoff: float) -> None:
        self.structure, self.cost, self._number = structure, expected_edges(structure, cutoff), number

    def advance(self, found: Evaluated) -> Outcome:
        """Return the prediction."""
        made = outcome(self._number, self.structure, found)
        if made.max_force is not None and made.max_force > LARGE_FORCE:
            remark = f"a force of {made.max_force:.3g} eV/Å: far from most training data"
            return replace(made, warnings=(*made.warnings, remark))
        return made

    def failed(self, reason: str) -> Outcome:
        """Return why there is no prediction."""
        return put_aside(self._number, self.structure, reason)
