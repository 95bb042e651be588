"""Uncertainties of a linear model are those of its textbook; sums add up; a calibration holds on other errors."""

import dataclasses

import numpy as np
import pytest
import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import Manifest
from foundation.evaluation.calibration import (
    HeldOut,
    TrainingSums,
    calibrated,
    judged,
    training_sums,
    with_facts,
)
from foundation.last_layer import KINDS, UNSCALED, LastLayer, TrustFacts, scaled
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from tests.small_networks import SMALL_NETWORKS

FACTS = TrustFacts(
    format=1,
    weights_sha256="0" * 64,
    data="toy",
    manifest_fingerprint="",
    theories=("toy",),
    num_frames=1,
    num_atoms=1,
    elements={},
    largest_force=None,
    lowest_pressure=None,
    highest_pressure=None,
    limit=1e9,
    energy=UNSCALED,
    forces=UNSCALED,
)


def sums_of(features: np.ndarray) -> TrainingSums:
    """Sums over atoms of one element with given features."""
    return TrainingSums(
        products=(features.T @ features)[None],
        counts=np.array([len(features)]),
        shortest=np.ones((1, 1), np.float32),
        num_frames=1,
    )


def distances(sums: TrainingSums, features: np.ndarray) -> np.ndarray:
    shortest = torch.from_numpy(sums.shortest)
    layer = LastLayer(FACTS, torch.from_numpy(sums.whitening), shortest)
    return layer.distances(torch.from_numpy(features), torch.zeros(len(features), dtype=torch.int64)).numpy()


def test_the_distance_is_the_deviation_of_a_linear_model_fitted_again_and_again() -> None:
    random = np.random.default_rng(0)
    skew = np.array([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [0.1, 0.5, 2.0]])
    features, asked = random.normal(size=(3000, 3)) @ skew, 4 * random.normal(size=(40, 3))
    found = distances(sums_of(features), asked) ** 2 * 3 / 3000
    # the textbook's: the variance of x·w, with w fitted by least squares to labels with unit noise
    exact = np.einsum("ai,ij,aj->a", asked, np.linalg.inv(features.T @ features), asked)
    np.testing.assert_allclose(found, exact, rtol=0.02)
    noise = random.normal(size=(3000, 600))
    weights = np.linalg.lstsq(features, features @ np.ones((3, 1)) + noise, rcond=None)[0]
    np.testing.assert_allclose(found, (asked @ weights).var(axis=1), rtol=0.25)


