"""The script of a SLURM job is readable and complete; what cannot work is refused before anything is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.slurm import seconds_of, tasks_of

COMMAND = [
    "--",
    "pretrain",
    "--data",
    "data",
    "--out",
    "runs/big",
    "--fit.steps",
    "10",
    "--fit.lanes",
    "8",
    "--model.irreps",
    "4x0e",
]
SCRIPT = """\
#!/bin/bash
# Written by `foundation launch slurm`. Submit it again with: sbatch {here}/runs/big/job.sbatch
#SBATCH --job-name=big
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --mem=240G
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --account=mat
#SBATCH --qos=long
#SBATCH --signal=USR1@300
#SBATCH --output={here}/runs/big/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --chdir={here}
#SBATCH --requeue
#SBATCH --constraint=h100

module load cuda
export OMP_NUM_THREADS=1
# this script runs on the first node, as does rank 0
export MASTER_ADDR=$(hostname)
export MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))
echo "start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job ${{SLURM_JOB_ID}} on $SLURM_JOB_NODELIST, $(date)"
# SIGUSR1 waits until training starts; where env is too old for it, only from Python's first imports on
hold=$(env --block-signal=USR1 echo "env --block-signal=USR1" 2>/dev/null)
srun --cpus-per-task=2 --kill-on-bad-exit=1 $hold \\
    {python} -m launch pretrain \\
    --data data \\
    --out runs/big \\
    --fit.steps 10 \\
    --fit.lanes 8 \\
    --model.irreps 4x0e \\
    --machine.accelerator gpu \\
    --machine.devices 4 \\
    --machine.num_nodes 2 \\
    --fit.resume auto
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launch(*arguments: str, command: list[str] = COMMAND) -> int:
    time = [] if "--time" in arguments else ["--time", "24:00:00"]
    return main(["launch", "slurm", *time, *arguments, *command])


def test_the_script_says_everything_that_the_job_needs(tmp_path: Path) -> None:
    options = "--nodes 2 --gpus-per-node 4 --memory 240G --partition gpu --account mat --qos long".split()
    assert launch(*options, "--directives", '["--constraint=h100"]', "--prologue", '["module load cuda"]') == 0
    script = tmp_path / "runs" / "big" / "job.sbatch"
    assert script.read_text() == SCRIPT.format(here=tmp_path, python=sys.executable)
    subprocess.run(["bash", "-n", script], check=True)


