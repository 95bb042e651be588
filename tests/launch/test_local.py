"""What cannot work is refused before a process is started; the rest is in tests/cluster."""

from pathlib import Path

import pytest

from launch.__main__ import main

COMMAND = [
    "--",
    "pretrain",
    "--data",
    "data",
    "--out",
    "run",
    "--fit.steps",
    "10",
    "--fit.lanes",
    "8",
    "--model.irreps",
    "4x0e",
]


@pytest.mark.parametrize(
    ("options", "command", "message"),
    [
        ("--processes 3", COMMAND, "8 lanes cannot be shared by 3 processes"),
        ("--processes 0", COMMAND, "processes must be at least 1"),
        ("--processes 2 --max-restarts -1", COMMAND, "max_restarts at least 0"),
        ("--processes 2", [], "no command: put it after --"),
        ("--processes 2", ["--", "launch", "local"], "`launch` does not train"),
    ],
)
def test_what_cannot_work_is_refused(
    options: str,
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "local", *options.split(), *command]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
