"""A potential carries what protects it: made from it alone, covered by its checksums, found by fine-tunings."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import collate
from data_pipeline.sources import EmtAlloys, RandomCrystals
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.checkpoint import CorruptCheckpoint
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning import fisher_by_term, protection
from foundation.finetuning.forgetting import ForgettingConfig
from foundation.finetuning.generated import relaxed
from foundation.finetuning.penalties import PenaltyConfig
from foundation.finetuning.protection import ProtectConfig, protect
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.models import EquivariantConfig
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import CardFacts
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, TermConfig
from foundation.training.optim import OptimConfig
from launch.__main__ import main
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=4, lanes=1, edge_budget=3000, validate_every=2, checkpoint_every=2, log_every=1)
NUM_STRUCTURES = 24
FACTS = ("name", "description", "authors", "licence", "intended_use", "limitations", "citation")
CARD = CardFacts(**dict.fromkeys(FACTS, "A fact"))


@pytest.fixture(scope="module")
def run(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential pretrained for a few steps."""
    out = tmp_path_factory.mktemp("start") / "run"
    optim = OptimConfig(learning_rate=0.01, warmup_steps=2, ema_decay=0.0)
    fit = dataclasses.replace(FIT, steps=20, validate_every=20, checkpoint_every=20)
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=optim, fit=fit, machine=CPU))
    return out


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that potential with a protection and a card; do not write to it."""
    folder = tmp_path_factory.mktemp("made") / "release"
    shutil.copytree(run / "potential", folder)
    (folder / "README.md").write_text("# card\n")
    checkpoint.write_checksums(folder)
    protect(ProtectConfig(model=folder, num_structures=NUM_STRUCTURES))
    return folder


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return Path(shutil.copytree(made, tmp_path / "release"))


@pytest.fixture(scope="module")
def target(provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    named = dataclasses.replace(provenance, name="emt-target")
    out = tmp_path_factory.mktemp("target") / "data"
    return build(BuildConfig(source=EmtAlloys(num_frames=40, seed=7), provenance=named, out=out, block_frames=8))


@pytest.fixture
def config(made: Path, target: Manifest, tmp_path: Path) -> FinetuneConfig:
    """A fine-tuning with what the start carries."""
    return FinetuneConfig(
        start=made,
        data=target.root,
        out=tmp_path / "run",
        fit=FIT,
        machine=CPU,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.0, ema_decay=0.0),
        rehearsal=RehearsalConfig(labels="start"),
        penalty=PenaltyConfig(weight=10.0, fisher="start"),
    )


def energies(potential: Potential, structures: list[Structure]) -> np.ndarray:
    batch = collate(structures, potential.cutoff, potential.dtype)
    return (potential(batch).energy / batch.num_atoms).numpy()


def test_relaxation_lowers_energies_deterministically_and_drops_what_collapses(run: Path) -> None:
    potential = checkpoint.load(run)
    symbols = tuple(SYMBOLS[z] for z in potential.elements)
    before = list(RandomCrystals(num_crystals=20, elements=symbols, max_atoms=8))
    after = list(relaxed(iter(before), potential))
    kept = {structure.id for structure in after}
    matching = [structure for structure in before if structure.id in kept]
    assert len(after) >= 10
    assert (energies(potential, after) < energies(potential, matching) + 1e-3).mean() > 0.8
    again = list(relaxed(iter(before), potential))
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(after, again, strict=True))
    dense = dataclasses.replace(before[0], positions=before[0].positions * 0.4, cell=before[0].cell * 0.4)
    assert list(relaxed(iter([dense]), potential)) == []


def test_the_protection_is_of_the_potential_alone_and_in_its_folder(run: Path, made: Path) -> None:
    potential, manifest = checkpoint.load(made), open_manifest(made / "rehearsal")
    assert not manifest.labelled
    statistics = manifest.split("train").statistics
    assert NUM_STRUCTURES / 2 < statistics.num_frames <= NUM_STRUCTURES
    assert set(statistics.elements) <= set(potential.elements)
    fisher = fisher_by_term.read(made / "fisher.safetensors", potential)
    assert fisher.facts.weights_sha256 == checkpoint.describe(run / "potential").weights_sha256
    assert fisher.facts.num_structures == statistics.num_frames
    facts = checkpoint.describe(made).provenance["protection"]
    assert facts["num_structures"] == statistics.num_frames
    listed = {line.split("  ")[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert listed == files - {"SHA256SUMS"}
    assert {"rehearsal/manifest.json", "fisher.safetensors", "README.md"} <= listed
    card = (made / "README.md").read_text()
    assert card.startswith("# card\n")
    assert f"{statistics.num_frames} generated crystals" in card


def test_another_protection_replaces_it_and_leaves_nothing_else(release: Path) -> None:
    before = {path.name for path in release.iterdir()}
    assert main(["protect", "--model", str(release), "--num_structures", "12", "--seed", "5"]) == 0
    assert {path.name for path in release.iterdir()} == before
    assert (release / "README.md").read_text().count("## Protection") == 1
    assert checkpoint.describe(release).provenance["protection"]["seed"] == 5
    checkpoint.load(release)
    (release / "notes.txt").write_text("mine")
    assert main(["protect", "--model", str(release), "--num_structures", "12"]) != 0
    assert (release / "notes.txt").is_file()


@pytest.mark.parametrize("name", ["fisher.safetensors", "rehearsal/manifest.json", "rehearsal/train-000000.tar"])
def test_an_altered_missing_or_unlisted_file_of_the_protection_is_named(release: Path, name: str) -> None:
    sums, content = release / "SHA256SUMS", (release / name).read_bytes()
    (release / name).write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(CorruptCheckpoint, match=rf"{name}: missing or altered"):
        checkpoint.load(release)
    (release / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=rf"{name}: missing or altered"):
        checkpoint.load(release)
    (release / name).write_bytes(content)
    checkpoint.load(release)
    kept = [line for line in sums.read_text().splitlines() if not line.endswith(name)]
    sums.write_text("".join(line + "\n" for line in kept))
    with pytest.raises(CorruptCheckpoint, match=rf"SHA256SUMS: does not list {name}"):
        checkpoint.load(release)


@pytest.mark.parametrize("name", ["rehearsal/..", "rehearsal/a/b", "rehearsal/../x", "other/x", "rehearsal/", "/x"])
def test_a_checksum_of_a_file_elsewhere_is_refused(release: Path, name: str) -> None:
    with (release / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(CorruptCheckpoint, match="is not a checksum of a file of this folder"):
        checkpoint.load(release)


def test_a_file_added_to_the_rehearsal_is_noticed(release: Path) -> None:
    (release / "rehearsal" / "train-000001.tar").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"does not list rehearsal/train-000001\.tar"):
        checkpoint.load(release)


def test_a_fine_tuning_uses_what_its_start_carries_with_any_loss(config: FinetuneConfig) -> None:
    for number, loss in enumerate((LossConfig(), LossConfig(forces=TermConfig(weight=7.0, kind="mse")))):
        each = dataclasses.replace(config, out=config.out / str(number), loss=loss)
        finetune(each)
        provenance = checkpoint.describe(each.out / "potential").origin
        assert provenance.rehearsed[0]["name"] == f"generated-{NUM_STRUCTURES}"
        assert provenance.fisher is not None
        assert provenance.fisher.data[0].name == f"generated-{NUM_STRUCTURES}"
        assert provenance.run.rehearsal is not None
        assert not (each.out / "protection").exists()
        record = json.loads((each.out / "run.json").read_text())
        assert (record["rehearsal"]["data"], record["penalty"]["fisher"]) == (None, "start")


def test_a_release_carries_the_protection_of_its_run_unless_it_has_other_weights(config: FinetuneConfig) -> None:
    config = dataclasses.replace(config, forgetting=ForgettingConfig(alphas=(0.5,)))
    finetune(config)
    protect(ProtectConfig(model=config.out, num_structures=12))
    release = export(ExportConfig(run=config.out, out=config.out / "release", card=CARD))
    facts = checkpoint.describe(release).origin.protection
    assert facts is not None
    assert open_manifest(release / "rehearsal").split("train").statistics.num_frames == facts.num_structures
    assert (release / "README.md").read_text().count("## Protection in fine-tunings") == 1
    potential = checkpoint.load(release)
    fisher_by_term.read(release / "fisher.safetensors", potential).of(LossConfig(), potential)
    between = export(ExportConfig(run=config.out, out=config.out / "between", card=CARD, alpha=0.5))
    assert checkpoint.describe(between).origin.protection is None
    assert not (between / "rehearsal").exists()
    assert "Protection" not in (between / "README.md").read_text()


@pytest.mark.long
def test_a_run_whose_start_carries_none_makes_its_own_keeps_it_and_resumes_with_it(
    config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protection, "NUM_STRUCTURES", NUM_STRUCTURES)
    config = dataclasses.replace(config, start=run)
    tuned = finetune(config)
    assert "carries no protection" in caplog.text
    assert {path.name for path in (config.out / "protection").iterdir()} == {"rehearsal", "fisher.safetensors"}
    for file in (config.out / "checkpoints").glob("step=000000004*"):
        file.unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(protection, "make", refuse)
    again = finetune(dataclasses.replace(config, fit=dataclasses.replace(FIT, resume=True)))
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True))
    # a run that replaces this one has the same start
    finetune(dataclasses.replace(config, overwrite=True))


def test_a_kept_protection_of_other_weights_or_damaged_is_made_again(
    made: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protection, "NUM_STRUCTURES", 8)
    potential = checkpoint.load(run)
    kept = tmp_path / "protection"
    kept.mkdir()
    shutil.copytree(made / "rehearsal", kept / "rehearsal")
    shutil.copyfile(made / "fisher.safetensors", kept / "fisher.safetensors")
    found = protection.found_or_made(run, potential, kept)
    assert open_manifest(found / "rehearsal").provenance.name == f"generated-{NUM_STRUCTURES}"
    with torch.no_grad():
        next(potential.parameters()).mul_(1.01)
    protection.found_or_made(run, potential, kept)
    assert open_manifest(kept / "rehearsal").provenance.name == "generated-8"
    (kept / "fisher.safetensors").write_bytes(b"torn")
    protection.found_or_made(run, potential, kept)
    assert fisher_by_term.read(kept / "fisher.safetensors", potential).facts.num_structures <= 8


def test_a_folder_with_a_protection_alone_is_free_for_a_run(config: FinetuneConfig, made: Path) -> None:
    shutil.copytree(made, config.out / "protection")
    finetune(config)
    assert (config.out / "potential").is_dir()


def test_generated_structures_have_no_labels_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"--rehearsal\.labels start"):
        RehearsalConfig()


def test_the_command_line_reads_start_as_the_carried_fisher(config: FinetuneConfig) -> None:
    words = ["--start", str(config.start), "--data", str(config.data), "--out", str(config.out), "--fit.steps", "2"]
    words += ["--fit.validate_every", "2", "--fit.log_every", "1"]
    words += ["--fit.lanes", "1", "--fit.edge_budget", "3000", "--rehearsal.labels", "start", "--penalty.weight", "1"]
    words += ["--penalty.fisher", "start", "--machine.accelerator", "cpu", "--machine.num_workers", "0"]
    assert main(["finetune", *words]) == 0
    origin = checkpoint.describe(config.out / "potential").origin
    assert origin.fisher is not None
    assert origin.rehearsed
