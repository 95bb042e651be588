"""A potential with a radial table: the numbers and gradients of the one without, and a table of the current weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foundation
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest
from foundation.models import EquivariantConfig, equivariant
from foundation.nn.computation import Computation
from foundation.potential import Potential, new_potential
from foundation.training.fit import FitConfig
from foundation.training.loss import LossConfig, label_counts, loss

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8, 8), readout_channels=4)
QUANTITIES = ("energy", "forces", "stress", "atom_energies")


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


@pytest.fixture(scope="module")
def batch(emt_manifest: Manifest) -> GraphBatch:
    frames = Frames(emt_manifest, "train")
    return collate([frames[number] for number in range(3)], 5.0, torch.float64)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses the table for these small batches too."""
    monkeypatch.setattr(equivariant, "PAIRS_PER_KNOT", 0)


def gradients(potential: Potential, batch: GraphBatch) -> Tensor:
    potential.train().zero_grad()
    loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
    potential.eval()
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, cutoff_function="polynomial")])
def test_predictions_and_gradients_are_those_without_a_table(
    emt_manifest: Manifest, batch: GraphBatch, config: EquivariantConfig
) -> None:
    potential = new_potential(config, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()
    expected, exact = potential(batch), gradients(potential, batch)
    potential.compute_as(Computation(radial_table=256))
    ours, found = potential(batch), gradients(potential, batch)
    for name in QUANTITIES:
        largest = getattr(expected, name).abs().max()
        assert 0 < (getattr(ours, name) - getattr(expected, name)).abs().max() < 1e-5 * largest, name
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
    potential.compute_as(Computation(radial_table=0))
    assert torch.equal(potential(batch).forces, expected.forces)


def test_training_and_evaluation_use_the_same_table(potential: Potential, batch: GraphBatch) -> None:
    potential.compute_as(Computation(radial_table=64))
    evaluated, trained = potential(batch), potential.train()(batch)
    for name in QUANTITIES:
        torch.testing.assert_close(getattr(trained, name), getattr(evaluated, name), rtol=1e-12, atol=1e-12)


def test_a_training_step_of_few_pairs_has_no_table(
    potential: Potential, batch: GraphBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = potential.train()(batch)
    potential.compute_as(Computation(radial_table=64))
    for pairs_per_knot, same in ((0, False), (len(batch.pair_edges) // 64, False), (len(batch.pair_edges), True)):
        monkeypatch.setattr(equivariant, "PAIRS_PER_KNOT", pairs_per_knot)
        assert torch.equal(potential(batch).forces, exact.forces) == same


def test_forces_are_the_slope_of_the_tabulated_energy(potential: Potential, batch: GraphBatch) -> None:
    potential.compute_as(Computation(radial_table=20))  # coarse, so that the energy of the network itself would not do
    step, energies = 1e-5, []
    for sign in (1, -1):
        positions = batch.positions.clone()
        positions[4, 1] += sign * step
        energies.append(potential(replace(batch, positions=positions)).energy.sum().item())
    slope = (energies[0] - energies[1]) / (2 * step)
    assert potential(batch).forces[4, 1].item() == pytest.approx(-slope, rel=1e-6, abs=1e-8)


def in_place(potential: Potential) -> None:
    with torch.no_grad():
        potential.network.blocks[0].radial.weights[1].mul_(1.1)


def by_loading(potential: Potential) -> None:
    potential.load_state_dict({name: 1.1 * value for name, value in potential.state_dict().items()})


def by_replacing(potential: Potential) -> None:
    potential.network.radial_basis.wave_numbers.data = potential.network.radial_basis.wave_numbers.data * 1.01


def behind_autograds_back(potential: Potential) -> None:
    potential.network.blocks[1].radial.weights[0].data.mul_(1.1)


@pytest.mark.parametrize("change", [in_place, by_loading, by_replacing, behind_autograds_back])
def test_new_weights_have_a_new_table(
    potential: Potential, batch: GraphBatch, change: Callable[[Potential], None]
) -> None:
    potential.compute_as(Computation(radial_table=256))
    before = potential(batch)
    assert torch.equal(potential(batch).forces, before.forces)
    change(potential)
    after = potential(batch)
    assert not torch.equal(after.forces, before.forces)
    potential.compute_as(Computation(radial_table=0))
    torch.testing.assert_close(after.forces, potential(batch).forces, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_has_an_empty_prediction(potential: Potential) -> None:
    potential.compute_as(Computation(radial_table=32))
    assert potential(collate([], 5.0)).forces.shape == (0, 3)


@pytest.mark.parametrize("num_knots", [-1, 1, 15])
def test_too_few_knots_are_refused(potential: Potential, num_knots: int) -> None:
    with pytest.raises(ValueError, match=rf"from 16 to 65,536 knots .* not {num_knots}"):
        potential.compute_as(Computation(radial_table=num_knots))
    with pytest.raises(ValueError, match=r"from 16 to 65,536 knots"):
        FitConfig(steps=1, radial_table=num_knots)


def test_sevennet_0_with_a_table_has_its_own_forces_and_gradients(real_data: Path) -> None:
    pytest.importorskip("sevenn")
    potential = foundation.load("sevennet-0").cast(torch.float64)
    frames = AseFiles(files=(str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz"),))
    chosen = [frame for frame, _ in zip(frames, range(40), strict=False) if frame.num_atoms <= 12][:5]
    assert len(chosen) == 5
    for frame in chosen:
        batch, found = collate([frame], potential.cutoff, torch.float64), []
        for num_knots in (0, 256):
            potential.compute_as(Computation(radial_table=num_knots))
            found.append((potential(batch).forces, gradients(potential, batch)))
        (forces, exact), (ours, gradient) = found
        assert (ours - forces).abs().max() <= 1e-5 * forces.abs().max() + 1e-9
        assert (gradient - exact).norm() <= 1e-4 * exact.norm()
