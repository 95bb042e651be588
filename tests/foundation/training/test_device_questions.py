"""A training step asks the device for numbers once, since a GPU stands still meanwhile.

The operations that ask are known, and they are counted on the CPU, where they run as well.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig
from tests.foundation.training.device_questions import Questions
from tests.machine import CPU
from tests.small_networks import SMALL_NETWORKS


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["even-2-blocks", "symmetry-functions"])
def test_a_step_asks_the_device_once(
    name: str, optimizer: str, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[str]] = []
    as_written = TrainingModule.training_step

    lists: list[int] = []

    def listed(tensor: torch.Tensor) -> Any:
        lists.append(len(steps))
        return torch._C.TensorBase.tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", listed)

    def counted(module: TrainingModule, parts: Any, number: int) -> None:
        with Questions() as questions:
            as_written(module, parts, number)
        steps.append(questions.asked)

    monkeypatch.setattr(TrainingModule, "training_step", counted)
    fit = FitConfig(steps=5, lanes=2, edge_budget=1500, validate_every=5, checkpoint_every=5, log_every=5)
    optim = OptimConfig(optimizer=optimizer, warmup_steps=1)
    model = dataclasses.replace(SMALL_NETWORKS[name], cutoff=5.0)
    pretrain(
        PretrainConfig(
            data=emt_manifest.root,
            out=tmp_path / "run",
            model=model,
            fit=fit,
            optim=optim,
            machine=CPU,
        )
    )
    assert len(steps) == 5
    # the last step also logs
    assert steps[:4] == [[]] * 4
    assert [lists.count(step) for step in range(4)] == [1] * 4
