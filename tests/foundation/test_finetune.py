"""finetune(): what it makes, that the parts work together, and what is refused before anything is written."""

import dataclasses
import json
import logging
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation import checkpoint
from foundation.datasets import DatasetConfig
from foundation.finetune import AdapterConfig, FinetuneConfig, finetune
from foundation.finetuning.fisher import FisherConfig, compute_fisher
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.finetuning.penalties import PenaltyConfig
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.models import EquivariantConfig
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.surgery.theories import add_theory
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, TermConfig
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=6,
    lanes=1,
    edge_budget=3000,
    validate_every=3,
    checkpoint_every=3,
    log_every=1,
)


@pytest.fixture(scope="module")
def start(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential pretrained for a few steps on the training split of the EMT frames."""
    out = tmp_path_factory.mktemp("start") / "run"
    optim = OptimConfig(learning_rate=0.01, warmup_steps=2, ema_decay=0.0)
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=optim, fit=FIT, machine=CPU))
    return out


@pytest.fixture(scope="module")
def target(provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Other frames of the same kind."""
    out = tmp_path_factory.mktemp("target") / "data"
    named = dataclasses.replace(provenance, name="emt-target")
    return build(BuildConfig(source=EmtAlloys(num_frames=60, seed=7), provenance=named, out=out, block_frames=8))


@pytest.fixture(scope="module")
def fisher(start: Path, emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fisher") / "fisher.safetensors"
    compute_fisher(FisherConfig(model=start, data=emt_manifest.root, out=file))
    return file


@pytest.fixture
def config(start: Path, target: Manifest, emt_manifest: Manifest, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        start=start,
        data=target.root,
        out=tmp_path / "run",
        fit=FIT,
        machine=CPU,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.0, ema_decay=0.0),
        forgetting=ForgettingConfig(retained=(HeldOutConfig(path=emt_manifest.root, split="test"),)),
    )


def weights(potential: Potential) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}


def test_a_run_learns_the_target_reports_what_it_forgot_and_can_be_loaded(config: FinetuneConfig) -> None:
    tuned = finetune(config)
    report = json.loads((config.out / "forgetting" / "forgetting.json").read_text())
    target, retained = report["sets"]["emt-target"], report["sets"]["emt-test"]
    assert (target["role"], retained["role"]) == ("target", "retained")
    assert target["after"]["force_mae"]["value"] != target["before"]["force_mae"]["value"]
    assert (config.out / "forgetting" / "index.html").is_file()
    loaded = checkpoint.load(config.out)
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in weights(tuned).items())
    provenance = checkpoint.describe(config.out / "potential").provenance
    assert provenance["method"] == "fine-tuning"
    assert provenance["start"]["datasets"][0]["name"] == "emt-test"
    rows = [row for row in read_rows(config.out / "logs") if row["kind"] == "validation"]
    # the retained frames are watched in training, and do not count in the validation of the target
    assert rows[-1]["val/emt-test/frames"] > 0
    assert rows[-1]["val/frames"] == rows[-1]["val/emt-target/frames"]


def test_the_whole_recipe_at_once_resumes_to_the_same_bits(
    config: FinetuneConfig, fisher: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        config,
        rehearsal=RehearsalConfig(data=emt_manifest.root, ratio=0.5),
        penalty=PenaltyConfig(weight=1e3, fisher=fisher),
        freeze=("embedding",),
        rate_factors={"network.readout.*": 0.5},
    )
    whole = weights(finetune(config))
    half = dataclasses.replace(config, out=tmp_path / "again")
    finetune(half)
    # what a run leaves that was stopped at its last checkpoint but one
    for file in (half.out / "checkpoints").glob("step=000000006*"):
        file.unlink()
    again = dataclasses.replace(half, fit=dataclasses.replace(FIT, resume=True))
    assert all(torch.equal(value, whole[name]) for name, value in weights(finetune(again)).items())


def test_frozen_parameters_keep_every_bit(config: FinetuneConfig, start: Path) -> None:
    before = weights(checkpoint.load(start))
    after = weights(finetune(dataclasses.replace(config, freeze=("blocks:1",))))
    frozen = [name for name in before if torch.equal(before[name], after[name])]
    assert {name for name in before if "blocks.0" in name or "embedding" in name or "radial_basis" in name} == set(
        frozen
    )


@pytest.mark.long
def test_adapters_are_merged_into_a_plain_potential(config: FinetuneConfig, start: Path) -> None:
    tuned = finetune(dataclasses.replace(config, adapters=AdapterConfig(rank=2)))
    before, after = weights(checkpoint.load(start)), weights(tuned)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not any("adapter" in name for name in checkpoint.load(config.out).state_dict())


