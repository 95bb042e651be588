"""Held-out errors frame by frame, against numpy and by hand; their files; what is refused."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from data_pipeline.manifest import Manifest
from data_pipeline.stream import Dataset
from foundation.evaluation.errors import Errors, compute_errors
from foundation.finetuning.forgetting import (
    ForgettingConfig,
    HeldOut,
    HeldOutConfig,
    Measurement,
    frame_sums,
    held_out_sets,
    load,
    measure,
    read,
    save,
)
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.untrusted import CorruptFile

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64)


@pytest.fixture
def held_out(emt_manifest: Manifest) -> list[HeldOut]:
    return [
        HeldOut(name="new", role="target", dataset=Dataset(manifest=emt_manifest, split="test")),
        HeldOut(name="old", role="retained", dataset=Dataset(manifest=emt_manifest, split="val")),
    ]


@pytest.fixture
def measured(potential: Potential, held_out: list[HeldOut]) -> Measurement:
    return measure(potential, held_out, edge_budget=4000)


def test_sums_over_frames_are_the_errors_of_the_evaluation(
    potential: Potential, emt_manifest: Manifest, measured: Measurement
) -> None:
    summary = compute_errors(potential, emt_manifest, "test", edge_budget=4000).summary()
    errors = measured.sets["new"]
    assert np.abs(errors.energy_error).mean() == pytest.approx(summary["energy_mae"], rel=1e-12)
    assert errors.force_sum.sum() / errors.force_count.sum() == pytest.approx(summary["force_mae"], rel=1e-12)
    assert errors.stress_sum.sum() / errors.stress_count.sum() == pytest.approx(summary["stress_mae"], rel=1e-12)
    assert errors.force_product.sum() / errors.force_square.sum() == pytest.approx(summary["softening"], rel=1e-12)
    np.testing.assert_allclose(errors.element_sum.sum(axis=1), errors.force_sum, rtol=1e-12)
    np.testing.assert_array_equal(errors.element_count.sum(axis=1), 3 * errors.num_atoms)


def test_frames_without_forces_or_stress_have_none(potential: Potential, emt_manifest: Manifest) -> None:
    errors = compute_errors(potential, emt_manifest, "test", edge_budget=4000)
    labelled = np.arange(len(errors.ids)) % 2 == 0
    part = replace(
        errors,
        has_forces=labelled,
        has_stress=~labelled,
        forces=errors.forces[np.repeat(labelled, errors.num_atoms)],
        numbers=errors.numbers[np.repeat(labelled, errors.num_atoms)],
        stress=errors.stress[~labelled],
    )
    whole, sums = frame_sums(errors), frame_sums(part)
    for name, there in (("force_sum", labelled), ("force_square", labelled), ("stress_sum", ~labelled)):
        np.testing.assert_allclose(sums[name], np.where(there, whole[name], 0.0), rtol=1e-12)
    np.testing.assert_array_equal(sums["force_count"] > 0, labelled)
    np.testing.assert_array_equal(sums["stress_count"] > 0, ~labelled)


def test_a_set_without_any_forces_and_stress_is_measured() -> None:
    sums = frame_sums(
        Errors(
            ids=("a", "b"),
            num_atoms=np.array([1, 2]),
            numbers=np.zeros(0, np.int64),
            energy=np.array([[1.0, 1.5, 0.0], [2.0, 1.0, 0.0]]),
            forces=np.zeros((0, 2, 3)),
            stress=np.zeros((0, 2, 3, 3)),
            force_mae=np.full(2, np.nan),
            has_forces=np.zeros(2, bool),
            has_stress=np.zeros(2, bool),
            num_skipped=0,
        )
    )
    np.testing.assert_allclose(sums["energy_error"], [0.5, -1.0])
    assert not any(sums[name].any() for name in ("force_sum", "force_count", "stress_count"))
    assert sums["element_sum"].shape == (2, 0)


def test_measuring_does_not_depend_on_the_batches_and_keeps_the_mode(
    potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    potential.train()
    single = measure(potential, held_out, edge_budget=1)
    assert potential.training
    for name, errors in measured.sets.items():
        assert single.sets[name].ids == errors.ids
        np.testing.assert_allclose(single.sets[name].force_sum, errors.force_sum, rtol=1e-9)


def test_frames_of_unknown_elements_are_counted(emt_manifest: Manifest, held_out: list[HeldOut]) -> None:
    torch.manual_seed(0)
    statistics = emt_manifest.split("train").statistics
    whole = new_potential(MODEL, {"EMT": statistics})
    known = whole.elements[:-1]
    part = Potential(type(whole.network)(MODEL, known, 10.0), known, ("EMT",))
    errors = measure(part, held_out, edge_budget=4000).sets["new"]
    assert errors.num_skipped > 0
    assert errors.num_skipped + len(errors.ids) == emt_manifest.split("test").statistics.num_frames


def test_a_measurement_comes_back_from_its_file(
    tmp_path: Path, potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    save(measured, tmp_path / "forgetting" / "before.safetensors")
    found = load(tmp_path / "forgetting" / "before.safetensors", potential, held_out)
    assert found.weights_sha256 == measured.weights_sha256
    for name, errors in measured.sets.items():
        for field, value in vars(errors).items():
            np.testing.assert_array_equal(getattr(found.sets[name], field), value, err_msg=field)


def test_a_measurement_of_other_weights_is_refused(
    tmp_path: Path, potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    save(measured, tmp_path / "before.safetensors")
    other = copy.deepcopy(potential)
    next(other.parameters()).data.mul_(1.001)
    with pytest.raises(ValueError, match=f"measured of the weights {measured.weights_sha256[:12]}"):
        load(tmp_path / "before.safetensors", other, held_out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "newer"}, "has no held-out set 'newer', only new, old"),
        ({"role": "transfer"}, "another held-out set 'new': role target there, transfer here"),
        ({"split": "train"}, "another held-out set 'new': split test there, train here"),
    ],
)
def test_a_measurement_of_other_sets_is_refused_with_what_differs(
    tmp_path: Path,
    potential: Potential,
    held_out: list[HeldOut],
    measured: Measurement,
    changes: dict[str, str],
    words: str,
) -> None:
    save(measured, tmp_path / "before.safetensors")
    split = changes.pop("split", "test")
    other = replace(held_out[0], dataset=replace(held_out[0].dataset, split=split), **changes)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "before.safetensors", potential, [other])


def test_a_measurement_of_other_data_is_refused(
    tmp_path: Path, potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    sets = {name: replace(errors, fingerprint="0" * 64) for name, errors in measured.sets.items()}
    save(replace(measured, sets=sets), tmp_path / "before.safetensors")
    with pytest.raises(ValueError, match=f"fingerprint {'0' * 64} there"):
        load(tmp_path / "before.safetensors", potential, held_out)


def test_what_is_no_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no measurement there"):
        read(tmp_path / "before.safetensors")
    (tmp_path / "before.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a measurement"):
        read(tmp_path / "before.safetensors")


def test_sets_are_opened_in_order_of_their_roles(potential: Potential, emt_manifest: Manifest) -> None:
    path = emt_manifest.root
    config = ForgettingConfig(
        transfer=(HeldOutConfig(path=path, split="train", name="other"),),
        target=(HeldOutConfig(path=path),),
        retained=(HeldOutConfig(path=path, split="val", name="old", theory="EMT"),),
    )
    found = held_out_sets(config, potential)
    assert [(item.name, item.role, item.dataset.split) for item in found] == [
        ("emt-test", "target", "test"),
        ("old", "retained", "val"),
        ("other", "transfer", "train"),
    ]


def test_wrong_configs_are_refused(potential: Potential, emt_manifest: Manifest) -> None:
    path = emt_manifest.root
    with pytest.raises(ValueError, match="two held-out sets are called 'emt-test'"):
        held_out_sets(
            ForgettingConfig(target=(HeldOutConfig(path=path),), transfer=(HeldOutConfig(path=path, split="val"),)),
            potential,
        )
    with pytest.raises(ValueError, match="levels of theory are EMT"):
        held_out_sets(ForgettingConfig(target=(HeldOutConfig(path=path, theory="PBE"),)), potential)
    with pytest.raises(ValueError, match="'nowhere'"):
        held_out_sets(ForgettingConfig(target=(HeldOutConfig(path=path, split="nowhere"),)), potential)
    with pytest.raises(ValueError, match=r"alphas has 1\.0"):
        ForgettingConfig(alphas=(0.5, 1.0))
    with pytest.raises(ValueError, match="edge_budget must be positive"):
        ForgettingConfig(edge_budget=0)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("0.num_atoms", np.ones(1), "is float64 of shape"),
        ("0.force_sum", np.ones(3, dtype=np.float32), "0.force_sum is float32"),
        ("0.ids", np.frombuffer(b"[1]", dtype=np.uint8), r"0.ids\[0\] is 1, not text"),
        ("0.ids", np.frombuffer(b'["a"]', dtype=np.uint8), "0.ids has 1 names of"),
        ("surprise", np.ones(1), "'surprise' is unknown"),
    ],
)
def test_a_measurement_of_other_arrays_is_refused_by_their_name(
    tmp_path: Path, measured: Measurement, name: str, array: np.ndarray, message: str
) -> None:
    path = tmp_path / "before.safetensors"
    save(measured, path)
    with safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file(arrays | {name: array}, path, metadata=header)
    with pytest.raises(CorruptFile, match=rf"before\.safetensors: not a measurement .*{message}"):
        read(path)
