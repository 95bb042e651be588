"""DDP and ZeRO on any number of processes have the gradient of one process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from tests.distributed.step_gradient import gradients

STRATEGIES = ("ddp", "zero-1", "zero-2")


@pytest.fixture(scope="module")
def expected(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    return gradients(emt_manifest.root, tmp_path_factory.mktemp("one"), "ddp", 1)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("world_size", [2, 4])
def test_all_strategies_have_the_gradient_of_one_process(
    world_size: int, expected: list[torch.Tensor], emt_manifest: Manifest, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size), "--standalone"]
    script = ["-m", "tests.distributed.step_gradient", str(emt_manifest.root), str(tmp_path), *STRATEGIES]
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for strategy in STRATEGIES:
        for rank in range(world_size):
            found = torch.load(tmp_path / f"{strategy}-{rank}.pt", weights_only=True)
            assert len(found) == len(expected) == 2
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == torch.float64
                assert theirs.abs().max() > 0
                assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max(), f"{strategy}, process {rank}"


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_a_gradient_that_is_not_finite_in_one_process_is_skipped_by_all(emt_manifest: Manifest, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = ["-m", "tests.distributed.nan_on_one_rank", str(emt_manifest.root), str(tmp_path), "ddp", "zero-2"]
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        assert done.stderr.count(f"step 3, process {rank}: skipped, the norm of the gradient is nan") == 2
    for strategy in ("ddp", "zero-2"):
        ours, theirs = (torch.load(tmp_path / f"{strategy}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert torch.equal(ours[2], ours[1])
        assert not torch.equal(ours[3], ours[2])
        assert all(torch.isfinite(weights).all() for weights in ours)
