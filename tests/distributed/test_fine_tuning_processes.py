"""Rehearsal, penalty and freezing do in several processes what they do in one."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from tests.distributed.fine_tuning_run import beginning, run

FROZEN = ("network.embedding", "network.radial_basis", "network.blocks.0")


@pytest.fixture(scope="module")
def of_one(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(emt_manifest.root, tmp_path_factory.mktemp("one"), "ddp", 1)


def on_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script of this test in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = ["-m", "tests.distributed.fine_tuning_run", *arguments]
    return subprocess.run([*command, *script], capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def of_two(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return what each process of two ends with, under DDP and ZeRO-1."""
    out = tmp_path_factory.mktemp("two")
    strategies = ["ddp", *(["zero-1"] if importlib.util.find_spec("deepspeed") else [])]
    done = on_two(str(emt_manifest.root), str(out), *strategies)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: [torch.load(out / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)] for name in strategies}


@pytest.mark.parametrize("strategy", ["ddp", "zero-1"])
def test_frozen_parameters_keep_every_bit(
    strategy: str, of_two: dict[str, list[dict[str, Any]]], emt_manifest: Manifest
) -> None:
    if strategy not in of_two:
        pytest.skip("DeepSpeed is not installed")
    before = dict(beginning(emt_manifest.root).named_parameters())
    for process in of_two[strategy]:
        for name, value in process["weights"].items():
            # ZeRO gives weights back in float32, in which float64 ones that nobody touched must not lose a bit either
            assert torch.equal(value, before[name]) == name.startswith(FROZEN), name


def test_ddp_ends_with_the_weights_of_one_process(
    of_one: dict[str, Any], of_two: dict[str, list[dict[str, Any]]]
) -> None:
    for process in of_two["ddp"]:
        for name, value in process["weights"].items():
            torch.testing.assert_close(value, of_one["weights"][name], rtol=1e-9, atol=1e-10)


def test_zero_ends_near_the_weights_of_one_process(
    of_one: dict[str, Any], of_two: dict[str, list[dict[str, Any]]]
) -> None:
    if "zero-1" not in of_two:
        pytest.skip("DeepSpeed is not installed")
    for process in of_two["zero-1"]:
        for name, value in process["weights"].items():
            torch.testing.assert_close(value, of_one["weights"][name], rtol=1e-4, atol=1e-5)


def test_the_processes_together_rehearse_what_one_does_and_all_of_it(
    of_one: dict[str, Any], of_two: dict[str, list[dict[str, Any]]], emt_manifest: Manifest
) -> None:
    everything = {frame.id for frame in Frames(emt_manifest, "test")}
    assert set(of_one["rehearsed"]) == everything
    for processes in of_two.values():
        together = Counter(name for process in processes for name in process["rehearsed"])
        assert together == Counter(of_one["rehearsed"])


@pytest.mark.long
def test_processes_that_have_chosen_other_frames_do_not_begin(emt_manifest: Manifest, tmp_path: Path) -> None:
    done = on_two(str(emt_manifest.root), str(tmp_path))
    assert done.returncode != 0
    assert "does not read the same data as others" in done.stdout + done.stderr
