"""The quickstart, shortened, and the tables that it prints."""

from pathlib import Path

import pytest

from launch.__main__ import main

SHORTER = """--build.source.num_frames 60 --pretrain.fit.steps 4 --pretrain.fit.validate_every 2
    --pretrain.fit.checkpoint_every 2 --pretrain.fit.log_every 1""".split()


def test_the_quickstart_makes_all_that_it_promises_and_can_be_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["quickstart", *SHORTER]
    assert main(command) == 0
    run = tmp_path / "runs" / "quickstart"
    for name in ("evaluation.json", "parity.png", "index.html"):
        assert (run / "report" / name).stat().st_size > 0
    assert (run / "release" / "SHA256SUMS").is_file()
    assert list((run / "logs").rglob("metrics.csv"))
    printed = capsys.readouterr().out
    for words in ("(composition)", "eV before", 'foundation.Calculator("runs/quickstart/release")', "atoms.calc ="):
        assert words in printed
    assert main(command) == 0


def test_inspect_verifies_checksums_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = ("name", "licence", "level_of_theory", "energy_convention", "citation", "source")
    provenance = [word for fact in facts for word in (f"--provenance.{fact}", "a fact")]
    assert main(["build", "--source.num_frames", "12", "--out", "data", *provenance]) == 0
    assert main(["inspect", "--data", "data", "--verify", "true"]) == 0
    assert "every file has its checksum" in capsys.readouterr().out
    shard = next(Path("data").glob("*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[2000] ^= 1
    shard.write_bytes(bytes(damaged))
    assert main(["inspect", "--data", "data", "--verify", "true"]) == 2
    assert shard.name in capsys.readouterr().err
