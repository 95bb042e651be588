"""The script for a machine with a GPU, with tiny sizes: it has to run where nobody can try it twice."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu


def test_it_runs_and_writes_its_numbers(tmp_path: Path) -> None:
    out = tmp_path / "new" / "gpu.json"
    assert gpu.main(["--device", "cpu", "--out", str(out), "--sections", "self-check", "rates"]) == 0
    content = json.loads(out.read_text())
    assert content["device"].startswith("CPU")
    assert [section["outcome"] for section in content["sections"]] == ["ok", "ok"]
    assert content["sections"][1]["numbers"]["copy [TB/s]"] > 0


def test_a_section_that_fails_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: gpu.Run) -> dict[str, float]:
        raise ValueError("no such thing")

    out = tmp_path / "gpu.json"
    monkeypatch.setitem(gpu.SECTIONS, "self-check", failing)
    assert gpu.main(["--device", "cpu", "--out", str(out), "--sections", "self-check", "rates"]) == 1
    outcomes = [section["outcome"] for section in json.loads(out.read_text())["sections"]]
    assert outcomes == ["ValueError: no such thing", "ok"]


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--out", str(out), "--seconds", "0"]) == 1
    outcomes = [section["outcome"] for section in json.loads(out.read_text())["sections"]]
    assert outcomes == ["not run: no time left"] * len(gpu.SECTIONS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch finds no CUDA device here; --device cpu" in capsys.readouterr().err


def test_the_crystals_have_the_edges_that_are_asked_for() -> None:
    structure = gpu.crystal(2)
    assert structure.num_atoms == 32
    batch = gpu.collate([structure], gpu.SEVENNET_0.cutoff)
    assert 50 < batch.num_edges / structure.num_atoms < 58
