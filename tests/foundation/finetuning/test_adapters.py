"""Adapters: nothing at step 0, equivariant whatever they have learned, the same when merged, copied and saved."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load, save
from foundation.finetuning.adapters import add_adapters
from foundation.models import EquivariantConfig
from foundation.nn.computation import Computation
from foundation.potential import Potential, new_potential
from foundation.surgery.adapters import merge_adapters
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.optim import OptimConfig, make_optimizer

CONFIG = EquivariantConfig(irreps="4x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


@pytest.fixture(scope="module")
def batch(emt_manifest: Manifest) -> GraphBatch:
    frames = Frames(emt_manifest, "train")
    return collate([frames[number] for number in range(3)], 5.0, torch.float64)


@pytest.fixture
def adapted(potential: Potential) -> Potential:
    """With random adapters, as if trained."""
    changed = copy.deepcopy(potential)
    add_adapters(changed, 2, 1.0)
    for name, parameter in changed.named_parameters():
        if name.endswith("adapter.up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return changed


def check_same(left: Potential, right: Potential, batch: GraphBatch, rtol: float) -> None:
    one, other = left(batch), right(batch)
    for name in ("energy", "forces", "stress"):
        expected = getattr(other, name).detach()
        atol = rtol * float(expected.abs().max())
        torch.testing.assert_close(getattr(one, name).detach(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_knots", [0, 64])
def test_step_0_is_the_start_to_the_last_bit(
    potential: Potential, batch: GraphBatch, dtype: torch.dtype, num_knots: int
) -> None:
    potential.cast(dtype).compute_as(Computation(radial_table=num_knots))
    before = potential(batch)
    names = add_adapters(potential, 2, 4.0)
    after = potential(batch)
    assert len(names) == 1 + 2 * (3 + 2) + 2  # embedding; three linears and two radial layers a block; readout
    assert potential.get_parameter("network.embedding.adapter.up").dtype == dtype
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(before, name), getattr(after, name))


@pytest.mark.parametrize("num_knots", [0, 64])
def test_merged_is_adapted(potential: Potential, adapted: Potential, batch: GraphBatch, num_knots: int) -> None:
    adapted.compute_as(Computation(radial_table=num_knots))
    merged = copy.deepcopy(adapted)
    merge_adapters(merged)
    check_same(merged, adapted, batch, 1e-12)
    assert not torch.allclose(adapted(batch).forces, potential(batch).forces, rtol=1e-2)
    assert merged.state_dict().keys() == potential.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("mirror", [1, -1])
def test_laws_of_symmetry_hold_with_random_adapters(adapted: Potential, batch: GraphBatch, mirror: int) -> None:
    turn = mirror * torch.from_numpy(Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix())
    turned = adapted(replace(batch, positions=batch.positions @ turn.T, cell=batch.cell @ turn.T))
    plain = adapted(batch)
    torch.testing.assert_close(turned.energy, plain.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(turned.forces, plain.forces @ turn.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(turned.stress, turn @ plain.stress @ turn.T, rtol=1e-10, atol=1e-10)


def test_training_moves_every_adapter_and_nothing_else(potential: Potential, batch: GraphBatch) -> None:
    names = add_adapters(potential, 2, 2.0, ["network.blocks.*"])
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    optimizer = make_optimizer(OptimConfig(), potential.train(), len(potential.elements))
    for _ in range(2):  # after the first step B is no longer zero, and A has a gradient
        optimizer.zero_grad()
        loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
        optimizer.step()
    changed = {name for name, value in potential.state_dict().items() if not torch.equal(value, before[name])}
    parts = [name.removesuffix("weight") + f"adapter.{part}" for name in names for part in ("down", "up")]
    assert changed == set(parts)


@pytest.mark.parametrize("num_knots", [0, 64])
def test_recomputed_blocks_give_adapters_the_same_gradient(
    adapted: Potential, batch: GraphBatch, num_knots: int
) -> None:
    adapted.train()
    gradients = []
    for recompute in (False, True):
        adapted.compute_as(Computation(radial_table=num_knots, recompute=recompute))
        adapted.zero_grad()
        loss(LossConfig(), adapted(batch), batch, label_counts(batch)).backward()
        gradients.append({name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None})
    kept, again = gradients
    assert kept.keys() == again.keys() == {name for name, p in adapted.named_parameters() if p.requires_grad}
    largest = max(float(gradient.abs().max()) for gradient in kept.values())
    for name, gradient in kept.items():
        assert float((again[name] - gradient).abs().max()) <= 1e-12 * largest, name


def test_copies_are_independent(adapted: Potential, batch: GraphBatch) -> None:
    other, pickled = copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))
    merge_adapters(other)
    other.get_parameter("network.embedding.weight").data.zero_()
    check_same(pickled, adapted, batch, 0.0)
    merge_adapters(adapted)
    check_same(pickled, adapted, batch, 1e-12)


def test_merged_potential_is_saved_and_loaded(adapted: Potential, batch: GraphBatch, tmp_path: Path) -> None:
    merge_adapters(adapted)
    save(adapted, tmp_path / "potential", {"made": "by a test"})
    check_same(load(tmp_path / "potential"), adapted, batch, 0.0)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (2, 0.0), (2, float("nan"))])
def test_a_rank_or_alpha_that_adds_nothing_is_refused(potential: Potential, rank: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="a rank of at least 1 and a positive alpha"):
        add_adapters(potential, rank, alpha)


def test_adapters_are_added_once_merged_once_and_where_there_is_a_matrix(potential: Potential) -> None:
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_adapters(potential)
    with pytest.raises(ValueError, match=r"'\*wave_numbers' matches none"):
        add_adapters(potential, 2, 1.0, ["*wave_numbers"])
    assert all(parameter.requires_grad for parameter in potential.parameters())
    add_adapters(potential, 2, 1.0)
    with pytest.raises(ValueError, match="already has adapters"):
        add_adapters(potential, 2, 1.0)


def test_an_adapted_potential_is_not_saved(adapted: Potential, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="merge_adapters"):
        save(adapted, tmp_path / "potential", {})
    assert not list(tmp_path.iterdir())
