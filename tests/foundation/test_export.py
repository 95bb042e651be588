"""Releases: complete, verified before they get their name, and refused otherwise."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation import checkpoint
from foundation.checkpoint import CorruptCheckpoint, load
from foundation.convert import ConvertConfig, convert
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.golden import GoldenMismatch, verify_golden
from foundation.interop.sevennet import to_sevennet
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import CardFacts, MissingFact
from foundation.surgery.theories import add_theory
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
FIT = FitConfig(steps=3, lanes=1, edge_budget=1500, validate_every=3, log_every=1)
CARD = CardFacts(
    name="Three steps",
    description="Trained for three steps.",
    authors="Nobody",
    licence="CC0-1.0",
    intended_use="Tests.",
    limitations="Everything else.",
    citation="None.",
)
FILES = ["README.md", "SHA256SUMS", "config.json", "evaluation.json", "golden.json", "model.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, emt_manifest: Manifest) -> Path:
    """A finished and evaluated run; do not write to it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    optim = OptimConfig(warmup_steps=1)
    pretrain(PretrainConfig(data=emt_manifest.root, out=run, fit=FIT, machine=CPU, model=MODEL, optim=optim, card=CARD))
    evaluate(EvaluateConfig(model=run, data=emt_manifest.root))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def release(run: Path) -> Path:
    return export(ExportConfig(run=run, out=run / "release"))


def rewrite(folder: Path, name: str, edit: Callable[[object], None]) -> None:
    """Change a JSON file."""
    values = json.loads((folder / name).read_text())
    edit(values)
    (folder / name).write_text(json.dumps(values))


