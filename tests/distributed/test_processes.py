"""A run on two processes, started as a user starts it, ends with the weights of a run on one."""

import subprocess
import sys
from pathlib import Path

import torch

from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load

ARGUMENTS = """
--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 6 --fit.lanes 2 --fit.edge_budget 1500 --machine.num_workers 0 --fit.validate_every 3
--fit.checkpoint_every 3 --fit.log_every 3 --machine.accelerator cpu
""".split()


def pretrain(data: Path, out: Path, devices: int) -> None:
    command = [sys.executable, "-m", "launch", "pretrain", "--data", str(data), "--out", str(out), *ARGUMENTS]
    done = subprocess.run(
        [*command, "--machine.devices", str(devices)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_train_the_weights_of_one(emt_manifest: Manifest, tmp_path: Path) -> None:
    pretrain(emt_manifest.root, tmp_path / "one", 1)
    pretrain(emt_manifest.root, tmp_path / "two", 2)
    one, two = load(tmp_path / "one").state_dict(), load(tmp_path / "two").state_dict()
    for name, weights in one.items():
        # float32, six steps of Adam: rounding of the sum over processes is amplified where gradients are tiny
        assert torch.allclose(weights, two[name], rtol=1e-3, atol=1e-4), name
