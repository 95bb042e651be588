"""Which frames are rehearsed, and that neither they nor those of a Fisher are held out."""

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.merge import merge
from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.stream import Stream
from data_pipeline.loading.subset import Subset
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.structure import SYMBOLS, Structure
from foundation.datasets import DatasetConfig
from foundation.finetuning.fisher import Fisher, diagonal_fisher
from foundation.finetuning.rehearsal import (
    RehearsalConfig,
    refuse_fisher_held_out,
    refuse_held_out,
    rehearsal_datasets,
)
from foundation.finetuning.selection import farthest_points, frame_features
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


def make_potential(manifest: Manifest, *theories: str) -> Potential:
    torch.manual_seed(0)
    statistics = manifest.split("train").statistics
    return new_potential(CONFIG, {theory: statistics for theory in theories}).cast(torch.float64)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    return make_potential(emt_manifest, "effective medium theory")


@pytest.fixture(scope="module")
def fisher(emt_manifest: Manifest) -> Fisher:
    """A Fisher of the validation split; do not write to it."""
    dataset = Dataset(manifest=emt_manifest, split="val")
    return diagonal_fisher(make_potential(emt_manifest, "EMT"), [dataset], LossConfig())


@pytest.fixture(scope="module")
def rebuilt(emt_manifest: Manifest, provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The frames of emt_manifest under another name and in other splits."""
    out = tmp_path_factory.mktemp("rebuilt") / "data"
    named = dataclasses.replace(provenance, name="emt-rebuilt")
    config = BuildConfig(
        source=EmtAlloys(num_frames=120),
        provenance=named,
        out=out,
        block_frames=16,
        val_fraction=0.0,
        test_fraction=0.5,
    )
    return build(config)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a block is an error."""

    def fail(*_: object) -> None:
        raise AssertionError("a block was read")

    monkeypatch.setattr(Manifest, "read_block", fail)


def chosen(dataset: Dataset) -> list[int]:
    assert dataset.subset is not None
    return dataset.subset.numbers.tolist()


def symbols(frame: Structure) -> set[str]:
    return {SYMBOLS[z] for z in frame.numbers.tolist()}


@pytest.mark.usefixtures("unread")
def test_without_a_choice_nothing_is_read_and_settings_are_kept(emt_manifest: Manifest, potential: Potential) -> None:
    data = (DatasetConfig(path=emt_manifest.root, repeat=0.5, weight=2.0),)
    (dataset,) = rehearsal_datasets(RehearsalConfig(data=data, split="val"), potential)
    assert (dataset.subset, dataset.split, dataset.repeat, dataset.weight) == (None, "val", 0.5, 2.0)
    (dataset,) = rehearsal_datasets(RehearsalConfig(data=emt_manifest.root), potential)
    assert (dataset.subset, dataset.split, dataset.theory) == (None, "train", 0)


@pytest.mark.usefixtures("unread")
def test_a_random_part_of_everything_is_chosen_without_reading(emt_manifest: Manifest, potential: Potential) -> None:
    count = len(Frames(emt_manifest, "train"))

    def numbers(fraction: float, seed: int = 0) -> list[int]:
        config = RehearsalConfig(data=emt_manifest.root, fraction=fraction, seed=seed)
        return chosen(rehearsal_datasets(config, potential)[0])

    parts = [numbers(fraction) for fraction in (0.001, 0.1, 0.3, 0.9)]
    assert [len(part) for part in parts] == [1, round(0.1 * count), round(0.3 * count), round(0.9 * count)]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(parts))
    assert numbers(0.3) == parts[2]
    assert numbers(0.3, seed=1) != parts[2]


def test_frames_with_an_element_are_kept_and_a_fraction_is_of_these(
    emt_manifest: Manifest, potential: Potential
) -> None:
    config = RehearsalConfig(data=emt_manifest.root, elements=("Cu", "Au"))
    (dataset,) = rehearsal_datasets(config, potential)
    frames = list(Frames(emt_manifest, "train"))
    fitting = [number for number, frame in enumerate(frames) if symbols(frame) & {"Cu", "Au"}]
    assert chosen(dataset) == fitting
    assert 0 < len(fitting) < len(frames)
    (half,) = rehearsal_datasets(dataclasses.replace(config, fraction=0.5), potential)
    assert len(chosen(half)) == round(0.5 * len(fitting))
    assert set(chosen(half)) < set(fitting)


