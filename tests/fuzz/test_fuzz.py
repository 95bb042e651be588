"""A share of the fuzzer's cases, the same every time; `make fuzz` runs others for as long as one likes."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.fuzz.__main__ import targets

CASES = 10
"""Cases of each target: a run of a minute finds what a mended kind of fault lets through again."""
MENDING = ("copies of remote data", "unfinished build")
"""Targets that get again what is damaged, instead of refusing it."""


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Outcomes of all targets, from one process that forks for each case."""
    report = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert report.exists(), done.stdout + done.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize("target", sorted(targets()))
def test_a_damaged_file_is_read_right_or_refused_by_name(target: str, outcomes: list[dict]) -> None:
    own = [outcome for outcome in outcomes if outcome["target"] == target]
    failed = [f"case {o['case']}, {o['change']}:\n{o['detail']}" for o in own if o["verdict"] == "failed"]
    assert not failed, "\n\n".join(failed)
    if target not in MENDING:
        assert Counter(outcome["verdict"] for outcome in own)["refused"] >= CASES // 6
