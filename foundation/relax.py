"""Relax: many structures to their nearest minimum of energy, from any files to a table and extended XYZ."""

from dataclasses import dataclass

from foundation.interop.symmetry import WITHOUT, can_find_symmetry
from foundation.potential import Potential
from foundation.simulation.campaign import Begin, CampaignConfig, Summary, run_campaign
from foundation.simulation.optimizers import Algorithm
from foundation.simulation.relaxation import Limits, Relaxing


@dataclass(frozen=True, kw_only=True)
class RelaxConfig(CampaignConfig):
    """Structures to relax, the potential, and the limits."""

    max_force: float = 0.02
    """Largest force at which a relaxation ends, on an atom or, from the stress, on a row of the cell [eV/Å]."""
    max_steps: int = 500
    """Largest number of steps; a structure that needs more has its last state, and a remark."""
    algorithm: Algorithm = "fire"
    """Algorithm: FIRE, or L-BFGS, which takes fewer steps near a minimum."""
    cell: bool = True
    """Relax the cell too, of structures that repeat in all directions."""
    symmetry: bool = False
    """Keep the symmetry of the start; it needs spglib."""
    precision: float = 0.01
    """Largest distance of atoms from symmetric places [Å], for space groups."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.max_force, self.precision) <= 0 or self.max_steps < 0:
            raise ValueError("max_force and precision must be positive, and max_steps not negative")


def relax(config: RelaxConfig) -> Summary | None:
    """Relax the structures that are not yet relaxed and, if none is left, write the results.

    Raises:
        ImportError: symmetry is to be kept, and spglib is not installed.
        FileNotFoundError, CorruptFile, ValueError, BlockingIOError: see run_campaign().
    """
    if config.symmetry and not can_find_symmetry():
        raise ImportError(WITHOUT)
    return run_campaign(config, "relax", _prepare, replace=True)


def _prepare(config: RelaxConfig, potential: Potential) -> Begin:
    limits = Limits(
        max_force=config.max_force,
        max_steps=config.max_steps,
        algorithm=config.algorithm,
        cell=config.cell,
        symmetry=config.symmetry,
        precision=config.precision,
    )
    return lambda number, structure: Relaxing(number, structure, potential.cutoff, limits)
