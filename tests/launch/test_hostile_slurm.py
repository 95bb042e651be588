"""No value runs as shell: scripts are really run, with an `srun` that writes down what it is given."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.__main__ import main
from launch.slurm import SlurmConfig, script_text

COMMAND = ["--", "pretrain", "--data", "data", "--out", "run", "--fit.steps", "10", "--model.irreps", "4x0e"]
PRINTABLE = "a {command} '; touch marker; ' \"; touch marker; $(touch marker) `touch marker` # | & ${IFS} %j *"
"""Ends every kind of quotation, and would make a file called marker then."""
SRUN = '#!/bin/bash\nprintf "%s\\0" "$@" > "$SEEN"\n'


def run_script(script: Path, folder: Path) -> list[str]:
    """Run a job script where no SLURM is, and return the words that srun was given."""
    bin_, seen = folder / "bin", folder / "seen"
    bin_.mkdir(exist_ok=True)
    (bin_ / "srun").write_text(SRUN)
    (bin_ / "srun").chmod(0o755)
    path = {"PATH": f"{bin_}:/usr/bin:/bin", "SLURM_JOB_ID": "1", "SEEN": str(seen)}
    done = subprocess.run(["bash", script], cwd=folder, env=path, capture_output=True, text=True, check=True)
    assert "command not found" not in done.stderr
    return seen.read_text().split("\0")[:-1]


def directives_of(script: Path) -> list[str]:
    """Return the options that sbatch finds: in the comments before the first line of shell."""
    lines = script.read_text().split("\n")
    comments = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    words = [shlex.split(line.removeprefix("#SBATCH")) for line in comments if line.startswith("#SBATCH")]
    return [word for line in words for word in line]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", ["name", "partition", "memory", "account", "qos", "time", "array"])
@pytest.mark.parametrize("value", ["a\ntouch marker", "a\rb", "\x1b[2J", "a\u2028b", "\u202eb"])
def test_what_cannot_be_printed_is_refused_by_the_option(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} has a character that cannot be printed"):
        SlurmConfig(**{"time": "10", "command": (), option: value})


def test_values_of_downloaded_files_never_run(tmp_path: Path) -> None:
    options = dict.fromkeys(("name", "partition", "memory", "account", "qos"), PRINTABLE)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"time": "10", **options}))
    out = f"runs/{PRINTABLE}"
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"data": "data", "out": out, "fit": {"steps": 1}, "model": {"irreps": "4x0e"}})
    )
    command = ["pretrain", "--config", "run.yaml", "--data", PRINTABLE]
    assert main(["launch", "slurm", "--config", "job.yaml", "--", *command]) == 0
    script = tmp_path / out / "job.sbatch"
    words = run_script(script, tmp_path)
    assert words[words.index("launch") + 1 :][: len(command)] == command
    assert f"--job-name={PRINTABLE}" in directives_of(script)
    assert not list(tmp_path.rglob("marker"))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--out", "a\ntouch marker", *COMMAND], "out"),
        (["--out", "jobs", *COMMAND, "--data", "a\ntouch marker"], "--data in the command"),
        (["--out", "jobs", *COMMAND, "--out=a\ntouch marker"], "--out in the command"),
        (["--out", "jobs", "--", "pretrain", "--config", "run.yaml"], "out of the command"),
        (["--directives", '["--exclusive", "--comment=a\\ntouch marker"]', *COMMAND], "directives, line 2,"),
        (["--prologue", '["module load cuda\\ntouch marker"]', *COMMAND], "prologue, line 1,"),
    ],
)
def test_a_line_break_is_refused_wherever_it_comes_from(
    arguments: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"data": "data", "out": "a\ntouch marker", "fit": {"steps": 1}, "model": {"irreps": "4x0e"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["launch", "slurm", "--time", "10", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"foundation: {name} has a character that cannot be printed")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@settings(max_examples=60, deadline=None)
@given(value=st.text(st.characters(codec="utf-8"), max_size=30), extra=st.text("$`'\"\\#;|&(){}<>*?! ~%", max_size=12))
@example(value="", extra="'\"$(touch marker)")
def test_every_text_is_refused_or_arrives_as_it_is(value: str, extra: str) -> None:
    text = f"x{value}{extra}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = folder / "job.sbatch"
        values = dict.fromkeys(("name", "partition", "memory", "account", "qos"), text)
        values |= {"time": "10", "directives": (f"--comment={shlex.quote(text)}",), "command": ()}
        if not text.isprintable():
            with pytest.raises(ValueError, match=r"^memory has a character that cannot be printed"):
                SlurmConfig(**values)
            return
        config = SlurmConfig(**values)
        run = SimpleNamespace(machine=SimpleNamespace(num_workers=0))
        # the comment holds the path of the script
        script.write_text(script_text(config, run, ["pretrain", "--data", text], folder / text / "job.sbatch"))
        assert run_script(script, folder)[-2:] == ["--data", text]
        options = directives_of(script)
        for option in ("job-name", "partition", "mem", "account", "qos", "comment"):
            assert f"--{option}={text}" in options
        assert {path.name for path in folder.iterdir()} == {"job.sbatch", "bin", "seen"}


@pytest.mark.parametrize(
    ("line", "message"),
    [("touch marker", "is not an option of sbatch"), ("--comment='a", "No closing quotation"), ("", "")],
)
def test_a_directive_that_is_no_option_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"directives: .*{message}"):
        SlurmConfig(time="10", directives=(line,), command=())


@pytest.mark.parametrize("array", ["5-0", "0-5:0", "0-99999999", "0-" + "9" * 5000, "٣"])
def test_an_array_without_tasks_or_with_too_many_is_refused(array: str) -> None:
    assert main(["launch", "slurm", "--time", "10", "--out", "o", "--array", array, *COMMAND]) == 2
