"""Going on: a run is made longer if its learning rates so far stay the same, and says how else if not."""

import dataclasses
from pathlib import Path

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.models import EquivariantConfig
from foundation.naming import resolve
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig, rate_at, same_rates
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=4, lanes=1, edge_budget=3000, validate_every=2, checkpoint_every=2, log_every=1)
CONSTANT = OptimConfig(schedule="constant", warmup_steps=2, learning_rate=0.01)


def config(manifest: Manifest, out: Path, optim: OptimConfig = CONSTANT, **changes: object) -> PretrainConfig:
    fit = dataclasses.replace(FIT, **changes)
    return PretrainConfig(data=manifest.root, out=out, model=MODEL, optim=optim, fit=fit, machine=CPU)


def test_a_finished_run_goes_on_to_the_same_bits_as_one_of_that_length(emt_manifest: Manifest, tmp_path: Path) -> None:
    pretrain(config(emt_manifest, tmp_path / "run"))
    pretrain(config(emt_manifest, tmp_path / "run", steps=8, resume=True))
    pretrain(config(emt_manifest, tmp_path / "whole", steps=8))
    ours, theirs = (resolve(tmp_path / name, 8).load().state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    facts = checkpoint.describe(tmp_path / "run" / "potential").origin
    assert facts.run.fit.steps == 8


def written(out: Path) -> dict[Path, int]:
    """Return when each file of a run, apart from its lock, was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "lock" not in path.name}


def test_a_schedule_that_would_have_been_another_is_refused_and_says_how(
    emt_manifest: Manifest, tmp_path: Path
) -> None:
    cosine = OptimConfig(warmup_steps=2, learning_rate=0.01)
    out = tmp_path / "run"
    pretrain(config(emt_manifest, out, cosine))
    before = written(out)
    for steps, message in (
        (8, rf"planned for 4, .*\(cosine\).*--start {out} --out"),
        (3, "already taken 4 of 4;"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(config(emt_manifest, out, cosine, steps=steps, resume=True))
    faster = dataclasses.replace(cosine, learning_rate=0.02)
    with pytest.raises(ValueError, match=rf"optim\.learning_rate was 0\.01 and is 0\.02\. Restore it, .*--start {out}"):
        pretrain(config(emt_manifest, out, faster, resume=True))
    assert written(out) == before


@pytest.mark.parametrize(
    ("options", "step", "same"),
    [
        ({"schedule": "constant"}, 100, True),
        ({"schedule": "cosine"}, 50, False),
        ({"schedule": "cosine"}, 10, True),
        ({"schedule": "cosine", "final_fraction": 1.0}, 100, True),
        ({"schedule": "wsd", "decay_fraction": 0.2}, 80, True),
        ({"schedule": "wsd", "decay_fraction": 0.2}, 81, False),
    ],
)
def test_lengths_have_the_same_rates_as_long_as_the_schedule_does_not_see_the_end(
    options: dict, step: int, same: bool
) -> None:
    optim = OptimConfig(warmup_steps=10, **options)
    assert same_rates(optim, step, 100, 150) == same
    assert (rate_at(optim, step, 100) == rate_at(optim, step, 150)) == same


def test_a_start_that_is_refused_for_its_budget_leaves_no_folder(emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edge_budget"):
        pretrain(config(emt_manifest, tmp_path / "run", edge_budget=10))
    assert not (tmp_path / "run").exists()
