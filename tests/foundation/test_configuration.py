"""Every option of a run says whether a run may go on with another value of it."""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foundation.configuration import COMPARED, DECIDES, MAY_CHANGE, deciding_changes, marks, resolved
from foundation.datasets import DatasetConfig
from foundation.finetune import FinetuneConfig
from foundation.finetuning.penalties import PenaltyConfig
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig
from foundation.training.fault_tolerance.guard import GuardConfig
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig, with_machine

FIT = FitConfig(steps=8)
PRETRAIN = PretrainConfig(data=Path("data"), out=Path("run"), fit=FIT, model=EquivariantConfig(irreps="4x0e"))
FINETUNE = FinetuneConfig(start=Path("start"), data=Path("data"), out=Path("run"), fit=FIT)


def test_a_class_without_marks_in_a_marked_field_is_an_option_as_a_whole() -> None:
    found = marks(FinetuneConfig)
    assert found["suites.spheres"] == MAY_CHANGE
    assert not [name for name in found if name.startswith("suites.spheres.")]


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
def test_every_option_is_marked_where_it_is_declared(config_class: type) -> None:
    found = marks(config_class)
    assert not [name for name, mark in found.items() if mark not in (DECIDES, COMPARED, MAY_CHANGE)]
    assert {"fit.steps", "fit.guard.spike_factor", "loss.energy.weight", "optim.betas", "data.path"} <= found.keys()


def test_an_option_without_a_mark_is_found_wherever_it_is() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        marked: int = field(default=1, metadata=DECIDES)
        forgotten: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Other:
        also_forgotten: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)
        maybe: Inner | None = field(default=None, metadata=DECIDES)
        unmarked: tuple[Inner, ...] = ()
        either: Inner | Other = field(default_factory=Inner)

    Outer.__annotations__ = {"inner": Inner, "maybe": Inner | None, "unmarked": tuple[Inner, ...]}
    Outer.__annotations__ |= {"either": Inner | Other}
    assert [name for name, mark in marks(Outer).items() if mark is None] == [
        "inner.forgotten",
        "maybe.forgotten",
        "unmarked",
        "unmarked.forgotten",
        "either.forgotten",
        "either.also_forgotten",
    ]


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"precision": "bf16"}, "fit.precision was float32 and is bf16"),
        ({"radial_table": 256}, "fit.radial_table was 0 and is 256"),
        ({"recompute": True}, "fit.recompute was False and is True"),
        ({"guard": GuardConfig(spike_factor=50.0)}, "fit.guard.spike_factor was 100.0 and is 50.0"),
    ],
)
def test_what_decides_a_step_is_named_with_what_it_was(fit: dict, message: str) -> None:
    changed = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, **fit))
    assert deciding_changes(resolved(PRETRAIN), changed) == [message]


def test_what_does_not_may_change() -> None:
    fit = dataclasses.replace(
        FIT,
        log_every=3,
        validate_every=7,
        checkpoint_every=2,
        keep_checkpoints=9,
        tensorboard=True,
        resume="auto",
        guard=GuardConfig(stall_after=5.0, save_errors="continue", then="stop"),
    )
    machine = MachineConfig(num_workers=0, devices=2, strategy="zero-1", accelerator="cpu")
    changed = dataclasses.replace(PRETRAIN, fit=fit, machine=machine, out=Path("moved"))
    assert deciding_changes(resolved(PRETRAIN), changed) == []


def test_what_is_compared_by_what_it_comes_to_is_left_to_that() -> None:
    data = (DatasetConfig(path=Path("moved"), repeat=2.0),)
    fit = dataclasses.replace(FIT, seed=1, lanes=4, backend="torch")
    assert deciding_changes(resolved(PRETRAIN), dataclasses.replace(PRETRAIN, data=data, fit=fit)) == []


def test_a_part_that_is_added_or_left_out_decides_even_with_every_default() -> None:
    rehearsing = dataclasses.replace(FINETUNE, rehearsal=RehearsalConfig(data=Path("old")))
    assert deciding_changes(resolved(FINETUNE), rehearsing) == ["rehearsal was None and is set"]
    assert "rehearsal.ratio was 1.0 and is None" in deciding_changes(resolved(rehearsing), FINETUNE)
    held = dataclasses.replace(FINETUNE, penalty=PenaltyConfig(weight=1.0), rate_factors={"embedding": 0.1})
    found = deciding_changes(resolved(FINETUNE), held)
    assert {"penalty.weight was None and is 1.0", "rate_factors.embedding was None and is 0.1"} <= set(found)


def test_an_option_that_the_record_does_not_know_was_its_default_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    older = resolved(PRETRAIN)
    del older["fit"]["recompute"]
    older["fit"]["forgotten_option"] = 3
    assert deciding_changes(older, PRETRAIN) == []
    assert "fit.recompute (False now, the default)" in caplog.text
    assert "fit.forgotten_option (3, an option that no longer exists)" in caplog.text
    recomputing = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, recompute=True))
    assert deciding_changes(older, recomputing) == ["fit.recompute was None and is True"]


def test_a_value_is_shown_abbreviated() -> None:
    huge = json.loads(json.dumps(resolved(PRETRAIN)))
    huge["fit"]["precision"] = "x" * 100_000
    (message,) = deciding_changes(huge, PRETRAIN)
    assert len(message) < 300


def test_a_record_with_the_machine_in_the_section_of_the_loop_is_read_as_one_with_a_section_of_its_own() -> None:
    now = resolved(dataclasses.replace(PRETRAIN, machine=MachineConfig(devices=2, num_workers=0)))
    older = {**now, "fit": now["fit"] | now["machine"]}
    del older["machine"]
    assert with_machine(older) == now
    assert with_machine(now) == now
    assert with_machine({"fit": {"steps": 8}}) == {"fit": {"steps": 8}}
    assert with_machine({"fit": 3}) == {"fit": 3}