def test_a_strong_penalty_holds_the_weights(config: FinetuneConfig, start: Path, tmp_path: Path) -> None:
    def distance(penalty: PenaltyConfig | None, out: str) -> float:
        tuned = weights(finetune(dataclasses.replace(config, penalty=penalty, out=tmp_path / out)))
        return sum(
            float((tuned[name] - value).square().sum()) for name, value in weights(checkpoint.load(start)).items()
        )

    assert distance(PenaltyConfig(weight=1e6), "held") < 0.3 * distance(None, "free")


@pytest.mark.long
def test_the_measurement_of_the_start_can_be_taken_over(config: FinetuneConfig, tmp_path: Path) -> None:
    finetune(config)
    before = dataclasses.replace(config.forgetting, before=config.out / "forgetting")
    finetune(dataclasses.replace(config, out=tmp_path / "other", forgetting=before))
    sets = [
        json.loads((out / "forgetting" / "forgetting.json").read_text())["sets"]
        for out in (config.out, tmp_path / "other")
    ]
    assert sets[0] == sets[1]


def refused(config: FinetuneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(config)
    assert not config.out.exists()


def test_a_fisher_of_another_loss_or_potential_is_refused(
    config: FinetuneConfig, fisher: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    penalty = PenaltyConfig(weight=1.0, fisher=fisher)
    other = LossConfig(forces=TermConfig(weight=1.0))
    refused(dataclasses.replace(config, penalty=penalty, loss=other), r"another potential or loss: loss\.forces")
    finetune(dataclasses.replace(config, out=tmp_path / "first"))
    refused(dataclasses.replace(config, penalty=penalty, start=tmp_path / "first"), "weights .* differ")


def built(frames: list[ase.Atoms], labels: dict, provenance: Provenance, folder: Path, **options: float) -> Manifest:
    """Return a data set of frames that have these labels."""
    for frame in frames:
        frame.calc = SinglePointCalculator(frame, **labels)
    file = folder / "frames.extxyz"
    ase.io.write(file, frames)
    named = dataclasses.replace(provenance, name="emt-odd")
    config = BuildConfig(
        source=AseFiles(files=(str(file),)), provenance=named, out=folder / "data", split_by="order", **options
    )
    return build(config)


def test_a_target_without_stress_is_refused_unless_its_term_is_left_out(
    config: FinetuneConfig, provenance: Provenance, tmp_path: Path
) -> None:
    frames = [bulk("Cu", cubic=True) for _ in range(10)]
    data = built(frames, {"energy": 0.1, "forces": np.zeros((4, 3))}, provenance, tmp_path)
    config = dataclasses.replace(config, data=data.root, loss=LossConfig())
    refused(config, r"emt-odd has no stress, but loss\.stress\.weight is 5")
    finetune(dataclasses.replace(config, loss=LossConfig(stress=TermConfig(weight=0.0))))


def test_a_target_without_forces_is_refused_unless_it_is_allowed(
    config: FinetuneConfig, provenance: Provenance, tmp_path: Path
) -> None:
    frames = [bulk("Cu", cubic=True) for _ in range(10)]
    data = built(frames, {"energy": 0.1, "stress": np.zeros(6)}, provenance, tmp_path)
    config = dataclasses.replace(config, data=data.root, loss=LossConfig())
    refused(config, r"emt-odd has no forces, but loss\.forces\.weight is 20: .*--missing_forces allow")


def test_a_target_with_an_element_that_the_start_does_not_know_is_refused_unless_it_may_be_added(
    config: FinetuneConfig, provenance: Provenance, tmp_path: Path
) -> None:
    frames = [bulk("Rh", cubic=True) for _ in range(10)]
    labels = {"energy": 0.1, "forces": np.zeros((4, 3)), "stress": np.zeros(6)}
    config = dataclasses.replace(config, data=built(frames, labels, provenance, tmp_path).root)
    refused(config, "does not know Rh, .* --new_elements add")
    tuned = finetune(dataclasses.replace(config, new_elements="add"))
    assert 45 in tuned.elements


def test_an_empty_target_is_refused(config: FinetuneConfig, provenance: Provenance, tmp_path: Path) -> None:
    labels = {"energy": 0.1, "forces": np.zeros((4, 3)), "stress": np.zeros(6)}
    data = built([bulk("Cu", cubic=True)], labels, provenance, tmp_path, val_fraction=0.0, test_fraction=1.0)
    refused(dataclasses.replace(config, data=data.root), "no frames in the training split")


def test_rehearsing_or_weighing_held_out_frames_is_refused(
    config: FinetuneConfig, fisher: Path, emt_manifest: Manifest
) -> None:
    held_out = ForgettingConfig(retained=(HeldOutConfig(path=emt_manifest.root, split="train"),))
    config = dataclasses.replace(config, forgetting=held_out)
    refused(
        dataclasses.replace(config, rehearsal=RehearsalConfig(data=emt_manifest.root)), "is rehearsed and .* held out"
    )
    refused(dataclasses.replace(config, penalty=PenaltyConfig(weight=1.0, fisher=fisher)), "Fisher was computed on")


def test_training_on_held_out_frames_is_refused(config: FinetuneConfig, target: Manifest) -> None:
    held_out = ForgettingConfig(target=(HeldOutConfig(path=target.root, split="train"),))
    refused(dataclasses.replace(config, forgetting=held_out), r"emt-target \(train\) is trained on and .* held out")


def test_a_fisher_holds_the_weights_of_a_start_to_which_a_theory_is_added(
    config: FinetuneConfig, start: Path, target: Manifest, fisher: Path
) -> None:
    data = (DatasetConfig(path=target.root, theory="another level"),)
    config = dataclasses.replace(config, data=data, forgetting=ForgettingConfig())
    begun = add_theory(checkpoint.load(start), "another level")
    far = {}
    for weight in (0.0, 1e6):
        penalty = PenaltyConfig(weight=weight, fisher=fisher, normalization="mean")
        tuned = finetune(dataclasses.replace(config, penalty=penalty, out=config.out / f"{weight:g}"))
        assert tuned.theories == begun.theories
        name = "network.radial_basis.wave_numbers"
        far[weight] = float((tuned.get_parameter(name) - begun.get_parameter(name)).detach().abs().max())
    assert far[1e6] < 0.6 * far[0.0]


def test_rehearsal_of_the_starts_own_predictions_begins_without_an_error(
    config: FinetuneConfig, emt_manifest: Manifest
) -> None:
    rehearsal = RehearsalConfig(data=emt_manifest.root, labels="start")
    finetune(dataclasses.replace(config, rehearsal=rehearsal))
    rows = [row["train/loss_rehearsal"] for row in read_rows(config.out / "logs") if row["kind"] == "train"]
    assert rows[0] < 1e-5 < rows[-1]


def test_an_all_frozen_model_is_refused(config: FinetuneConfig) -> None:
    refused(dataclasses.replace(config, freeze=("*",)), "leaves no parameter to train")


def test_a_level_of_theory_that_the_start_does_not_know_is_added_and_that_is_said(
    config: FinetuneConfig, provenance: Provenance, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = dataclasses.replace(provenance, name="other", level_of_theory="something else")
    data = build(BuildConfig(source=EmtAlloys(num_frames=20), provenance=other, out=tmp_path / "data", block_frames=4))
    assert finetune(dataclasses.replace(config, data=data.root)).theories[-1] == "something else"
    assert "'something else' is none of the start's" in caplog.text
    assert "zero of energy: " in caplog.text


def test_adapters_go_with_neither_a_penalty_nor_freezing(config: FinetuneConfig) -> None:
    for changes in ({"penalty": PenaltyConfig(weight=1.0)}, {"freeze": ("embedding",)}):
        with pytest.raises(ValueError, match="adapters freeze"):
            dataclasses.replace(config, adapters=AdapterConfig(), **changes)


def test_references_may_be_refitted(config: FinetuneConfig, start: Path) -> None:
    tuned = finetune(dataclasses.replace(config, references="refit"))
    before = checkpoint.load(start).get_buffer("reference_energies")
    assert not np.allclose(before, tuned.get_buffer("reference_energies"))


@pytest.mark.long
def test_a_refused_resume_leaves_the_record_of_the_run(config: FinetuneConfig, emt_manifest: Manifest) -> None:
    finetune(config)
    record = (config.out / "run.json").read_bytes()
    resumed = dataclasses.replace(config, fit=dataclasses.replace(FIT, resume=True))
    with pytest.raises(ValueError, match=r"penalty\.weight was None and is 1\.0"):
        finetune(dataclasses.replace(resumed, penalty=PenaltyConfig(weight=1.0)))
    another = HeldOutConfig(path=emt_manifest.root, split="val", name="another")
    transfer = dataclasses.replace(config.forgetting, transfer=(another,))
    with pytest.raises(ValueError, match=r"has no held-out set 'another'.*name the sets as there"):
        finetune(dataclasses.replace(resumed, forgetting=transfer))
    assert (config.out / "run.json").read_bytes() == record


def test_a_folder_that_is_there_is_refused_before_the_start_is_read(config: FinetuneConfig) -> None:
    config.out.mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        finetune(dataclasses.replace(config, start=config.out / "nowhere"))


def test_what_was_learned_and_forgotten_is_said_at_the_end(
    config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        finetune(config)
    said = caplog.messages
    assert any("(target, " in line and "force MAE" in line and "meV/Å (" in line for line in said)
    assert said[-1] == f"report of learning and forgetting: {config.out / 'forgetting' / 'index.html'}"
