"""Structures without labels: built when that is said, recorded, and kept away from what needs labels."""

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.merge import merge
from data_pipeline.inspection import inspect_manifest
from data_pipeline.loading.datasets import Frames
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.structure import InvalidStructure


def built(path: Path, provenance: Provenance, **options: object) -> Manifest:
    source = AseFiles(files=(str(path),), **options)
    out = path.with_suffix(".data")
    return build(BuildConfig(source=source, provenance=provenance, out=out, val_fraction=0.0, test_fraction=0.0))


@pytest.fixture
def bare_file(tmp_path: Path) -> Path:
    """Three frames without labels."""
    path = tmp_path / "bare.extxyz"
    ase.io.write(path, [bulk(element, cubic=True) for element in ("Cu", "Ag", "Au")])
    return path


@pytest.fixture
def bare(bare_file: Path, provenance: Provenance) -> Manifest:
    return built(bare_file, provenance, labels="none")


def test_frames_without_labels_are_built_when_that_is_said(bare: Manifest) -> None:
    assert not bare.labelled
    assert not open_manifest(bare.root).labelled
    frames = list(Frames(bare, "train"))
    assert [frame.numbers[0] for frame in frames] == [29, 47, 79]
    for frame in frames:
        assert (frame.energy, frame.has_forces, frame.has_stress) == (0.0, False, False)
        assert not frame.forces.any()
        assert frame.volume > 0
    assert bare.split("train").statistics.num_edges[0] > 0


def test_frames_without_labels_are_refused_otherwise(bare_file: Path, provenance: Provenance) -> None:
    with pytest.raises(InvalidStructure, match="no energy in the calculator"):
        built(bare_file, provenance)


def test_labels_that_are_there_are_not_looked_at(copper_file: Path, provenance: Provenance) -> None:
    data = built(copper_file, provenance, labels="none")
    for frame, atoms in zip(Frames(data, "train"), ase.io.read(copper_file, ":"), strict=True):
        assert (frame.energy, frame.has_forces, frame.has_stress) == (0.0, False, False)
        np.testing.assert_allclose(frame.positions, atoms.positions)
    assert data.split("train").statistics.num_force_frames == 0


def test_saying_where_the_labels_are_and_that_there_are_none_is_refused() -> None:
    with pytest.raises(ValueError, match="labels is 'none', and energy_key, stress_key names them"):
        AseFiles(files=(), labels="none", energy_key="REF_energy", stress_key="REF_stress")


def test_data_sets_with_and_without_labels_do_not_merge(
    bare: Manifest, copper_file: Path, provenance: Provenance, tmp_path: Path
) -> None:
    labelled = built(copper_file, provenance)
    with pytest.raises(ValueError, match=r"differ in their labels .*: True and False; keep them apart"):
        merge([labelled.root, bare.root], tmp_path / "merged", "both")


def test_merged_data_sets_without_labels_have_none(bare: Manifest, tmp_path: Path, provenance: Provenance) -> None:
    ase.io.write(tmp_path / "more.extxyz", bulk("Pt", cubic=True))
    more = built(tmp_path / "more.extxyz", provenance, labels="none")
    assert not merge([bare.root, more.root], tmp_path / "merged", "both").labelled


def test_inspection_says_that_there_are_no_labels(bare: Manifest) -> None:
    (warning,) = [text for text in inspect_manifest(bare).warnings if "labels" in text]
    assert warning.startswith("the frames were built without labels")
