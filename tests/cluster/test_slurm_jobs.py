"""Runs on a real SLURM end with the same bits, whatever happened to them on the way."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.cluster.conftest import Run
from tests.cluster.slurm import Slurm, tasks_of, wait_until, why_not
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
Weights = dict[str, torch.Tensor]
BLOCKS_USR1 = 1 << 9
"""SIGUSR1 in the mask of blocked signals in /proc/PID/status."""


def assert_completed(run: Run, facts: dict[str, str], undisturbed: Weights, starts: int) -> None:
    """The job has started so many times, each further time from a checkpoint, and its weights are the undisturbed."""
    assert facts["JobState"] == "COMPLETED", run.log
    assert run.log.count("start ") == starts, run.log
    assert facts["Restarts"] == str(starts - 1)
    assert run.log.count("continuing from ") == starts - 1, run.log
    found = run.weights
    assert found.keys() == undisturbed.keys()
    for name, expected in undisturbed.items():
        assert torch.equal(found[name], expected), name


@pytest.mark.long
def test_nothing_of_the_cluster_outlives_a_test_process_that_is_killed(tmp_path: Path) -> None:
    script = f"""
        import os, pathlib
        from tests.cluster.slurm import Slurm
        with Slurm() as cluster:
            pathlib.Path({str(tmp_path / "root")!r}).write_text(str(cluster.root))
            os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=REPOSITORY)
    root = Path((tmp_path / "root").read_text())
    assert root.is_absolute()
    processes = Path("/proc")
    wait_until(lambda: not [p for p in processes.glob("[0-9]*/environ") if str(root) in environment(p)], 30)
    assert not root.exists()


def environment(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has just ended
        return ""


@pytest.mark.long
def test_two_nodes_are_like_two_processes_of_one_machine(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    job = run.submit(slurm)
    assert_completed(run, slurm.wait_for_end(job), undisturbed, starts=1)


def test_usr1_saves_and_the_job_requeues_itself(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    job = run.submit(slurm)
    run.wait_for_checkpoint()
    slurm.run("scancel", "--signal=USR1", job)
    facts = slurm.wait_for_end(job)
    (step,) = re.findall(r"stopped by SIGUSR1 after step (\d+)", run.log)
    assert f"step={int(step):09d}.ckpt" in run.log.split("continuing from")[1]
    assert_completed(run, facts, undisturbed, starts=2)


@pytest.mark.long
def test_usr1_while_python_still_imports_is_not_lost(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    job = run.submit(slurm)

    def python_holds_it_back() -> bool:
        tasks = [pid for node in ("n0", "n1", "n2", "n3") for pid in tasks_of(node)]
        return len(tasks) == 2 and all(blocked_signals(pid) & BLOCKS_USR1 for pid in tasks)

    wait_until(python_holds_it_back, 30)
    slurm.run("scancel", "--signal=USR1", job)
    assert not (run.out / "run.json").exists()
    facts = slurm.wait_for_end(job)
    assert re.search(r"stopped by SIGUSR1 after step [12] ", run.log)
    assert_completed(run, facts, undisturbed, starts=2)


@pytest.mark.long
def test_usr1_before_there_is_a_python_to_hold_it_back_does_no_harm(slurm: Slurm, run: Run) -> None:
    run.launch(slurm)
    script = run.out / "job.sbatch"
    command = re.search(r"[^ ]+ -m launch .*--fit.resume auto", script.read_text(), re.DOTALL)
    assert command is not None
    script.write_text(script.read_text().replace(command[0], "bash -c 'echo task; sleep 3'"))
    job = slurm.run("sbatch", "--parsable", str(script)).strip()
    wait_until(lambda: run.log.count("task\n") == 2, 30)
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", run.log


def blocked_signals(pid: int) -> int:
    (mask,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return int(mask, 16)


@pytest.mark.long
def test_the_time_limit_only_interrupts(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    # SLURM looks every 30 s for jobs whose time is up within that time and the signal's lead
    slurm.wait_for_time_limits(ahead=6)
    job = run.submit(slurm, "--time", "1", "--signal-before", "35")
    facts = slurm.wait_for_end(job)
    restarts = int(facts["Restarts"])
    assert restarts > 0
    assert run.log.count("stopped by SIGUSR1") == restarts
    assert_completed(run, facts, undisturbed, starts=restarts + 1)


@pytest.mark.long
def test_requeue_by_hand(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    job = run.submit(slurm)
    run.wait_for_checkpoint()
    slurm.run("scontrol", "requeue", job)
    facts = slurm.wait_for_end(job)
    assert run.log.count("stopped by SIGTERM") == 1, run.log
    assert_completed(run, facts, undisturbed, starts=2)


@pytest.mark.long
def test_another_node_takes_the_place_of_a_dead_one(slurm: Slurm, run: Run, undisturbed: Weights) -> None:
    job = run.submit(slurm)
    run.wait_for_checkpoint()
    before = slurm.nodes_of(job)
    slurm.kill_node(before[1])
    facts = slurm.wait_for_end(job)
    assert before[1] not in slurm.nodes_of(job)
    assert_completed(run, facts, undisturbed, starts=2)
