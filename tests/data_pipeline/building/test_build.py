"""Building: reproducible bytes, splits by group, and nothing left behind by a failure."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import ase
import ase.io
import numpy as np
import pytest

from data_pipeline.building.build import BuildConfig, build, split_of
from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles, EmtAlloys, Frame, Part
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.store.shards import sha256
from data_pipeline.structure import InvalidStructure, Structure


def frames_of(manifest: Manifest, split: str) -> list[Structure]:
    return list(Frames(manifest, split))


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def configure(tmp_path: Path, provenance: Provenance) -> Callable[..., BuildConfig]:
    """A configuration of 30 EMT frames into tmp_path/data, with changes."""

    def make(**changes: object) -> BuildConfig:
        source = EmtAlloys(num_frames=30)
        defaults = {"source": source, "provenance": provenance, "out": tmp_path / "data", "block_frames": 8}
        return BuildConfig(**{**defaults, **changes})

    return make


def test_every_frame_of_the_source_is_in_one_split_in_order(emt_manifest: Manifest) -> None:
    source = list(EmtAlloys(num_frames=120))
    place = {frame.id: number for number, frame in enumerate(source)}
    found = {}
    for split in ("train", "val", "test"):
        frames = frames_of(emt_manifest, split)
        numbers = [place[frame.id] for frame in frames]
        assert numbers == sorted(numbers)
        assert not found.keys() & set(numbers)
        found.update(zip(numbers, frames, strict=True))
    assert sorted(found) == list(range(120))
    for number, frame in found.items():
        assert frame.energy == source[number].energy
        assert frame.forces.tobytes() == source[number].forces.tobytes()


def test_groups_never_straddle_a_split(emt_manifest: Manifest) -> None:
    groups = {split: {f.group for f in frames_of(emt_manifest, split)} for split in ("train", "val", "test")}
    assert all(groups.values())
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]


def test_a_group_of_many_frames_stays_together(
    configure: Callable[..., BuildConfig], copper_frames: list[ase.Atoms], tmp_path: Path
) -> None:
    trajectory = []
    for number in range(120):
        atoms = copper_frames[number % 3].copy()
        atoms.info.update(REF_energy=float(number), run=f"run-{number % 12}")
        trajectory.append(atoms)
    ase.io.write(tmp_path / "runs.extxyz", trajectory)
    source = AseFiles(files=(str(tmp_path / "runs.extxyz"),), energy_key="REF_energy", group_key="run")
    manifest = build(configure(source=source, val_fraction=0.3, test_fraction=0.3))
    groups = {split: Counter(f.group for f in frames_of(manifest, split)) for split in manifest.splits}
    assert sum(len(counts) for counts in groups.values()) == 12
    assert all(counts and set(counts.values()) == {10} for counts in groups.values())


def test_a_group_keeps_its_split_when_data_are_added(
    emt_manifest: Manifest, configure: Callable[..., BuildConfig]
) -> None:
    small = build(configure())
    large = {frame.group: split for split in ("train", "val", "test") for frame in frames_of(emt_manifest, split)}
    for split in small.splits:
        assert all(large[frame.group] == split for frame in frames_of(small, split))


def test_splits_have_about_the_fractions_asked_for(configure: Callable[..., BuildConfig]) -> None:
    config = configure(val_fraction=0.2, test_fraction=0.05)
    splits = [split_of(f"group-{n}", config) for n in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.05, abs=0.02)


def test_another_split_seed_deals_the_groups_anew(configure: Callable[..., BuildConfig]) -> None:
    first, second = (configure(split_seed=seed, val_fraction=0.4) for seed in (0, 1))
    moved = [split_of(f"group-{n}", first) != split_of(f"group-{n}", second) for n in range(200)]
    assert sum(moved) > 50


def test_in_order_the_splits_are_blocks_of_the_source_with_the_fractions_asked_for(
    configure: Callable[..., BuildConfig],
) -> None:
    manifest = build(configure(split_by="order", val_fraction=0.21, test_fraction=0.31, shard_frames=10))
    ids = [frame.id for split in ("train", "val", "test") for frame in frames_of(manifest, split)]
    assert ids == [frame.id for frame in EmtAlloys(num_frames=30)]
    sizes = {name: split.statistics.num_frames for name, split in manifest.splits.items()}
    assert sizes == {"train": 14, "val": 7, "test": 9}


def test_in_order_the_frames_of_all_files_are_one_sequence(
    configure: Callable[..., BuildConfig], copper_frames: list[ase.Atoms], tmp_path: Path
) -> None:
    files = []
    for number, count in enumerate((1, 5, 4)):
        files.append(str(tmp_path / f"{number}.extxyz"))
        ase.io.write(files[-1], [copper_frames[0]] * count)
    manifest = build(configure(source=AseFiles(files=tuple(files)), split_by="order", test_fraction=0.4))
    found = {split: [frame.id for frame in frames_of(manifest, split)] for split in manifest.splits}
    assert found == {
        "train": ["0.extxyz:0", *(f"1.extxyz:{n}" for n in range(4))],
        "val": ["1.extxyz:4"],
        "test": [f"2.extxyz:{n}" for n in range(4)],
    }


@pytest.mark.parametrize("split_by", ["group", "order"])
def test_everything_can_be_for_the_final_evaluation(configure: Callable[..., BuildConfig], split_by: str) -> None:
    manifest = build(configure(split_by=split_by, val_fraction=0.0, test_fraction=1.0))
    assert [frame.id for frame in frames_of(manifest, "test")] == [frame.id for frame in EmtAlloys(num_frames=30)]
    assert not frames_of(manifest, "train")


def test_a_source_without_frames_for_evaluation_leaves_nothing(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    with pytest.raises(InvalidStructure, match="no frame fell into any split"):
        build(configure(source=EmtAlloys(num_frames=0), val_fraction=0.5, test_fraction=0.5))
    assert list(tmp_path.iterdir()) == []


def test_the_same_build_in_another_folder_gives_the_same_checksums(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    first = build(configure(out=tmp_path / "one", shard_frames=10))
    second = build(configure(out=tmp_path / "deep" / "two", shard_frames=10))
    assert checksums(first.root) == checksums(second.root)
    assert len(checksums(first.root)) > 8
    assert first.fingerprint == second.fingerprint


def test_shards_and_blocks_have_the_sizes_asked_for(configure: Callable[..., BuildConfig]) -> None:
    manifest = build(configure(shard_frames=10, block_frames=4, val_fraction=0.0, test_fraction=0.0))
    assert [shard.num_frames for shard in manifest.splits["train"].shards] == [10, 10, 10]
    assert manifest.index("train").blocks.num_frames.tolist() == [4, 4, 2] * 3
    assert [shard.num_bytes for shard in manifest.splits["train"].shards] == [
        path.stat().st_size for path in manifest.shard_paths("train")
    ]


def test_edges_are_counted_at_every_cutoff(configure: Callable[..., BuildConfig]) -> None:
    manifest = build(configure(cutoffs=(3.0, 5.5, 4.0), val_fraction=0.0, test_fraction=0.0))
    _, edges = manifest.index("train").counts(0, 30)
    for number, frame in enumerate(frames_of(manifest, "train")):
        expected = [len(neighbor_list(frame, cutoff).distances) for cutoff in (3.0, 5.5, 4.0)]
        assert edges[number].tolist() == expected


def test_what_build_returns_is_what_it_wrote(configure: Callable[..., BuildConfig]) -> None:
    manifest = build(configure())
    assert open_manifest(manifest.root).to_json() == manifest.to_json()
    manifest.verify()
    assert manifest.build_config["source"]["num_frames"] == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoffs": ()}, "cutoffs must be positive"),
        ({"cutoffs": (5.0, 0.0)}, "cutoffs must be positive"),
        ({"val_fraction": -0.1}, "must not be negative"),
        ({"val_fraction": 0.5, "test_fraction": 0.6}, "together at most 1"),
        ({"block_frames": 0}, "block_frames must be at least 1"),
        ({"block_frames": 8, "shard_frames": 7}, "shard_frames at least block_frames"),
    ],
)
def test_a_configuration_without_sense_is_refused(
    configure: Callable[..., BuildConfig], changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configure(**changes)


def in_second_frame(pattern: str, replacement: str) -> Callable[[str], str]:
    """An edit of frame 1 of three in an extxyz file of four atoms a frame."""

    def edit(text: str) -> str:
        lines = text.splitlines(keepends=True)
        second = "".join(lines[6:12])
        edited = re.sub(pattern, replacement, second, count=1)
        assert edited != second
        return "".join([*lines[:6], edited, *lines[12:]])

    return edit


ATOM = r"Cu( +\S+)( +\S+)( +\S+)( +\S+)( +\S+)( +\S+)"
BAD_INPUT = {
    "nan-energy": (in_second_frame(r"energy=\S+", "energy=nan"), "energy is nan"),
    "infinite-energy": (in_second_frame(r"energy=\S+", "energy=inf"), "energy is inf"),
    "nan-force": (
        in_second_frame(ATOM, r"Cu\1\2\3 nan\5\6"),
        r"forces has a value that is not finite.*row 0",
    ),
    "infinite-force": (in_second_frame(ATOM, r"Cu\1\2\3\4 -inf\6"), "forces has a value that is not finite"),
    "nan-stress": (in_second_frame(r'stress="\S+', 'stress="nan'), "stress has a value that is not finite"),
    "nan-position": (in_second_frame(ATOM, r"Cu nan\2\3\4\5\6"), "positions has a value that is not finite"),
    "missing-energy": (in_second_frame(r"energy=\S+ ", ""), "no energy.*energy_key"),
    "forces-of-wrong-shape": (
        in_second_frame("forces:R:3", "forces:R:2:rest:R:1"),
        r"forces has shape \(4, 2\), expected \(4, 3\)",
    ),
    "no-volume": (in_second_frame(r'Lattice="[^"]*"', 'Lattice="3 0 0 0 3 0 3 3 0"'), "without volume"),
    "vector-without-length": (
        in_second_frame(r'Lattice="[^"]*"', 'Lattice="3 0 0 0 3 0 0 0 0"'),
        "without volume",
    ),
    "no-element": (in_second_frame("Cu", "X "), "unknown element: atomic number 0"),
    "unknown-element": (in_second_frame("Cu", "Qq"), "Qq"),
    "cut-in-comment": (lambda text: text[: text.index("energy=-11")], "truncated"),
    "cut-in-count": (lambda text: text[: text.index("\n4\n") + 2], "truncated"),
    "cut-in-atom": (lambda text: text[: text.index("Cu", text.index("energy=-11")) + 30], "truncated"),
    "cut-between-atoms": (
        lambda text: text[: text.index("\nCu", text.index("\nCu", text.index("energy=-11")) + 1) + 1],
        "truncated",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_file_and_frame_and_leaves_nothing(
    case: str, configure: Callable[..., BuildConfig], copper_file: Path, tmp_path: Path
) -> None:
    edit, message = BAD_INPUT[case]
    copper_file.write_text(edit(copper_file.read_text()))
    # shards of one frame: the first frame is on disk before the second is refused
    config = configure(source=AseFiles(files=(str(copper_file),)), block_frames=1, shard_frames=1)
    with pytest.raises(InvalidStructure, match=rf"copper\.extxyz, frame 1: .*{message}") as caught:
        build(config)
    assert re.search(r"[Cc]orrect the frame|repair it|name its entry", str(caught.value))
    assert list(tmp_path.iterdir()) == [copper_file]


def test_two_atoms_at_the_same_place_name_the_frame_and_leave_nothing(
    configure: Callable[..., BuildConfig], copper_frames: list[ase.Atoms], tmp_path: Path
) -> None:
    copper_frames[1].positions[2] = copper_frames[1].positions[3] + copper_frames[1].cell[0]
    ase.io.write(tmp_path / "copper.extxyz", copper_frames)
    source = AseFiles(files=(str(tmp_path / "copper.extxyz"),))
    message = r"frame 'copper\.extxyz:1': two atoms at the same place.*Correct the frame or remove it"
    with pytest.raises(InvalidStructure, match=message):
        build(configure(source=source, block_frames=1, shard_frames=1))
    assert [path.name for path in tmp_path.iterdir()] == ["copper.extxyz"]


def test_ids_that_occur_twice_are_named_and_the_corrected_source_starts_over(
    configure: Callable[..., BuildConfig], copper_file: Path, tmp_path: Path
) -> None:
    copper_file.write_text(copper_file.read_text().replace("energy=", "name=same energy="))
    source = AseFiles(files=(str(copper_file),), id_key="name")
    with pytest.raises(InvalidStructure, match=r"two frames are called 'same'.*id_key"):
        build(configure(source=source, block_frames=1, shard_frames=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copper.extxyz", "data.partial"]
    corrected = build(configure(source=AseFiles(files=(str(copper_file),))))
    assert sum(split.statistics.num_frames for split in corrected.splits.values()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copper.extxyz", "data"]


def test_an_empty_file_leaves_nothing(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "empty.extxyz").touch()
    with pytest.raises(InvalidStructure, match=r"empty\.extxyz"):
        build(configure(source=AseFiles(files=(str(tmp_path / "empty.extxyz"),))))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.extxyz"]


def test_a_path_with_an_unset_variable_leaves_nothing(
    configure: Callable[..., BuildConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COPPER_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"COPPER_DATA.*not set"):
        build(configure(source=AseFiles(files=("${COPPER_DATA}/copper.extxyz",))))
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_frames_leaves_nothing(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    with pytest.raises(InvalidStructure, match="no frame fell into the training split"):
        build(configure(source=EmtAlloys(num_frames=0)))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("years of work")
    with pytest.raises(FileExistsError, match="data already exists; choose another --out or set --overwrite"):
        build(configure())
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["precious"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_overwrite_replaces_the_data(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    build(configure(shard_frames=8))
    fresh = build(configure(out=tmp_path / "fresh", source=EmtAlloys(num_frames=12, seed=5)))
    replaced = build(configure(source=EmtAlloys(num_frames=12, seed=5), overwrite=True))
    assert checksums(replaced.root) == checksums(fresh.root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "fresh"]


@dataclass(frozen=True, kw_only=True)
class Interrupted(EmtAlloys):
    """Stops in its second part like a user or a scheduler would, the first time."""

    attempts: ClassVar[list[str]] = []

    def parts(self) -> Sequence[Part]:
        first, second = (EmtAlloys(num_frames=self.num_frames, seed=seed).parts()[0] for seed in (0, 1))
        return [first, replace(second, name="second", read=partial(self._read, second.read))]

    def _read(self, read: Callable[[], Iterator[Frame]]) -> Iterator[Frame]:
        for number, frame in enumerate(read()):
            if number == 5 and not self.attempts:
                self.attempts.append("first")
                raise KeyboardInterrupt
            yield frame


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_interrupted_build_keeps_the_old_data_and_goes_on_when_called_again(
    configure: Callable[..., BuildConfig], tmp_path: Path, overwrite: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = checksums(build(configure()).root) if overwrite else None
    Interrupted.attempts.clear()
    source = Interrupted(num_frames=10)
    config = configure(source=source, overwrite=overwrite, block_frames=1, shard_frames=1)
    with pytest.raises(KeyboardInterrupt, match=r"data\.partial; the same command continues"):
        build(config)
    if before is None:
        assert [path.name for path in tmp_path.iterdir()] == ["data.partial"]
    else:
        assert checksums(tmp_path / "data") == before
    manifest = build(config)
    assert "1 of 2 parts are read" in caplog.text
    fresh = build(replace(config, out=tmp_path / "fresh"))
    assert checksums(manifest.root) == checksums(fresh.root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "fresh"]


def test_bad_input_with_overwrite_leaves_the_old_data(
    configure: Callable[..., BuildConfig], copper_file: Path, tmp_path: Path
) -> None:
    before = checksums(build(configure()).root)
    copper_file.write_text(copper_file.read_text().replace("energy=-12.0", "energy=nan"))
    with pytest.raises(InvalidStructure, match="frame 2: the energy is nan"):
        build(configure(source=AseFiles(files=(str(copper_file),)), overwrite=True, block_frames=1, shard_frames=1))
    assert checksums(tmp_path / "data") == before
    assert not (tmp_path / "data.partial").exists()


def test_what_a_killed_build_left_is_no_obstacle(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "train-000007.tar.partial").write_text("half a shard")
    manifest = build(configure())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert "train-000007.tar.partial" not in os.listdir(manifest.root)


def test_overwrite_refuses_a_folder_that_is_no_data_set(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    # --out ~ --overwrite true must not empty a home folder
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"data.*manifest"):
        build(configure(overwrite=True))
    assert (tmp_path / "data" / "thesis.tex").read_text() == "years of work"


def test_overwrite_refuses_a_data_set_with_other_files_beside_it(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    build(configure())
    (tmp_path / "data" / "notes.txt").write_text("years of work")
    (tmp_path / "data" / "plots").mkdir()
    with pytest.raises(FileExistsError, match=r"data holds other files .*notes\.txt, plots"):
        build(configure(overwrite=True, split_seed=3))
    assert (tmp_path / "data" / "notes.txt").read_text() == "years of work"
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("folder", ["data", "data.partial"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_source_in_the_folder_that_is_replaced_is_refused(
    configure: Callable[..., BuildConfig], copper_file: Path, tmp_path: Path, folder: str, linked: bool
) -> None:
    build(configure())
    (tmp_path / folder).mkdir(exist_ok=True)
    inside = copper_file.rename(tmp_path / folder / "source.extxyz")
    named = inside
    if linked:
        named = tmp_path / "link.extxyz"
        named.symlink_to(inside)
    with pytest.raises(FileExistsError, match="which the result would replace"):
        build(configure(source=AseFiles(files=(str(named),)), overwrite=True))
    assert inside.is_file()
    assert (tmp_path / "data" / "manifest.json").is_file()


def test_overwrite_refuses_a_file_and_leaves_nothing(configure: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("years of work")
    with pytest.raises(OSError, match="data"):
        build(configure(overwrite=True))
    assert (tmp_path / "data").read_text() == "years of work"
    assert not (tmp_path / "data.partial").exists()


def test_the_configuration_is_recorded_without_the_folder(configure: Callable[..., BuildConfig]) -> None:
    manifest = build(configure())
    recorded = json.loads((manifest.root / "manifest.json").read_text())["build_config"]
    assert recorded["cutoffs"] == [5.0]
    assert recorded["source"] == {"num_frames": 30, "seed": 0, "max_strain": 0.05, "max_rattle": 0.15}
    assert "out" not in recorded


def test_real_data_keep_trajectories_together(configure: Callable[..., BuildConfig], real_data: Path) -> None:
    # twenty frames suffice: what is tested is that the group is the trajectory and not the formula
    frames = ase.io.read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":20")
    path = configure().out.with_name("twenty.extxyz")
    ase.io.write(path, frames)
    manifest = build(configure(source=AseFiles(files=(str(path),), group_key="mptrj_traj_id")))
    groups = [frame.group for split in manifest.splits for frame in frames_of(manifest, split)]
    assert sorted(groups) == sorted(atoms.info["mptrj_traj_id"] for atoms in frames)
    energies = [frame.energy for split in manifest.splits for frame in frames_of(manifest, split)]
    np.testing.assert_array_equal(np.sort(energies), np.sort([a.get_potential_energy() for a in frames]))
