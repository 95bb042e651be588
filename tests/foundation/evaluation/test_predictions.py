"""Predictions of a split against the potential itself, and their errors against numpy."""

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.evaluation.predictions import Predictions, predict
from foundation.evaluation.quantities import summary
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, new_potential
from foundation.reports.evaluation_report import errors_by_element, worst_frames

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)


def example() -> Predictions:
    """Three frames, the last without forces; one of them with stress."""
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(3, 2, 3))
    return Predictions(
        ids=("a", "b", "c"),
        num_atoms=np.array([1, 2, 4]),
        numbers=np.array([29, 13, 29]),
        energy=np.array([[-1.0, -1.1, -1.5], [-2.0, -1.7, -2.0], [-3.0, -3.2, -2.0]]),
        forces=forces,
        stress=rng.normal(size=(1, 2, 3, 3)),
        has_forces=np.array([True, True, False]),
        has_stress=np.array([False, True, False]),
        num_skipped=4,
    )


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).eval()


def test_summary_is_numpys() -> None:
    found = example()
    label, predicted = found.forces[:, 0], found.forces[:, 1]
    errors = np.abs(predicted - label).mean(axis=1)
    assert summary(found.errors()) == pytest.approx(
        {
            "energy_mae": 0.6 / 3, "energy_median": 0.2, "energy_rmse": ((0.01 + 0.09 + 0.04) / 3) ** 0.5,
            "composition_energy_mae": 1.5 / 3,
            "force_mae": np.abs(predicted - label).mean(),
            "force_median": (errors[0] + errors[1:].mean()) / 2,  # of two frames; the third has no forces
            "force_rmse": np.sqrt(np.square(predicted - label).mean()),
            "zero_force_mae": np.abs(label).mean(),
            "softening": np.vdot(label, predicted) / np.vdot(label, label),
            "stress_mae": np.abs(found.stress[:, 1] - found.stress[:, 0]).mean(),
            "zero_stress_mae": np.abs(found.stress[:, 0]).mean(),
        },
        rel=1e-12,
    )  # fmt: skip


def test_forces_half_as_large_as_the_labels_have_a_softening_of_one_half() -> None:
    found = example()
    found.forces[:, 1] = 0.5 * found.forces[:, 0]
    assert summary(found.errors())["softening"] == pytest.approx(0.5)


def test_errors_by_element_are_over_its_atoms() -> None:
    found = example()
    rows = errors_by_element(found.errors())
    copper = np.abs(found.forces[[0, 2], 1] - found.forces[[0, 2], 0]).mean()
    assert list(rows) == ["Al", "Cu"]
    assert rows["Cu"]["num_atoms"] == 2
    assert rows["Cu"]["force_mae"] == pytest.approx(copper)
    assert rows["Al"]["zero_force_mae"] == pytest.approx(np.abs(found.forces[1, 0]).mean())


def test_worst_frames_come_first_and_are_counted() -> None:
    found = example()
    errors = np.abs(found.forces[:, 1] - found.forces[:, 0]).mean(axis=1)
    order = np.argsort([-errors[0], -errors[1:].mean(), -0.2])
    assert [row["id"] for row in worst_frames(found.errors())] == ["abc"[i] for i in order]
    assert len(worst_frames(found.errors(), 2)) == 2
    assert worst_frames(found.errors(), 1)[0]["energy_error"] == pytest.approx([0.1, 0.3, 0.2][order[0]])


def test_every_frame_is_predicted_once_as_by_the_potential_alone(potential: Potential, emt_manifest: Manifest) -> None:
    found = predict(potential, emt_manifest, "test", edge_budget=1000)
    frames = {frame.id: frame for frame in Frames(emt_manifest, "test")}
    assert sorted(found.ids) == sorted(frames)
    assert found.num_skipped == 0
    start = 0
    for i, name in enumerate(found.ids):
        frame, atoms = frames[name], slice(start, start + frames[name].num_atoms)
        prediction = potential(to_graph(frame, potential.cutoff))
        start = atoms.stop
        assert found.num_atoms[i] == frame.num_atoms
        assert found.energy[i, 0] * frame.num_atoms == pytest.approx(frame.energy, rel=1e-12)
        assert found.energy[i, 1] * frame.num_atoms == pytest.approx(prediction.energy.item(), rel=1e-5)
        np.testing.assert_array_equal(found.numbers[atoms], frame.numbers)
        np.testing.assert_array_equal(found.forces[atoms, 0], frame.forces)
        np.testing.assert_allclose(found.forces[atoms, 1], prediction.forces, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found.stress[i, 0], frame.stress)
        np.testing.assert_allclose(found.stress[i, 1], prediction.stress[0], rtol=1e-3, atol=1e-6)


def test_the_composition_predictor_is_the_sum_of_reference_energies(
    potential: Potential, emt_manifest: Manifest
) -> None:
    found = predict(potential, emt_manifest, "test", edge_budget=5000)
    references = dict(zip(potential.elements, potential.get_buffer("reference_energies")[0].tolist(), strict=True))
    frames = {frame.id: frame for frame in Frames(emt_manifest, "test")}
    for name, energy in zip(found.ids, found.energy[:, 2], strict=True):
        assert energy == pytest.approx(np.mean([references[int(z)] for z in frames[name].numbers]), rel=1e-12)


def narrow_potential(*elements: int) -> Potential:
    return Potential(EquivariantNetwork(MODEL, elements, mean_neighbors=10.0), elements, ("EMT",))


def test_frames_with_unknown_elements_are_left_out_and_counted(emt_manifest: Manifest) -> None:
    found = predict(narrow_potential(13, 28, 29, 46), emt_manifest, "train", edge_budget=5000)
    frames = list(Frames(emt_manifest, "train"))
    known = [frame.id for frame in frames if set(frame.numbers.tolist()) <= {13, 28, 29, 46}]
    assert 0 < len(known) < len(frames)
    assert sorted(found.ids) == sorted(known)
    assert found.num_skipped == len(frames) - len(known)


def test_a_split_without_any_known_element_is_refused(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="split 'test' has no frame whose elements are all known"):
        predict(narrow_potential(1, 8), emt_manifest, "test", edge_budget=5000)
