"""Releases of fine-tuned runs: the card says what was done, learned and forgotten, and no structure is passed on that
may not be."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.store.shards import sha256
from foundation import checkpoint
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.quantities import QUANTITIES
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.fisher import FisherConfig, compute_fisher
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.finetuning.penalties import PenaltyConfig
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.golden import verify_golden
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import CardFacts
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.forgetting_record import Forgetting
from foundation.reports.forgetting_report import table
from foundation.surgery.theories import add_theory
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from launch.__main__ import main
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
FIT = FitConfig(steps=3, lanes=1, edge_budget=2000, validate_every=3, log_every=1)
OPTIM = OptimConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.0, ema_decay=0.0)
CARD = CardFacts(
    name="Three steps more",
    description="Fine-tuned for three steps.",
    authors="Nobody",
    licence="CC0-1.0",
    intended_use="Tests.",
    limitations="Everything else.",
    citation="None.",
)
NO_LICENCE = "none stated; for measurement only, not for redistribution"


@pytest.fixture(scope="module")
def start(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    card = CardFacts(name="The start")
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=OPTIM, fit=FIT, machine=CPU, card=card))
    return out


@pytest.fixture(scope="module")
def target(provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Other frames of the same kind, which nobody may pass on."""
    out = tmp_path_factory.mktemp("target") / "data"
    named = dataclasses.replace(provenance, name="emt-target", licence=NO_LICENCE)
    return build(BuildConfig(source=EmtAlloys(num_frames=60, seed=7), provenance=named, out=out, block_frames=8))


@pytest.fixture(scope="module")
def tuned(start: Path, target: Manifest, emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every part that goes together; do not write to it."""
    folder = tmp_path_factory.mktemp("tuned")
    compute_fisher(FisherConfig(model=start, data=emt_manifest.root, out=folder / "fisher", max_structures=5))
    finetune(
        FinetuneConfig(
            start=start,
            data=target.root,
            out=folder / "run",
            fit=FIT,
            machine=CPU,
            optim=OPTIM,
            rehearsal=RehearsalConfig(data=emt_manifest.root, ratio=0.5, fraction=0.25),
            penalty=PenaltyConfig(weight=1e3, fisher=folder / "fisher", normalization="mean"),
            freeze=("embedding",),
            rate_factors={"network.readout.*": 0.5},
            references="refit",
            forgetting=ForgettingConfig(retained=(HeldOutConfig(path=emt_manifest.root),), alphas=(0.5,)),
            card=CARD,
        )
    )
    return folder / "run"


@pytest.fixture(scope="module")
def curved(start: Path, target: Manifest, emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept the references, with what lies between measured; do not write to it."""
    out = tmp_path_factory.mktemp("curved") / "run"
    held = ForgettingConfig(retained=(HeldOutConfig(path=emt_manifest.root),), alphas=(0.25, 0.5))
    finetune(
        FinetuneConfig(
            start=start,
            data=target.root,
            out=out,
            fit=FIT,
            machine=CPU,
            optim=OPTIM,
            references="keep",
            forgetting=held,
            card=CARD,
        )
    )
    return out


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(tuned, tmp_path / "run"))


def change(folder: Path, name: str, edit: Callable[[dict], None]) -> None:
    """Change a JSON file of a run or of a potential, whose checksums then are right again."""
    values = json.loads((folder / name).read_text())
    edit(values)
    (folder / name).write_text(json.dumps(values))
    if (folder / checkpoint.CHECKSUMS).is_file():
        checkpoint.write_checksums(folder)


def refused(run: Path, message: str, error: type[Exception] = ValueError, **options: object) -> None:
    before = sorted(run.iterdir())
    with pytest.raises(error, match=message):
        export(ExportConfig(run=run, out=run / "refused", **options))  # pyright: ignore[reportArgumentType] (any)
    assert sorted(run.iterdir()) == before


def golden_numbers(release: Path) -> list[list[int]]:
    return [record["numbers"] for record in json.loads((release / "golden.json").read_text())]


