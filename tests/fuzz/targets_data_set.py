"""Damaged data sets: manifest, indexes, shards, what a build left behind, copies of remote data."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from data_pipeline.building import build as build_module
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.block import CorruptShard
from data_pipeline.store.json_record import InvalidRecord
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.store.shards import index_path, sha256
from data_pipeline.structure import InvalidStructure
from tests.fuzz.harness import Mutation, Target
from tests.fuzz.mutations import damaged_bytes, damaged_files, damaged_json, damaged_safetensors, damaged_text

REFUSALS = (InvalidRecord, CorruptShard, InvalidStructure, OSError)
SERVED = "memory://fuzz/data"
"""Address of the remote data set: the same for every case, as the folder of its copies is named by it."""


def config(out: Path) -> BuildConfig:
    """Return a build of a few frames in several shards and blocks; without files, it can be gone on with anywhere."""
    facts = dict.fromkeys(Provenance.__dataclass_fields__, "fuzz")
    return BuildConfig(
        source=EmtAlloys(num_frames=12, seed=3),
        provenance=Provenance(**facts),
        out=out,
        val_fraction=0.25,
        test_fraction=0.25,
        split_by="order",
        block_frames=2,
        shard_frames=4,
    )


def make_data_set(folder: Path) -> None:
    """Build a data set."""
    build(config(folder / "data"))


def frames_of(manifest: Manifest) -> dict[str, Any]:
    """Return all that training reads of a data set: the frames, bit by bit, and what they cost."""
    found = {}
    for name in ("train", "val", "test"):
        manifest.split(name)
        frames = Frames(manifest, name)
        counts = [array.tolist() for array in frames.index.counts(0, len(frames))]
        labels = [(f.id, f.energy, f.positions.tobytes(), f.forces.tobytes(), f.cell.tobytes()) for f in frames]
        found[name] = (counts, labels)
    return found


def read_data_set(folder: Path) -> dict[str, Any]:
    """Open a data set and read every frame."""
    return frames_of(open_manifest(folder / "data"))


def seal(folder: Path) -> None:
    """Put the checksums of the files as they are into the manifest."""
    path = folder / "data" / "manifest.json"
    values = json.loads(path.read_text())
    for name, split in values["splits"].items():
        split["index_sha256"] = sha256(folder / "data" / f"{name}.index.safetensors")
        for shard in split["shards"]:
            file = folder / "data" / shard["name"]
            shard |= {"sha256": sha256(file), "index_sha256": sha256(index_path(file))}
    path.write_text(json.dumps(values))


def make_unfinished(folder: Path) -> None:
    """Leave what a build leaves that is killed before the manifest."""
    finish = build_module._finish
    build_module._finish = partial(_killed, folder)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        build(config(folder / "data"))
    except InterruptedError:
        pass
    finally:
        build_module._finish = finish
    (folder / "left").rename(folder / "data.partial")


def _killed(folder: Path, *_: object) -> None:
    shutil.copytree(folder / "data.partial", folder / "left")
    shutil.rmtree(folder / "data.partial")
    raise InterruptedError


def read_unfinished(folder: Path) -> dict[str, str]:
    """Go on with a copy of what was left, since that is used up; return what the build wrote."""
    work = folder / "work"
    shutil.copytree(folder / "data.partial", work / "data.partial", symlinks=True)
    try:
        build(config(work / "data"))
        return {path.name: sha256(path) for path in sorted((work / "data").iterdir())}
    finally:
        shutil.rmtree(work)


def make_remote(folder: Path) -> None:
    """Build a data set and read it once over the network."""
    build(config(folder / "served"))
    read_remote(folder)


def read_remote(folder: Path) -> dict[str, Any]:
    """Read a data set over the network, with the copies that there are."""
    memory = fsspec.filesystem("memory")
    for path in (folder / "served").iterdir():
        memory.pipe(f"/fuzz/data/{path.name}", path.read_bytes())
    return frames_of(open_manifest(SERVED, cache=folder / "cache"))


def indexes(pattern: str) -> dict[str, Mutation]:
    """Return ways to damage the index files of a pattern; those of the header with the manifest's checksum as well."""
    return {
        **damaged_bytes(pattern, expects="same"),
        **damaged_files(pattern),
        **damaged_safetensors(pattern, expects="same", seal=seal),
    }


def data_set(name: str, mutations: dict[str, Mutation]) -> Target:
    """Return a target that damages something of a data set on disk."""
    return Target(name=name, make=make_data_set, read=read_data_set, mutations=mutations, refusals=REFUSALS)


TARGETS = [
    data_set(
        "manifest",
        {
            **damaged_json("manifest.json", expects="same"),
            **damaged_text("manifest.json", expects="same"),
            **damaged_bytes("manifest.json", expects="same"),
            **damaged_files("manifest.json"),
        },
    ),
    data_set("index of a split", indexes("train.index.safetensors")),
    data_set("index of a shard", indexes("train-*.index.safetensors")),
    data_set("shard", {**damaged_bytes("train-*.tar", expects="same"), **damaged_files("train-*.tar")}),
    Target(
        name="unfinished build",
        make=make_unfinished,
        read=read_unfinished,
        mutations={
            **damaged_json("state.json", expects="same"),
            **damaged_json("*.tar.json", expects="same"),
            **damaged_bytes("*.json", expects="same"),
            **damaged_bytes("*.safetensors", expects="same"),
            **damaged_bytes("*.tar", expects="same"),
            **damaged_files("*"),
        },
        refusals=REFUSALS,
    ),
    Target(
        name="copies of remote data",
        make=make_remote,
        read=read_remote,
        mutations={
            **damaged_bytes("cache/**/*.block", expects="same"),
            **damaged_bytes("cache/**/*.safetensors", expects="same"),
            **damaged_files("cache/**/*.*"),
            **damaged_bytes("served/*.tar", expects="same"),
            **damaged_bytes("served/*.safetensors", expects="same"),
            **damaged_json("served/manifest.json", expects="same"),
        },
        refusals=REFUSALS,
    ),
]
