"""A trust signal is made by a command, lies in the release, is checked at loading, and comes with predictions."""

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation import checkpoint, last_layer
from foundation.checkpoint import CorruptCheckpoint
from foundation.export import ExportConfig, export
from foundation.finetuning.protection import ProtectConfig, protect
from foundation.interop.calculator import Calculator
from foundation.last_layer import KINDS
from foundation.md import MdConfig, md
from foundation.models import EquivariantConfig
from foundation.naming import read_start
from foundation.potential import Potential, Prediction, new_potential
from foundation.predict import PredictConfig, predict
from foundation.relax import RelaxConfig, relax
from foundation.uncertainty import UncertaintyConfig, add_uncertainty
from launch.__main__ import main
from tests.small_networks import SMALL_NETWORKS

MODEL = EquivariantConfig(irreps="6x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
NAMES = (last_layer.FACTS, last_layer.TENSORS, last_layer.FIGURE)


@pytest.fixture(scope="module")
def made(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential with a trust signal and a card; do not write to it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made") / "release"
    checkpoint.save(new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}), folder, {})
    (folder / "README.md").write_text("# card\n\n## Protection in fine-tunings\n\nlast\n")
    checkpoint.write_checksums(folder)
    assert main(["uncertainty", "--model", str(folder), "--data", str(emt_manifest.root)]) == 0
    return folder


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return Path(shutil.copytree(made, tmp_path / "release"))


@pytest.fixture
def frames(emt_manifest: Manifest) -> list[Structure]:
    return list(Dataset(manifest=emt_manifest, split="test").frames())[:5]


