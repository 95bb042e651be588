"""Joined sources: all frames under names of their own, in the splits that the configuration names."""

from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles, Joined
from data_pipeline.store.manifest import Provenance, open_manifest


def written(path: Path, count: int, first: int, **info: object) -> str:
    frames = []
    for number in range(first, first + count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        atoms.calc = SinglePointCalculator(atoms, energy=float(number), forces=np.zeros((4, 3)))
        atoms.info.update(info)
        frames.append(atoms)
    path.parent.mkdir(exist_ok=True)
    ase.io.write(path, frames)
    return str(path)


def test_frames_of_several_sources_have_names_of_their_own_in_the_order_given(tmp_path: Path) -> None:
    # alone, each source would call its frames a.xyz:0, a.xyz:1 ...
    sources = [AseFiles(files=(written(tmp_path / name / "a.xyz", 2, first),)) for name, first in (("x", 5), ("y", 0))]
    joined = Joined(train=tuple(sources))
    assert [(frame.id, frame.energy) for frame in joined] == [
        ("0/a.xyz:0", 5.0),
        ("0/a.xyz:1", 6.0),
        ("1/a.xyz:0", 0.0),
        ("1/a.xyz:1", 1.0),
    ]
    assert len({part.name for part in joined.parts()}) == 2


def test_a_build_keeps_the_splits_that_are_named_and_splits_the_rest(tmp_path: Path, provenance: Provenance) -> None:
    train, val, test = (
        AseFiles(files=(written(tmp_path / f"{name}.xyz", 20, first),))
        for name, first in (("train", 0), ("val", 100), ("test", 200))
    )

    def split_of(name: str, source: Joined, **options: Any) -> dict[str, list[float]]:
        config = BuildConfig(source=source, provenance=provenance, out=tmp_path / name, split_by="blocks", **options)
        manifest = build(config)
        assert open_manifest(tmp_path / name).build_config["source"]["train"][0]["files"] == list(train.files)
        return {split: [frame.energy for frame in Frames(manifest, split)] for split in manifest.splits}

    numbers = {first: [float(first + number) for number in range(20)] for first in (0, 100, 200)}
    both = Joined(train=(train,), val=(val,), test=(test,))
    assert split_of("both", both, val_fraction=0.0, test_fraction=0.0, workers=2) == {
        "train": numbers[0],
        "val": numbers[100],
        "test": numbers[200],
    }
    assert split_of("one", Joined(train=(train,), val=(val,)), val_fraction=0.0) == {
        "train": numbers[0][:18],
        "val": numbers[100],
        "test": numbers[0][18:],
    }


def test_the_groups_are_those_that_a_source_names(tmp_path: Path) -> None:
    plain = AseFiles(files=(written(tmp_path / "a.xyz", 1, 0),))
    named = AseFiles(files=(written(tmp_path / "b.xyz", 1, 0, run="r1"),), group_key="run")
    assert Joined(train=(plain,)).group_key is None
    assert Joined(train=(plain, named)).group_key == "run"
    assert [frame.group for frame in Joined(train=(plain, named))] == ["Cu4", "r1"]
