"""Sweeps: everything is checked first, each run is a process, what fails or is stopped does not cost the others."""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load
from foundation.configuration import changes
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.preemption import PreemptedError
from foundation.training.machine import MachineConfig
from launch.__main__ import main, parse
from launch.command import check
from launch.sweep import SweepConfig, chosen, planned, read_sweep, sweep, with_options

ARGUMENTS = """
--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 4 --fit.lanes 2 --fit.edge_budget 1500 --machine.num_workers 0 --fit.validate_every 4 --fit.log_every 4
--machine.accelerator cpu
""".split()
LONG = "--fit.steps 60 --fit.log_every 1 --fit.validate_every 1000 --fit.checkpoint_every 1000".split()
"""A run of some seconds, so that there is time to stop it, without a checkpoint in between."""


@dataclass
class Sweep:
    """A sweep of small pretraining runs below a folder."""

    folder: Path
    data: Path
    compared: list[Sequence[Path]] = field(default_factory=list)
    """The folders of runs that were compared, of every start."""

    @property
    def out(self) -> Path:
        """The sweep's folder."""
        return self.folder / "sweep"

    def base(self, *options: str) -> PretrainConfig:
        """Return the configuration that the runs have in common."""
        _, config = parse(["pretrain", "--data", str(self.data), "--out", str(self.out), *ARGUMENTS, *options])
        return config

    def start(self, plan: dict[str, Any], *options: str) -> int:
        """Do what a plan says."""
        file = self.folder / "sweep.yaml"
        file.write_text(yaml.safe_dump(plan, sort_keys=False))
        return sweep(self.base(*options), file, "pretrain", parse, lambda runs, out: self.compared.append(runs))

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return the parameters of what a run made."""
        return load(self.out / name / "potential").state_dict()


@pytest.fixture
def small(tmp_path: Path, emt_manifest: Manifest) -> Sweep:
    """A sweep of which nothing is done."""
    return Sweep(tmp_path, emt_manifest.root)


PLAN = {"runs": {"plain": {}, "bold": {"optim.learning_rate": 0.02}, "broken": {"data": "nowhere"}}, "jobs": 3}


@pytest.fixture(scope="module")
def partly_failed(tmp_path_factory: pytest.TempPathFactory, emt_manifest: Manifest) -> tuple[Sweep, int, str]:
    """A sweep of which one run failed, the exit code, and what it said."""
    done, records = Sweep(tmp_path_factory.mktemp("partly"), emt_manifest.root), []
    with pytest.MonkeyPatch.context() as patch:
        for log in ("launch.sweep.log", "launch.jobs.log"):
            patch.setattr(f"{log}.info", lambda text, *values: records.append(text % values))
            patch.setattr(f"{log}.error", lambda text, *values: records.append(text % values))
        code = done.start(PLAN)
    return done, code, "\n".join(records)


@pytest.mark.long
def test_a_run_that_fails_is_reported_with_the_end_of_its_log_and_the_others_go_on(
    partly_failed: tuple[Sweep, int, str],
) -> None:
    done, code, said = partly_failed
    assert code == 1
    assert "broken failed with exit code 2; the end of" in said
    assert "    foundation: nowhere" in said
    assert "2 of 3 runs are finished" in said
    assert done.compared == [[done.out / "plain", done.out / "bold"]]


def test_a_run_is_what_its_own_command_makes(partly_failed: tuple[Sweep, int, str], tmp_path: Path) -> None:
    done, _, _ = partly_failed
    alone = pretrain(
        parse(["pretrain", "--config", str(done.out / "configs" / "bold.yaml"), "--out", str(tmp_path / "alone")])[1]
    )
    found = done.weights("bold")
    assert all(torch.equal(found[name], value) for name, value in alone.state_dict().items())
    record = json.loads((done.out / "bold" / "run.json").read_text())
    asked = yaml.safe_load((done.out / "configs" / "bold.yaml").read_text())
    assert [name for name, (value, _) in changes(asked, record).items() if value is not None] == []
    assert record["optim"]["learning_rate"] == 0.02
    plain = done.weights("plain")
    assert any(not torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.long
def test_the_same_command_does_only_what_is_not_finished(partly_failed: tuple[Sweep, int, str]) -> None:
    done, _, _ = partly_failed
    logs = {name: (done.out / "logs" / f"{name}.log").read_text() for name in ("plain", "bold")}
    repaired = {**PLAN, "runs": {**PLAN["runs"], "broken": {"data": str(done.data)}}}
    assert done.start(repaired) == 0
    assert {name: (done.out / "logs" / f"{name}.log").read_text() for name in logs} == logs
    assert done.compared[-1] == [done.out / name for name in ("plain", "bold", "broken")]


def test_another_configuration_of_a_finished_run_is_refused_with_the_option(
    partly_failed: tuple[Sweep, int, str],
) -> None:
    done, _, _ = partly_failed
    message = (
        r"run bold was finished with another configuration: optim.learning_rate was 0.02 and is 0.01. "
        r"Restore it, give the run another name, or remove .*bold"
    )
    with pytest.raises(ValueError, match=message):
        done.start({"runs": {"new": {}, "bold": {"optim.learning_rate": 0.01}}})
    assert not (done.out / "new").exists()


def test_an_option_that_is_newer_than_a_finished_run_is_no_change(partly_failed: tuple[Sweep, int, str]) -> None:
    done, _, _ = partly_failed
    file = done.out / "bold" / "run.json"
    text = file.read_text()
    record = json.loads(text)
    del record["fit"]["tensorboard"]
    file.write_text(json.dumps(record))
    assert done.start({"runs": {"bold": PLAN["runs"]["bold"]}}) == 0
    file.write_text(text)


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something else is so, or after two minutes."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_stopped_sweep_leaves_checkpoints_and_goes_on_where_it_was(small: Sweep) -> None:
    plan = {"runs": {"long": {}, "next": {"fit.steps": 2}}}
    metrics = small.out / "long" / "logs" / "metrics.jsonl"
    thread = when(
        lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3,
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match="stopped by SIGTERM; the same command goes on"):
        small.start(plan, *LONG)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (small.out / "next").exists()
    (saved,) = (small.out / "long" / "checkpoints").glob("step=*.ckpt")
    assert 0 < int(saved.stem.removeprefix("step=")) < 60
    assert small.start({"runs": {"long": {}}}, *LONG) == 0
    assert f"continuing from {saved}" in (small.out / "logs" / "long.log").read_text()
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 61))


def test_a_second_interrupt_ends_the_runs_at_once(small: Sweep) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = when(lambda: (small.out / "logs" / "plain.log").is_file(), twice)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        small.start({"runs": {"plain": {"fit.steps": 1_000_000}}})
    thread.join()
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"runs": {"good": {}, "bad": {"optim.learnin_rate": 1}}}, "run bad: .*unknown option 'optim.learnin_"),
        ({"runs": {"good": {}, "bad": {"optim": {"rate": 1}}}}, "run bad: .*unknown option 'optim.rate'"),
        ({"runs": {"good": {}, "bad": {"fit.lanes": "two"}}}, "run bad: .*fit.lanes"),
        ({"runs": {"bad": {}}, "grid": {"fit.lanes": [2, 0]}}, "run bad-0: lanes must be at least 1"),
        ({"runs": {"bad": {"out": "elsewhere"}}}, r"sweep.yaml: out cannot differ between runs"),
        ({"runs": {"bad": {"fit.resume": False}}}, "fit.resume cannot differ between runs"),
        ({"runs": {"bad": {"fit.seed": 3}}, "seeds": [1]}, "fit.seed is an option of a run and seeds are given"),
        ({"runs": {"bad": {"fit.lanes": 3}}, "grid": {"fit.lanes": [1]}}, "fit.lanes is in grid and in a run"),
        ({"runs": {"a/b": {}}}, "a run cannot be named 'a/b'"),
        ({"runs": {"configs": {}}}, "a run cannot be named 'configs'"),
        ({"runs": {"a": {}}, "grid": {"fit.steps": [1, "1"]}}, "two runs would be named 'a-1'"),
        ({"runs": {}}, "runs must name at least one run"),
        ({"runs": {"a": {}}, "grid": {"fit.steps": []}}, "each option of grid at least one value"),
        ({"runs": {"a": None}}, "runs must map the name of each run to its options, {} for none"),
        ({"grid": {"fit.steps": 3}}, "grid must map each option to a list of values"),
        ({"seeds": 3}, "seeds must be a list of whole numbers, not 3"),
        ({"seeds": [1], "jobs": 0}, "jobs and threads must be at least 1"),
        ({"seeds": [1], "jobs": "many"}, "jobs and threads must be whole numbers, not 'many'"),
        ({"seeds": [1], "job": 2}, "it cannot have 'job', only runs, grid, seeds, jobs, threads"),
        ({"jobs": 2}, "it must have runs, grid or seeds"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(small: Sweep, plan: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.start(plan)
    assert [path.name for path in small.folder.iterdir()] == ["sweep.yaml"]


def test_a_name_that_stands_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("runs:\n  a: {}\n  b: {}\n  a: {fit.steps: 3}\n")
    with pytest.raises(ValueError, match=r"sweep.yaml, line 4: 'a' occurs twice"):
        read_sweep(tmp_path / "sweep.yaml")


def test_runs_grid_and_seeds_are_combined() -> None:
    plan = SweepConfig(
        runs={"ewc": {"penalty.mode": "ewc"}, "l2": {}},
        grid={"penalty.strength": ["1e5", 0.5], "freeze": [["embedding", "blocks:2"]]},
        seeds=(0, 7),
    )
    found = planned(plan)
    assert list(found)[:4] == [
        "ewc-1e5-embedding_blocks_2-seed0",
        "ewc-1e5-embedding_blocks_2-seed7",
        "ewc-0.5-embedding_blocks_2-seed0",
        "ewc-0.5-embedding_blocks_2-seed7",
    ]
    assert len(found) == 8
    assert found["ewc-0.5-embedding_blocks_2-seed7"] == {
        "penalty.mode": "ewc",
        "penalty.strength": 0.5,
        "freeze": ["embedding", "blocks:2"],
        "fit.seed": 7,
    }


def test_a_name_stands_for_one_run_or_for_an_entry_with_all_its_seeds() -> None:
    plan = SweepConfig(runs={"lora": {}, "lora-rehearsal": {"freeze": ["embedding"]}}, seeds=(0, 1))
    assert chosen(plan, "lora") == {"lora-seed0", "lora-seed1"}
    assert chosen(plan, "lora-rehearsal-seed1") == {"lora-rehearsal-seed1"}
    with pytest.raises(ValueError, match="the sweep has no run 'ewc'; choose from lora-seed0, lora-seed1, lo"):
        chosen(plan, "ewc")


def test_a_run_is_named_only_of_a_sweep() -> None:
    with pytest.raises(ValueError, match="run names a run of a sweep"):
        parse(["finetune", "--start", "s", "--data", "d", "--out", "o", "--fit.steps", "1", "--run", "a"])


def test_a_grid_alone_names_runs_by_its_values() -> None:
    assert list(planned(SweepConfig(grid={"a.b": [1, 2], "c": [None]}))) == ["1-null", "2-null"]


def test_options_reach_into_what_is_not_there_yet_and_mappings_add_to_what_is() -> None:
    base = {"rehearsal": None, "optim": {"rate": 1, "decay": 2}, "rates": {"a": 1}}
    changed = with_options(base, {"rehearsal.data": "x", "rehearsal.ratio": 2, "optim.rate": 3, "rates": {"b.*": 0}})
    assert changed == {
        "rehearsal": {"data": "x", "ratio": 2},
        "optim": {"rate": 3, "decay": 2},
        "rates": {"a": 1, "b.*": 0},
    }
    assert base["rehearsal"] is None
    assert base["optim"]["rate"] == 1
    assert with_options(base, {"optim": None})["optim"] is None


def test_a_sweep_at_which_another_process_is_at_work_is_left_alone(small: Sweep) -> None:
    small.out.mkdir()
    with (small.out / "sweep.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"sweep: this sweep, or one of its runs, is still running"):
            small.start({"runs": {"a": {}}})
    assert [path.name for path in small.out.iterdir()] == ["sweep.lock"]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("run.json", "holds a run, not a sweep"),
        ("a/precious", "a has no run.json, so it is not a run and is not replaced"),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(small: Sweep, there: str, message: str) -> None:
    (small.out / there).parent.mkdir(parents=True)
    (small.out / there).write_text("{}")
    with pytest.raises(FileExistsError, match=message):
        small.start({"runs": {"a": {}}})
    assert [path for path in small.out.rglob("*") if path.is_file()] == [small.out / there]


def test_overwriting_is_refused(small: Sweep) -> None:
    with pytest.raises(ValueError, match="--overwrite with a sweep: it may start more than once"):
        small.start({"runs": {"a": {}}}, "--overwrite", "true")


@pytest.mark.parametrize("machine", [{"devices": 2, "num_nodes": 1}, {"devices": 1, "num_nodes": 2}])
def test_a_sweep_is_launched_as_one_process(machine: dict[str, int]) -> None:
    config = SimpleNamespace(
        sweep=Path("sweep.yaml"),
        overwrite=False,
        fit=SimpleNamespace(resume="auto"),
        machine=MachineConfig(**machine),
    )
    with pytest.raises(ValueError, match="a sweep starts its own processes, so launch it as one process"):
        check(["finetune"], lambda words: ("finetune", config), {})
    config.sweep = None
    assert check(["finetune"], lambda words: ("finetune", config), {}) == (config, [])


@pytest.mark.long
def test_fine_tunings_of_a_sweep_are_compared_by_the_command(
    partly_failed: tuple[Sweep, int, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, _, _ = partly_failed
    base = {
        "start": str(done.out / "plain"),
        "data": str(done.data),
        "out": str(tmp_path / "sweep"),
        "fit": {"steps": 2, "lanes": 1, "edge_budget": 3000, "log_every": 1},
        "machine": {"num_workers": 0, "accelerator": "cpu"},
        "forgetting": {
            "target": [{"path": str(done.data), "split": "val", "name": "near"}],
            "retained": [{"path": str(done.data), "split": "test", "name": "far"}],
        },
    }
    plan = {
        "runs": {
            "vanilla": {},
            "held": {"penalty": {"weight": 1e3}, "rate_factors": {"network.readout.*": 0.5}, "fit.steps": 1},
        },
        "seeds": [3],
        "jobs": 2,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    code = main(["finetune", "--config", str(tmp_path / "base.yaml"), "--sweep", str(tmp_path / "sweep.yaml")])
    logs = "".join(path.read_text() for path in (tmp_path / "sweep" / "logs").iterdir())
    assert code == 0, logs
    found = json.loads((tmp_path / "sweep" / "tradeoff.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["vanilla", "held"]
    assert "not dominated" in capsys.readouterr().out
    record = json.loads((tmp_path / "sweep" / "held-seed3" / "run.json").read_text())
    assert (record["penalty"]["weight"], record["fit"]["seed"], record["sweep"]) == (1e3, 3, None)
