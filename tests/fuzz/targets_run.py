"""A run folder as a run that goes on and the report of training read it: checkpoints, run.json, metrics.jsonl."""

import dataclasses
import io
import json
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_pipeline.store.shards import sha256
from foundation.configuration import resolved
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig
from foundation.reports.run_report import facts_of, read_run, remarks, summary_table
from foundation.training.fault_tolerance.checkpoints import CheckpointFiles, refuse_changes, refuse_other_backend
from foundation.training.fault_tolerance.reading import newest_checkpoint, read_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.monitoring.metrics_file import MetricsFile, write_csv
from tests.fuzz.harness import Mutation, Target
from tests.fuzz.mutations import damaged_bytes, damaged_files, damaged_json, damaged_text

CONFIG = PretrainConfig(
    data=Path("data"), out=Path("run"), fit=FitConfig(steps=4), model=EquivariantConfig(irreps="4x0e")
)
MARK = "code-of-the-file-ran"


def make_checkpoints(folder: Path) -> None:
    """Write the only checkpoint of a run of four steps."""
    (folder / "checkpoints").mkdir()
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float64)}
    state = {
        "global_step": 4,
        "state_dict": weights,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4)}}, "param_groups": [{"params": [0]}]}],
        "lr_schedulers": [{"last_epoch": 4}],
        "callbacks": {"Guard": {"losses": [1.0] * 4}},
        "config": resolved(CONFIG),
        "backend": "c",
    }
    CheckpointFiles(3).save_checkpoint(state, newest(folder))


def read_checkpoints(folder: Path) -> tuple[int, list]:
    """Return the step of the newest good checkpoint and its weights, as a run that goes on reads them."""
    try:
        checkpoint = newest_checkpoint(folder)
        refuse_changes(checkpoint, CONFIG)
        refuse_other_backend(checkpoint, "c")
        weights = read_checkpoint(checkpoint.path)["state_dict"]
        tensors = [(name, value.double().sum().item()) for name, value in weights.items() if torch.is_tensor(value)]
    finally:
        if (folder / MARK).exists():
            raise RuntimeError("the code in a checkpoint has run")
    return checkpoint.step, tensors


def seal(folder: Path) -> None:
    """Make the checksums right again."""
    for path in (folder / "checkpoints").glob("step=*.ckpt"):
        if path.is_file():
            path.with_name(path.name + ".sha256").write_text(f"{sha256(path)}  {path.name}\n")


def sealed(mutations: Mapping[str, Mutation]) -> dict[str, Mutation]:
    """Return mutations after which the checksums are right again."""

    def one(mutation: Mutation) -> Mutation:
        def edit(place: Path, chance: random.Random) -> str:
            said = mutation.edit(place, chance)
            seal(place)
            return said

        return dataclasses.replace(mutation, edit=edit)

    return {f"{name}, sealed": one(mutation) for name, mutation in mutations.items()}


def newest(place: Path) -> Path:
    """Return the file of the newest checkpoint."""
    return place / "checkpoints" / "step=000000004.ckpt"


