"""Runs on several processes of one machine: a dead process is replaced, a signal ends in a checkpoint."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cluster.conftest import Run

pytestmark = pytest.mark.cluster


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """Return the training processes, rank zero first."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    found = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(word.removeprefix(b"RANK=")): int(child) for word in words if word.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


@pytest.mark.long
def test_a_killed_process_costs_only_what_came_after_the_last_checkpoint(
    run: Run, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    launcher = run.start_locally(1, tmp_path / "log")
    run.wait_for_checkpoint()
    os.kill(ranks_of(launcher)[0], signal.SIGKILL)
    assert launcher.wait(300) == 0, (tmp_path / "log").read_text()
    assert "continuing from" in (tmp_path / "log").read_text()
    found = run.weights
    for name, expected in undisturbed.items():
        assert torch.equal(found[name], expected), name


@pytest.mark.long
def test_usr1_to_one_process_stops_all_with_an_exit_code_of_its_own(run: Run, tmp_path: Path) -> None:
    launcher = run.start_locally(0, tmp_path / "log")
    run.wait_for_checkpoint()
    os.kill(ranks_of(launcher)[1], signal.SIGUSR1)
    assert launcher.wait(120) == 75, (tmp_path / "log").read_text()
    (step,) = re.findall(
        r"stopped by SIGUSR1 after step (\d+) with a checkpoint: resume with --fit.resume auto",
        (tmp_path / "log").read_text(),
    )
    assert f"step={int(step):09d}.ckpt" in {path.name for path in (run.out / "checkpoints").iterdir()}
