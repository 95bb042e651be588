"""The Fisher by term is the mean of squared gradients over noise in the start's own labels, for any loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.fisher import CorruptFisher
from foundation.finetuning.fisher_by_term import (
    COMPONENTS,
    NOISE,
    FisherByTerm,
    derivative_square,
    fisher_by_term,
    read,
    save,
)
from foundation.finetuning.penalties import EwcPenalty, PenaltyConfig, scaled_importance
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, TermConfig, label_counts, loss

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
DRAWS = 120
MAE = LossConfig(energy=TermConfig(weight=3.0), forces=TermConfig(weight=1.0), stress=TermConfig(weight=100.0))


@pytest.fixture(scope="module")
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


@pytest.fixture(scope="module")
def one(emt_manifest: Manifest) -> Dataset:
    """The smallest structure alone."""
    dataset = Dataset(manifest=emt_manifest, split="train")
    smallest = int(np.argmin([frame.num_atoms for frame in dataset.frames()]))
    return replace(dataset, subset=Subset(np.array([smallest])))


@pytest.fixture(scope="module")
def of_one(potential: Potential, one: Dataset) -> FisherByTerm:
    """The Fisher by term of that structure, averaged over many draws of its random signs."""
    draws = [fisher_by_term(potential, [one], seed=seed) for seed in range(DRAWS)]
    means = {
        term: {name: torch.stack([d.values[term][name].double() for d in draws]).mean(0) for name in named}
        for term, named in draws[0].values.items()
    }
    return replace(draws[0], values=means)


@pytest.mark.parametrize(
    "config",
    [
        MAE,
        LossConfig(
            energy=TermConfig(weight=1.0, kind="huber", delta=0.01),
            forces=TermConfig(weight=1.0, kind="huber", delta=0.03),
            stress=TermConfig(weight=300.0, kind="mse"),
        ),
        LossConfig(
            energy=TermConfig(weight=0.0), forces=TermConfig(weight=2.0, kind="l2"), stress=TermConfig(weight=0.0)
        ),
    ],
    ids=["mae", "huber-mse", "l2"],
)
def test_it_is_the_mean_squared_gradient_over_noisy_labels_of_its_own(
    potential: Potential, one: Dataset, of_one: FisherByTerm, config: LossConfig
) -> None:
    found = of_one.of(config, potential)
    (structure,) = one.frames()
    batch = collate([structure], potential.cutoff, torch.float64)
    rng = torch.Generator().manual_seed(1)
    labels = potential(batch)
    sums = torch.zeros(found.num_parameters, dtype=torch.float64)
    potential.train()
    for _ in range(DRAWS):
        upper = torch.randn(1, 3, 3, generator=rng, dtype=torch.float64).triu()
        noise = NOISE["stress"] * (upper + upper.triu(1).transpose(1, 2))
        noisy = replace(
            batch,
            energy=labels.energy + NOISE["energy"] * batch.num_atoms * torch.randn(1, generator=rng).double(),
            forces=labels.forces + NOISE["forces"] * torch.randn(labels.forces.shape, generator=rng).double(),
            stress=labels.stress + noise,
            has_forces=torch.tensor([True]),
            has_stress=torch.tensor([True]),
        )
        value = loss(config, potential(noisy), noisy, label_counts(noisy))
        gradients = torch.autograd.grad(value, list(potential.parameters()), materialize_grads=True)
        sums += torch.cat([gradient.flatten() for gradient in gradients]).square()
    potential.eval()
    ours = torch.cat([value.flatten() for value in found.values.values()])
    direct = sums / DRAWS
    assert float(ours.sum() / direct.sum()) == pytest.approx(1.0, abs=0.25)
    large = direct > 1e-3 * direct.max()
    ratios = (ours / direct)[large].log().abs()
    assert float(ratios.median()) < 0.2
    assert float(ratios.max()) < 1.0


def test_terms_are_summed_with_the_squares_of_their_weights(potential: Potential, emt_manifest: Manifest) -> None:
    fisher = fisher_by_term(potential, [Dataset(manifest=emt_manifest, split="val")])
    whole = fisher.of(MAE, potential)
    none = replace(MAE, forces=TermConfig(weight=0.0), stress=TermConfig(weight=0.0))
    energy = fisher.of(none, potential)
    double = fisher.of(replace(none, energy=TermConfig(weight=6.0)), potential)
    for name, value in whole.values.items():
        parts = (9.0 * fisher.values["energy"][name].double(), fisher.values["forces"][name].double())
        assert torch.allclose(value, parts[0] + parts[1] + 1e4 * fisher.values["stress"][name].double())
        assert torch.allclose(double.values[name], 4 * energy.values[name])
    assert whole.loss == MAE
    assert whole.num_structures == emt_manifest.split("val").statistics.num_frames
    whole.check(potential, MAE)
    importance = scaled_importance(whole.values, PenaltyConfig(weight=1.0))
    assert float(EwcPenalty(potential, importance, whole.theta_star, weight=1.0)(potential).detach()) == 0.0


@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.05, 10.0])
def test_the_mean_square_of_hubers_derivative(delta: float) -> None:
    rng = np.random.default_rng(0)
    residuals = rng.normal(0.0, 0.05, 200_000)
    expected = np.square(np.clip(residuals, -delta, delta)).mean()
    term = TermConfig(weight=7.0, kind="huber", delta=delta)
    assert derivative_square(term, 0.05, COMPONENTS["forces"]) == pytest.approx(expected, rel=0.02)


def test_labels_are_not_read_and_the_seed_decides(potential: Potential, emt_manifest: Manifest) -> None:
    dataset = Dataset(manifest=emt_manifest, split="val")
    first, second, other = (fisher_by_term(potential, [dataset], seed=seed) for seed in (0, 0, 1))
    one, same, signs = (
        torch.cat([value.flatten() for value in each.values["forces"].values()]) for each in (first, second, other)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, signs)
    assert potential.training is False


def test_it_survives_the_disk_and_another_potential_is_refused(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    fisher, file = fisher_by_term(potential, [Dataset(manifest=emt_manifest, split="val")]), tmp_path / "f.safetensors"
    save(fisher, file)
    again = read(file, potential)
    assert again.facts == fisher.facts
    assert torch.equal(again.structures, fisher.structures)
    assert all(torch.equal(again.values[t][n], v) for t, named in fisher.values.items() for n, v in named.items())
    moved = new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64)
    with pytest.raises(ValueError, match="belongs to other weights"):
        again.of(MAE, moved)
    larger = replace(CONFIG, readout_channels=5)
    with pytest.raises(CorruptFisher, match=r"f\.safetensors: not the Fisher of this potential"):
        read(file, new_potential(larger, {"EMT": emt_manifest.split("train").statistics}))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptFisher, match=r"f\.safetensors"):
        read(file, potential)
    with pytest.raises(FileNotFoundError, match="no Fisher there"):
        read(tmp_path / "none", potential)
