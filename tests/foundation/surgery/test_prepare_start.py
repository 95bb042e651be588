"""A potential made ready for fine-tuning: what stays as the start says it, what is added, what is refused."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.store.untrusted import typed
from foundation.datasets import DatasetConfig, open_datasets, statistics_by_theory
from foundation.interop.published import find_published
from foundation.interop.sevennet import from_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.provenance import StartChanges
from foundation.surgery.start import prepare_start, with_changes

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
METALS = (13, 28, 29, 46, 47, 78, 79)
START = Path("start")


def make(elements: tuple[int, ...] = METALS, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    potential = Potential(EquivariantNetwork(CONFIG, elements, 12.0), elements, ("EMT",)).cast(dtype).eval()
    potential.get_buffer("reference_energies").normal_()
    potential.get_buffer("scale").fill_(0.1)
    return potential


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    out = tmp_path_factory.mktemp("few") / "data"
    return build(BuildConfig(source=EmtAlloys(num_frames=24, seed=3), provenance=provenance, out=out))


def data(*manifests: Manifest, **theories: str) -> tuple[Mapping[str, Statistics], list[Dataset]]:
    """Data sets with the names of their levels of theory, in turn."""
    configs = [DatasetConfig(path=m.root, theory=name) for m, name in zip(manifests, theories.values(), strict=True)]
    datasets, names = open_datasets(tuple(configs))
    return statistics_by_theory(datasets, names), datasets


def some(manifest: Manifest, elements: tuple[int, ...] = METALS, dtype: torch.dtype = torch.float64) -> GraphBatch:
    frames = [frame for frame in Frames(manifest, "train") if set(frame.numbers.tolist()) <= set(elements)]
    return collate(frames[:4], 5.0, dtype)


def assert_same(prepared: Potential, start: Potential, batch: GraphBatch, tolerance: float = 1e-12) -> None:
    ours, theirs = prepared.eval()(batch), start.eval()(batch)
    for name in ("energy", "forces", "stress"):
        a, b = getattr(ours, name).double(), getattr(theirs, name).double()
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name


def test_what_the_start_knows_is_left_as_it_is(few: Manifest) -> None:
    start = make()
    prepared, facts = prepare_start(start, START, *data(few, theory="EMT"))
    assert prepared.training
    assert not start.training
    assert prepared is not start
    for (name, expected), found in zip(start.state_dict().items(), prepared.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
        assert found.data_ptr() != expected.data_ptr(), name
    assert facts == StartChanges()


@pytest.mark.parametrize("references", ["keep", "refit"])
def test_a_new_theory_leaves_the_old_one_alone_and_begins_as_the_start(few: Manifest, references) -> None:
    start = make()
    prepared, facts = prepare_start(start, START, *data(few, theory="other"), references=references)
    assert prepared.theories == ("EMT", "other")
    assert facts.new_theories == ("other",)
    assert facts.same_energies
    batch = some(few)
    assert_same(prepared, start, batch)
    at_other = dataclasses.replace(batch, theory=torch.ones_like(batch.theory))
    if references == "keep":
        torch.testing.assert_close(prepared(at_other).energy, start(batch).energy, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(prepared(at_other).forces, start(batch).forces, rtol=0.0, atol=1e-12)


def test_references_refitted_at_a_new_theory_take_the_offset_away(few: Manifest) -> None:
    prepared, facts = prepare_start(make(), START, *data(few, theory="other"), references="refit")
    error = (facts.references or {})["other"].energy_error
    assert error.after.rmse < 0.3 * error.before.rmse
    frames = list(Frames(few, "train"))
    batch = collate(frames, 5.0, torch.float64, [1] * len(frames))
    residuals = (batch.energy - prepared.eval()(batch).energy) / batch.num_atoms
    assert float(residuals.square().mean().sqrt()) == pytest.approx(error.after.rmse, rel=1e-6)


def test_references_refitted_at_a_theory_of_the_start_move_it_and_that_is_said(
    few: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    start = make()
    with caplog.at_level(logging.INFO):
        prepared, facts = prepare_start(start, START, *data(few, theory="EMT"), references="refit")
    assert not facts.same_energies
    furthest = max(abs(each.moved) for each in (facts.references or {})["EMT"].elements.values())
    assert "already knows the level of theory EMT" in caplog.text
    assert f"{furthest:.3g} eV per atom" in caplog.text
    batch = some(few)
    assert (prepared.eval()(batch).energy - start(batch).energy).abs().max() > 0.1
    torch.testing.assert_close(prepared(batch).forces, start(batch).forces, rtol=0.0, atol=1e-12)
    assert typed(StartChanges, json.loads(json.dumps(dataclasses.asdict(facts))), "") == facts


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"]
)
def test_a_new_element_gets_a_reference_and_the_others_stay(
    emt_manifest: Manifest, dtype: torch.dtype, tolerance: float
) -> None:
    known = tuple(z for z in METALS if z != 79)
    start = make(known, dtype)
    prepared, facts = prepare_start(start, START, *data(emt_manifest, theory="EMT"), new_elements="add")
    assert prepared.elements == METALS
    assert facts.new_elements == {"Au": "Ag"}
    assert facts.same_energies
    assert_same(prepared, start, some(emt_manifest, known, dtype), tolerance)
    (moved,) = (facts.references_of_new_elements or {})["EMT"].elements.items()
    silver, gold = (prepared.get_buffer("reference_energies")[0, METALS.index(z)] for z in (47, 79))
    assert moved[0] == "Au"
    assert moved[1].after == float(gold)
    assert gold != silver
    error = (facts.references_of_new_elements or {})["EMT"].energy_error
    assert error.after.rmse < error.before.rmse


def test_an_element_that_is_not_to_be_added_is_refused_with_the_option_that_adds_it(emt_manifest: Manifest) -> None:
    start = make((13, 28, 29, 46, 47, 78))
    with pytest.raises(ValueError, match="start does not know Au, which the data at EMT have: set --new_elements add"):
        prepare_start(start, START, *data(emt_manifest, theory="EMT"))


def test_of_several_data_sets_each_gets_its_own_references(few: Manifest, emt_manifest: Manifest) -> None:
    start = make()
    sets = data(few, emt_manifest, one="other", two="EMT")
    prepared, facts = prepare_start(start, START, *sets, references="refit")
    assert prepared.theories == ("EMT", "other")
    count = {name: (facts.references or {})[name].num_structures for name in ("EMT", "other")}
    assert count == {m: s.num_frames for m, s in sets[0].items()}


def test_sevennet_0_learns_the_zero_of_energy_of_other_data_and_keeps_its_own(
    real_data: Path, tmp_path: Path, provenance: Provenance
) -> None:
    lines = (real_data / "lips" / "lips-200.extxyz").read_text().splitlines(keepends=True)
    (tmp_path / "lips.extxyz").write_text("".join(lines[: 4 * 85]))
    source = AseFiles(files=(str(tmp_path / "lips.extxyz"),))
    config = BuildConfig(
        source=source, provenance=provenance, out=tmp_path / "data", val_fraction=0.0, test_fraction=0.0
    )
    lips = build(config)
    start = from_sevennet(find_published("sevennet-0"))
    prepared, facts = prepare_start(start, START, *data(lips, theory="lips"), references="refit")
    report = (facts.references or {})["lips"]
    assert set(report.elements) == {"Li", "P", "S"}
    assert report.num_structures == 4
    assert report.energy_error.before.rmse > 0.02
    assert report.energy_error.after.rmse < 0.01
    mptrj = AseFiles(files=(str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz"),))
    frames = [frame for frame, _ in zip(mptrj, range(100), strict=False) if frame.num_atoms <= 12][:3]
    # stresses of relaxed crystals are small differences of large numbers
    assert_same(prepared, start, collate(frames, 5.0), 2e-5)
    start.cast(torch.float64)
    exact, _ = prepare_start(start, START, *data(lips, theory="lips"))
    assert_same(exact, start, collate(frames, 5.0, torch.float64), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("elements", "theory"), [(METALS, "EMT"), (METALS, "other"), (METALS[:5], "EMT"), (METALS[:5], "other")]
)
def test_the_recorded_changes_make_the_same_potential_again(
    few: Manifest, elements: tuple[int, ...], theory: str, dtype: torch.dtype
) -> None:
    start = make(elements, dtype)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    prepared, facts = prepare_start(start, START, *data(few, theory=theory), references="refit", new_elements="add")
    recorded = typed(StartChanges, json.loads(json.dumps(dataclasses.asdict(facts))), "")
    again = with_changes(start, recorded)
    assert (again.elements, again.theories) == (prepared.elements, prepared.theories)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in prepared.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
