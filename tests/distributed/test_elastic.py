"""One run on one, then on other numbers of processes: the same micro-batches in the same steps, and the same losses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest

ARGUMENTS = """
--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 9 --fit.lanes 8 --fit.edge_budget 700 --fit.oversize alone --machine.num_workers 0 --fit.validate_every 9
--fit.checkpoint_every 3 --fit.keep_checkpoints 9 --fit.log_every 1 --machine.accelerator cpu --optim.warmup_steps 3
""".split()


def pretrain(data: Path, out: Path, devices: int, *more: str) -> dict[int, dict]:
    """Run to the end, and return the logged steps."""
    command = [sys.executable, "-m", "launch", "pretrain", "--data", str(data), "--out", str(out), *ARGUMENTS, *more]
    done = subprocess.run(
        [*command, "--machine.devices", str(devices)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["kind"] == "train"}


def forget(out: Path, after: int) -> None:
    """Put a run back to a checkpoint."""
    for path in (out / "checkpoints").glob("step=*.ckpt"):
        if int(path.stem.removeprefix("step=")) > after:
            path.unlink()


@pytest.mark.long
@pytest.mark.parametrize("numbers", [(2,), (4, 2)])
def test_a_run_moves_between_numbers_of_processes(
    numbers: tuple[int, ...], emt_manifest: Manifest, tmp_path: Path
) -> None:
    expected = pretrain(emt_manifest.root, tmp_path / "run", 1)
    found: dict[int, dict] = {}
    for checkpoint, number in zip((3, 6), numbers, strict=False):
        forget(tmp_path / "run", checkpoint)
        found |= pretrain(emt_manifest.root, tmp_path / "run", number, "--fit.resume", "true")
    assert list(found) == list(expected) == list(range(1, 10))
    for step, row in expected.items():
        for name in ("seen/frames", "seen/atoms", "seen/edges"):
            assert found[step][name] == row[name], f"step {step}: {name}"
        assert found[step]["train/loss"] == pytest.approx(row["train/loss"], rel=1e-6), f"step {step}"
