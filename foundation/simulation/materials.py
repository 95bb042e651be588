"""Relaxation of a benchmark's materials in shared batches, with the steps of ASE's FIRE and FrechetCellFilter."""

from collections.abc import Iterator

from data_pipeline.graphs.packing import EDGE_BUDGET
from data_pipeline.sources.materials import Material
from data_pipeline.structure import InvalidStructure
from foundation.interop.relaxations import Relaxed, Relaxer, not_relaxed, rows_of
from foundation.potential import Potential
from foundation.simulation.driver import Task, drive
from foundation.simulation.outcome import Outcome, put_aside
from foundation.simulation.predictor import PotentialPredictor
from foundation.simulation.relaxation import Limits, Relaxing


def in_batches(potential: Potential, theory: int, *, max_force: float, max_steps: int) -> Relaxer:
    """Return a function that relaxes materials with a potential.

    Args:
        potential: The potential, with the float type to compute in.
        theory: Number of its level of theory.
        max_force: Largest force at which to end [eV/Å].
        max_steps: Largest number of steps.
    """
    predictor = PotentialPredictor(potential, theory)
    limits = Limits(
        max_force=max_force, max_steps=max_steps, algorithm="fire", cell=True, symmetry=False, space_groups=False
    )

    def relaxer(materials: Iterator[tuple[int, Material]]) -> Iterator[Relaxed]:
        named: dict[int, Material] = {}

        def tasks() -> Iterator[Task | Outcome]:
            for number, material in materials:
                named[number], structure = material, material.structure
                if isinstance(structure, InvalidStructure):
                    yield put_aside(number, structure, str(structure))
                else:
                    yield Relaxing(number, structure, potential.cutoff, limits)

        for outcomes in drive(tasks(), predictor, edge_budget=EDGE_BUDGET, replace=True):
            for each in outcomes:
                yield _relaxed(each, named.pop(each.number))

    return relaxer


def _relaxed(outcome: Outcome, material: Material) -> Relaxed:
    if outcome.error is not None:
        return not_relaxed(outcome.number, material, outcome.error)
    return Relaxed(
        number=outcome.number,
        id=material.id,
        atomic_numbers=outcome.atomic_numbers,
        positions=rows_of(outcome.array("positions", -1, 3)),
        cell=rows_of(outcome.array("cell", 3, 3)),
        pbc=outcome.pbc,
        energy=outcome.energy,
        energy_before=outcome.energy_before,
        max_force=outcome.max_force,
        num_steps=outcome.steps,
        converged=bool(outcome.converged),
    )
