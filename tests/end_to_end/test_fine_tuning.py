"""The commands of docs/fine-tuning.md on real data: SevenNet-0, Li6PS5Cl, and a few frames of MPtrj."""

import json
from pathlib import Path

import pytest
from ase.io import read

import foundation
from launch.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_reewc_on_a_solid_electrolyte_learns_it_and_says_what_it_forgot(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOUNDATION_DATA", str(real_data))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    for number, frame in enumerate(read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":60")):
        if len(frame) < 30:
            frame.write(tmp_path / "few.extxyz", append=bool(number))
    few = ["--source.files", f'["{tmp_path}/few.extxyz"]']
    assert (
        main(
            [
                "convert",
                "--from",
                "sevennet",
                "--checkpoint",
                "sevennet-0",
                "--out",
                "runs/sevennet-0",
            ]
        )
        == 0
    )
    assert main(["build", "--config", "configs/data/lpsc.yaml"]) == 0
    assert main(["build", "--config", "configs/data/mptrj-1k-halves.yaml", *few]) == 0
    assert main(["fisher", "--config", "configs/fisher/mptrj-500.yaml"]) == 0
    shorter = ["--fit.steps", "3", "--fit.validate_every", "3", "--fit.log_every", "1", "--optim.warmup_steps", "0"]
    unmeasured = ["--forgetting.transfer", "[]", "--rehearsal.ratio", "0.3"]
    config = ["--config", "configs/finetune/reewc-lpsc-short.yaml"]
    assert main(["finetune", *config, *shorter, *unmeasured]) == 0
    run = tmp_path / "runs" / "finetune" / "reewc-lpsc-short"
    sets = json.loads((run / "forgetting" / "forgetting.json").read_text())["sets"]
    assert sets["600 K"]["change"]["force_mae"]["high"] < -0.03
    assert sets["600 K"]["before"]["softening"]["value"] == pytest.approx(0.844, abs=0.002)
    assert abs(sets["MPtrj"]["change"]["force_mae"]["value"]) < 0.1
    assert foundation.load(run).elements == foundation.load("runs/sevennet-0").elements