def test_a_release_needs_no_second_measurement_and_its_card_tells_all(
    tuned: Path, start: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    release = export(ExportConfig(run=tuned, out=tmp_path / "release"))
    verify_golden(release)
    card = (release / "README.md").read_text()
    config = checkpoint.describe(tuned / "potential")
    provenance, report = config.provenance, Forgetting.from_json(tuned / "forgetting" / "forgetting.json")
    rehearsed = round(0.25 * emt_manifest.split("train").statistics.num_frames)
    moved = provenance["references"]["effective medium theory"]["elements"]["Cu"]["moved"]
    for expected in (
        "Fine-tuning, 3 optimizer steps",
        "| data set | emt-target |",
        "| data set | emt-test, rehearsed |",
        f"| frames, atoms used for training | {rehearsed}, ",
        "| data set | emt-test, in the training of the start |",
        f"| licence of the data | {NO_LICENCE} |",
        f"| begins with | The start (pretraining), weights with SHA-256 `{_sha256(start)}`",
        "| learning rate | 0.003 at most, adamw, cosine, times 0.5 for `network.readout.*` |",
        "| rehearsal | emt-test (train), a fraction of 0.25 of the structures (random); mode joint, 0.5 times",
        "| penalty | EWC, lambda 1000, diagonal Fisher of 5 structures of emt-test (train), divided by its mean; ",
        f"| frozen | `embedding`; {provenance['num_trained']:,} numbers were trained |",
        "| reference energies | refitted, at effective medium theory by ",
        f"Cu {moved:+.3g}".replace("-", "−"),
        "all predictions of the start for these elements there have moved so",
        table(report),
        "| emt-target, target | test | effective medium theory |",
        "| emt-test, retained | test | effective medium theory |",
        config.weights_sha256,
    ):
        assert expected in card
    for leftover in ("{{", "{%", "Undefined", "None ", "nan", "\n\n\n", "trivial predictor"):
        assert leftover not in card


def _sha256(run: Path) -> str:
    return checkpoint.describe(run / "potential").weights_sha256


def test_golden_structures_are_of_the_retained_set_if_nobody_may_pass_on_the_target(
    run: Path, emt_manifest: Manifest, target: Manifest
) -> None:
    release = export(ExportConfig(run=run, out=run / "release"))
    golden = json.loads((release / "golden.json").read_text())
    assert len(golden) == 3
    positions = [np.array(record["positions"]) for record in golden]
    small = [frame for frame in Frames(emt_manifest, "test") if frame.num_atoms <= 40]
    assert all(np.array_equal(ours, frame.positions) for ours, frame in zip(positions, small, strict=False))
    assert "structures\nof emt-test, recomputed" in (release / "README.md").read_text()
    release = export(ExportConfig(run=run, out=run / "release", data=target.root))
    assert "of generated crystals, recomputed" in (release / "README.md").read_text()


def large(folder: Path, provenance: Provenance, sizes: list[int]) -> Path:
    """Return a data set of copper crystals with so many cells, of four atoms each, along one edge; all test."""
    frames = [bulk("Cu", cubic=True).repeat((size, 2, 2)) for size in sizes]
    for frame in frames:
        frame.calc = SinglePointCalculator(
            frame, energy=0.1 * len(frame), forces=np.zeros((len(frame), 3)), stress=np.zeros(6)
        )
    ase.io.write(folder / "large.extxyz", frames)
    source = AseFiles(files=(str(folder / "large.extxyz"),))
    named = dataclasses.replace(provenance, name="large")
    config = BuildConfig(
        source=source, provenance=named, out=folder / "data", val_fraction=0.0, test_fraction=1.0, split_by="order"
    )
    return build(config).root


def test_of_large_structures_only_the_smallest_is_golden_and_small_ones_of_a_retained_set_go_before(
    run: Path, provenance: Provenance, tmp_path: Path
) -> None:
    data = large(tmp_path, provenance, [5, 3, 4])
    release = export(ExportConfig(run=run, out=run / "release", data=data))
    assert golden_numbers(release) == [[29] * 48]
    verify_golden(release)
    # a target that may be passed on, but of large structures only
    change(run / "potential", "config.json", lambda values: values["provenance"]["config"].update(data=str(data)))
    release = export(ExportConfig(run=run, out=run / "release"))
    assert len(golden_numbers(release)) == 3
    assert all(len(numbers) <= 40 for numbers in golden_numbers(release))
    # and nothing smaller anywhere
    without = {"forgetting": {}, "rehearsal": None}
    change(run / "potential", "config.json", lambda values: values["provenance"]["config"].update(without))
    assert golden_numbers(export(ExportConfig(run=run, out=run / "release"))) == [[29] * 48]


def test_a_report_that_is_missing_or_of_other_weights_is_refused(run: Path) -> None:
    file = run / "forgetting" / "forgetting.json"
    change(file.parent, file.name, lambda values: values["weights_sha256"].update(after="0" * 64))
    refused(run, r"forgetting\.json: this report belongs to other weights")
    file.unlink()
    refused(run, r"forgetting\.json: not found; a release of a fine-tuning states what", FileNotFoundError)


def test_the_notice_of_the_start_comes_along(
    run: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    licensed, out = Path(shutil.copytree(start, tmp_path / "licensed")), run / "release"
    (checkpoint.find(licensed) / checkpoint.LICENCE).write_text("Copyright of others")
    change(run / "potential", "config.json", lambda values: values["provenance"]["start"].update(folder=str(licensed)))
    assert (export(ExportConfig(run=run, out=out)) / checkpoint.LICENCE).read_text() == "Copyright of others"
    assert checkpoint.LICENCE in (out / checkpoint.CHECKSUMS).read_text()
    shutil.rmtree(licensed)
    assert not (export(ExportConfig(run=run, out=out)) / checkpoint.LICENCE).exists()
    assert "is gone: if it had a LICENSE" in caplog.text


def test_a_report_of_an_evaluation_goes_along_if_it_is_of_these_weights(
    run: Path, emt_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    out = run / "release"
    assert not (export(ExportConfig(run=run, out=out)) / checkpoint.EVALUATION).exists()
    found = evaluate(EvaluateConfig(model=run, data=emt_manifest.root))
    assert Evaluation.from_json(export(ExportConfig(run=run, out=out)) / checkpoint.EVALUATION).errors == found.errors
    file = run / "report" / "evaluation.json"
    change(file.parent, file.name, lambda values: values.update(weights_sha256="0" * 64))
    assert not (export(ExportConfig(run=run, out=out)) / checkpoint.EVALUATION).exists()
    assert "left out of the release" in caplog.text


def test_a_run_without_a_held_out_target_is_refused_and_one_without_a_retained_set_owns_up_to_it(run: Path) -> None:
    folder = run / "forgetting"
    change(folder, "forgetting.json", lambda values: values["sets"].pop("emt-test"))
    card = (export(ExportConfig(run=run, out=run / "release")) / "README.md").read_text()
    assert "\n- no retained set was measured, so forgetting is unknown\n" in card
    shutil.rmtree(run / "release")
    change(folder, "forgetting.json", lambda values: values["sets"].clear())
    refused(run, r"no held-out set of the target was measured.*forgetting\.target")


def test_a_level_of_theory_is_released_alone_if_it_was_measured(run: Path) -> None:
    potential = add_theory(checkpoint.load(run), "SCAN")
    checkpoint.save(potential, run / "potential", checkpoint.describe(run / "potential").provenance)
    change(run / "forgetting", "forgetting.json", lambda values: values["weights_sha256"].update(after=_sha256(run)))
    refused(run, r"no held-out set at SCAN was measured", theory="SCAN")
    theory = potential.theories[0]
    release = export(ExportConfig(run=run, out=run / "release", theory=theory))
    assert checkpoint.load(release).theories == (theory,)
    assert "| emt-target, target |" in (release / "README.md").read_text()


def test_a_fine_tuning_of_a_fine_tuned_potential_names_all_data_before_it(
    tuned: Path, target: Manifest, emt_manifest: Manifest, tmp_path: Path
) -> None:
    out, penalty = tmp_path / "again", PenaltyConfig(weight=2.0)
    finetune(
        FinetuneConfig(
            start=tuned, data=target.root, out=out, fit=FIT, machine=CPU, optim=OPTIM, penalty=penalty, card=CARD
        )
    )
    start = checkpoint.describe(out / "potential").provenance["start"]
    assert [each["name"] for each in start["datasets"]] == ["emt-target", "emt-test", "emt-test"]
    release = export(ExportConfig(run=out, out=tmp_path / "release", data=emt_manifest.root))
    card = (release / "README.md").read_text()
    assert "| begins with | Three steps more (fine-tuning), weights with SHA-256" in card
    assert "| penalty | L2-SP, lambda 2: (lambda/2) Σ (θ − θ*)² |" in card


def test_what_lies_between_start_and_result_is_released_with_its_own_errors(
    curved: Path, start: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    release = export(ExportConfig(run=curved, out=tmp_path / "release", alpha=0.5, data=emt_manifest.root))
    verify_golden(release)
    ends = [checkpoint.load(start).state_dict(), checkpoint.load(curved).state_dict()]
    for name, value in checkpoint.load(release).state_dict().items():
        first, last = (end[name].double() for end in ends)
        assert torch.allclose(value.double(), 0.5 * (first + last), rtol=1e-6, atol=1e-7)
    report = json.loads((curved / "forgetting" / "forgetting.json").read_text())
    point = next(point for point in report["curve"] if point["alpha"] == 0.5)
    after = QUANTITIES["force_mae"].text(point["sets"]["emt-test"]["errors"]["force_mae"]["value"])
    card = (release / "README.md").read_text()
    assert f" → {after} (" in card
    assert f"| interpolated | start + 0.5 (result − start) in all weights; the result is `{_sha256(curved)}`." in card
    settings = checkpoint.describe(release)
    assert f"`{settings.weights_sha256}`" in card
    assert settings.provenance["interpolated"] == {"alpha": 0.5, "weights_sha256": _sha256(curved)}


@pytest.mark.parametrize("theory", ["effective medium theory", "another"])
def test_what_lies_between_is_released_if_the_run_changed_its_start(
    start: Path, target: Manifest, emt_manifest: Manifest, tmp_path: Path, theory: str
) -> None:
    run = tmp_path / "run"
    finetune(
        FinetuneConfig(
            start=start,
            data=target.root,
            theory=theory,
            out=run,
            fit=FIT,
            machine=CPU,
            optim=OPTIM,
            references="refit",
            forgetting=ForgettingConfig(alphas=(0.5,)),
            card=CARD,
        )
    )
    release = export(ExportConfig(run=run, out=tmp_path / "release", alpha=0.5, data=emt_manifest.root))
    between, result, base = (checkpoint.load(folder) for folder in (release, run, start))
    # training leaves references alone, so they are the refitted ones at every alpha
    references = [each.get_buffer("reference_energies") for each in (between, result, base)]
    assert torch.equal(references[0], references[1])
    assert not torch.equal(references[0][-1], references[2][-1])
    name = "network.radial_basis.wave_numbers"
    weights = [each.get_parameter(name).detach() for each in (between, result, base)]
    torch.testing.assert_close(weights[0], 0.5 * (weights[1] + weights[2]), rtol=1e-6, atol=1e-7)
    assert not torch.equal(weights[0], weights[1])


def test_what_was_not_measured_between_is_not_released(
    curved: Path, tuned: Path, start: Path, tmp_path: Path, emt_manifest: Manifest
) -> None:
    run, data = Path(shutil.copytree(curved, tmp_path / "run")), emt_manifest.root
    refused(run, r"alpha-0\.3.*not measured alpha 0\.3 \(measured: 0\.25, 0\.5\)", FileNotFoundError, alpha=0.3)
    with pytest.raises(ValueError, match="alpha must be above 0"):
        ExportConfig(run=run, out=run / "refused", alpha=0.0)
    other = Path(shutil.copytree(curved, tmp_path / "other"))
    change(other / "potential", "config.json", lambda values: values["provenance"]["start"].update(folder=str(tuned)))
    refused(other, r"is not the measured one: .*tuned.* has other weights .*without --alpha", alpha=0.5, data=data)
    pretrained = Path(shutil.copytree(start, tmp_path / "start"))
    refused(pretrained, "needs a fine-tuning run", alpha=0.5, data=data, card=CARD)
    change(
        run / "potential",
        "config.json",
        lambda values: values["provenance"]["start"].update(folder=str(tmp_path / "gone")),
    )
    refused(run, "gone", FileNotFoundError, alpha=0.5, data=data)


def test_the_lineage_has_the_checksum_of_everything(
    tuned: Path, start: Path, target: Manifest, emt_manifest: Manifest, capsys: pytest.CaptureFixture
) -> None:
    assert main(["models", "lineage", str(tuned), "--configuration", "true"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    digests = {line.partition(":")[0]: digest for line, digest in itertools.pairwise(lines) if len(digest) == 64}
    assert digests == {
        "weights": checkpoint.describe(tuned / "potential").weights_sha256,
        "parent": checkpoint.describe(checkpoint.find(start)).weights_sha256,
        "data": target.fingerprint,
        "rehearsed": emt_manifest.fingerprint,
        "data of the parent": emt_manifest.fingerprint,
        "Fisher": sha256(tuned.parent / "fisher"),
    }
    assert "normalization: mean" in lines
