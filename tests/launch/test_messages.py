"""What is wrong with the arguments is said in a sentence: where it is, and what is expected there."""

import re
import signal
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest
from foundation.training.monitoring.monitor import Monitor
from launch.__main__ import main
from launch.verbs import VERBS
from launch.words import options_of

MESSAGES = {
    "--penalty.weight -1": "penalty.weight (lambda) must be zero or more, not -1.0",
    "--penalty.fisher F": "required: --penalty.weight.",
    "--penalty.wieght 1": "unknown option --penalty.wieght (did you mean --penalty.weight?)",
    "--rehearsal.data D --rehearsal.fraction 0": "rehearsal.fraction is above 0 (nothing) and at most 1 (all), not 0.0",
    "--rehearsal.data D --rehearsal.mode jont": "rehearsal.mode: one of 'joint', 'alternate', 'reference' is "
    "needed, not 'jont' (did you mean joint?)",
    '--freeze [{"a":1}]': "freeze: text, in quotation marks where it looks like a number, is needed",
    "--forgetting.retained [7]": "forgetting.retained: options are needed in place of 7, such as {path: 7}",
    '--forgetting.retained [{"path":"D","spilt":"val"}]': "unknown option 'forgetting.retained.spilt' (did you "
    "mean split?)",
    '--forgetting.retained [{"path":"D"},{"path":"D","split":7}]': "forgetting.retained[1].split: text, in quotation",
    "--adapters.rank many": "adapters.rank: a whole number is needed, not 'many'",
    "--adapters.rank 1.5": "adapters.rank: a whole number is needed, not 1.5",
    "--optim.learning_rate fast": "optim.learning_rate: a number is needed, not 'fast'",
    "--overwrite maybe": "overwrite: true or false is needed, not 'maybe'",
    "--resume never": "fit.resume: true or false or 'auto' is needed, not 'never'",
    "--precision halb": "fit.precision: one of 'float32', 'tf32', 'bf16' is needed, not 'halb'",
    "--pnalty.weight 1": "unknown option --pnalty.weight (did you mean --penalty.weight?)",
    "--rnak 4": "unknown option --rnak (did you mean --adapters.rank?)",
    "--fit.learning_rate 1": "unknown option --fit.learning_rate (did you mean --optim.learning_rate?)",
    "--weight 1": "--weight could be --loss.energy.weight or --loss.forces.weight or",
    "--steps": "--steps has no value",
    "--optim.learning_rate --steps 3": "--optim.learning_rate has no value",
    "--steps 3 4": "'4' belongs to no option",
    "-steps 3": "'-steps': options have two dashes, such as --steps",
    "--seed 3": "--seed could be --fit.seed or --rehearsal.seed: give its full name",
    "--fit 3": "fit: options are needed in place of 3, such as {",
    '--fit {"stpes":3}': "unknown option 'fit.stpes' (did you mean steps?)",
    "--config nowhere.yaml": "--config nowhere.yaml: no such file, nor a configuration of this package; there",
}
RUN = "finetune --start S --data D --out never --fit.steps 1"
NEED_NOTHING = ("quickstart", "engines", "models list", "models verify", "models table")
"""Verbs without required options."""


@pytest.mark.parametrize("options", MESSAGES)
def test_a_mistake_is_answered_by_one_sentence(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), *options.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"foundation: {MESSAGES[options]}")
    assert said.count("\n") == 1
    assert "class" not in said
    assert "Union" not in said


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.split()[0] != "launch" and verb not in NEED_NOTHING])
def test_all_required_options_are_named_at_once_as_one_types_them(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb]) == 2
    said = capsys.readouterr().err
    if verb == "evaluate":  # one of two
        assert "--model NAME or --calculator MODULE:CLASS is needed" in said
        return
    names = re.findall(r"--([\w.]+) \(", said.partition("required: ")[2])
    assert names, said
    known = options_of(VERBS[verb].load().config)
    assert set(names) <= known.keys()


def test_a_word_before_any_option_is_taken_for_the_file_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.xyz").touch()
    assert main(["finetune", "mine.xyz", "--start", "S"]) == 2
    assert "'mine.xyz' stands before any option; did you mean --data mine.xyz?" in capsys.readouterr().err
    assert main(["finetune", "sevennet-0"]) == 2
    assert "'sevennet-0' stands before any option. All options" in capsys.readouterr().err


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
