"""Private releases: no licence, no card facts, no data needed; everything else is as in a release for others."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

import foundation
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation import checkpoint
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.golden import generated, verify_golden
from foundation.models import EquivariantConfig
from foundation.naming import resolve
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import MissingFact
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
FIT = FitConfig(steps=4, lanes=1, edge_budget=1500, validate_every=2, checkpoint_every=2, log_every=1)


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Data of which nothing is stated, and which must not be passed on."""
    out = tmp_path_factory.mktemp("nobody") / "data"
    provenance = Provenance(**{item.name: "not stated" for item in dataclasses.fields(Provenance)})
    return build(BuildConfig(source=EmtAlloys(num_frames=40, seed=2), provenance=provenance, out=out))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, nobody: Manifest) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    optim = OptimConfig(warmup_steps=1)
    pretrain(PretrainConfig(data=nobody.root, out=out, fit=FIT, machine=CPU, model=MODEL, optim=optim))
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "mine"))


def card(release: Path) -> str:
    return (release / "README.md").read_text()


def test_nothing_but_the_run_is_needed(run: Path, tmp_path: Path) -> None:
    release = export(ExportConfig(run=run, out=tmp_path / "release", private=True))
    verify_golden(release)
    assert card(release).startswith("# mine\n\nA private release")
    assert "None were measured with these weights." in card(release)
    assert checkpoint.describe(release).origin.private
    ours, theirs = foundation.load(release).state_dict(), foundation.load(run).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert checkpoint.describe(release).weights_sha256 == checkpoint.describe(run / "potential").weights_sha256


def test_measured_errors_and_counts_of_data_are_stated(run: Path, nobody: Manifest, tmp_path: Path) -> None:
    errors = evaluate(EvaluateConfig(model=run, data=nobody.root)).errors
    text = card(export(ExportConfig(run=run, out=tmp_path / "release", private=True)))
    assert f"{1000 * errors['force_mae']:.1f}" in text
    assert f"| not stated | {nobody.split('train').statistics.num_frames} |" in text


def test_golden_structures_are_small_generated_and_always_the_same(run: Path, tmp_path: Path) -> None:
    golden = []
    for name in ("one", "two"):
        release = export(ExportConfig(run=run, out=tmp_path / name, private=True))
        golden.append(json.loads((release / "golden.json").read_text()))
    assert golden[0] == golden[1]
    potential = foundation.load(run)
    elements = set(potential.elements)
    for record in golden[0]:
        assert set(record["numbers"]) <= elements
        assert len(record["numbers"]) <= 12
        assert np.abs(record["forces"]).max() > 0 or len(record["numbers"]) == 1
    two, three = ([each.id for each in generated(potential, count)] for count in (2, 3))
    assert two == three[:2]


def test_a_release_for_others_still_asks_for_its_facts_and_names_the_other_way(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFact, match=r"lacks card\.name, .*; for your own use, export with --private true"):
        export(ExportConfig(run=run, out=tmp_path / "release"))
    assert not (tmp_path / "release").exists()


def test_a_fine_tuning_is_released_with_and_without_held_out_frames(
    run: Path, nobody: Manifest, tmp_path: Path
) -> None:
    whole = BuildConfig(
        source=EmtAlloys(num_frames=10, seed=4),
        provenance=nobody.provenance,
        out=tmp_path / "whole",
        val_fraction=0.0,
        test_fraction=0.0,
    )
    for data, expected in ((nobody, "not stated, target"), (build(whole), "None were measured with these weights.")):
        out = tmp_path / f"from-{data.root.parent.name}"
        finetune(FinetuneConfig(start=run, data=data.root, out=out, fit=FIT, machine=CPU))
        release = export(ExportConfig(run=out, out=out / "release", private=True))
        assert expected in card(release)
        assert "Fine-tuning of mine" in card(release)


def test_a_checkpoint_is_released(run: Path, nobody: Manifest, tmp_path: Path) -> None:
    shutil.rmtree(run / "potential")
    evaluate(EvaluateConfig(model=run, data=nobody.root, checkpoint=2))
    release = export(ExportConfig(run=run, out=tmp_path / "release", checkpoint=2, private=True))
    assert checkpoint.describe(release).weights_sha256 == resolve(run, 2).describe().weights_sha256
    assert "Pretraining, 2 optimizer steps." in card(release)
    assert "trivial predictor" in card(release)


def test_a_checkpoint_between_start_and_result_is_refused() -> None:
    with pytest.raises(ValueError, match="leave checkpoint out"):
        ExportConfig(run=Path("run"), out=Path("out"), checkpoint="best", alpha=0.5)


def test_a_release_with_repulsion_says_so_and_keeps_it(run: Path, tmp_path: Path) -> None:
    plain = export(ExportConfig(run=run, out=tmp_path / "plain", private=True))
    release = export(ExportConfig(run=run, out=tmp_path / "repelling", private=True, zbl=True))
    verify_golden(release)
    assert "repulsion of Ziegler, Biersack and Littmark" in card(release)
    assert "repulsion" not in card(plain)
    potential = foundation.load(release).cast(torch.float64)
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.5]
    (added,) = potential.predict([atoms])
    (without,) = foundation.load(plain).cast(torch.float64).predict([atoms])
    assert float(added.energy) > float(without.energy) + 100
    with pytest.raises(ValueError, match="leave it out with --calculator"):
        EvaluateConfig(calculator="ase.calculators.emt:EMT", zbl=True)


def test_an_evaluation_may_add_the_repulsion(run: Path, nobody: Manifest) -> None:
    plain = evaluate(EvaluateConfig(model=run, data=nobody.root, out=run / "plain")).errors
    added = evaluate(EvaluateConfig(model=run, data=nobody.root, out=run / "added", zbl=True)).errors
    # the frames have no atoms closer than bonds
    assert added == plain
