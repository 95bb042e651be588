"""Manifest: what it says, what it finds wrong with the files, and what it refuses to open."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.manifest import SCHEMA_VERSION, Manifest, Provenance, open_manifest
from data_pipeline.shards import index_path


@pytest.fixture
def manifest(emt_manifest: Manifest, tmp_path: Path) -> Manifest:
    """A copy that may be damaged."""
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    return open_manifest(tmp_path / "copy")


def change(manifest: Manifest, **values: object) -> Path:
    path = manifest.root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


def test_a_manifest_reads_back_what_was_written(emt_manifest: Manifest) -> None:
    copy = open_manifest(emt_manifest.root)
    assert copy.to_json() == emt_manifest.to_json()
    assert copy.provenance == emt_manifest.provenance
    assert copy.root == emt_manifest.root
    assert json.loads((copy.root / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_the_file_and_its_folder_open_the_same(emt_manifest: Manifest) -> None:
    from_file = open_manifest(str(emt_manifest.root / "manifest.json"))
    assert from_file.fingerprint == emt_manifest.fingerprint
    assert from_file.root == emt_manifest.root


def test_the_fingerprint_does_not_depend_on_the_folder(manifest: Manifest, emt_manifest: Manifest) -> None:
    assert manifest.root != emt_manifest.root
    assert manifest.fingerprint == emt_manifest.fingerprint


def test_the_fingerprint_depends_on_every_shard(manifest: Manifest) -> None:
    splits = json.loads((manifest.root / "manifest.json").read_text())["splits"]
    splits["val"]["shards"][0]["sha256"] = "0" * 64
    change(manifest, splits=splits)
    assert open_manifest(manifest.root).fingerprint != manifest.fingerprint


def test_statistics_are_of_the_frames_in_the_shards(emt_manifest: Manifest) -> None:
    for name, split in emt_manifest.splits.items():
        index = emt_manifest.index(name)
        assert split.statistics.num_frames == index.num_frames == sum(s.num_frames for s in split.shards)
        assert split.statistics.num_atoms == index.blocks.num_atoms.sum()
        _, edges = index.counts(0, index.num_frames)
        assert split.statistics.num_edges == edges.sum(axis=0).tolist()
    assert sum(split.statistics.num_frames for split in emt_manifest.splits.values()) == 120


def test_sound_files_are_verified(manifest: Manifest) -> None:
    manifest.verify()


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("what", ["shard", "index"])
@pytest.mark.parametrize("place", [0.1, 0.9])
def test_a_flipped_byte_is_found_and_named(manifest: Manifest, split: str, what: str, place: float) -> None:
    shard = manifest.shard_paths(split)[0]
    path = shard if what == "shard" else index_path(shard)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}: the checksum differs.*copy or build it again"):
        manifest.verify()


def test_a_shard_that_ends_early_is_found(manifest: Manifest) -> None:
    shard = manifest.shard_paths("train")[0]
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"train-000000\.tar: the checksum differs"):
        manifest.verify()


def test_a_missing_shard_is_found_and_named(manifest: Manifest) -> None:
    manifest.shard_paths("val")[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"val-000000\.tar"):
        manifest.verify()


def test_a_newer_schema_is_refused(manifest: Manifest) -> None:
    path = change(manifest, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(ValueError, match=rf"{path.name}: schema {SCHEMA_VERSION + 1} is newer.*update"):
        open_manifest(path)


def test_an_older_schema_is_refused(manifest: Manifest) -> None:
    path = change(manifest, schema_version=SCHEMA_VERSION - 1)
    with pytest.raises(ValueError, match=rf"schema {SCHEMA_VERSION - 1} is older than {SCHEMA_VERSION}; build.*again"):
        open_manifest(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema_version": 2}', '{"schema_version": "1"}'])
def test_json_that_is_not_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        open_manifest(tmp_path)


def test_a_list_of_splits_is_not_a_manifest(manifest: Manifest) -> None:
    change(manifest, splits=[])
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        open_manifest(manifest.root)


def test_a_shard_is_not_a_manifest(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"train-000000\.tar: not a manifest"):
        open_manifest(emt_manifest.shard_paths("train")[0])


def test_a_missing_fact_of_the_provenance_is_named(manifest: Manifest) -> None:
    provenance = json.loads((manifest.root / "manifest.json").read_text())["provenance"]
    del provenance["licence"]
    change(manifest, provenance=provenance)
    with pytest.raises(ValueError, match=r"not a manifest.*licence"):
        open_manifest(manifest.root)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no manifest there; make one with"):
        open_manifest(tmp_path)


def test_an_unknown_split_names_those_there_are(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="no split 'valid'; there are test, train, val"):
        emt_manifest.split("valid")


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", True),
        ("MIT (the selection); CC-BY-4.0 (MPtrj)", True),
        ("Nothing Licence 1.0", True),
        ("none stated; for measurement only", False),
        ("NONE", False),
        ("NOASSERTION", False),
        ("unknown", False),
        ("Academic 1.0, not for redistribution", False),
        (" ", False),
    ],
)
def test_frames_may_be_passed_on_only_with_a_licence(provenance: Provenance, licence: str, expected: bool) -> None:
    assert dataclasses.replace(provenance, licence=licence).redistributable is expected