def test_frames_of_unknown_elements_are_left_out_and_said(
    emt_manifest: Manifest, potential: Potential, caplog: pytest.LogCaptureFixture
) -> None:
    gone = potential.elements[0]
    potential.elements = potential.elements[1:]
    with caplog.at_level(logging.INFO):
        (dataset,) = rehearsal_datasets(RehearsalConfig(data=emt_manifest.root), potential)
    frames = list(Frames(emt_manifest, "train"))
    fitting = [number for number, frame in enumerate(frames) if gone not in frame.numbers]
    assert chosen(dataset) == fitting
    assert f"structures of emt-test with {SYMBOLS[gone]} are left out" in caplog.text
    assert f"{len(fitting)} of {len(frames)} frames of emt-test" in caplog.text


def test_a_stream_of_what_is_chosen_reads_just_that(emt_manifest: Manifest, potential: Potential) -> None:
    config = RehearsalConfig(data=emt_manifest.root, elements=("Cu",), fraction=0.4)
    datasets = rehearsal_datasets(config, potential)
    stream = Stream(datasets, cutoff=potential.cutoff, lanes=2, edge_budget=800)
    steps = stream.from_step(0, stream.plan.steps_of_pass(0))
    found = sorted(id for step in steps for batch in step for id in batch.ids)
    frames = Frames(emt_manifest, "train")
    assert found == sorted(frames[number].id for number in chosen(datasets[0]))


def test_farthest_points_are_chosen_in_the_features_of_the_potential(
    emt_manifest: Manifest, potential: Potential
) -> None:
    config = RehearsalConfig(data=emt_manifest.root, method="farthest-point", elements=("Cu",), fraction=0.3)
    potential.train()
    (dataset,), (again,) = (rehearsal_datasets(config, potential) for _ in range(2))
    assert potential.training
    assert chosen(again) == chosen(dataset)
    frames = Frames(emt_manifest, "train")
    candidates = [number for number in range(len(frames)) if "Cu" in symbols(frames[number])]
    rows = []
    for number in candidates:
        batch = collate([frames[number]], potential.cutoff, potential.dtype)
        rows.append(potential.atom_features(batch).mean(dim=0).detach().numpy())
    features = np.array(rows)
    places = farthest_points(features, round(0.3 * len(candidates)))
    assert sorted(candidates[place] for place in places) == chosen(dataset)
    # the batches of the pass are float32
    found = frame_features(potential, Dataset(manifest=emt_manifest, theory=0), np.array(candidates))
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-6)