def test_a_job_without_gpus_is_refused_for_a_recipe_that_asks_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("machine: {accelerator: gpu, devices: 8}\nfit: {lanes: 8}\n")
    command = [*COMMAND, "--config", "recipe.yaml"]
    assert launch(command=command) == 2
    assert (
        "machine.accelerator gpu, 8 per node), but the job has none: add --gpus-per-node 8" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
    assert launch("--gpus-per-node", "4", command=command) == 0
    (tmp_path / "recipe.yaml").write_text("machine: {accelerator: auto, devices: 8}\nfit: {lanes: 8}\n")
    assert launch(command=[*command, "--out", "runs/other"]) == 0


def test_processors_without_gpus_share_the_cores_of_a_node(tmp_path: Path) -> None:
    command = [*COMMAND, "--machine.num_workers", "2"]
    assert launch("--processes-per-node", "8", "--cpus-per-task", "6", command=command) == 0
    text = (tmp_path / "runs" / "big" / "job.sbatch").read_text()
    for line in ("#SBATCH --ntasks-per-node=8", "#SBATCH --cpus-per-task=6", "export OMP_NUM_THREADS=4"):
        assert line in text.splitlines()
    assert "--machine.accelerator cpu \\\n    --machine.devices 8 \\\n    --machine.num_nodes 1" in text
    assert "--gpus" not in text


def test_a_sweep_is_an_array_whose_tasks_have_their_own_run_folders(tmp_path: Path) -> None:
    command = "-- pretrain --data data --model.irreps 4x0e --fit.steps 10 --fit.seed {task} --out".split()
    out = ["--out", "runs/sweep"]
    assert launch("--array", "0-6:2%2", *out, command=[*command, "runs/a sweep/{task}"]) == 0
    text = (tmp_path / "runs" / "sweep" / "job.sbatch").read_text()
    for line in ("#SBATCH --array=0-6:2%2", f"#SBATCH --output={tmp_path}/runs/sweep/slurm-%A_%a.log"):
        assert line in text.splitlines()
    assert '--fit.seed "${SLURM_ARRAY_TASK_ID}" \\\n    --out \'runs/a sweep/\'"${SLURM_ARRAY_TASK_ID}" \\' in text
    assert "of job ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} on" in text


@pytest.mark.parametrize(
    ("options", "command", "message"),
    [
        ("--nodes 3", [*COMMAND], "8 lanes cannot be shared by 3 processes; use one of [1, 2, 4, 8]"),
        ("--time 24h", [*COMMAND], "time '24h': write it as minutes, hours:minutes:seconds or days-hours"),
        ("--time 4", [*COMMAND], "time 4: shorter than signal_before, 300 s"),
        ("--array 0-x --out o", [*COMMAND], "array '0-x': write it as 0-15"),
        ("--array 0-3", [*COMMAND], "give the script a folder with --out"),
        ("--array 0-3 --out o", [*COMMAND], "would share a run folder; put {task} into --out of the command"),
        ("", [*COMMAND, "--model.cutoff", "{task}"], "give the numbers with --array"),
        ("", [], "no command: put it after --"),
        ("", ["--", "evaluate", "--model", "m", "--data", "d"], "`evaluate` does not train"),
        ("", [*COMMAND, "--machine.devices", "2"], "--machine.devices in the command: leave it out"),
        ("", [*COMMAND, "--machine.num-nodes=2"], "--machine.num_nodes in the command: leave it out"),
        ("", [*COMMAND, "--overwrite", "true"], "--overwrite in the command"),
        ("--gpus-per-node 2 --processes-per-node 2", [*COMMAND], "leave --processes-per-node out"),
        ("--nodes 0", [*COMMAND], "nodes must be at least 1, not 0"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    options: str, command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*options.split(), command=command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--fit.step", "--fit.stepz", "--model.cutof"])
def test_an_unknown_option_of_the_command_is_refused_now(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(command=[*COMMAND, option, "5"]) == 2
    assert option.removeprefix("--") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_there_is_continued_only_if_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch() == 0
    assert launch("--memory", "8G") == 0, "the script of a run that has not begun can be written again"
    (tmp_path / "runs" / "big" / "run.json").write_text("{}")
    assert launch() == 2
    assert "already holds a run; continue it with --fit.resume auto" in capsys.readouterr().err
    assert launch(command=[*COMMAND, "--fit.resume", "auto"]) == 0
    assert (tmp_path / "runs" / "big" / "job.sbatch").read_text().count("--fit.resume auto") == 1


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "big").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "thesis.tex").touch()
    assert launch() == 2
    assert "already exists and is not a run" in capsys.readouterr().err


def test_sbatch_that_refuses_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{Path(str(shutil.which('bash'))).parent}")
    assert launch("--submit", "true") == 2
    assert "invalid partition specified: gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("10:30", 630), ("24:00:00", 86400), ("2-12", 216000), ("1-00:30", 88200), ("0-00:00:05", 5)],
)
def test_times_are_read_as_slurm_reads_them(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


def test_tasks_are_read_as_slurm_reads_them() -> None:
    assert tasks_of("1,3,5-7,10-20:5%2") == ["1", "3", "5", "6", "7", "10", "15", "20"]


def test_a_verb_that_is_no_launcher_takes_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--data", "d", "--", "pretrain"]) == 2
    assert "`inspect` takes no command" in capsys.readouterr().err


SHARED = ["relax", "--model", "m", "--data", "s.extxyz", "--out", "relaxed", "--part", "{task}/8"]


def test_the_tasks_of_an_array_share_many_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = ["launch", "slurm", "--time", "60", "--array", "1-8", "--out", "job", "--", *SHARED, "--processes", "4"]
    assert main(job) == 0
    script = (tmp_path / "job" / "job.sbatch").read_text()
    assert "#SBATCH --array=1-8\n" in script
    assert "#SBATCH --cpus-per-task=4\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert '--part "${SLURM_ARRAY_TASK_ID}"/8' in script
    assert "--signal" not in script
    assert "--fit.resume" not in script
    assert "--requeue" in script
    assert subprocess.run(["bash", "-n", tmp_path / "job" / "job.sbatch"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "command", "reason"),
    [
        (["--array", "1-8"], [*SHARED[:-1], "1/8"], "the tasks of the array would do the same work"),
        (["--array", "1-9"], SHARED, "part must be such as 3/32"),
        (["--array", "1-8", "--nodes", "2"], SHARED, "`relax` is one process"),
        (["--array", "1-8", "--gpus-per-node", "2"], SHARED, "`relax` is one process"),
        (["--array", "1-8"], [*SHARED, "--max_force", "-1"], "max_force and precision must be positive"),
    ],
)
def test_work_that_would_be_done_twice_or_not_at_all_is_refused(
    options: list[str],
    command: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", "--time", "60", "--out", "job", *options, "--", *command]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_shared_work_is_not_launched_as_one_process_per_core(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "local", "--processes", "2", "--", *SHARED[:-2]]) == 2
    assert "`relax` does not train" in capsys.readouterr().err
