"""Lengths that the data decide: a step is a part of a pass, the largest structure fits, and what is given stays."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import Plan
from data_pipeline.loading.work_units import PlannedSet
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation.configuration import resolved
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig, FitOptions
from foundation.training.lengths import MAX_EDGES, sized, structures_of_step
from foundation.training.optim import OptimConfig
from tests.foundation.training.test_optim import schedule_of
from tests.machine import CPU

LEFT_TO_DATA = FitOptions(), OptimConfig()


def built(folder: Path, num_frames: int) -> list[Dataset]:
    """Return alloys without held-out frames."""
    provenance = Provenance(**{item.name: "test" for item in dataclasses.fields(Provenance)})
    config = BuildConfig(
        source=EmtAlloys(num_frames=num_frames), provenance=provenance, out=folder, val_fraction=0.0, test_fraction=0.0
    )
    return [Dataset(manifest=build(config))]


def plan_of(datasets: list[Dataset], fit: FitConfig) -> Plan:
    sets = [PlannedSet(each.index(), 0, each.repeat) for each in datasets]
    return Plan(sets, lanes=fit.lanes, edge_budget=fit.edge_budget, oversize=fit.oversize)


@pytest.mark.parametrize(
    ("structures", "atoms", "least", "most"),
    [
        (3.0, 64.0, 1.0, 1.0),
        (48.0, 64.0, 4.0, 8.0),
        (60.0, 416.0, 1.0, 1.0),
        (1000.0, 31.0, 16.0, 32.0),
        (900.0, 52.0, 8.0, 32.0),
        (1.58e6, 31.0, 256.0, 640.0),
    ],
)
def test_a_step_has_as_many_structures_as_in_published_trainings(
    structures: float, atoms: float, least: float, most: float
) -> None:
    assert least <= structures_of_step(structures, structures * atoms) <= most


@pytest.mark.parametrize("num_frames", [1, 3, 40, 300])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_structure_fits_and_a_step_is_a_part_of_a_pass(tmp_path: Path, num_frames: int, world_size: int) -> None:
    datasets = built(tmp_path / "data", num_frames)
    fit, optim, reasons = sized(*LEFT_TO_DATA, datasets, cutoff=5.0, world_size=world_size)
    assert fit.lanes % world_size == 0
    assert int(datasets[0].index().blocks.max_edges.max()) <= fit.edge_budget <= MAX_EDGES / 0.98
    assert 1 <= fit.checkpoint_every <= fit.validate_every <= max(1, math.ceil(fit.steps / 5))
    assert optim.warmup_steps is not None
    assert optim.warmup_steps <= max(1, 0.1 * fit.steps)
    assert len(reasons) == 5
    if num_frames >= 4 * world_size:
        plan = plan_of(datasets, fit)
        assert plan.num_too_large == 0
        assert plan.steps_of_pass(0) >= 4 / world_size
        assert fit.steps == pytest.approx(100 * plan.steps_of_pass(0), rel=0.02)
        assert f"{plan.steps_of_pass(0)} steps a pass" in reasons[0]


def test_an_epoch_is_a_pass(emt_manifest: Manifest) -> None:
    datasets = [Dataset(manifest=emt_manifest)]
    for given in (FitOptions(epochs=2.5), FitOptions(epochs=2.5, lanes=2, edge_budget=1500)):
        fit, _, reasons = sized(given, OptimConfig(), datasets, cutoff=5.0, world_size=1)
        steps = plan_of(datasets, fit).steps_of_pass(0)
        assert fit.steps == round(2.5 * steps)
        assert fit.epochs is None  # a length is recorded once
        assert any(f"{fit.steps / steps:.3g} passes (as given)" in reason for reason in reasons)


def test_what_is_given_stays_and_is_not_explained(emt_manifest: Manifest) -> None:
    given = FitConfig(steps=7, lanes=3, edge_budget=1500, validate_every=2, checkpoint_every=9)
    found = sized(
        given, OptimConfig(warmup_steps=4, ema_decay=0.5), [Dataset(manifest=emt_manifest)], cutoff=5.0, world_size=1
    )
    assert found == (given, OptimConfig(warmup_steps=4, ema_decay=0.5), ())
    lanes = sized(FitOptions(lanes=4), OptimConfig(), [Dataset(manifest=emt_manifest)], cutoff=5.0, world_size=2)[0]
    assert lanes.lanes == 4
    budget = FitOptions(edge_budget=1500, steps=5)
    assert sized(budget, OptimConfig(), [Dataset(manifest=emt_manifest)], cutoff=5.0, world_size=1)[0] == FitConfig(
        steps=5, lanes=1, edge_budget=1500, validate_every=1, checkpoint_every=1
    )


def test_structures_above_a_budget_of_the_data_run_alone_and_above_a_given_one_are_an_error(
    emt_manifest: Manifest,
) -> None:
    datasets = [Dataset(manifest=emt_manifest)]
    for given, expected in ((FitOptions(), "alone"), (FitOptions(edge_budget=1500), "error")):
        assert sized(given, OptimConfig(), datasets, cutoff=5.0, world_size=1)[0].oversize == expected
    assert sized(FitOptions(oversize="skip"), OptimConfig(), datasets, cutoff=5.0, world_size=1)[0].oversize == "skip"


def test_two_lengths_of_a_run_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps 5 and epochs 2 are both lengths of the run: give one"):
        FitOptions(steps=5, epochs=2.0)
    with pytest.raises(ValueError, match=r"epochs must be above 0"):
        FitOptions(epochs=0.0)


@pytest.mark.parametrize("steps", [1, 20, 700])
def test_a_warm_up_of_the_data_is_that_of_the_schedule(emt_manifest: Manifest, steps: int) -> None:
    fit = FitOptions(steps=steps)
    optim = sized(fit, OptimConfig(), [Dataset(manifest=emt_manifest)], cutoff=5.0, world_size=1)[1]
    assert optim.warmup_steps == math.ceil(steps / 20)
    assert schedule_of(OptimConfig(), steps) == schedule_of(optim, steps)


def test_a_run_records_what_its_data_decide_and_goes_on_with_it(emt_manifest: Manifest, tmp_path: Path) -> None:
    config = PretrainConfig(
        data=emt_manifest.root,
        out=tmp_path / "run",
        model=EquivariantConfig(irreps="4x0e", num_blocks=1, max_degree=0, radial_sizes=(4,), readout_channels=2),
        fit=FitOptions(epochs=0.2),
        machine=CPU,
    )
    pretrain(config)
    record = json.loads((config.out / "run.json").read_text())
    fit = sized(config.fit, config.optim, [Dataset(manifest=emt_manifest)], cutoff=5.0, world_size=1)[0]
    assert {name: record["fit"][name] for name in resolved(fit)} == resolved(fit)
    assert record["optim"]["warmup_steps"] == math.ceil(fit.steps / 20)
    pretrain(dataclasses.replace(config, fit=FitOptions(epochs=0.2, resume=True)))
    longer = dataclasses.replace(config, fit=FitOptions(epochs=2.0, resume=True))
    with pytest.raises(ValueError, match=rf"fit\.steps \d+: the run was planned for {fit.steps}"):
        pretrain(longer)


def test_a_resumed_run_keeps_its_number_of_steps_unless_another_is_given(tmp_path: Path) -> None:
    datasets, begun = built(tmp_path / "data", 3), {"fit": {"steps": 40}}
    kept, _, reasons = sized(*LEFT_TO_DATA, datasets, cutoff=5.0, world_size=1, begun=begun)
    assert kept.steps == 40
    assert any("40 steps, those of the run" in each for each in reasons)
    longer, _, _ = sized(FitOptions(steps=60), OptimConfig(), datasets, cutoff=5.0, world_size=1, begun=begun)
    passes, _, _ = sized(FitOptions(epochs=50.0), OptimConfig(), datasets, cutoff=5.0, world_size=1, begun=begun)
    fresh, _, _ = sized(*LEFT_TO_DATA, datasets, cutoff=5.0, world_size=1)
    assert longer.steps == 60
    assert passes.steps * 2 == fresh.steps
