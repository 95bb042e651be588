"""Held-out errors frame by frame, against numpy and by hand; their files; what is refused."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.untrusted import CorruptFile
from foundation.evaluation.comparison import bootstrap
from foundation.evaluation.held_out import (
    SCHEMA_VERSION,
    HeldOut,
    Measurement,
    SetErrors,
    load,
    measure,
    read,
    save,
)
from foundation.evaluation.predictions import Predictions, predict
from foundation.evaluation.quantities import summary
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential

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
    expected = summary(predict(potential, emt_manifest, "test", edge_budget=4000).errors())
    errors = measured.sets["new"].errors
    sums, of_elements = errors.sums, errors.of_elements
    assert list(errors.ids) == sorted(errors.ids)
    assert sums["energy_sum"].mean() == pytest.approx(expected["energy_mae"], rel=1e-12)
    assert sums["force_sum"].sum() / sums["force_count"].sum() == pytest.approx(expected["force_mae"], rel=1e-12)
    np.testing.assert_allclose(of_elements["force_sum"].sum(axis=1), sums["force_sum"], rtol=1e-12)
    np.testing.assert_array_equal(of_elements["force_count"].sum(axis=1), 3 * errors.num_atoms)


def test_frames_without_forces_or_stress_have_none(potential: Potential, emt_manifest: Manifest) -> None:
    found = predict(potential, emt_manifest, "test", edge_budget=4000)
    labelled = np.arange(len(found.ids)) % 2 == 0
    part = replace(
        found,
        has_forces=labelled,
        has_stress=~labelled,
        forces=found.forces[np.repeat(labelled, found.num_atoms)],
        numbers=found.numbers[np.repeat(labelled, found.num_atoms)],
        stress=found.stress[~labelled],
    )
    order = np.argsort(np.array(found.ids), kind="stable")
    whole, sums = found.errors().sums, part.errors().sums
    for name, there in (("force_sum", labelled), ("force_square", labelled), ("stress_sum", ~labelled)):
        np.testing.assert_allclose(sums[name], np.where(there[order], whole[name], 0.0), rtol=1e-12)
    np.testing.assert_array_equal(sums["force_count"] > 0, labelled[order])
    np.testing.assert_array_equal(sums["stress_count"] > 0, ~labelled[order])


def test_a_set_without_any_forces_and_stress_is_measured() -> None:
    errors = Predictions(
        ids=("a", "b"),
        num_atoms=np.array([1, 2]),
        numbers=np.zeros(0, np.int64),
        energy=np.array([[1.0, 1.5, 0.0], [2.0, 1.0, 0.0]]),
        forces=np.zeros((0, 2, 3)),
        stress=np.zeros((0, 2, 3, 3)),
        has_forces=np.zeros(2, bool),
        has_stress=np.zeros(2, bool),
        num_skipped=0,
    ).errors()
    np.testing.assert_allclose(errors.sums["energy_sum"], [0.5, 1.0])
    assert not any(errors.sums[name].any() for name in ("force_sum", "force_count", "stress_count"))
    assert errors.of_elements["force_sum"].shape == (2, 0)


def test_measuring_does_not_depend_on_the_batches_and_keeps_the_mode(
    potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    potential.train()
    single = measure(potential, held_out, edge_budget=1)
    assert potential.training
    for name, errors in measured.sets.items():
        assert single.sets[name].errors.ids == errors.errors.ids
        ours, theirs = (each.errors.sums["force_sum"] for each in (single.sets[name], errors))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_frames_of_unknown_elements_are_counted(emt_manifest: Manifest, held_out: list[HeldOut]) -> None:
    torch.manual_seed(0)
    statistics = emt_manifest.split("train").statistics
    whole = new_potential(MODEL, {"EMT": statistics})
    known = whole.elements[:-1]
    part = Potential(type(whole.network)(MODEL, known, 10.0), known, ("EMT",))
    errors = measure(part, held_out, edge_budget=4000).sets["new"]
    assert errors.num_skipped > 0
    assert errors.num_skipped + len(errors.errors.ids) == emt_manifest.split("test").statistics.num_frames


def test_a_measurement_comes_back_from_its_file(
    tmp_path: Path, potential: Potential, held_out: list[HeldOut], measured: Measurement
) -> None:
    save(measured, tmp_path / "forgetting" / "before.safetensors")
    found = load(tmp_path / "forgetting" / "before.safetensors", potential, held_out)
    assert found.weights_sha256 == measured.weights_sha256
    for name, errors in measured.sets.items():
        assert facts_of(found.sets[name]) == facts_of(errors)
        for ours, theirs in zip(arrays_of(found.sets[name]), arrays_of(errors), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def facts_of(errors: SetErrors) -> dict:
    frames = errors.errors
    return vars(errors) | {"errors": (frames.ids, frames.elements, list(frames.sums), list(frames.of_elements))}


def arrays_of(errors: SetErrors) -> list[np.ndarray]:
    return [errors.errors.num_atoms, *errors.errors.sums.values(), *errors.errors.of_elements.values()]


def test_a_file_of_schema_1_is_read(tmp_path: Path, measured: Measurement) -> None:
    path = tmp_path / "before.safetensors"
    facts: dict = {"schema_version": 1, "weights_sha256": measured.weights_sha256, "sets": []}
    arrays: dict[str, np.ndarray] = {}
    for number, each in enumerate(measured.sets.values()):
        names = ("name", "role", "split", "fingerprint", "theory", "num_skipped")
        facts["sets"].append({name: getattr(each, name) for name in names} | {"elements": each.errors.elements})
        sums, of_elements = each.errors.sums, each.errors.of_elements
        kept = ("force_sum", "force_count", "force_product", "force_square", "stress_sum", "stress_count")
        signs = np.where(np.arange(len(each.errors.ids)) % 2, -1.0, 1.0)
        old = {name: sums[name] for name in kept} | {
            "ids": np.frombuffer(json.dumps(each.errors.ids).encode(), dtype=np.uint8),
            "num_atoms": each.errors.num_atoms,
            "energy_error": signs * sums["energy_sum"],
            "element_sum": of_elements["force_sum"],
            "element_count": of_elements["force_count"],
        }
        arrays |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in old.items()}
    safetensors.numpy.save_file(arrays, path, metadata={"facts": json.dumps(facts)})
    found = read(path)
    assert found.weights_sha256 == measured.weights_sha256
    for name, each in measured.sets.items():
        ours, theirs = bootstrap(found.sets[name].errors), bootstrap(each.errors)
        assert ours.keys() == theirs.keys() - {"force_rmse"}
        expected = [theirs[key].value for key in ours]
        assert [each.value for each in ours.values()] == pytest.approx(expected, rel=1e-12)


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path, measured: Measurement) -> None:
    path = tmp_path / "before.safetensors"
    save(measured, path)
    with safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    facts = json.loads(header["facts"]) | {"schema_version": SCHEMA_VERSION + 1}
    safetensors.numpy.save_file(arrays, path, metadata={"facts": json.dumps(facts)})
    with pytest.raises(CorruptFile, match="newer than this program's"):
        read(path)


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


def test_a_file_without_the_terms_of_energies_is_refused(tmp_path: Path, measured: Measurement) -> None:
    sets = {
        name: replace(each, errors=replace(each.errors, sums={"force_sum": each.errors.sums["force_sum"]}))
        for name, each in measured.sets.items()
    }
    save(replace(measured, sets=sets), tmp_path / "before.safetensors")
    with pytest.raises(CorruptFile, match="without the terms frames and energy_sum"):
        read(tmp_path / "before.safetensors")


def test_a_measurement_of_nothing_comes_back(tmp_path: Path, measured: Measurement) -> None:
    save(replace(measured, sets={}), tmp_path / "before.safetensors")
    assert read(tmp_path / "before.safetensors").sets == {}
