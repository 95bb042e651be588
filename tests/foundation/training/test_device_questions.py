"""A training step asks the device for numbers once, since a GPU stands still meanwhile.

The operations that ask are known, and they are counted on the CPU, where they run as well. Copies from the device to
the host are not seen here, because the CPU needs none.
"""

import dataclasses
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.store.manifest import Manifest
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig
from tests.machine import CPU
from tests.small_networks import SMALL_NETWORKS

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "histc")
"""Operations whose result, or its size, the host needs; and every `unique`."""


class Questions(TorchDispatchMode):
    """Counter of operations that ask the device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        of_unknown_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in ASKING or name.startswith(("unique", "_unique")) or by_mask or of_unknown_size:
            places = traceback.extract_stack()
            # an optimizer's own count of steps is on the host
            if not any("/torch/optim/" in place.filename for place in places):
                own = [place for place in places if "/foundation/" in place.filename]
                self.asked.append(f"{name} at {own[-1].filename}:{own[-1].lineno}")
        return func(*args, **(kwargs or {}))


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