def crystal(spacing: float = 4.0, size: int = 1) -> ase.Atoms:
    """A copper crystal with every atom a little off its place."""
    atoms = bulk("Cu", "fcc", a=spacing, cubic=True).repeat(size)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_the_folder_has_facts_tensors_figure_and_a_section_of_the_card(made: Path, emt_manifest: Manifest) -> None:
    potential, card = checkpoint.load(made), (made / "README.md").read_text()
    assert potential.last_layer is not None
    facts, seen = potential.last_layer.facts, emt_manifest.split("train").statistics
    assert (facts.num_frames, facts.num_atoms, facts.theories) == (seen.num_frames, seen.num_atoms, ("EMT",))
    assert facts.data == "emt-test"
    assert sum(facts.elements.values()) == seen.num_atoms
    assert set(facts.judged) == {"emt-test"}
    assert set(NAMES) < {line.split()[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    assert card.index("## Uncertainty and coverage") < card.index("## Protection in fine-tunings")
    assert "![Uncertainties beside errors](uncertainty.png)" in card
    assert (made / "uncertainty.png").read_bytes().startswith(b"\x89PNG")


def test_made_again_it_is_the_same_and_its_section_is_replaced(release: Path, emt_manifest: Manifest) -> None:
    before = {name: (release / name).read_bytes() for name in (*NAMES, "README.md")}
    add_uncertainty(UncertaintyConfig(model=release, data=emt_manifest.root))
    assert {name: (release / name).read_bytes() for name in before} == before


def test_a_release_without_it_loads_and_predicts_the_same(made: Path, release: Path, frames: list[Structure]) -> None:
    for name in NAMES:
        (release / name).unlink()
    checkpoint.write_checksums(release)
    without, whole = checkpoint.load(release), checkpoint.load(made)
    assert without.last_layer is None
    assert list(without.state_dict()) == list(whole.state_dict())
    for one, other in zip(without.predict(frames), whole.predict(frames), strict=True):
        assert one.uncertainty is None
        assert torch.equal(one.forces, other.forces)
        assert torch.equal(one.atom_energies, other.atom_energies)
    atoms = crystal()
    atoms.calc = Calculator(release)
    atoms.get_potential_energy()
    assert "uncertainty" not in atoms.calc.results


def spoil_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_refused(release: Path, name: str) -> None:
    spoil_byte(release / name)
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.load(release)


def test_what_belongs_to_other_weights_or_tensors_is_refused(release: Path) -> None:
    facts = json.loads((release / last_layer.FACTS).read_text())
    changes = {
        "other weights": {"weights_sha256": "0" * 64},
        "checksum of uncertainty.safetensors": {"tensors_sha256": "0" * 64},
        "its format is 2": {"format": 2},
        "limit": {"limit": "far"},
        "increase": {"forces": facts["forces"] | {"scores": facts["forces"]["scores"][::-1]}},
    }
    for message, change in changes.items():
        (release / last_layer.FACTS).write_text(json.dumps(facts | change))
        checkpoint.write_checksums(release)
        with pytest.raises(CorruptCheckpoint, match=message):
            checkpoint.load(release)


def test_tensors_of_other_shapes_are_refused(release: Path) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(release / last_layer.TENSORS)
    for name, tensor in {"shortest": torch.ones(2, 2), "whitening": torch.ones(1, 3, 4)}.items():
        content = safetensors.torch.save(tensors | {name: tensor})
        (release / last_layer.TENSORS).write_bytes(content)
        facts = json.loads((release / last_layer.FACTS).read_text())
        facts["tensors_sha256"] = hashlib.sha256(content).hexdigest()
        (release / last_layer.FACTS).write_text(json.dumps(facts))
        checkpoint.write_checksums(release)
        with pytest.raises(CorruptCheckpoint, match="not the uncertainty of this potential"):
            checkpoint.load(release)


def test_a_protection_that_is_added_later_keeps_it(release: Path) -> None:
    protect(ProtectConfig(model=release, num_structures=3))
    assert checkpoint.load(release).last_layer is not None
    card = (release / "README.md").read_text()
    assert card.count("## Uncertainty and coverage") == card.count("## Protection in fine-tunings") == 1


def test_a_fine_tuning_begins_without_it(made: Path) -> None:
    assert read_start(made, None, None, None)[0].last_layer is None


def test_a_name_without_a_folder_has_nowhere_to_keep_it(emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="foundation convert --from sevennet --checkpoint sevennet-0"):
        add_uncertainty(UncertaintyConfig(model=Path("sevennet-0"), data=emt_manifest.root))
    with pytest.raises(ValueError, match="max_frames"):
        UncertaintyConfig(model=tmp_path, data=tmp_path, max_frames=0)


def test_too_few_held_out_frames_are_refused(release: Path, frames: list[Structure], tmp_path: Path) -> None:
    before = (release / last_layer.FACTS).read_bytes()
    images = []
    for frame in frames[:3]:
        atoms = to_atoms(frame)
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        images.append(atoms)
    ase.io.write(tmp_path / "few.extxyz", images)
    with pytest.raises(ValueError, match=r"few\.extxyz has 3 held-out frames; .* at least 4"):
        add_uncertainty(
            UncertaintyConfig(
                model=release,
                data=tmp_path / "few.extxyz",
                read=ReadConfig(level_of_theory="EMT"),
                calibration=(tmp_path / "few.extxyz",),
            )
        )
    assert (release / last_layer.FACTS).read_bytes() == before


def predicted(potential: Potential, *structures: Structure) -> Prediction:
    return potential(collate(structures, potential.cutoff, torch.float64))


def test_it_is_the_same_in_any_batch_and_order_and_counts_atoms(made: Path, frames: list[Structure]) -> None:
    potential = checkpoint.load(made).cast(torch.float64)
    together = predicted(potential, *frames).split([each.num_atoms for each in frames])
    for frame, found in zip(frames, together, strict=True):
        order = np.random.default_rng(0).permutation(frame.num_atoms)
        turned = dataclasses.replace(
            frame, numbers=frame.numbers[order], positions=frame.positions[order], forces=frame.forces[order]
        )
        alone, other = found.uncertainty, predicted(potential, turned).uncertainty
        assert alone is not None
        assert other is not None
        torch.testing.assert_close(alone.forces[torch.from_numpy(order)], other.forces, rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.energy, other.energy, rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.atom_energies.sum(), alone.energy[0], rtol=1e-9, atol=0)
        assert torch.equal(alone.outside, other.outside)
    one, eight = crystal(), crystal()
    eight = eight.repeat((2, 2, 2))
    small, large = (each.uncertainty for each in potential.predict([one, eight]))
    assert small is not None
    assert large is not None
    torch.testing.assert_close(8 * small.energy, large.energy, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_every_architecture_has_it(name: str, emt_manifest: Manifest, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_NETWORKS[name], cutoff=5.0)
    folder = tmp_path / "potential"
    checkpoint.save(new_potential(config, {"EMT": emt_manifest.split("train").statistics}), folder, {})
    add_uncertainty(UncertaintyConfig(model=folder, data=emt_manifest.root, max_frames=12))
    (found,) = checkpoint.load(folder).predict([crystal()])
    assert found.uncertainty is not None
    assert (found.uncertainty.forces > 0).all()
    assert float(found.uncertainty.energy) > 0


def test_what_leaves_the_coverage_is_named(made: Path) -> None:
    potential = checkpoint.load(made)
    assert potential.last_layer is not None
    facts = dataclasses.replace(potential.last_layer.facts, unjudged=(), limit=1e-9, lowest_pressure=1e6)
    shortest = torch.from_numpy(potential.last_layer.shortest.copy())
    copper = potential.elements.index(29)
    tensors = potential.last_layer.get_buffer("whitening"), shortest

    def reasons(facts: last_layer.TrustFacts, spacing: float) -> tuple[str, ...]:
        potential.last_layer = last_layer.LastLayer(facts, *tensors)
        (found,) = potential.predict([crystal(spacing)])
        assert found.uncertainty is not None
        return found.uncertainty.reasons

    normal = dataclasses.replace(facts, limit=1e9, lowest_pressure=None, highest_pressure=None, largest_force=None)
    shortest[copper, copper] = 2.5
    assert reasons(normal, 4.0) == ()
    assert reasons(normal, 2.8) == (KINDS[2],)
    assert reasons(dataclasses.replace(normal, unjudged=(KINDS[2],)), 2.8) == ()
    assert reasons(dataclasses.replace(normal, limit=1e-9), 4.0) == (KINDS[3],)
    assert reasons(dataclasses.replace(normal, largest_force=1e-9), 4.0) == (KINDS[4],)
    assert reasons(dataclasses.replace(normal, highest_pressure=-1e6), 4.0) == (KINDS[5],)
    assert reasons(dataclasses.replace(normal, lowest_pressure=1e6), 4.0) == (KINDS[5],)
    shortest[copper, copper] = 0.0
    assert reasons(normal, 4.0) == (KINDS[1],)
    shortest[copper] = 0.0
    assert reasons(normal, 4.0) == (KINDS[0],)


def test_a_calculator_returns_it(made: Path) -> None:
    atoms = crystal()
    atoms.calc = Calculator(made)
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["uncertainty"] == pytest.approx(results["energies_uncertainty"].sum())
    assert results["forces_uncertainty"].shape == (len(atoms),)
    assert set(results["outside_coverage"]) <= set(KINDS)


def test_the_compiled_library_returns_the_same(made: Path) -> None:
    atoms, found = crystal(), {}
    for engine in ("torch", "compiled"):
        atoms.calc = Calculator(made, engine=engine)
        atoms.get_potential_energy()
        found[engine] = atoms.calc.results
    for name in ("uncertainty", "energies_uncertainty", "forces_uncertainty"):
        np.testing.assert_allclose(found["compiled"][name], found["torch"][name], rtol=1e-6)
    assert found["compiled"]["outside_coverage"] == found["torch"]["outside_coverage"]


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_tables_have_its_columns_and_remarks(release: Path, tmp_path: Path) -> None:
    file = tmp_path / "structures.extxyz"
    ase.io.write(file, [crystal(), crystal(3.2)])
    facts = json.loads((release / last_layer.FACTS).read_text())
    # everything has a pressure below this
    (release / last_layer.FACTS).write_text(json.dumps(facts | {"lowest_pressure": 1e6, "unjudged": []}))
    checkpoint.write_checksums(release)
    remark = f"outside of the training data: {KINDS[5]}"
    common = {"model": release, "data": file}
    predict(PredictConfig(**common, out=tmp_path / "predicted"))
    relax(RelaxConfig(**common, out=tmp_path / "relaxed", max_steps=2))
    md(MdConfig(**common, out=tmp_path / "hot", steps=3))
    for out in ("predicted", "relaxed", "hot"):
        for row in rows(tmp_path / out):
            assert float(row["energy_uncertainty"]) > 0
            assert float(row["force_uncertainty"]) > 0
            assert remark in row["warnings"]
    for row in rows(tmp_path / "hot"):
        assert f"{remark}, from step 0 on" in row["warnings"]
        assert 0 < float(row["mean_force_uncertainty"]) <= float(row["max_force_uncertainty"])
    first = ase.io.read(tmp_path / "predicted" / "results.extxyz", index=0)
    assert isinstance(first, ase.Atoms)
    first.calc = Calculator(release)
    first.get_potential_energy()
    assert first.info["energy_uncertainty"] == pytest.approx(first.calc.results["uncertainty"], rel=1e-6)


def test_an_export_carries_it(emt_manifest: Manifest, tmp_path: Path, trained: Path) -> None:
    add_uncertainty(UncertaintyConfig(model=trained, data=emt_manifest.root, max_frames=12))
    folder = export(ExportConfig(run=trained, out=tmp_path / "release", private=True))
    assert checkpoint.load(folder).last_layer is not None
    assert "## Uncertainty and coverage" in (folder / "README.md").read_text()
    reduced = export(ExportConfig(run=trained, out=tmp_path / "repelled", private=True, zbl=True))
    assert checkpoint.load(reduced).last_layer is None


@pytest.fixture
def trained(emt_manifest: Manifest, tmp_path: Path) -> Path:
    from foundation.pretrain import PretrainConfig, pretrain
    from foundation.training.fit_config import FitConfig
    from foundation.training.optim import OptimConfig
    from tests.machine import CPU

    fit = FitConfig(steps=2, lanes=1, edge_budget=1500, validate_every=2, checkpoint_every=2, log_every=1)
    out = tmp_path / "run"
    optim = OptimConfig(warmup_steps=1)
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, fit=fit, machine=CPU, model=MODEL, optim=optim))
    return out
