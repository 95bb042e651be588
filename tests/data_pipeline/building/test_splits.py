"""Splits: few groups are divided, in silence nothing is."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.store.shards import sha256
from launch.__main__ import main


def trajectory(symbol: str, count: int, **info: object) -> list[ase.Atoms]:
    frames = []
    for number in range(count):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.03, seed=number)
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0 * len(atoms), forces=np.zeros((len(atoms), 3)))
        atoms.info.update(info)
        frames.append(atoms)
    return frames


@pytest.fixture
def built(tmp_path: Path, provenance: Provenance) -> Callable[..., Manifest]:
    """Build frames of one file, with options of the source and of the build."""

    def make(frames: list[ase.Atoms], source: dict | None = None, **options: object) -> Manifest:
        ase.io.write(tmp_path / "frames.extxyz", frames)
        files = AseFiles(files=(str(tmp_path / "frames.extxyz"),), **(source or {}))
        return build(BuildConfig(**{"source": files, "provenance": provenance, "out": tmp_path / "data", **options}))

    return make


def places(manifest: Manifest) -> dict[str, list[int]]:
    """Return the numbers of the frames of each split, in the order of the source."""
    return {split: [int(frame.id.split(":")[1]) for frame in Frames(manifest, split)] for split in manifest.splits}


def test_one_material_is_divided_in_the_order_of_its_frames(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = built(trajectory("Cu", 40))
    everything = list(range(40))
    assert places(manifest) == {"train": everything[:32], "val": everything[32:36], "test": everything[36:]}
    assert open_manifest(manifest.root).build_config["split_by"] == "blocks"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "one group (Cu4), too few to be kept whole: split by blocks" in record.getMessage()


def test_each_of_few_materials_is_in_every_split(built: Callable[..., Manifest]) -> None:
    many = trajectory("Cu", 30), trajectory("Ag", 10), trajectory("Au", 20)
    mixed = [frames[number] for number in range(30) for frames in many if number < len(frames)]
    manifest = built(mixed)
    counts = {split: Counter(frame.group for frame in Frames(manifest, split)) for split in manifest.splits}
    assert counts == {
        "train": {"Cu4": 24, "Ag4": 8, "Au4": 16},
        "val": {"Cu4": 3, "Ag4": 1, "Au4": 2},
        "test": {"Cu4": 3, "Ag4": 1, "Au4": 2},
    }
    found = places(manifest)
    for frames in many:
        own = [number for number, atoms in enumerate(mixed) if any(atoms is frame for frame in frames)]
        in_splits = [[number for number in found[split] if number in own] for split in ("train", "val", "test")]
        assert list(itertools.chain(*in_splits)) == own


def test_only_groups_of_frames_that_are_kept_count(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    frames = trajectory("Cu", 20)
    for symbol in ("Ag", "Au", "Pt", "Pd"):
        frames += trajectory(symbol, 1)
        forces = np.full((4, 3), 90.0)
        frames[-1].calc = SinglePointCalculator(frames[-1], energy=-12.0, forces=forces)
    manifest = built(frames, filters=FilterConfig(max_force=50.0))
    assert {name: len(numbers) for name, numbers in places(manifest).items()} == {"train": 16, "val": 2, "test": 2}
    assert "one group (Cu4)" in caplog.text


def test_from_five_groups_on_they_are_dealt_whole(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    frames = [atoms for symbol in ("Cu", "Ag", "Au", "Pt", "Pd") for atoms in trajectory(symbol, 4)]
    manifest = built(frames, val_fraction=0.3, test_fraction=0.3)
    assert manifest.build_config["split_by"] == "group"
    groups = [{frame.group for frame in Frames(manifest, split)} for split in manifest.splits]
    assert sum(len(each) for each in groups) == 5
    assert "too few" not in caplog.text


def test_few_groups_that_are_named_stay_whole_with_a_warning(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    frames = [atoms for run in ("cold", "warm", "hot") for atoms in trajectory("Cu", 6, run=run)]
    manifest = built(frames, source={"group_key": "run"}, val_fraction=0.3, test_fraction=0.3)
    assert manifest.build_config["split_by"] == "group"
    groups = [{frame.group for frame in Frames(manifest, split)} for split in manifest.splits]
    assert sum(len(each) for each in groups) == 3
    assert "group_key run names 3 groups (cold, warm, hot)" in caplog.text
    assert "--split_by blocks" in caplog.text


def test_blocks_can_be_asked_for_and_a_recorded_split_gives_the_same_bytes(
    built: Callable[..., Manifest], tmp_path: Path
) -> None:
    frames = trajectory("Cu", 20)
    first = built(frames, out=tmp_path / "one")
    second = built(frames, out=tmp_path / "two", split_by=first.build_config["split_by"])
    for path in first.root.iterdir():
        assert sha256(path) == sha256(second.root / path.name), path.name


def test_nothing_is_said_of_groups_where_all_frames_go_to_one_split(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = built(trajectory("Cu", 5), val_fraction=0.0, test_fraction=1.0)
    assert places(manifest)["test"] == list(range(5))
    assert not caplog.records


def test_a_split_that_is_empty_or_far_from_its_fraction_is_a_warning(
    built: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    symbols = ("Cu", "Ag", "Au", "Pt", "Pd", "Ni", "Al")
    frames = [atoms for symbol in symbols for atoms in trajectory(symbol, 2)]
    manifest = built(frames, val_fraction=0.02, test_fraction=0.4)
    sizes = {name: len(numbers) for name, numbers in places(manifest).items()}
    assert sizes["val"] == 0
    (message,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("val")]
    assert "val has 0 of 14 frames, 0, not the 0.02 requested" in message
    assert "another --split_seed" in message


def test_the_command_shows_the_warning_and_the_frames_of_the_splits(
    tmp_path: Path, provenance: Provenance, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ase.io.write(tmp_path / "frames.extxyz", trajectory("Cu", 10))
    words = [word for name, text in asdict(provenance).items() for word in (f"--provenance.{name}", text)]
    files = f'["{tmp_path / "frames.extxyz"}"]'
    assert main(["build", "--source.files", files, *words, "--out", str(tmp_path / "data")]) == 0
    assert "split by blocks" in caplog.text
    rows = [line.replace("│", " ").split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row and row[0] in ("train", "val", "test")] == [
        ["train", "8"],
        ["val", "1"],
        ["test", "1"],
    ]


def test_a_random_split_depends_on_seed_and_name_alone(built: Callable[..., Manifest]) -> None:
    frames = trajectory("Cu", 200)
    all_of_them = {name: set(found) for name, found in places(built(frames, split_by="random")).items()}
    assert all_of_them["train"] | all_of_them["val"] | all_of_them["test"] == set(range(200))
    for name, fraction in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        # five standard deviations of a binomial distribution
        assert abs(len(all_of_them[name]) - 200 * fraction) < 5 * np.sqrt(200 * fraction * (1 - fraction))
    fewer = {name: set(found) for name, found in places(built(frames[:80], split_by="random", overwrite=True)).items()}
    assert all(fewer[name] == {number for number in all_of_them[name] if number < 80} for name in fewer)
    other = places(built(frames, split_by="random", split_seed=1, overwrite=True))
    assert set(other["test"]) != all_of_them["test"]
    assert len(set(other["test"]) & all_of_them["test"]) < 12  # 2 expected: independent of the first seed
