"""Data sets without labels, or without those that a term of the loss asks for: refused before anything is learnt."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from foundation.checkpoint import save
from foundation.datasets import refuse_unlabelled
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.finetuning.fisher import FisherConfig, compute_fisher
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.surgery.references import refit_references
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, TermConfig, refuse_idle_terms
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=1, lanes=1, edge_budget=1500, validate_every=1)


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
        lambda: pretrain(PretrainConfig(data=bare.root, out=run, model=MODEL, fit=FIT, machine=CPU)),
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


def without(manifest: Manifest, term: str, *splits: str) -> Dataset:
    """The data set, whose statistics know no label of a term in some splits."""
    count = {"forces": "num_force_frames", "stress": "num_stress_frames"}[term]
    changed = {
        name: replace(split, statistics=replace(split.statistics, **{count: 0})) if name in splits else split
        for name, split in manifest.splits.items()
    }
    return Dataset(manifest=replace(manifest, splits=changed))


@pytest.mark.parametrize("term", ["forces", "stress"])
def test_a_term_whose_labels_no_data_set_has_is_refused_and_one_that_some_have_is_not(
    term: str, emt_manifest: Manifest
) -> None:
    lacking = without(emt_manifest, term, "train", "val")
    with pytest.raises(ValueError, match=rf"emt-test has no {term}, but loss\.{term}\.weight is .*{term}\.weight 0"):
        refuse_idle_terms([lacking], LossConfig())
    refuse_idle_terms([lacking, Dataset(manifest=emt_manifest)], LossConfig())
    refuse_idle_terms([lacking], LossConfig(**{term: TermConfig(weight=0.0)}))


def test_a_pretraining_on_energies_alone_is_refused_unless_the_loss_says_so(
    provenance: Provenance, tmp_path: Path
) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    ase.io.write(tmp_path / "energies.extxyz", [atoms] * 4)
    source = AseFiles(files=(str(tmp_path / "energies.extxyz"),))
    build(BuildConfig(source=source, provenance=provenance, out=tmp_path / "data", val_fraction=0.0, test_fraction=0.0))
    with pytest.raises(ValueError, match=r"emt-test has no forces, but loss\.forces\.weight is 20"):
        pretrain(PretrainConfig(data=tmp_path / "data", out=tmp_path / "run", model=MODEL, fit=FIT, machine=CPU))
    assert not (tmp_path / "run").exists()


def test_a_validation_without_the_labels_of_a_term_is_a_warning(
    emt_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_idle_terms([without(emt_manifest, "forces", "val")], LossConfig())
    (record,) = caplog.records
    assert "emt-test has no forces in split val" in record.getMessage()