def with_pickle(path: Path, change: Any) -> None:
    """Replace the pickle inside a checkpoint by what a function makes of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    path.write_bytes(buffer.getvalue())


def damaged_pickle(place: Path, chance: random.Random) -> str:
    """Change bytes of the pickle, put opcodes into it, or another number in the place of one."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 5, 20])):
            at = chance.randrange(len(changed))
            new = chance.choice(
                [
                    bytes([chance.randrange(256)]),
                    chance.choice([b"R", b"b", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"Q", b"}", b"]", b"(", b"t"]),
                    b"M" + chance.randbytes(2),
                    b"J" + chance.randbytes(4),
                    b"\x8a\x08" + chance.randbytes(8),
                    chance.choice([b"ctorch\nHalfStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n"]),
                    chance.choice([b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n", b"ctorch\nSize\n"]),
                ]
            )
            changed[at : at + chance.choice([0, 1, len(new)])] = new
        return bytes(changed)

    with_pickle(newest(place), change)
    seal(place)
    return f"pickle of {newest(place).name}"


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def hostile(place: Path, chance: random.Random) -> str:
    """Put a pickle in the place of the checkpoint's that would run code, or build what is not backed by its bytes."""
    import builtins
    import os
    import subprocess

    mark = str(place / MARK)
    laugh: Any = ["ha"] * 10
    for _ in range(40):
        laugh = [laugh] * 10
    storage = torch.zeros(2).untyped_storage()
    what = {
        "os.system": _Call(os.system, f"touch {mark}"),
        "subprocess": _Call(subprocess.check_call, ["touch", mark]),
        "open": _Call(builtins.open, mark, "w"),
        "eval": _Call(builtins.eval, f"open({mark!r}, 'w')"),
        "laughs": laugh,
        "deep": None,
        "tensor": _Call(torch._utils._rebuild_tensor_v2, storage, 10**9, (10**6, 10**6), (-1, 5), False, None),
        "bytes": _Call(bytearray, 10**12),
    }
    name = chance.choice(sorted(what))
    data = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"." if name == "deep" else None
    if data is None and name != "tensor":
        data = pickle.dumps({"global_step": 4, "state_dict": what[name]}, protocol=2)
    if data is None:
        torch.save({"global_step": 4, "state_dict": {"a": what[name]}}, newest(place))
    else:
        with_pickle(newest(place), lambda _: data)
    seal(place)
    return name


def make_run(folder: Path) -> None:
    """Write what a run of four steps leaves besides its checkpoints."""
    (folder / "run.json").write_text(json.dumps(resolved(CONFIG), indent=1))
    (folder / "checkpoints").mkdir()
    best = {"file": "step=000000004.ckpt", "step": 4, "by": "val/force_mae", "error": 0.25}
    (folder / "checkpoints" / "best.json").write_text(json.dumps(best))
    metrics = MetricsFile(folder / "logs", 0)
    metrics.append("start", 0, {"processes": 1, "device": "cpu", "peak_flops": 1e11})
    for step in (2, 4):
        speed = {"speed/data_wait": 0.01, "speed/budget_fill": 0.95, "speed/imbalance_seconds": 1.0}
        metrics.append("train", step, {"train/loss": 1.0 / step, "seen/frames": 10.0 * step, **speed})
    errors = {"Cu": {"force_mae": 0.2, "atoms": 5.0}, "Au": {"force_mae": 0.3, "atoms": 7.0}}
    metrics.append("validation", 4, {"val/force_mae": 0.25, "val/by_element": errors})


def read_the_run(folder: Path) -> tuple:
    """Return what the report says of a run, before and after it goes on from its second step."""
    found = []
    for _ in range(2):
        run = read_run(folder)
        facts = facts_of(run)
        found.append((len(run.train), len(run.validation), remarks(facts), summary_table([facts])))
        write_csv(folder / "logs")
        MetricsFile(folder / "logs", 2).append("train", 4, {"train/loss": 0.25})
    return tuple(found)


TARGETS = (
    Target(
        name="checkpoint",
        make=make_checkpoints,
        read=read_checkpoints,
        mutations={
            **damaged_bytes("*.ckpt", expects="any"),
            **sealed(damaged_bytes("*.ckpt")),
            **damaged_bytes("*.sha256"),
            **damaged_files("step=000000004.ckpt", expects="any"),
            **sealed(damaged_files("step=000000004.ckpt", expects="any")),
            "pickle": Mutation(edit=damaged_pickle),
            "hostile pickle": Mutation(edit=hostile),
        },
        refusals=(ValueError, OSError),
        judge=lambda value: None if value[0] == 4 else f"step {value[0]}",
    ),
    Target(
        name="run-folder",
        make=make_run,
        read=read_the_run,
        mutations={
            **damaged_json("run.json"),
            **damaged_json("best.json"),
            **damaged_bytes("*.json*"),
            **damaged_text("metrics.jsonl"),
            **damaged_files("*.json*", expects="any"),
        },
        refusals=(ValueError, OSError),
    ),
)