def test_features_are_invariant_and_make_the_energy(emt_manifest: Manifest, potential: Potential) -> None:
    frame = Frames(emt_manifest, "train")[0]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    turned = dataclasses.replace(frame, positions=frame.positions @ rotation.T, cell=frame.cell @ rotation.T)
    potential.eval()
    one, other = (collate([each], potential.cutoff, potential.dtype) for each in (frame, turned))
    torch.testing.assert_close(potential.atom_features(one), potential.atom_features(other), rtol=1e-9, atol=1e-10)
    hidden, energy = potential.network.readout
    elements = torch.tensor([potential.elements.index(z) for z in one.numbers.tolist()])
    read = energy(hidden(potential.atom_features(one), one.theory[one.graph_of_atom])).squeeze(1)
    torch.testing.assert_close(read, potential.network(one, elements), rtol=1e-12, atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_farthest_points_are_greedy_nested_and_each_once(count: int, width: int, seed: int) -> None:
    # integers, so that distances are exact, many are equal and points coincide
    points = np.random.default_rng(seed).integers(-3, 4, (count, width)).astype(np.float64)
    order = farthest_points(points, count)
    assert sorted(order.tolist()) == list(range(count))
    assert all(np.array_equal(farthest_points(points, part), order[:part]) for part in range(1, count))
    distances = np.square(points[:, None] - points[None]).sum(axis=2)
    for place in range(1, count):
        nearest = distances[order[:place]].min(axis=0)
        assert nearest[order[place]] == pytest.approx(nearest[order[place:]].max(), abs=1e-9)


def test_levels_of_theory_are_the_potentials(emt_manifest: Manifest) -> None:
    potential = make_potential(emt_manifest, "one", "effective medium theory", "other")
    path = emt_manifest.root
    data = (DatasetConfig(path=path), DatasetConfig(path=path, theory="other"))
    assert [each.theory for each in rehearsal_datasets(RehearsalConfig(data=data), potential)] == [1, 2]
    with pytest.raises(
        ValueError, match=r"rehearsal\.data, .*: the potential's levels of theory are one, .*, other; name one"
    ):
        rehearsal_datasets(RehearsalConfig(data=(DatasetConfig(path=path, theory="PBE"),)), potential)
    alone, two = make_potential(emt_manifest, "one"), make_potential(emt_manifest, "one", "two")
    assert [each.theory for each in rehearsal_datasets(RehearsalConfig(data=path), alone)] == [0]
    with pytest.raises(ValueError, match=r"rehearsal\.data, .* are one, two; name one"):
        rehearsal_datasets(RehearsalConfig(data=path), two)


def test_what_cannot_be_rehearsed_is_refused(
    emt_manifest: Manifest, rebuilt: Manifest, potential: Potential, tmp_path: Path
) -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            rehearsal_datasets(RehearsalConfig(**{"data": emt_manifest.root, **options}), potential)

    refused("no manifest there", data=tmp_path)
    refused("no split 'exam'", split="exam")
    refused("split 'val' has no frames to rehearse; choose another", data=rebuilt.root, split="val")
    refused("the potential does not know Li, U; leave them out", elements=("Li", "Cu", "U"))
    refused("rehearsal.ratio must be positive, not 0", ratio=0.0)
    refused("rehearsal.weight must be positive, not nan", weight=float("nan"))
    refused("rehearsal.fraction is above 0 .* not 0", fraction=0.0)
    refused("rehearsal.fraction is .* at most 1 .* not 1.5", fraction=1.5)
    refused("Xy is not a chemical symbol", elements=("Cu", "Xy"))
    refused("X is not a chemical symbol", elements=("X",))
    refused("rehearsal.seed must not be negative", seed=-1)
    refused("rehearsal.data is empty", data=())
    potential.elements = (1,)
    refused("no structures of emt-test consist of elements that the potential knows")


def test_data_without_labels_are_rehearsed_with_labels_from_the_start_only(
    emt_manifest: Manifest, potential: Potential, tmp_path: Path
) -> None:
    source = emt_manifest.build_config["source"] | {"labels": "none"}
    bare = dataclasses.replace(emt_manifest, build_config=emt_manifest.build_config | {"source": source})
    (tmp_path / "manifest.json").write_text(bare.to_text())
    config = RehearsalConfig(data=tmp_path)
    with pytest.raises(ValueError, match="built without labels"):
        rehearsal_datasets(config, potential)
    assert len(rehearsal_datasets(dataclasses.replace(config, labels="start"), potential)) == 1


@pytest.mark.usefixtures("unread")
def test_two_splits_of_one_manifest_are_apart_without_reading_them(emt_manifest: Manifest, fisher: Fisher) -> None:
    rehearsed = [Dataset(manifest=emt_manifest), Dataset(manifest=emt_manifest, split="val")]
    refuse_held_out(rehearsed, [Dataset(manifest=emt_manifest, split="test")], "rehearsed")
    refuse_fisher_held_out(fisher, [Dataset(manifest=emt_manifest, split=split) for split in ("train", "test")])


def test_the_same_split_and_frames_built_again_are_refused_by_name(emt_manifest: Manifest, rebuilt: Manifest) -> None:
    train, test = (Dataset(manifest=emt_manifest, split=split) for split in ("train", "test"))
    ids = [frame.id for frame in test.frames()]
    message = rf"emt-test \(test\) is rehearsed and emt-test \(test\) is held out, .* {len(ids)} frames \({ids[0]}, "
    with pytest.raises(ValueError, match=message):
        refuse_held_out([train, test], [test], "rehearsed")
    held_out = Dataset(manifest=rebuilt, split="test")
    held = {frame.id for frame in held_out.frames()}
    shared = [number for number, frame in enumerate(train.frames()) if frame.id in held]
    others = sorted(set(range(len(train.frames()))) - set(shared))
    assert len(shared) > 3
    with pytest.raises(ValueError, match=rf"emt-rebuilt \(test\) is held out.* {len(shared)} frames .* more\)"):
        refuse_held_out([train], [test, held_out], "rehearsed")
    only = dataclasses.replace(train, subset=Subset([shared[2], *others]))
    with pytest.raises(ValueError, match=rf" 1 frame \({train.frames()[shared[2]].id}\) in common"):
        refuse_held_out([only], [held_out], "rehearsed")
    refuse_held_out([dataclasses.replace(train, subset=Subset(others))], [held_out], "rehearsed")


def test_splits_of_a_merged_manifest_may_share_frames(
    emt_manifest: Manifest, rebuilt: Manifest, fisher: Fisher, tmp_path: Path
) -> None:
    merged = merge([emt_manifest.root, rebuilt.root], tmp_path / "merged", "emt-merged")
    train, test = (Dataset(manifest=merged, split=split) for split in ("train", "test"))
    shared = {frame.id for frame in train.frames()} & {frame.id for frame in test.frames()}
    assert shared
    with pytest.raises(ValueError, match=rf"emt-merged \(train\) is trained on and .* {len(shared)} frames"):
        refuse_held_out([train], [test], "trained on")
    ids = [{"name": "emt-merged", "split": "val", "fingerprint": merged.fingerprint}]
    with pytest.raises(ValueError, match="Fisher was computed on emt-merged"):
        refuse_fisher_held_out(dataclasses.replace(fisher, data=tuple(ids)), [train, test])


def test_only_frames_of_the_same_size_are_read(
    emt_manifest: Manifest, rebuilt: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = np.array([frame.num_atoms for frame in Frames(emt_manifest, "train")])
    rehearsed = Dataset(manifest=emt_manifest, subset=Subset(np.flatnonzero(sizes == sizes.max())))
    smaller = [number for number, frame in enumerate(Frames(rebuilt, "test")) if frame.num_atoms < sizes.max()]
    held_out = Dataset(manifest=rebuilt, split="test", subset=Subset(smaller))
    read, read_block = [], Manifest.read_block
    monkeypatch.setattr(Manifest, "read_block", lambda self, *place: read.append(self) or read_block(self, *place))
    refuse_held_out([rehearsed], [held_out], "rehearsed")
    assert {manifest.provenance.name for manifest in read} == {"emt-rebuilt"}


def test_a_fisher_of_held_out_frames_is_refused_by_name(
    fisher: Fisher, emt_manifest: Manifest, rebuilt: Manifest
) -> None:
    used = {frame.id for frame in Frames(emt_manifest, "val")}
    every = [Dataset(manifest=rebuilt, split=split) for split in ("train", "test")]
    dataset = max(every, key=lambda each: sum(frame.id in used for frame in each.frames()))
    both = [frame.id for frame in dataset.frames() if frame.id in used]
    message = rf"Fisher was computed on emt-test \(val\) .*{len(both)} frames? \({both[0]}.*Hold out another split"
    with pytest.raises(ValueError, match=message):
        refuse_fisher_held_out(fisher, [dataset])
    free = [number for number, frame in enumerate(dataset.frames()) if frame.id not in used]
    refuse_fisher_held_out(fisher, [dataclasses.replace(dataset, subset=Subset(free))])
    with pytest.raises(ValueError, match=f"{len(used)} frames"):
        refuse_fisher_held_out(fisher, [Dataset(manifest=emt_manifest, split="val")])


def written_anew(frames: list[Structure], folder: Path, provenance: Provenance, *, move: float = 0.0) -> Dataset:
    """Frames in a file of its own called OUTCAR.extxyz, with positions displaced and rounded to 6 decimals."""
    folder.mkdir()
    atoms = [to_atoms(frame) for frame in frames]
    for number, each in enumerate(atoms):
        each.positions = np.round(each.positions + move * np.random.default_rng(number).normal(size=(len(each), 3)), 6)
        each.info["REF_energy"] = float(number)
    write(folder / "OUTCAR.extxyz", atoms, format="extxyz")
    source = AseFiles(files=(str(folder / "OUTCAR.extxyz"),), energy_key="REF_energy")
    options = {"val_fraction": 0.0, "test_fraction": 1.0, "provenance": provenance}
    return Dataset(manifest=build(BuildConfig(source=source, out=folder / "built", **options)), split="test")


def test_a_frame_is_the_same_in_a_file_of_another_name(
    emt_manifest: Manifest, fisher: Fisher, provenance: Provenance, tmp_path: Path
) -> None:
    frames = list(Frames(emt_manifest, "val"))
    copy = written_anew(frames, tmp_path / "copy", provenance)
    first = rf"{len(frames)} frames \({frames[0].id} = OUTCAR.extxyz:0, "
    with pytest.raises(ValueError, match=first):
        refuse_held_out([Dataset(manifest=emt_manifest, split="val")], [copy], "trained on")
    with pytest.raises(ValueError, match=rf"Fisher .*{len(frames)} frames \(OUTCAR.extxyz:0, "):
        refuse_fisher_held_out(fisher, [copy])


def test_frames_of_one_name_and_composition_in_two_folders_are_two(
    emt_manifest: Manifest, provenance: Provenance, tmp_path: Path
) -> None:
    frames = list(Frames(emt_manifest, "val"))
    one = written_anew(frames, tmp_path / "one", provenance)
    other = written_anew(frames, tmp_path / "other", provenance, move=0.01)
    assert [frame.id for frame in one.frames()] == [frame.id for frame in other.frames()]
    refuse_held_out([one], [other], "trained on")
    potential = make_potential(emt_manifest, "EMT")
    refuse_fisher_held_out(diagonal_fisher(potential, [one], LossConfig()), [other])
