"""A process that is stopped is named by the others, and the run ends so that it can be started again."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest

ARGUMENTS = """
--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 100000 --fit.lanes 2 --fit.edge_budget 1500 --machine.num_workers 0 --fit.validate_every 100000
--fit.checkpoint_every 100000 --fit.log_every 1 --machine.accelerator cpu --machine.devices 2 --fit.guard.stall_after 10
""".split()


def children(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "python"], capture_output=True, text=True, check=False).stdout
    return [int(number) for number in found.split()]


@pytest.mark.long
def test_a_stopped_process_is_reported_by_name_and_the_run_ends(emt_manifest: Manifest, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "pretrain", "--data", str(emt_manifest.root), *ARGUMENTS]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stdout=log, stderr=log)
    processes = [run.pid]
    try:
        metrics = tmp_path / "run" / "logs"
        deadline = time.monotonic() + 240
        while not any(file.stat().st_size > 2000 for file in metrics.glob("**/metrics.*")):
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (second,) = children(run.pid)
        processes.append(second)
        os.kill(second, signal.SIGSTOP)
        assert run.wait(timeout=200) == 75
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        run.wait()
    said = (tmp_path / "log").read_text()
    assert "process 0 on" in said
    assert re.search(r"no step for \d+ s, at step \d+, in ", said)
    (named,) = [line for line in said.splitlines() if "does not answer" in line]
    assert named.startswith("process 1 on")
    assert f"pid {second}" in named
