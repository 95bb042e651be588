"""Manifest: what it says, what it finds wrong with the files, and what it refuses to open."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.stream import Stream
from data_pipeline.store.block import Block, CorruptShard
from data_pipeline.store.json_record import InvalidRecord
from data_pipeline.store.manifest import (
    MANIFEST_BYTES,
    SCHEMA_VERSION,
    Manifest,
    Provenance,
    open_manifest,
    split_index_path,
)
from data_pipeline.store.shards import index_path, sha256


@pytest.fixture
def manifest(emt_manifest: Manifest, tmp_path: Path) -> Manifest:
    """A copy that may be damaged."""
    shutil.copytree(emt_manifest.root, tmp_path / "copy")
    return open_manifest(tmp_path / "copy")


Edit = Callable[[dict[str, np.ndarray]], object]


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
    with pytest.raises(ValueError, match="no split 'valid'; it has test, train, val"):
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


def edited(manifest: Manifest, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest's JSON in place."""
    path = manifest.root / "manifest.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    return path


def put(path: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return an edit that sets the entry at a path such as splits/train/shards/0/name."""
    *places, last = (int(word) if word.isdigit() else word for word in path.split("/"))

    def edit(values: Any) -> None:
        for place in places:
            values = values[place]
        values[last] = value

    return edit


TRAIN = "splits/train"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rejected/no forces", -1),
        ("rejected/no forces", True),
        ("provenance/licence", 3),
        ("provenance/more", "text"),
        ("extra", 1),
        ("build_config", []),
        ("build_config/source", "emt"),
        ("build_config/merged", [{"name": "part"}]),
        (f"{TRAIN}/shards", {}),
        (f"{TRAIN}/shards/0/num_frames", "90"),
        (f"{TRAIN}/shards/0/num_frames", 90.0),
        (f"{TRAIN}/shards/0/num_frames", True),
        (f"{TRAIN}/shards/0/num_frames", 0),
        (f"{TRAIN}/shards/0/num_bytes", -1),
        (f"{TRAIN}/shards/0/num_bytes", 2**70),
        (f"{TRAIN}/shards/0/sha256", "x"),
        (f"{TRAIN}/shards/0/index_sha256", None),
        (f"{TRAIN}/index_sha256", ["0" * 64]),
        (f"{TRAIN}/statistics/num_frames", -5),
        (f"{TRAIN}/statistics/num_atoms", None),
        (f"{TRAIN}/statistics/cutoffs", [-5.0]),
        (f"{TRAIN}/statistics/cutoffs", [True]),
        (f"{TRAIN}/statistics/num_edges", []),
        (f"{TRAIN}/statistics/elements", [0, 1]),
        (f"{TRAIN}/statistics/elements", [300]),
        (f"{TRAIN}/statistics/force_square_sum", -1.0),
        (f"{TRAIN}/statistics/histograms/energy", [1]),
        (f"{TRAIN}/statistics/histograms/energy/0", -1),
        (f"{TRAIN}/statistics/composition_gram", 1.0),
        (f"{TRAIN}/statistics/composition_gram/0", ["a"]),
        *((f"{TRAIN}/shards/0/name", name) for name in (
            "/etc/passwd.tar", "../train-000000.tar", "a/b.tar", "a\\b.tar", "C:x.tar", "a\0.tar", "%2e%2e%2fa.tar",
            ".tar", "", "..", "a\n.tar", "x" * 300 + ".tar", "val-000000.tar",
        )),
        ("splits/..", {}),
        ("splits/a\0", {}),
    ],
)  # fmt: skip
def test_an_entry_of_another_kind_is_refused_with_file_and_field(manifest: Manifest, path: str, value: object) -> None:
    file = edited(manifest, put(path, value))
    field = path.split("/")[-1] if not path[-1].isdigit() else path.split("/")[-2]
    with pytest.raises(InvalidRecord, match=r"manifest\.json: not a manifest ") as caught:
        open_manifest(file)
    assert field in str(caught.value) or "val.shards[0]" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        ("num_frames", 1 - 1 / 90),
        ("num_atoms", 1.01),
        ("num_force_atoms", 1.01),
        ("num_stress_frames", 1.1),
        ("atoms_of_element/0", 1.01),
        ("frames_of_element/0", 100),
        ("composition_gram/0/0", 1.01),
        ("composition_gram/0/1", 1.01),
        ("composition_energy/0", 1e6),
        ("histograms/size", None),
        ("histograms/energy", None),
        ("histograms/force", None),
        ("histograms/stress", None),
    ],
)
def test_sums_that_contradict_each_other_are_refused(manifest: Manifest, path: str, factor: float | None) -> None:
    def edit(values: dict[str, Any]) -> None:
        *places, last = (int(word) if word.isdigit() else word for word in path.split("/"))
        at: Any = values["splits"]["train"]["statistics"]
        for place in places:
            at = at[place]
        if factor is None:
            at[last][np.argmax(at[last])] += 1
        else:
            at[last] = type(at[last])(at[last] * factor)

    with pytest.raises(InvalidRecord, match=r"manifest\.json: not a manifest \(splits\.train\.statistics\."):
        open_manifest(edited(manifest, edit))


def test_more_text_than_any_manifest_has_is_not_read(manifest: Manifest) -> None:
    with (manifest.root / "manifest.json").open("r+b") as file:
        file.truncate(MANIFEST_BYTES + 1)
    with pytest.raises(InvalidRecord, match=r"manifest\.json: not a manifest \(33,554,433 bytes"):
        open_manifest(manifest.root)


def rewritten(manifest: Manifest, shard: bool, edit: Edit, *, signed: bool) -> None:
    """Change the index of the training split, or that of its shard; signed: with the manifest's checksum as well."""
    path = index_path(manifest.shard_paths("train")[0]) if shard else split_index_path(manifest.root, "train")
    arrays = {name: array.copy() for name, array in safetensors.numpy.load_file(path).items()}
    edit(arrays)
    path.write_bytes(safetensors.numpy.save(arrays))
    if signed:
        part = f"{TRAIN}/shards/0" if shard else TRAIN
        edited(manifest, put(f"{part}/index_sha256", sha256(path)))


def frame_by_frame(manifest: Manifest) -> None:
    opened = open_manifest(manifest.root)
    frames = Frames(opened, "train")
    frames.index.counts(0, len(frames))
    list(frames)


def fewer_frames(arrays: dict[str, np.ndarray]) -> None:
    arrays["num_frames"][0] -= 1


def reversed_blocks(arrays: dict[str, np.ndarray]) -> None:
    for name in ("shard", "offset", "size", "checksum", "num_frames", "num_atoms", "max_atoms", "cost", "max_edges"):
        arrays[name] = arrays[name][::-1].copy()


def cheaper(arrays: dict[str, np.ndarray]) -> None:
    arrays["cost"] = (arrays["cost"] * 0.99).astype(np.int64)


def swapped_costs(arrays: dict[str, np.ndarray]) -> None:
    for name in ("cost", "max_edges"):
        arrays[name][[0, 1]] = arrays[name][[1, 0]]


def dropped_block(arrays: dict[str, np.ndarray]) -> None:
    for name in arrays:
        arrays[name] = arrays[name][:-1].copy()


def another_type(arrays: dict[str, np.ndarray]) -> None:
    arrays["offset"] = arrays["offset"].astype(np.float64)


def another_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays["cost"] = arrays["cost"][:, 0].copy()


def no_sizes(arrays: dict[str, np.ndarray]) -> None:
    del arrays["size"]


def past_the_end(arrays: dict[str, np.ndarray]) -> None:
    arrays["offset"][-1] += 2**40


def wrapping(arrays: dict[str, np.ndarray]) -> None:
    arrays["offset"][-1] = arrays["size"][-1] = 2**62


def overlapping(arrays: dict[str, np.ndarray]) -> None:
    arrays["offset"][1] = arrays["offset"][0]


def another_shard(arrays: dict[str, np.ndarray]) -> None:
    arrays["shard"][-1] = 7


def negative(arrays: dict[str, np.ndarray]) -> None:
    arrays["max_edges"][0] = -1


def swapped_frames(arrays: dict[str, np.ndarray]) -> None:
    arrays["num_frames"][0] -= 1
    arrays["num_frames"][1] += 1


def very_many(arrays: dict[str, np.ndarray]) -> None:
    arrays["num_frames"][0] = 2**31 - 1


def longer_shard(arrays: dict[str, np.ndarray]) -> None:
    arrays["frame_atoms"] = np.append(arrays["frame_atoms"], arrays["frame_atoms"][:1])


def swapped_atoms(arrays: dict[str, np.ndarray]) -> None:
    arrays["frame_atoms"][0] += 1
    arrays["frame_atoms"][-1] -= 1


def swapped_edges(arrays: dict[str, np.ndarray]) -> None:
    arrays["frame_edges"][0] += 1
    arrays["frame_edges"][-1] -= 1


OF_BLOCKS = [
    fewer_frames, reversed_blocks, cheaper, swapped_costs, dropped_block, another_type, another_shape, no_sizes,
    past_the_end, wrapping, overlapping, another_shard, negative, swapped_frames, very_many,
]  # fmt: skip
OF_FRAMES = [longer_shard, swapped_atoms, swapped_edges, another_type, fewer_frames, reversed_blocks, swapped_costs]


@pytest.mark.parametrize("edit", OF_BLOCKS, ids=lambda edit: edit.__name__)
def test_an_index_of_a_split_that_was_changed_is_refused_when_the_split_is_opened(
    manifest: Manifest, edit: Edit
) -> None:
    rewritten(manifest, False, edit, signed=False)
    with pytest.raises(CorruptShard, match=r"train\.index\.safetensors: the checksum differs"):
        open_manifest(manifest.root).index("train")


@pytest.mark.parametrize("edit", OF_BLOCKS, ids=lambda edit: edit.__name__)
def test_an_index_of_a_split_with_a_right_checksum_must_agree_with_everything_else(
    manifest: Manifest, edit: Edit
) -> None:
    rewritten(manifest, False, edit, signed=True)
    with pytest.raises((CorruptShard, InvalidRecord), match=r"(manifest\.json|safetensors|train-000000\.tar)"):
        frame_by_frame(manifest)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("edit", OF_FRAMES, ids=lambda edit: edit.__name__)
def test_an_index_of_a_shard_that_was_changed_is_refused_when_it_is_first_used(
    manifest: Manifest, edit: Edit, signed: bool
) -> None:
    rewritten(manifest, True, edit, signed=signed)
    index = open_manifest(manifest.root).index("train")
    with pytest.raises((CorruptShard, InvalidRecord), match=r"train-000000\.index\.safetensors: "):
        index.counts(3, 5)


def test_a_manifest_that_says_one_frame_less_is_refused(manifest: Manifest) -> None:
    count = manifest.split("train").shards[0].num_frames - 1
    file = edited(manifest, put(f"{TRAIN}/shards/0/num_frames", count))
    with pytest.raises(InvalidRecord, match=r"statistics\.num_frames is \d+; the shards have"):
        open_manifest(file)
    edited(manifest, put(f"{TRAIN}/shards/0/num_bytes", 1000))
    edited(manifest, put(f"{TRAIN}/shards/0/num_frames", count + 1))
    with pytest.raises(InvalidRecord, match=r"manifest\.json: splits\.train\.shards\[0\]\.num_bytes is 1000, but"):
        open_manifest(file).index("train")


def test_the_fingerprint_of_a_stream_covers_the_checksums_of_the_indexes(manifest: Manifest) -> None:
    def fingerprint() -> dict[str, Any]:
        dataset = Dataset(manifest=open_manifest(manifest.root))
        return Stream([dataset], cutoff=5.0, lanes=2, edge_budget=1500).fingerprint

    before = fingerprint()
    # bytes that say the same: only the checksum is another
    path = split_index_path(manifest.root, "train")
    path.write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(path), metadata={"note": "again"}))
    edited(manifest, put(f"{TRAIN}/index_sha256", sha256(path)))
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("numbers", lambda a: a + 200),
        ("numbers", lambda a: a[:-1]),
        ("num_atoms", lambda a: -a),
        ("num_atoms", lambda a: a.astype(np.float64)),
        ("positions", lambda a: a * np.nan),
        ("cell", lambda a: a[:, :2]),
        ("labels", lambda a: a[:1]),
        ("pbc", lambda a: a.astype(np.uint8)),
    ],
)
def test_a_block_with_a_right_checksum_holds_frames(
    manifest: Manifest, name: str, value: Callable[[np.ndarray], np.ndarray]
) -> None:
    blocks = manifest.index("train").blocks
    with manifest.shard_paths("train")[0].open("rb") as file:
        file.seek(int(blocks.offset[0]))
        buffer = file.read(int(blocks.size[0]))
    arrays = safetensors.numpy.load(buffer)
    header = json.loads(buffer[8 : 8 + int.from_bytes(buffer[:8], "little")])["__metadata__"]
    arrays[name] = np.ascontiguousarray(value(arrays[name]))
    with pytest.raises(CorruptShard, match=f"not a block of frames .*{name}"):
        Block(safetensors.numpy.save(arrays, metadata=header))
