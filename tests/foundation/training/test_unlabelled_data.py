"""A data set without labels: nothing trains on it, measures by it or takes references from it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.manifest import Manifest, open_manifest
from data_pipeline.stream import Dataset
from foundation.checkpoint import save
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.finetuning.fisher import FisherConfig, compute_fisher
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.references import refit_references
from foundation.training.datasets import refuse_unlabelled
from foundation.training.fit_config import FitConfig

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=1, lanes=1, edge_budget=1500, num_workers=0, validate_every=1, accelerator="cpu")


@pytest.fixture
def bare(emt_manifest: Manifest, tmp_path: Path) -> Manifest:
    """The frames of the labelled data set, built as if they had no labels."""
    root = Path(shutil.copytree(emt_manifest.root, tmp_path / "bare"))
    source = emt_manifest.build_config["source"] | {"labels": "none"}
    changed = replace(emt_manifest, build_config=emt_manifest.build_config | {"source": source}, root=root)
    (root / "manifest.json").write_text(changed.to_text())
    return open_manifest(root)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).eval()


def test_whatever_needs_labels_refuses_it_by_name(
    bare: Manifest, emt_manifest: Manifest, potential: Potential, tmp_path: Path
) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    save(potential, model, {})
    uses: list[Callable[[], object]] = [
        lambda: refuse_unlabelled([Dataset(manifest=emt_manifest), Dataset(manifest=bare)]),
        lambda: pretrain(PretrainConfig(data=bare.root, out=run, model=MODEL, fit=FIT)),
        lambda: evaluate(EvaluateConfig(model=model, data=bare.root, out=run)),
        lambda: compute_fisher(FisherConfig(model=model, data=bare.root, out=run)),
        lambda: refit_references(potential, [Dataset(manifest=bare)]),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"emt-test was built without labels .*--rehearsal\.labels start"):
            use()
    assert not run.exists()


def test_a_data_set_with_labels_is_not_refused(emt_manifest: Manifest) -> None:
    refuse_unlabelled([Dataset(manifest=emt_manifest)])
