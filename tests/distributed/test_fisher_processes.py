"""The Fisher that several processes compute together is that of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.finetuning import fisher
from foundation.models import EquivariantConfig
from foundation.potential import new_potential

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
PROVENANCE = {"method": "none", "datasets": []}


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_share_the_structures_and_write_one_file(
    world_size: int, emt_manifest: Manifest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    potential = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64)
    checkpoint.save(potential, tmp_path / "model", PROVENANCE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size), "--standalone"]
    options = ["--model", str(tmp_path / "model"), "--data", str(emt_manifest.root), "--out"]
    for out, start in (("one", [sys.executable]), ("many", command)):
        words = [*start, "-m", "launch", "fisher", *options, str(tmp_path / out)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.count("Fisher over") == 1
    one, many = fisher.read(tmp_path / "one"), fisher.read(tmp_path / "many")
    assert one.num_structures == many.num_structures > world_size
    assert torch.equal(one.structures, many.structures)
    for name, value in one.values.items():
        assert value.abs().max() > 0
        assert (many.values[name] - value).abs().max() <= 1e-12 * value.max(), name