def test_directions_that_were_never_seen_are_far_but_finite() -> None:
    features = np.random.default_rng(1).normal(size=(500, 3)) * [1.0, 1.0, 0.0]
    seen, unseen = distances(sums_of(features), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert seen < 1.0
    assert 10 < unseen < np.inf


@pytest.fixture(scope="module", params=["even-2-blocks", "symmetry-functions"])
def potential(request: pytest.FixtureRequest, emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    # the data count neighbours at 5 Å
    config = dataclasses.replace(SMALL_NETWORKS[request.param], cutoff=5.0)
    return new_potential(config, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


def test_sums_of_two_parts_are_those_of_one_pass_in_any_order(potential: Potential, emt_manifest: Manifest) -> None:
    frames = list(Dataset(manifest=emt_manifest).frames())[:30]
    whole = training_sums(potential, frames)
    parts = training_sums(potential, frames[19:][::-1]) + training_sums(potential, frames[:19])
    np.testing.assert_allclose(parts.products, whole.products, rtol=1e-9, atol=1e-9 * np.abs(whole.products).max())
    np.testing.assert_array_equal(parts.counts, whole.counts)
    np.testing.assert_array_equal(parts.shortest, whole.shortest)
    assert (parts.num_frames, parts.largest_force) == (30, whole.largest_force)
    assert (parts.lowest_pressure, parts.highest_pressure) == (whole.lowest_pressure, whole.highest_pressure)
    # from the labels and positions themselves
    numbers = np.concatenate([each.numbers for each in frames])
    assert whole.counts.tolist() == [int((numbers == number).sum()) for number in potential.elements]
    forces = np.concatenate([each.forces for each in frames])
    assert whole.largest_force == pytest.approx(np.linalg.norm(forces, axis=1).max())
    pressures = [-np.trace(each.stress) / 3 for each in frames if each.has_stress]
    assert (whole.lowest_pressure, whole.highest_pressure) == pytest.approx((min(pressures), max(pressures)))


def test_networks_that_read_each_element_apart_have_sums_apart(emt_manifest: Manifest) -> None:
    frames = list(Dataset(manifest=emt_manifest).frames())[:6]
    groups = {}
    for name, config in SMALL_NETWORKS.items():
        statistics = {"EMT": emt_manifest.split("train").statistics}
        groups[name] = len(
            training_sums(new_potential(dataclasses.replace(config, cutoff=5.0), statistics).eval(), frames).products
        )
    elements = len(emt_manifest.split("train").statistics.elements)
    equivariant = [isinstance(SMALL_NETWORKS[name], EquivariantConfig) for name in groups]
    assert list(groups.values()) == [1 if each else elements for each in equivariant]


def errors(seed: int, size: int = 3000) -> HeldOut:
    """Errors that are normal, with a deviation that grows with distance and force; three atoms in each frame."""
    random = np.random.default_rng(seed)
    far, forces = np.exp(random.normal(size=3 * size)), np.exp(random.normal(size=3 * size))
    frame_of = np.repeat(np.arange(size), 3)
    mean, mean_force = far.reshape(-1, 3).mean(axis=1), forces.reshape(-1, 3).mean(axis=1)
    return HeldOut(
        energy_errors=np.abs(random.normal(size=size)) * 0.1 * mean,
        mean_distances=mean,
        mean_forces=mean_force,
        outside=np.zeros((size, len(KINDS)), bool) | (random.random((size, 1)) < 0.2) * (np.arange(len(KINDS)) == 2),
        frame_of=frame_of,
        force_errors=np.abs(random.normal(size=3 * size)) * 0.3 * far * (forces + 0.05) ** 0.5,
        distances=far,
        forces=forces,
    )


def test_a_calibration_finds_the_law_of_errors_and_holds_on_others() -> None:
    facts = calibrated(FACTS, [errors(0)])
    assert facts.forces.distance == pytest.approx(1.0, abs=0.06)
    assert facts.forces.force == pytest.approx(0.5, abs=0.06)
    assert facts.energy.distance == pytest.approx(1.0, abs=0.1)
    assert facts.energy.force == pytest.approx(0.0, abs=0.1)
    assert facts.limit == pytest.approx(np.quantile(errors(0).distances, 0.999))
    # a fifth of the frames like the training data would be called strange, so nothing is told
    assert facts.unjudged == (KINDS[2],)
    layer = LastLayer(facts, torch.eye(2, dtype=torch.float64)[None], torch.ones(1, 1))
    judgement = judged(layer, {"others": errors(1)})
    other = judgement.judged["others"]
    # the uncertainty of a normal error is its deviation
    assert other.energy_within == pytest.approx(0.683, abs=0.03)
    assert other.force_within == pytest.approx(0.683, abs=0.03)
    assert other.outside < 0.02
    assert other.force_correlation is not None
    assert other.force_correlation > 0.4
    assert judgement.force_area is not None
    assert judgement.force_area > 0.7
    far = np.array([1.0, 50.0, 1e4])
    sizes = scaled(facts.forces, far, np.ones(3))
    np.testing.assert_allclose(sizes, 0.3 * 1.05**0.5 * far, rtol=0.35)


def test_every_second_frame_is_kept_with_its_atoms() -> None:
    whole = errors(2, 7)
    first, second = whole.part(0), whole.part(1)
    assert (len(first.energy_errors), len(second.energy_errors)) == (4, 3)
    np.testing.assert_array_equal(second.energy_errors, whole.energy_errors[[1, 3, 5]])
    np.testing.assert_array_equal(second.distances, whole.distances[np.isin(whole.frame_of, [1, 3, 5])])
    np.testing.assert_allclose(second.mean(second.distances), second.mean_distances)


def test_the_last_layer_of_a_potential_has_what_was_seen(potential: Potential, emt_manifest: Manifest) -> None:
    frames = list(Dataset(manifest=emt_manifest).frames())[:4]
    sums = training_sums(potential, frames)
    shortest = with_facts(potential, sums, FACTS).shortest
    seen = np.isfinite(sums.shortest)
    assert (shortest[~seen] == 0).all()
    assert (shortest[seen] > 1).all()
