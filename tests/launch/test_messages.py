"""What is wrong with the arguments is said in a sentence: where it is, and what is expected there."""

import signal
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest
from foundation.training.monitoring.monitor import Monitor
from launch.__main__ import main

MESSAGES = {
    "--penalty.weight -1": "penalty.weight (lambda) must be zero or more, not -1.0",
    "--penalty.fisher F": "penalty: the following arguments are required: weight",
    "--penalty.wieght 1": "unknown option 'penalty.wieght'",
    "--rehearsal.data D --rehearsal.fraction 0": "rehearsal.fraction is above 0 (nothing) and at most 1 (all), not 0.0",
    "--rehearsal.data D --rehearsal.mode both": "rehearsal: mode: one of 'joint', 'alternate', 'reference' is needed",
    "--freeze embedding": "freeze: a list is needed, such as [embedding]",
    "--forgetting.retained D": "forgetting.retained: a list is needed, such as [D]",
    "--forgetting.retained [D]": "forgetting.retained: options are needed in place of D, such as {path: D}",
    "--adapters.rank many": "adapters: rank: a value of type int is needed. Got value: many",
    "--pnalty.weight 1": "unrecognized arguments: --pnalty.weight 1",
    "--config nowhere.yaml": "config: File does not exist:",
}


@pytest.mark.parametrize("options", MESSAGES)
def test_a_mistake_is_answered_by_one_sentence(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = "finetune --start S --data D --out never --fit.steps 1"
    assert main([*run.split(), *options.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"foundation: {MESSAGES[options]}")
    assert said.count("\n") == 1
    assert "class" not in said


def test_ctrl_c_in_training_says_how_to_go_on(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(monitor: Monitor, *args: object) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Monitor, "on_train_batch_end", interrupted)
    run = ["pretrain", "--data", str(emt_manifest.root), "--out", str(tmp_path / "run"), "--machine.accelerator", "cpu"]
    small = ["--model.irreps", "4x0e+2x1e", "--model.num_blocks", "1", "--fit.steps", "2", "--fit.log_every", "1"]
    try:
        assert main([*run, *small, "--machine.num_workers", "0", "--fit.lanes", "1"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has it ignored from then on
    assert capsys.readouterr().err.splitlines()[-1] == "foundation: interrupted; continue with --fit.resume true"


PROVENANCE = "name licence level_of_theory energy_convention citation source".split()
WRITERS = {
    "build": ["build", "--source.num_frames", "3", *(w for n in PROVENANCE for w in (f"--provenance.{n}", "x"))],
    "merge": ["merge", "--manifests", "[{data},{data}]", "--name", "both"],
    "pretrain": ["pretrain", "--data", "{data}", "--model.irreps", "4x0e", "--fit.steps", "1"],
    "fisher": ["fisher", "--model", "nowhere", "--data", "{data}"],
    "export": ["export", "--run", "nowhere"],
    "convert": ["convert", "--to", "sevennet", "--model", "nowhere"],
}


@pytest.mark.parametrize("out", [".", "..", "/", "", "file", "file/inside", "/proc/nothing", "x" * 300, "a\0b"])
@pytest.mark.parametrize("verb", WRITERS)
def test_an_odd_place_to_write_to_is_refused_with_a_sentence_and_leaves_nothing(
    verb: str,
    out: str,
    emt_manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    words = [word.format(data=emt_manifest.root) for word in WRITERS[verb]]
    assert main([*words, "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith("foundation: ")
    assert "has an empty name" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"