def spoil_weights(folder: Path) -> None:
    """Change one weight a little and make every checksum right again."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["network.readout.1.weight"][0] += 1e-3
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rewrite(folder, "config.json", lambda config: config.update(weights_sha256=digest))
    checkpoint.write_checksums(folder)


def test_a_release_has_its_files_and_loads(run: Path, release: Path) -> None:
    assert release == run / "release"
    assert sorted(path.name for path in release.iterdir()) == FILES
    ours, theirs = load(release).state_dict(), load(run).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in run.iterdir() if path.name.startswith("release")) == ["release"]


def test_golden_predictions_are_the_potentials_in_float64(release: Path) -> None:
    golden = json.loads((release / "golden.json").read_text())
    assert len(golden) == 3
    potential = load(release).cast(torch.float64)
    for record in golden:
        inputs = {name: record[name] for name in ("numbers", "positions", "cell", "pbc")}
        prediction = potential(to_graph(Structure.checked(**inputs, energy=0.0), potential.cutoff, torch.float64))
        assert record["energy"] == pytest.approx(prediction.energy.item(), rel=1e-12)
        np.testing.assert_allclose(record["forces"], prediction.forces.numpy(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(record["stress"], prediction.stress[0].numpy(), rtol=1e-10, atol=1e-12)


def test_a_release_says_nothing_of_the_places_on_this_machine(run: Path, emt_manifest: Manifest) -> None:
    release = export(ExportConfig(run=run, out=run.parent / "release"))
    for name in ("config.json", "evaluation.json", "README.md"):
        assert not re.search(r"[\s\"](/\w+){2}", (release / name).read_text()), name
    configuration = checkpoint.describe(release).origin.config
    # the run was copied, and its data set is where it was
    assert (run / configuration["data"]).resolve() == emt_manifest.root.resolve()
    assert configuration["fit"] == checkpoint.describe(run / "potential").origin.config["fit"]
    assert checkpoint.load(release).elements == checkpoint.load(run / "potential").elements


def test_the_number_of_golden_structures_is_configured(run: Path) -> None:
    out = export(ExportConfig(run=run, out=run / "release", num_golden=1))
    assert len(json.loads((out / "golden.json").read_text())) == 1


def test_a_release_without_golden_structures_cannot_be_asked_for(run: Path) -> None:
    with pytest.raises(ValueError, match="num_golden must be at least 1, not 0"):
        ExportConfig(run=run, out=run / "release", num_golden=0)


def test_the_card_states_the_measured_errors(run: Path, release: Path) -> None:
    text = (release / "README.md").read_text()
    measured = json.loads((run / "report" / "evaluation.json").read_text())["errors"]
    assert "---\n\n# Three steps\n" in text
    assert f"{1000 * measured['energy_mae']:.1f}" in text
    assert f"{1000 * measured['force_mae']:.1f}" in text
    assert checkpoint.describe(release).weights_sha256 in text
    assert "emt-test" in text
    assert "Al Ni Cu Pd Ag Pt Au" in text


def test_without_a_report_there_is_no_release(run: Path) -> None:
    shutil.rmtree(run / "report")
    with pytest.raises(FileNotFoundError, match=r"held-out errors; measure them with `foundation evaluate --model"):
        export(ExportConfig(run=run, out=run / "release"))
    assert not (run / "release").exists()


def test_a_report_of_other_weights_is_refused(run: Path) -> None:
    rewrite(run / "report", "evaluation.json", lambda values: values.update(weights_sha256="0" * 64))
    with pytest.raises(ValueError, match=r"evaluation\.json: this report belongs to other weights; evaluate .* again"):
        export(ExportConfig(run=run, out=run / "release"))
    assert not (run / "release").exists()


def test_a_run_without_potential_and_checkpoints_is_refused(run: Path) -> None:
    for name in ("potential", "checkpoints"):
        shutil.rmtree(run / name)
    with pytest.raises(FileNotFoundError, match="no potential there"):
        export(ExportConfig(run=run, out=run / "release"))


@pytest.mark.parametrize("name", [item.name for item in fields(CardFacts)])
def test_a_missing_fact_is_refused_and_leaves_nothing_behind(run: Path, name: str) -> None:
    before = sorted(run.iterdir())
    with pytest.raises(MissingFact, match=rf"card\.{name}"):
        export(ExportConfig(run=run, out=run / "release", card=replace(CARD, **{name: ""})))
    assert sorted(run.iterdir()) == before


def test_a_fact_missing_from_the_run_is_refused_and_leaves_nothing_behind(run: Path) -> None:
    before = sorted(run.iterdir())
    evaluation = run / "report" / "evaluation.json"
    rewrite(
        run / "report",
        evaluation.name,
        lambda values: values["errors"].pop("composition_energy_mae") and None,
    )
    with pytest.raises(MissingFact, match="composition_energy_mae"):
        export(ExportConfig(run=run, out=run / "release"))
    assert sorted(run.iterdir()) == before


def test_facts_given_to_export_replace_those_of_the_run(run: Path) -> None:
    out = export(ExportConfig(run=run, out=run / "release", card=replace(CARD, name="Another name")))
    assert "---\n\n# Another name\n" in (out / "README.md").read_text()


def test_data_that_are_gone_are_an_error_that_names_them(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.*no manifest there"):
        export(ExportConfig(run=run, out=run / "release", data=tmp_path / "gone"))


def test_exporting_again_replaces_the_old_release_and_no_file_of_others(run: Path, release: Path) -> None:
    (release / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"release holds other files that would be lost \('notes.txt'\)"):
        export(ExportConfig(run=run, out=release, card=CARD))
    assert (release / "notes.txt").read_text() == "mine"
    (release / "notes.txt").unlink()
    again = export(ExportConfig(run=run, out=release, card=replace(CARD, name="Second edition")))
    assert sorted(path.name for path in again.iterdir()) == FILES
    assert "---\n\n# Second edition\n" in (again / "README.md").read_text()


def test_a_failed_export_leaves_the_old_release_alone(run: Path, release: Path) -> None:
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    with pytest.raises(MissingFact):
        export(ExportConfig(run=run, out=release, card=CardFacts()))
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before


def test_a_release_verifies_wherever_it_is_copied(release: Path, tmp_path: Path) -> None:
    verify_golden(Path(shutil.copytree(release, tmp_path / "copy")))


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress"])
def test_a_changed_golden_value_is_found_and_named(release: Path, quantity: str) -> None:
    def edit(golden: list) -> None:
        golden[1][quantity] = (np.array(golden[1][quantity]) + 1e-6).tolist()

    rewrite(release, "golden.json", edit)
    with pytest.raises(CorruptCheckpoint, match=r"golden\.json: missing or altered"):
        verify_golden(release)
    checkpoint.write_checksums(release)
    with pytest.raises(GoldenMismatch, match=rf"golden\.json, structure 1: the {quantity} recomputed"):
        verify_golden(release)


def test_altered_weights_do_not_reproduce_the_golden_predictions(release: Path) -> None:
    spoil_weights(release)
    load(release)
    with pytest.raises(GoldenMismatch, match="structure 0: the energy"):
        verify_golden(release)


def test_a_release_that_does_not_reproduce_itself_gets_no_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run.iterdir())
    seal = checkpoint.write_checksums

    def damage_then_seal(folder: Path) -> None:
        monkeypatch.setattr(checkpoint, "write_checksums", seal)
        spoil_weights(folder)

    monkeypatch.setattr(checkpoint, "write_checksums", damage_then_seal)
    with pytest.raises(GoldenMismatch):
        export(ExportConfig(run=run, out=run / "release"))
    assert sorted(run.iterdir()) == before


def test_a_run_folder_that_was_moved_still_exports(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run.rename(elsewhere)
    assert load(export(ExportConfig(run=elsewhere, out=tmp_path / "out"))).cutoff == 5.0


@pytest.fixture
def two_theories(run: Path, emt_manifest: Manifest) -> Path:
    """The run with one more level of theory, evaluated at that one."""
    potential = add_theory(load(run), "SCAN")
    for parameter in (p for name, p in potential.named_parameters() if name.endswith("theory_weight")):
        parameter.data[1] += 0.3
    checkpoint.save(potential, run / "potential", checkpoint.describe(run / "potential").provenance)
    evaluate(EvaluateConfig(model=run, data=emt_manifest.root, theory="SCAN"))
    return run


def test_one_level_of_theory_is_released_alone(two_theories: Path) -> None:
    out = export(ExportConfig(run=two_theories, out=two_theories / "release", theory="SCAN"))
    assert sorted(path.name for path in out.iterdir()) == FILES
    released, trained = load(out), load(two_theories)
    assert released.theories == ("SCAN",)
    record = json.loads((out / "golden.json").read_text())[0]
    assert record["theory"] == "SCAN"
    inputs = {name: record[name] for name in ("numbers", "positions", "cell", "pbc")}
    graph = to_graph(Structure.checked(**inputs, energy=0.0), 5.0, torch.float64, trained.theory_number("SCAN"))
    expected = trained.cast(torch.float64)(graph)
    assert record["energy"] == pytest.approx(expected.energy.item(), rel=1e-6)
    np.testing.assert_allclose(
        record["forces"], expected.forces.numpy(), atol=1e-6 * float(expected.forces.abs().max())
    )
    provenance = checkpoint.describe(out).provenance
    assert provenance["kept_of"]["theories"] == list(trained.theories)
    assert provenance["num_parameters"] == sum(p.numel() for p in released.parameters())
    assert checkpoint.describe(out).weights_sha256 in (out / "README.md").read_text()


def test_the_report_has_to_be_of_the_theory_that_is_released(two_theories: Path) -> None:
    other = load(two_theories).theories[0]
    before = sorted(two_theories.iterdir())
    with pytest.raises(ValueError, match=rf"the report is for SCAN; measure the errors of {other} with"):
        export(ExportConfig(run=two_theories, out=two_theories / "release", theory=other))
    with pytest.raises(ValueError, match=r"name one, not HSE"):
        export(ExportConfig(run=two_theories, out=two_theories / "release", theory="HSE"))
    assert sorted(two_theories.iterdir()) == before


def test_a_converted_potential_is_evaluated_and_released_too(
    trained: Path, tmp_path: Path, emt_manifest: Manifest
) -> None:
    to_sevennet(load(trained), tmp_path / "x.pth")
    converted = convert(ConvertConfig(from_="sevennet", checkpoint=tmp_path / "x.pth", out=tmp_path / "x"))
    evaluate(EvaluateConfig(model=converted, data=emt_manifest.root, out=converted / "report"))
    unknown = export(ExportConfig(run=converted, out=tmp_path / "release", card=CARD))
    assert "of generated crystals, recomputed" in (unknown / "README.md").read_text()
    out = export(ExportConfig(run=converted, out=tmp_path / "release", card=CARD, data=emt_manifest.root))
    text = (out / "README.md").read_text()
    assert "Converted from SevenNet. The complete configuration" in text
    assert "| frames, atoms used for training | not stated in the file, not stated in the file |" in text
