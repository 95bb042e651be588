"""Pre-flight: a good run passes, each thing that would make one fail is seen, and nothing is written where it runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import Oversize
from data_pipeline.loading.stream import Stream
from data_pipeline.store.manifest import Manifest, open_manifest
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig
from foundation.training.probe import Measured, Trial
from launch.__main__ import main
from launch.checks import (
    Batches,
    check_batches,
    check_cutoff,
    check_files,
    check_folder,
    check_strategy,
    kinds_of,
    ladder_of,
    sample,
)
from launch.estimate import (
    Line,
    Workload,
    check_kinds,
    check_memory,
    check_time,
    duration,
    memory_line,
    time_line,
)
from launch.slurm import seconds_of

ARGUMENTS = """
--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 8 --fit.lanes 2 --fit.edge_budget 1500 --machine.num_workers 1 --fit.validate_every 3
--fit.checkpoint_every 2 --machine.accelerator cpu
""".split()


MODEL = EquivariantConfig(irreps="4x0e")


def checked(data: Path, folder: Path, *arguments: str) -> tuple[int, dict[str, dict], dict[str, float]]:
    """Run preflight from the command line; return exit code, checks by name and numbers."""
    file = folder / "report.json"
    options = ["--data", str(data), "--out", str(folder / "runs" / "run"), "--report", str(file)]
    code = main(["preflight", "pretrain", *options, *ARGUMENTS, *arguments])
    report = json.loads(file.read_text())
    assert report["exit_code"] == code
    return code, {check["name"]: check for check in report["checks"]}, report["numbers"]


@pytest.fixture
def copied(emt_manifest: Manifest, tmp_path: Path) -> Path:
    """A copy of the data set that may be damaged."""
    return shutil.copytree(emt_manifest.root, tmp_path / "data")


def failed(checks: dict[str, dict]) -> list[str]:
    return [name for name, check in checks.items() if check["verdict"] == "fail"]


def test_a_good_run_passes_and_is_estimated(
    emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in emt_manifest.root.iterdir()}
    (tmp_path / "runs").mkdir()
    arguments = ("--price", "2.5", "--time_limit", "1:00:00", "--verify", "true")
    code, checks, numbers = checked(emt_manifest.root, tmp_path, *arguments)
    assert code == 0
    assert failed(checks) == []
    assert "every file has its checksum" in checks["shards of emt-test"]["finding"]
    assert checks["lanes"]["finding"].endswith("also possible: 1, 2")
    assert "one process" in checks["all-reduce"]["finding"]
    assert "within 1:00:00" in checks["time limit"]["finding"]
    train = emt_manifest.split("train").statistics
    assert numbers["frames"] == pytest.approx(numbers["passes"] * train.num_frames)
    assert numbers["atoms"] == pytest.approx(numbers["passes"] * train.num_atoms)
    assert 1500 < numbers["edges_per_step"] <= 2 * 1500
    assert numbers["hours"] >= 8 * numbers["seconds_per_step"] / 3600 > 0
    assert numbers["cost"] == pytest.approx(2.5 * numbers["device_hours"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 fail" in printed
    assert list((tmp_path / "runs").iterdir()) == [], "the run will write there, preflight must not"
    assert {path: path.stat().st_mtime_ns for path in emt_manifest.root.iterdir()} == before


@pytest.mark.long
def test_two_processes_measure_their_all_reduce(emt_manifest: Manifest, tmp_path: Path) -> None:
    code, checks, numbers = checked(emt_manifest.root, tmp_path, "--machine.devices", "2")
    assert code == 0
    assert "over 2 processes" in checks["all-reduce"]["finding"]
    assert 0 < numbers["reduce_seconds"] < numbers["seconds_per_step"]


def test_a_run_folder_that_is_there_or_cannot_be_resumed_fails(emt_manifest: Manifest, tmp_path: Path) -> None:
    config = PretrainConfig(data=emt_manifest.root, out=tmp_path / "run", fit=FitConfig(steps=1), model=MODEL)
    assert check_folder(config).verdict == "ok"
    resumed = dataclasses.replace(config, fit=FitConfig(steps=1, resume=True))
    assert check_folder(resumed).verdict == "fail"
    (tmp_path / "run").mkdir()
    check = check_folder(config)
    assert check.verdict == "fail"
    assert "--fit.resume true" in check.advice
    assert check_folder(dataclasses.replace(config, overwrite=True)).verdict == "ok"


def test_a_strategy_for_several_processes_fails_for_one(emt_manifest: Manifest, tmp_path: Path) -> None:
    config = PretrainConfig(data=emt_manifest.root, out=tmp_path / "run", fit=FitConfig(steps=1), model=MODEL)
    assert check_strategy(config.machine, config.optim).verdict == "ok"
    assert check_strategy(MachineConfig(strategy="zero-1"), config.optim).verdict == "fail"
    muon = OptimConfig(optimizer="muon")
    check = check_strategy(MachineConfig(strategy="zero-1", devices=2), muon)
    assert check.verdict == "fail"
    assert "use adamw, or ddp" in check.finding


def test_lanes_that_the_processes_do_not_divide_are_refused_with_the_sizes_that_do(
    emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(emt_manifest.root), "--out", str(tmp_path / "run"), *ARGUMENTS, "--machine.num_nodes", "3"]
    assert main(["preflight", "pretrain", *options]) == 2
    assert "2 lanes cannot be shared by 3 processes; use one of [1, 2]" in capsys.readouterr().err


def test_an_unknown_key_is_refused_by_its_dotted_path(
    emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {emt_manifest.root}\nout: {tmp_path / 'run'}\nfit:\n  steps: 8\n  edge_budgets: 9\n")
    assert main(["preflight", "pretrain", "--config", str(file)]) == 2
    assert "edge_budgets" in capsys.readouterr().err


def test_missing_data_fail_and_the_rest_is_estimated(tmp_path: Path) -> None:
    code, checks, numbers = checked(tmp_path / "nothing", tmp_path, "--edges_per_second", "1e6")
    assert code == 2
    assert failed(checks) == ["data"]
    assert "no such file or folder" in checks["data"]["finding"]
    assert numbers["steps"] == 8
    assert numbers["seconds_per_step"] == pytest.approx(2 * 0.99 * 1500 / 1e6)


def test_data_without_labels_fail(copied: Path, tmp_path: Path) -> None:
    manifest = open_manifest(copied)
    bare = dataclasses.replace(manifest, build_config={"source": {"labels": "none"}})
    (copied / "manifest.json").write_text(bare.to_text())
    code, checks, _ = checked(copied, tmp_path)
    assert code == 2
    assert checks["data"]["verdict"] == "fail"
    assert "was built without labels" in checks["data"]["finding"]


def test_a_missing_shard_fails(copied: Path) -> None:
    shard = next(copied.glob("train*.tar"))
    shard.unlink()
    check = check_files(Dataset(manifest=open_manifest(copied)), verify=False, quarantine=False)
    assert check.verdict == "fail"
    assert shard.name in check.finding


def test_a_shard_of_another_size_fails(copied: Path) -> None:
    shard = next(copied.glob("val*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    check = check_files(Dataset(manifest=open_manifest(copied)), verify=False, quarantine=False)
    assert check.verdict == "fail"
    assert shard.name in check.finding


@pytest.mark.parametrize(("quarantine", "verdict"), [(False, "fail"), (True, "warn")])
def test_a_corrupt_block_fails_unless_it_may_be_left_out(quarantine: bool, verdict: str, copied: Path) -> None:
    manifest = open_manifest(copied)
    blocks = manifest.index("train").blocks
    shard = manifest.shard_paths("train")[0]
    content = bytearray(shard.read_bytes())
    content[int(blocks.offset[-1]) + 100] ^= 255
    shard.write_bytes(bytes(content))
    check = check_files(Dataset(manifest=manifest), verify=False, quarantine=quarantine)
    assert check.verdict == verdict
    assert "checksum" in check.finding


def test_what_no_block_holds_is_seen_when_every_file_is_verified(copied: Path) -> None:
    index = next(copied.glob("test.index.*"))
    index.write_bytes(index.read_bytes() + b"x")
    dataset = Dataset(manifest=open_manifest(copied))
    assert check_files(dataset, verify=False, quarantine=False).verdict == "ok"
    assert check_files(dataset, verify=True, quarantine=False).verdict == "fail"


def test_a_cutoff_that_was_not_counted_fails(emt_manifest: Manifest) -> None:
    dataset = Dataset(manifest=emt_manifest)
    assert check_cutoff(dataset, 5.0).verdict == "ok"
    check = check_cutoff(dataset, 4.6)
    assert check.verdict == "fail"
    assert "not at 4.6 Å" in check.finding


@pytest.mark.long
def test_a_budget_smaller_than_a_structure_fails_and_the_rest_is_estimated(
    emt_manifest: Manifest, tmp_path: Path
) -> None:
    code, checks, numbers = checked(emt_manifest.root, tmp_path, "--fit.edge_budget", "100")
    assert code == 2
    assert failed(checks) == ["edge budget"]
    assert "structures are larger than the budget" in checks["edge budget"]["finding"]
    assert numbers["hours"] > 0


@pytest.mark.parametrize(("oversize", "words"), [("alone", "micro-batch of its own"), ("skip", "left out")])
def test_structures_that_are_too_large_are_counted(oversize: Oversize, words: str, emt_manifest: Manifest) -> None:
    index = emt_manifest.index("train")
    edges = index.counts(0, index.num_frames)[1][:, 0]
    fit = FitConfig(steps=1, lanes=2, edge_budget=int(np.median(edges)), oversize=oversize)
    stream = Stream(
        [Dataset(manifest=emt_manifest)], cutoff=5.0, lanes=2, edge_budget=fit.edge_budget, oversize=fit.oversize
    )
    budget, structures, _ = check_batches(fit, 1, stream.plan, sample(stream))
    assert budget.finding.startswith(f"{(edges > fit.edge_budget).sum()} structures are larger")
    assert words in budget.finding
    assert structures.verdict == "warn"


@pytest.mark.long
def test_warnings_matter_when_asked(emt_manifest: Manifest, tmp_path: Path) -> None:
    options = ("--fit.edge_budget", "700", "--fit.oversize", "alone")
    code, checks, _ = checked(emt_manifest.root, tmp_path, *options, "--strict", "true")
    assert code == 1
    assert checks["micro-batches"]["verdict"] == "warn"


def test_too_little_memory_or_disk_fails(emt_manifest: Manifest, tmp_path: Path) -> None:
    code, checks, _ = checked(emt_manifest.root, tmp_path, "--memory", "0.01", "--free_disk", "1e-6")
    assert code == 2
    assert failed(checks) == ["memory", "disk"]


def test_a_run_longer_than_its_job_is_a_warning() -> None:
    assert check_time(1.9, "2:00:00").verdict == "ok"
    check = check_time(5.0, "2:00:00")
    assert check.verdict == "warn"
    assert "3 jobs of 2:00:00" in check.finding


def test_the_largest_budget_leaves_a_margin() -> None:
    fit = FitConfig(steps=1, lanes=1, edge_budget=100_000)
    memory = Line(fixed=1e9, slope=1e5, at=(10_000, 100_000))
    check = check_memory(memory, 100_000, fit, 1e11, here=True)
    assert check.verdict == "ok"
    assert check.advice.endswith("is 840,000")
    assert check_memory(memory, 100_000, fit, 1.15e10, here=True).verdict == "warn"
    assert check_memory(memory, 100_000, fit, 1.0e10, here=True).verdict == "fail"


def test_a_run_takes_its_steps_validations_and_checkpoints() -> None:
    fit = FitConfig(steps=100, lanes=4, edge_budget=1000, validate_every=50, checkpoint_every=25)
    machine = MachineConfig(devices=2)
    trials = tuple(
        Trial(name="", num_graphs=1, num_atoms=1, num_edges=n, seconds=0.5 + 0.01 * n, peak=n) for n in (500, 1000)
    )
    one = measured(trials)
    work = Workload(mean_edges=1000.0, largest=1000, unevenness=1.1, validation_edges=6000)
    run = duration(fit, machine, [one, one], work, None)
    assert run.step == pytest.approx(2 * 10.5 * 1.1 + 0.25 + 0.125)
    assert run.total == pytest.approx(100 * run.step + 2 * 3 * 10.5 / 5 + 4 * 2.0)
    assert duration(fit, machine, [one, one], work, 4000.0).step == pytest.approx(2 * 0.25 * 1.1 + 0.125)


def test_a_gpu_run_is_checked_without_a_gpu(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, checks, _ = checked(emt_manifest.root, tmp_path, "--machine.accelerator", "gpu")
    assert code == 0
    assert [checks[name]["verdict"] for name in ("devices", "memory", "time")] == ["warn"] * 3
    assert "this machine's CPU" in checks["time"]["finding"]


def measured(ladder: tuple[Trial, ...], kinds: tuple[Trial, ...] = ()) -> Measured:
    return Measured(
        convolution="c",
        num_parameters=10,
        gradient_bytes=40,
        ladder=ladder,
        kinds=kinds,
        optimizer_seconds=0.25,
        inference_seconds=ladder[-1].seconds / 5,
        prepare_seconds=0.1,
        reduce_seconds=0.125,
        checkpoint_bytes=160,
        checkpoint_seconds=2.0,
    )


@pytest.mark.long
def test_a_loss_beyond_all_numbers_fails(emt_manifest: Manifest, tmp_path: Path) -> None:
    code, checks, _ = checked(emt_manifest.root, tmp_path, "--loss.forces.weight", "1e300")
    assert code == 2
    assert failed(checks) == ["forward and backward"]
    assert "is not finite" in checks["forward and backward"]["finding"]


def test_a_gradient_that_is_not_finite_is_seen() -> None:
    good = Trial(name="", num_graphs=1, num_atoms=2, num_edges=30, seconds=1.0, peak=1)
    bad = dataclasses.replace(good, name="smallest", trouble="the gradient is not finite")
    assert check_kinds([measured((good,), (good,))]).verdict == "ok"
    check = check_kinds([measured((good,)), measured((good,), (bad,))])
    assert check.verdict == "fail"
    assert "smallest (30 edges): the gradient is not finite" in check.finding


def test_lines_go_through_what_was_measured() -> None:
    trials = [
        Trial(name="", num_graphs=1, num_atoms=1, num_edges=n, seconds=2.0 + 3 * n, peak=100 + 7 * n) for n in (1, 2, 4)
    ]
    seconds, memory = time_line(measured(tuple(trials))), memory_line(measured(tuple(trials)))
    assert (seconds.fixed, seconds.slope) == pytest.approx((2, 3))
    assert memory(10) == pytest.approx(170)
    level, falling = Line.through([10, 20], [5.0, 5.0]), Line.through([10, 20], [1.0, 3.0])
    assert (level.fixed, level.slope) == pytest.approx((5.0, 0.0), abs=1e-12)
    # less than nothing at no edges is not measured
    assert falling.fixed == 0


def test_memory_of_one_size_is_a_line_with_a_larger_one_or_a_guess() -> None:
    fit = FitConfig(steps=1, lanes=1, edge_budget=20_000)
    trial = Trial(name="", num_graphs=1, num_atoms=416, num_edges=20_000, seconds=1.0, peak=3 * 10**9)
    twice = dataclasses.replace(trial, num_edges=40_000, peak=5 * 10**9)
    line = memory_line(dataclasses.replace(measured((trial,)), beyond=twice))
    assert (line.fixed, line.slope) == pytest.approx((1e9, 1e5))
    check = check_memory(line, 25_000, fit, 1e11, here=True)
    assert check.verdict == "ok"
    assert "fitted at 20,000, 40,000 edges" in check.finding
    assert f"{3.5e9 / 2**30:.2f} of 93.1 GiB for the largest micro-batch of 25,000 edges" in check.finding
    for beyond in (None, dataclasses.replace(twice, trouble="out of memory")):
        line = memory_line(dataclasses.replace(measured((trial,)), beyond=beyond))
        check = check_memory(line, 25_000, fit, 1e11, here=True)
        assert check.verdict == "warn"
        assert "a guess from 20,000 edges, the only size measured" in check.finding
        assert f"{3.75e9 / 2**30:.2f} of 93.1 GiB" in check.finding


def test_rehearsal_and_its_labels_take_time() -> None:
    fit, machine = FitConfig(steps=100, lanes=2, edge_budget=1000), MachineConfig()
    trial = Trial(name="", num_graphs=1, num_atoms=1, num_edges=1000, seconds=10.0, peak=1)
    one, own = measured((trial,)), Workload(mean_edges=1000.0, largest=1000, unevenness=1.0, validation_edges=0)
    alone = duration(fit, machine, [one], own, None).step
    more = duration(fit, machine, [one], dataclasses.replace(own, work=2.5, relabelled=1.5), None).step
    assert more - alone == pytest.approx(2 * 10.0 * (1.5 + 1.5 / 5))


def batches(edges: list[list[int]]) -> Batches:
    """Micro-batches of given frames' edges, one step of as many lanes."""
    sizes = [len(some) for some in edges]
    flat = np.array([edge for some in edges for edge in some], dtype=np.int64)
    table = np.array([[sum(some) for some in edges]], dtype=np.int64)
    return Batches(
        frames=np.arange(len(flat)),
        frame_edges=flat,
        ends=np.cumsum([0, *sizes]),
        edges=table,
        atoms=table,
        graphs=np.array([sizes], dtype=np.int64),
        largest_frame=99,
        largest_frame_edges=int(flat.max()),
    )


def test_kinds_are_the_extremes_each_once(emt_manifest: Manifest) -> None:
    some = batches([[5, 5], [1, 1, 1], [30], [4]])
    kinds = kinds_of(some, [Dataset(manifest=open_manifest(emt_manifest.root))])
    assert {name: frames.tolist() for name, frames in kinds.items()} == {
        "smallest, most structures": [2, 3, 4],
        "most atoms, most edges": [5],
    }
    assert some.unevenness(2) == pytest.approx(34 / 23.5)


def test_the_ladder_grows_to_the_size_asked_for() -> None:
    some = batches([[10] * 10, [10] * 10])
    assert [len(frames) for frames in ladder_of(some, 80)] == [2, 4, 8]
    assert some.cut(np.arange(10), 35).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("24:00:00", 86400), ("2-12", 216000), ("1-00:30:00", 88200)],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_what_is_no_time_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="write it as minutes"):
        seconds_of("a day")
