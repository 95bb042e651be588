"""A run that begins with a potential: what is kept, what is added, what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation.checkpoint import describe, load
from foundation.datasets import DatasetConfig, open_datasets, statistics_by_theory
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.surgery.start import start_from
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from tests.foundation.reports.test_card import COMPLETE
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=2, lanes=1, edge_budget=1500, validate_every=2, log_every=2)


@pytest.fixture(scope="module")
def first(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others start from."""
    out = tmp_path_factory.mktemp("first") / "run"
    data = (DatasetConfig(path=emt_manifest.root, theory="EMT"),)
    pretrain(PretrainConfig(data=data, out=out, model=MODEL, fit=FIT, machine=CPU))
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    """Other frames of the same elements."""
    out = tmp_path_factory.mktemp("few") / "data"
    source = EmtAlloys(num_frames=24, seed=3)
    return build(BuildConfig(source=source, provenance=dataclasses.replace(provenance, name="few"), out=out))


def statistics(manifest: Manifest, theory: str) -> dict:
    return statistics_by_theory(*open_datasets((DatasetConfig(path=manifest.root, theory=theory),)))


def test_references_scale_and_weights_stay_those_of_the_start(first: Path, few: Manifest) -> None:
    before, begun = load(first), start_from(load(first), first, MODEL, statistics(few, "EMT"))
    assert begun.training
    for (name, expected), found in zip(before.state_dict().items(), begun.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_a_theory_that_is_new_gets_references_of_its_own_and_the_old_one_predicts_as_before(
    first: Path, few: Manifest
) -> None:
    sums = statistics(few, "other")
    before, begun = load(first), start_from(load(first), first, MODEL, sums).eval()
    assert begun.theories == ("EMT", "other")
    fitted = sums["other"].reference_energies()
    seen = [place for place, z in enumerate(begun.elements) if sums["other"].atoms_of_element[z] > 0]
    references = begun.get_buffer("reference_energies").numpy()
    np.testing.assert_allclose(references[1][seen], fitted[np.array(begun.elements)[seen]])
    np.testing.assert_array_equal(references[0], before.get_buffer("reference_energies")[0].numpy())
    batch = collate([Frames(few, "train")[0]], 5.0, theories=[0])
    torch.testing.assert_close(begun(batch).energy, before(batch).energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(begun(batch).forces, before(batch).forces, rtol=1e-4, atol=1e-6)


def test_elements_without_data_take_the_starts_reference_moved_like_the_others(first: Path, few: Manifest) -> None:
    sums = statistics(few, "other")["other"]
    missing = sums.elements[0]
    sums.atoms_of_element[missing] = 0
    potential = load(first)
    place = potential.elements.index(missing)
    references = start_from(load(first), first, MODEL, {"other": sums}).get_buffer("reference_energies")
    moved = (references[1] - references[0]).numpy()
    others = [n for n in range(len(potential.elements)) if sums.atoms_of_element[potential.elements[n]] > 0]
    assert moved[place] == pytest.approx(moved[others].mean())


def test_another_architecture_is_refused_by_name(first: Path, few: Manifest) -> None:
    wider = dataclasses.replace(MODEL, readout_channels=8, cutoff_onset=4.0)
    with pytest.raises(
        ValueError, match=r"cutoff_onset is 4\.5 there and 4\.0 here; readout_channels is 4 there and 8"
    ):
        start_from(load(first), first, wider, statistics(few, "EMT"))


def test_an_element_that_the_start_does_not_know_is_refused(first: Path, few: Manifest) -> None:
    sums = statistics(few, "EMT")
    sums["EMT"].atoms_of_element[92] = 5
    with pytest.raises(ValueError, match="does not know U, which the data at EMT have"):
        start_from(load(first), first, MODEL, sums)


def test_what_is_no_potential_is_refused_before_anything_is_written(few: Manifest, tmp_path: Path) -> None:
    config = PretrainConfig(data=few.root, start=tmp_path, out=tmp_path / "run", model=MODEL, fit=FIT, machine=CPU)
    with pytest.raises(FileNotFoundError, match="no potential there"):
        pretrain(config)
    assert not config.out.exists()


def test_a_second_stage_trains_on_at_its_theory_and_its_card_tells_of_the_first(
    first: Path, few: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    data = (DatasetConfig(path=few.root, theory="other"),)
    optim = OptimConfig(ema_decay=0.0, learning_rate=1e-3, warmup_steps=0)
    pretrain(
        PretrainConfig(data=data, start=first, out=out, model=MODEL, fit=FIT, machine=CPU, optim=optim, card=COMPLETE)
    )
    before, after = load(first), load(out)
    assert after.theories == ("EMT", "other")
    layer = after.network.blocks[0].self_interaction_1
    # the bias of the theory that had no data has had no gradient
    assert layer.theory_weight[1].abs().max() > 100 * layer.theory_weight[0].abs().max()
    assert not torch.equal(after.network.readout[1].weight, before.network.readout[1].weight)
    start = describe(out / "potential").provenance["start"]
    assert start["weights_sha256"] == describe(first / "potential").weights_sha256
    assert [dataset["name"] for dataset in start["datasets"]] == ["emt-test"]
    evaluate(EvaluateConfig(model=out, data=few.root, theory="other"))
    export(ExportConfig(run=out, out=out / "release"))
    card = (out / "release" / "README.md").read_text()
    assert "| data set | few |" in card
    assert "| data set | emt-test, in the training of the start |" in card


def test_the_second_stage_of_the_recipe_starts_from_what_the_first_makes() -> None:
    folder = Path(__file__).resolve().parents[3] / "configs" / "pretrain"
    one, two = (yaml.safe_load((folder / name).read_text()) for name in ("omat24.yaml", "omat24-mptrj-salex.yaml"))
    assert two["start"] == one["out"]
    assert two["model"] == one["model"]
