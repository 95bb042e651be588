"""Merging: nothing is copied, sums add exactly, every frame is read, and what does not belong together is refused."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.merge import merge
from data_pipeline.loading.stream import full_pass
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.structure import Structure

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> dict[int, Path]:
    """EMT frames of three seeds, in several shards each."""
    folder = tmp_path_factory.mktemp("built")
    for seed in (1, 2, 3):
        source = EmtAlloys(num_frames=24, seed=seed)
        build(
            BuildConfig(
                source=source,
                provenance=provenance,
                out=folder / str(seed),
                val_fraction=0.25,
                test_fraction=0.25,
                block_frames=3,
                shard_frames=6,
            )
        )
    return {seed: folder / str(seed) for seed in (1, 2, 3)}


@pytest.fixture
def make(tmp_path: Path, built: dict[int, Path]) -> Make:
    """Copy the frames of a seed to a name below tmp_path/sets, with other facts and split rules in the manifest."""

    def make_set(name: str, seed: int, *, facts: dict[str, str] | None = None, **split: str | int) -> Path:
        folder = tmp_path / "sets" / name
        shutil.copytree(built[seed], folder)
        values = json.loads((folder / "manifest.json").read_text())
        values["provenance"] |= {"name": name, **(facts or {})}
        values["build_config"] |= split
        (folder / "manifest.json").write_text(json.dumps(values))
        return folder

    return make_set


def energies(manifest: Manifest, split: str) -> list[tuple[str, float]]:
    batches = full_pass(manifest, split, cutoff=5.0, edge_budget=3000)
    return sorted(
        (id, energy) for batch in batches for id, energy in zip(batch.ids, batch.energy.tolist(), strict=True)
    )


def of_all(folders: Sequence[Path], split: str) -> list[tuple[str, float]]:
    return sorted(pair for folder in folders for pair in energies(open_manifest(folder), split))


def test_every_frame_of_every_split_is_read_through_the_merged_manifest(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1), make("two", 2), make("three", 3)]
    merged = merge(folders, tmp_path / "merged" / "deep", "whole")
    merged.verify()
    for split in ("train", "val", "test"):
        assert energies(merged, split) == of_all(folders, split)
    assert sum(part.statistics.num_frames for part in merged.splits.values()) == 72
    files = sorted(path.name for path in (tmp_path / "merged" / "deep").iterdir())
    assert files == ["manifest.json", *(f"{split}.index.safetensors" for split in ("test", "train", "val"))]


def test_what_is_written_is_what_is_returned(tmp_path: Path, make: Make) -> None:
    merged = merge([make("one", 1), make("two", 2)], tmp_path / "merged", "whole")
    opened = open_manifest(tmp_path / "merged")
    assert opened.fingerprint == merged.fingerprint
    assert opened.splits["train"].shards[0].name == "../sets/one/train-000000.tar"
    index = opened.index("train")
    assert index.num_frames == opened.split("train").statistics.num_frames
    assert index.blocks.shard.max() + 1 == len(opened.split("train").shards)
    atoms, edges = index.counts(0, index.num_frames)
    assert atoms.sum() == opened.split("train").statistics.num_atoms
    assert edges.sum() == opened.split("train").statistics.num_edges[0]


def test_statistics_are_those_of_the_sum(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1), make("two", 2), make("three", 3)]
    merged = merge(folders, tmp_path / "merged", "whole")
    for split, part in merged.splits.items():
        first, second, third = (open_manifest(folder).split(split).statistics for folder in folders)
        assert part.statistics.to_json() == (first + second + third).to_json()


def write_extxyz(path: Path, frames: Sequence[Structure]) -> AseFiles:
    images = []
    for frame in frames:
        atoms = ase.Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
        atoms.info["group"], atoms.info["id"] = frame.group, frame.id
        labels = {"energy": frame.energy, "forces": frame.forces, "stress": frame.stress}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    ase.io.write(path, images)
    return AseFiles(files=(str(path),), group_key="group", id_key="id")


def test_merging_pieces_equals_building_all_at_once(
    tmp_path: Path, provenance: Provenance, random_structure: Callable[..., Structure]
) -> None:
    frames = [random_structure(n, num_atoms=1 + n % 7, group=str(n)) for n in range(60)]
    for name, part in {"all": frames, "a": frames[:20], "b": frames[20:]}.items():
        source = write_extxyz(tmp_path / f"{name}.extxyz", part)
        build(BuildConfig(source=source, provenance=provenance, out=tmp_path / name, block_frames=8))
    at_once, merged = open_manifest(tmp_path / "all"), merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", "ab")
    for split, part in merged.splits.items():
        one, other = part.statistics, at_once.split(split).statistics
        assert energies(merged, split) == energies(at_once, split)
        assert (one.num_frames, one.num_atoms, one.num_edges) == (other.num_frames, other.num_atoms, other.num_edges)
        for name in ("energy", "force", "stress", "size"):
            np.testing.assert_array_equal(one.histograms[name], other.histograms[name])
        np.testing.assert_array_equal(one.frames_of_element, other.frames_of_element)
        np.testing.assert_allclose(one.composition_gram, other.composition_gram, rtol=1e-12, atol=1e-15)
        assert one.force_square_sum == pytest.approx(other.force_square_sum, rel=1e-12)


def test_a_merged_set_can_be_merged_again_and_moved_along_with_its_parts(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1), make("two", 2), make("three", 3)]
    merge(folders[:2], tmp_path / "sets" / "pair", "pair")
    merge([tmp_path / "sets" / "pair", folders[2]], tmp_path / "sets" / "whole", "whole")
    expected = of_all(folders, "train")
    (tmp_path / "sets").rename(tmp_path / "elsewhere")
    whole = open_manifest(tmp_path / "elsewhere" / "whole")
    whole.verify()
    assert energies(whole, "train") == expected


def test_links_lead_to_the_same_shards(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1), make("two", 2)]
    (tmp_path / "link").symlink_to(tmp_path / "sets", target_is_directory=True)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away", target_is_directory=True)
    merged = merge([tmp_path / "link" / "one", tmp_path / "link" / "two"], tmp_path / "near" / "merged", "whole")
    merged.verify()
    assert energies(merged, "train") == of_all(folders, "train")


def test_provenance_is_joined_and_says_each_thing_once(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1, facts={"licence": "MIT"}), make("two", 2), make("three", 3)]
    provenance = merge(folders, tmp_path / "merged", "whole").provenance
    assert provenance.name == "whole"
    assert provenance.licence == "MIT; CC0-1.0"
    assert provenance.citation == "Jacobsen et al., Surf. Sci. 366, 394 (1996)"
    recorded = json.loads((tmp_path / "merged" / "manifest.json").read_text())["build_config"]["merged"]
    assert [part["name"] for part in recorded] == ["one", "two", "three"]
    assert recorded[1]["build_config"]["source"]["seed"] == 2


@pytest.mark.parametrize("fact", ["level_of_theory", "energy_convention"])
def test_labels_that_do_not_belong_together_are_refused_with_the_way_out(tmp_path: Path, make: Make, fact: str) -> None:
    folders = [make("one", 1), make("two", 2, facts={fact: "another"})]
    with pytest.raises(ValueError, match=r"differ in their .*'another'; train them together .* `theory` of its own"):
        merge(folders, tmp_path / "merged", "whole")
    assert not (tmp_path / "merged").exists()


def test_different_cutoffs_are_refused(tmp_path: Path, make: Make) -> None:
    folders = [make("one", 1), make("two", 2)]
    values = json.loads((folders[1] / "manifest.json").read_text())
    for split in values["splits"].values():
        split["statistics"] |= {"cutoffs": [4.0, 5.0], "num_edges": [1, 2]}
    (folders[1] / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"edge cutoffs \[Å\]: \(5.0,\) and \(4.0, 5.0\); build one of them again"):
        merge(folders, tmp_path / "merged", "whole")


def test_frames_that_would_count_twice_are_refused(tmp_path: Path, make: Make) -> None:
    one, two = make("one", 1), make("two", 2)
    shutil.copytree(one, tmp_path / "copy")
    merge([one, two], tmp_path / "pair", "pair")
    for again in (one, tmp_path / "copy", tmp_path / "pair"):
        with pytest.raises(ValueError, match=r"its frames would count twice"):
            merge([one, two, again], tmp_path / "merged", "whole")


@pytest.mark.parametrize("address", ["https://example.org/data/manifest.json", "s3://bucket/data"])
def test_remote_data_sets_are_refused(tmp_path: Path, make: Make, address: str) -> None:
    with pytest.raises(ValueError, match=r"only data sets on a local disk can be merged; copy it there first"):
        merge([make("one", 1), Path(address)], tmp_path / "merged", "whole")


def test_one_is_not_enough_and_what_exists_stays(tmp_path: Path, make: Make) -> None:
    one, two = make("one", 1), make("two", 2)
    with pytest.raises(ValueError, match="two manifests or more, not 1"):
        merge([one], tmp_path / "merged", "whole")
    with pytest.raises(FileExistsError, match="already exists"):
        merge([one, two], one, "whole")
    with pytest.raises(FileNotFoundError, match="no manifest there"):
        merge([one, tmp_path / "nowhere"], tmp_path / "merged", "whole")


def test_a_data_set_in_the_folder_to_write_is_refused_and_stays(tmp_path: Path, make: Make) -> None:
    one, two = make("one", 1), make("two", 2)
    (tmp_path / "merged.partial").mkdir()
    inside = one.rename(tmp_path / "merged.partial" / "one")
    with pytest.raises(FileExistsError, match="which the result would replace"):
        merge([inside, two], tmp_path / "merged", "all")
    assert (inside / "manifest.json").is_file()


def test_a_missing_shard_and_a_damaged_index_are_found_before_anything_appears(tmp_path: Path, make: Make) -> None:
    one, two = make("one", 1), make("two", 2)
    os.rename(two / "train-000001.tar", tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar"):
        merge([one, two], tmp_path / "merged", "whole")
    os.rename(tmp_path / "kept", two / "train-000001.tar")
    damaged = bytearray((two / "val.index.safetensors").read_bytes())
    damaged[-1] ^= 1
    (two / "val.index.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"val.index.safetensors: the checksum differs"):
        merge([one, two], tmp_path / "merged", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sets"]


def test_splits_in_the_order_of_the_frames_are_said(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    merge([make("one", 1, split_by="order"), make("two", 2, split_by="order")], tmp_path / "merged", "whole")
    assert "in the order of their frames, so a group in two of them can be in train of one" in caplog.text


def test_different_rules_of_splitting_are_said(tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    one, two, other = make("one", 1), make("two", 2), make("other", 3, split_seed=7)
    merge([one, two], tmp_path / "pair", "pair")
    assert not caplog.records
    merge([tmp_path / "pair", other], tmp_path / "merged", "whole")
    assert "a group in two of them can be in train of one and in test of the other" in caplog.text
