"""The held-out sets of a fine-tuning: which are opened, and what is refused."""

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig, held_out_sets
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics})


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
    with pytest.raises(ValueError, match="two held-out sets are named 'emt-test'"):
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
