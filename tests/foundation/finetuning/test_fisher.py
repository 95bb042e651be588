"""The Fisher is a mean, survives the disk, is refused where it does not belong, and merges; its verb writes it."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from data_pipeline.building.duplicates import content_key
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.finetuning.fisher import (
    CorruptFisher,
    Fisher,
    FisherConfig,
    compute_fisher,
    diagonal_fisher,
    load,
    merge,
    read,
    save,
)
from foundation.finetuning.penalties import EwcPenalty, PenaltyConfig, scaled_importance
from foundation.finetuning.squared_gradients import squared_gradients
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, TermConfig
from launch.__main__ import main
from tests.foundation.test_plain_data import written

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
LOSS = LossConfig(forces=TermConfig(weight=1.0, kind="huber"))
OTHER_LOSS = LossConfig(forces=TermConfig(weight=2.0, kind="huber"))


def make_potential(manifest: Manifest, config: EquivariantConfig = CONFIG) -> Potential:
    torch.manual_seed(0)
    return new_potential(config, {"EMT": manifest.split("train").statistics}).cast(torch.float64).eval()


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    return make_potential(emt_manifest)


@pytest.fixture(scope="module")
def fisher(emt_manifest: Manifest) -> Fisher:
    """The Fisher of the potential on the validation split; do not write to it."""
    return diagonal_fisher(make_potential(emt_manifest), [Dataset(manifest=emt_manifest, split="val")], LOSS)


def assert_same(found: Fisher, expected: Fisher) -> None:
    for name in ("values", "theta_star"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert sorted(ours) == sorted(theirs)
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)
    assert torch.equal(found.structures, expected.structures)
    facts = ("num_structures", "num_above_threshold", "num_unknown", "loss_threshold", "loss", "data", "weights_sha256")
    assert all(getattr(found, name) == getattr(expected, name) for name in facts)


def test_it_is_the_mean_over_structures_by_name(fisher: Fisher, potential: Potential, emt_manifest: Manifest) -> None:
    dataset = Dataset(manifest=emt_manifest, split="val")
    sums = squared_gradients(potential, [dataset], LOSS).sums
    number = len(Frames(emt_manifest, "val"))
    assert fisher.num_structures == number
    flat = torch.cat([fisher.values[name].flatten() for name, _ in potential.named_parameters()])
    assert torch.equal(flat, sums / number)
    assert all(fisher.values[name].shape == parameter.shape for name, parameter in potential.named_parameters())
    assert all(torch.equal(fisher.theta_star[name], parameter) for name, parameter in potential.named_parameters())
    keys = [content_key(frame) for frame in Frames(emt_manifest, "val")]
    assert fisher.structures.tolist() == sorted(keys)
    assert fisher.data == ({"name": "emt-test", "split": "val", "fingerprint": emt_manifest.fingerprint},)


def test_the_checksum_of_the_weights_is_that_of_the_checkpoint(
    fisher: Fisher, potential: Potential, tmp_path: Path
) -> None:
    checkpoint.save(potential, tmp_path / "potential", {})
    assert fisher.weights_sha256 == checkpoint.describe(tmp_path / "potential").weights_sha256
    assert checkpoint.weights_sha256(checkpoint.load(tmp_path / "potential")) == fisher.weights_sha256


def test_weights_without_a_fisher_are_counted(fisher: Fisher) -> None:
    assert fisher.num_parameters == sum(value.numel() for value in fisher.values.values())
    first, *others = fisher.values
    emptied = replace(fisher, values=fisher.values | {first: torch.zeros_like(fisher.values[first])})
    zeros = sum(int((fisher.values[name] == 0).sum()) for name in others)
    assert emptied.num_unprotected == zeros + fisher.values[first].numel()


def test_a_fisher_without_structures_is_refused(potential: Potential, emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"no structure remains .* above the threshold 1e-12"):
        diagonal_fisher(potential, [Dataset(manifest=emt_manifest, split="val")], LOSS, loss_threshold=1e-12)


def test_it_comes_back_from_the_disk_as_it_was(fisher: Fisher, potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "new" / "fisher.safetensors"
    save(fisher, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert_same(load(path, potential, LOSS), fisher)
    assert_same(read(path), fisher)


def test_it_serves_the_potential_in_another_float_type(fisher: Fisher, potential: Potential) -> None:
    single = potential.cast(torch.float32)
    rounded = replace(fisher, theta_star={name: value.detach().clone() for name, value in single.named_parameters()})
    rounded.check(single.cast(torch.float64), LOSS)


def test_altered_or_foreign_files_are_refused(fisher: Fisher, tmp_path: Path) -> None:
    path = tmp_path / "fisher.safetensors"
    save(fisher, path)
    content = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptFisher, match="differs from its checksum"):
        read(path)
    facts = json.loads(header["facts"]) | {"num_structures": 1}
    safetensors.torch.save_file(tensors, path, metadata=header | {"facts": json.dumps(facts)})
    with pytest.raises(CorruptFisher, match="differs from its checksum"):
        read(path)
    path.write_bytes(content[:100])
    with pytest.raises(CorruptFisher, match="not a Fisher"):
        read(path)
    safetensors.torch.save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(CorruptFisher, match="not a Fisher"):
        read(path)
    with pytest.raises(FileNotFoundError, match="no Fisher there"):
        read(tmp_path / "nowhere")


def test_another_potential_is_refused(
    fisher: Fisher, potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "fisher.safetensors"
    save(fisher, path)
    deeper = make_potential(emt_manifest, replace(CONFIG, num_blocks=2))
    with pytest.raises(ValueError, match=r"fisher\.safetensors: .*the potential has network\.blocks\.1\..* does not"):
        load(path, deeper, LOSS)
    wider = make_potential(emt_manifest, replace(CONFIG, readout_channels=8))
    with pytest.raises(ValueError, match=r"network\.readout.* has shape .* in the Fisher and .* in the potential"):
        load(path, wider, LOSS)
    name = next(iter(fisher.values))
    with torch.no_grad():
        potential.get_parameter(name).view(-1)[0] += 1e-12
    with pytest.raises(ValueError, match=f"the weights {name} differ"):
        load(path, potential, LOSS)


def test_another_loss_is_refused(fisher: Fisher, potential: Potential) -> None:
    with pytest.raises(ValueError, match=r"loss\.forces was .*'weight': 1\.0.* and is .*'weight': 2\.0"):
        fisher.check(potential, OTHER_LOSS)


def test_online_it_is_gamma_times_the_old_one_plus_the_new_one(fisher: Fisher, potential: Potential) -> None:
    moved = {name: value + 1.0 for name, value in fisher.theta_star.items()}
    old = replace(fisher, values={name: value + 2.0 for name, value in fisher.values.items()}, theta_star=moved)
    merged = merge(old, fisher, 0.25)
    for name, value in fisher.values.items():
        torch.testing.assert_close(merged.values[name], 0.25 * (value + 2.0) + value, rtol=1e-14, atol=0.0)
    assert merged.num_structures == 2 * fisher.num_structures
    assert merged.data == fisher.data * 2
    assert torch.equal(merged.structures, fisher.structures)
    merged.check(potential, LOSS)


def test_fishers_that_do_not_go_together_are_not_merged(fisher: Fisher) -> None:
    with pytest.raises(ValueError, match="different losses"):
        merge(replace(fisher, loss=OTHER_LOSS), fisher, 0.5)
    name, *others = fisher.values
    with pytest.raises(ValueError, match=f"different parameters cannot be merged: {name}$"):
        merge(replace(fisher, values={other: fisher.values[other] for other in others}), fisher, 0.5)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match="gamma must be from 0"):
            merge(fisher, fisher, gamma)


def test_a_penalty_takes_what_a_fisher_holds(fisher: Fisher, potential: Potential) -> None:
    relative = scaled_importance(
        fisher.values, PenaltyConfig(weight=2.0, fisher=Path("fisher.safetensors"), normalization="mean")
    )
    penalty = EwcPenalty(potential, relative, fisher.theta_star, weight=2.0)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(1.0)
    # a mean of one over all weights, each moved by one
    assert float(penalty(potential).detach()) == pytest.approx(fisher.num_parameters, rel=1e-12)


def test_the_verb_writes_the_fisher_of_a_saved_potential(
    fisher: Fisher, potential: Potential, emt_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = tmp_path / "potential", tmp_path / "fisher.safetensors"
    checkpoint.save(potential, model, {})
    command = ["fisher", "--model", str(model), "--data", str(emt_manifest.root), "--out", str(out), "--split", "val"]
    with caplog.at_level(logging.INFO):
        assert main([*command, "--loss.forces.weight", "1.0", "--loss.forces.kind", "huber"]) == 0
    assert asdict(read(out).loss) == asdict(LOSS)
    assert_same(load(out, checkpoint.load(model), LOSS), fisher)
    assert f"Fisher over {fisher.num_structures} structures" in caplog.text
    name, part = fisher.most_of_trace()
    total = sum(float(value.sum()) for value in fisher.values.values())
    assert part == pytest.approx(max(float(value.sum()) for value in fisher.values.values()) / total)
    assert f"{100 * part:.1f} % of the trace is on the {fisher.values[name].numel()} of {name}" in caplog.text


@pytest.mark.parametrize("kind", ["file", "files", "glob", "folder"])
def test_the_verb_takes_plain_files_and_keeps_no_copy(
    kind: str,
    fisher: Fisher,
    potential: Potential,
    emt_manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, folder, temporary = list(Frames(emt_manifest, "val")), tmp_path / "frames", tmp_path / "temporary"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    parts = [frames] if kind == "file" else [frames[::2], frames[1::2]]
    files = [written(folder / f"part-{number}.extxyz", part) for number, part in enumerate(parts)]
    words = {"glob": [str(folder / "*.extxyz")], "folder": [str(folder)]}.get(kind, [str(file) for file in files])
    checkpoint.save(potential, tmp_path / "model", {})
    command = ["fisher", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "fisher"), "--theory", "EMT"]
    assert main([*command, "--loss.forces.weight", "1.0", "--loss.forces.kind", "huber", "--data", *words]) == 0
    found = load(tmp_path / "fisher", potential, LOSS)
    assert found.num_structures == fisher.num_structures
    for name, value in fisher.values.items():
        # extxyz has eight decimals
        torch.testing.assert_close(found.values[name], value, rtol=1e-6, atol=1e-12)
    (facts,) = found.data
    assert facts["split"] == "train"
    assert len(facts["fingerprint"]) == len(emt_manifest.fingerprint)
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "temporary", "model", "fisher"}


def test_the_verb_adds_a_previous_fisher(potential: Potential, emt_manifest: Manifest, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    checkpoint.save(potential, first, {})
    with torch.no_grad():
        potential.get_parameter("network.readout.0.weight").mul_(1.1)
    checkpoint.save(potential, second, {})
    command = ["fisher", "--data", str(emt_manifest.root), "--split", "val", "--model"]
    assert main([*command, str(first), "--out", str(tmp_path / "old")]) == 0
    assert main([*command, str(second), "--out", str(tmp_path / "new")]) == 0
    online = ["--out", str(tmp_path / "online"), "--previous", str(tmp_path / "old"), "--gamma", "0.5"]
    assert main([*command, str(second), *online]) == 0
    assert_same(read(tmp_path / "online"), merge(read(tmp_path / "old"), read(tmp_path / "new"), 0.5))
    # it belongs to the newer weights
    load(tmp_path / "online", checkpoint.load(second), read(tmp_path / "new").loss)
    assert main([*command, str(second), "--out", str(tmp_path / "x"), "--gamma", "2"]) == 2


def test_wrong_inputs_of_the_verb_are_named(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "potential"
    checkpoint.save(potential, model, {})
    right = {"--model": str(model), "--data": str(emt_manifest.root), "--out": str(tmp_path / "fisher.safetensors")}
    for wrong, message in (
        ({"--model": str(tmp_path / "nowhere")}, "no potential there"),
        ({"--data": str(tmp_path / "nowhere")}, "no such file"),
        ({"--split": "exam"}, "no split 'exam'"),
        ({"--out": str(tmp_path)}, "--out is the file to write"),
        ({"--max-structures": "0"}, "max_structures must be at least 1"),
        ({"--theory": "PBE"}, "levels of theory are EMT"),
    ):
        options = [word for pair in (right | wrong).items() for word in pair]
        assert main(["fisher", *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "fisher.safetensors").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(
    device: str, potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    checkpoint.save(potential, tmp_path / "model", {})
    config = FisherConfig(model=tmp_path / "model", data=emt_manifest.root, out=tmp_path / "fisher", device=device)
    with pytest.raises(ValueError, match=f"device: torch cannot use '{device}' here"):
        compute_fisher(config)
    assert not config.out.exists()


def test_gamma_without_a_previous_fisher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gamma is the factor of the previous Fisher"):
        FisherConfig(model=tmp_path, data=tmp_path, out=tmp_path / "fisher", gamma=0.5)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("fisher.scale", lambda t: torch.ones(2), "is unknown|is missing"),
        ("structures", lambda t: t.double(), "structures is float64 of shape"),
        ("fisher.network.embedding.weight", lambda t: t.float(), "is float32 of shape"),
        ("theta_star.network.embedding.weight", lambda t: t[1:].clone(), "theta_star.* is float.* of shape"),
        ("fisher.network.embedding.weight", lambda t: t * float("nan"), "NaN or infinite"),
        ("fisher.network.embedding.weight", lambda t: -t - 1, "mean of squares but has a negative number"),
    ],
    ids=["surplus", "keys", "type", "shape", "NaN", "negative"],
)
def test_a_sealed_file_of_other_tensors_is_refused_by_their_name(
    fisher: Fisher, tmp_path: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    path = tmp_path / "fisher.safetensors"
    save(fisher, path)
    with safe_open(path, framework="pt") as file:
        facts, tensors = file.metadata()["facts"], {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    tensors[name] = edit(tensors.get(name, torch.zeros(0)))
    seal = hashlib.sha256(facts.encode() + safetensors.torch.save(tensors)).hexdigest()
    safetensors.torch.save_file(tensors, path, metadata={"facts": facts, "sha256": seal})
    with pytest.raises(CorruptFisher, match=rf"fisher\.safetensors: not a Fisher \(.*({message})"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_structures": True},
        {"num_structures": 0},
        {"num_unknown": -1},
        {"loss_threshold": float("nan")},
        {"loss": {"energy": {"weight": 1}}},
        {"data": "x"},
        {"schema_version": "1"},
        {"surprise": 1},
        {"schema_version": 9},
    ],
    ids=str,
)
def test_facts_of_another_type_are_refused_by_their_name(fisher: Fisher, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "fisher.safetensors"
    save(fisher, path)
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    header["facts"] = json.dumps(json.loads(header["facts"]) | change)
    safetensors.torch.save_file(tensors, path, metadata=header)
    with pytest.raises(CorruptFisher, match=rf"fisher\.safetensors: .*({next(iter(change))}|newer|NaN)"):
        read(path)


def test_of_a_file_with_keys_of_names_no_frames_are_compared(
    fisher: Fisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fisher.safetensors"
    save(fisher, path)
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    facts = json.dumps(json.loads(header["facts"]) | {"schema_version": 1})
    seal = hashlib.sha256(facts.encode() + safetensors.torch.save(tensors)).hexdigest()
    safetensors.torch.save_file(tensors, path, metadata={"facts": facts, "sha256": seal})
    older = read(path)
    assert older.structures.numel() == 0
    assert older.num_structures == fisher.num_structures
    assert "compute it again with `foundation fisher`" in caplog.text


def test_a_file_that_is_no_fisher_is_not_replaced(emt_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "frames.xyz").write_text("mine")
    config = FisherConfig(model=tmp_path / "model", data=emt_manifest.root, out=tmp_path / "frames.xyz")
    with pytest.raises(FileExistsError, match=r"frames.xyz exists and is not a Fisher, so it is not replaced"):
        compute_fisher(config)
    assert (tmp_path / "frames.xyz").read_text() == "mine"
