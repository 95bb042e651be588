"""The neighbour search where a bin list would overflow: right edges, or the frame by name, in build and training."""

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.edge_count import EdgeCounter, Edges
from data_pipeline.building.filters import FilterConfig
from data_pipeline.graphs.batch import collate, neighbor_list
from data_pipeline.graphs.neighbors import NeighborSearch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources import AseFiles, DeepmdNpy
from data_pipeline.store.manifest import Provenance
from data_pipeline.structure import InvalidStructure, Structure


def structure(positions: np.ndarray, cell: np.ndarray, pbc: list[bool]) -> Structure:
    numbers = np.full(len(positions), 11)
    return Structure.checked(numbers=numbers, positions=positions, cell=cell, pbc=pbc, energy=0.0, id="far")


def methane_with_an_atom_far_away(distance: float) -> Structure:
    atoms = molecule("CH4")
    atoms.positions[3, 2] = distance
    return structure(atoms.positions, np.zeros((3, 3)), [False] * 3)


SODIUM = np.array([[0, 0, 0], [0, 0, 2.5], [0, 0, 1e5]])
FRAMES = {
    "molecule": (methane_with_an_atom_far_away(2e6), 12),
    "further": (methane_with_an_atom_far_away(9e7), 12),
    "slab": (structure(SODIUM, np.diag([5.0, 5.0, 0.0]), [True, True, False]), 2),
    "run-away cell": (structure(SODIUM[:2], np.diag([5.0, 5.0, 1e6]), [True] * 3), 2),
    "flat run-away cell": (structure(SODIUM[:2], np.diag([1e4, 1e6, 5.5]), [True] * 3), 4),
    "large empty cell": (structure(SODIUM[:2], 1e6 * np.eye(3), [True] * 3), 2),
    "far outside its cell": (structure(np.add(SODIUM, [[0], [5e6], [0]]), np.diag([9.0, 9.0, 5.5]), [True] * 3), 4),
    "sheared": (structure(SODIUM[:2], np.array([[6.0, 0, 0], [6e4, 6, 0], [0, 0, 8]]), [True] * 3), 2),
}


@pytest.mark.parametrize("name", FRAMES)
def test_search_and_count_agree_where_atoms_are_far_apart(name: str) -> None:
    frame, expected = FRAMES[name]
    assert len(neighbor_list(frame, 5.0).distances) == expected
    for isolated in (False, True):
        (edges,) = EdgeCounter((3.0, 5.0), isolated=isolated)([frame])
        assert isinstance(edges, Edges)
        assert edges.counts == [len(neighbor_list(frame, cutoff).distances) for cutoff in (3.0, 5.0)]
    batch = collate([frame], 5.0)
    lengths = np.sort(batch.edge_vectors().norm(dim=1).numpy())
    np.testing.assert_allclose(lengths, np.sort(neighbor_list(frame, 5.0).distances), atol=1e-7)


def test_vesin_is_left_all_frames_of_usual_size(real_data: Path) -> None:
    frames = list(islice(AseFiles(files=(str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz"),)), 100))
    frames += islice(AseFiles(files=(str(real_data / "lpsc" / "600K.extxyz"),)), 1)
    assert NeighborSearch(6.0).cells(frames).usual.all()


def test_a_crowded_frame_among_others_is_refused_by_name(random_structure: Callable[..., Structure]) -> None:
    crowd = structure(np.random.default_rng(0).uniform(0, 5, (4000, 3)), np.diag([40.0, 40, 40]), [True] * 3)
    good = dataclasses.replace(random_structure(0), id="good")
    counted = EdgeCounter((5.0,))([good, crowd])
    assert isinstance(counted[0], Edges)
    assert isinstance(counted[1], InvalidStructure)
    assert "frame 'far': atoms or lattice vectors closer than in any material" in str(counted[1])
    with pytest.raises(InvalidStructure, match="structure 'far': atoms or lattice vectors closer"):
        collate([good, crowd], 5.0)


def test_lengths_beyond_float64_and_cells_without_room_are_refused() -> None:
    with pytest.raises(InvalidStructure, match=r"positions has a value beyond 1e\+08 Å \(row 1"):
        structure(np.array([[0, 0, 0], [0, 0, 2e9]]), np.zeros((3, 3)), [False] * 3)
    with pytest.raises(InvalidStructure, match=r"cell has a value beyond"):
        structure(np.zeros((1, 3)), np.diag([5.0, 5.0, 1e30]), [True] * 3)
    with pytest.raises(InvalidStructure, match=r"the cell has 0\.064 Å³ for 2 atoms, less than any material"):
        structure(0.2 * np.eye(3)[:2], 0.4 * np.eye(3), [True] * 3)


@pytest.mark.parametrize(
    ("case", "where"), [("extxyz_lattice_needle.xyz", "extxyz_lattice_needle.xyz"), ("deepmd_box_tiny", "set.000")]
)
def test_thin_and_tiny_cells_of_files_are_refused_with_file_and_frame(
    real_data: Path, tmp_path: Path, provenance: Provenance, case: str, where: str
) -> None:
    path = str(real_data.parent / "cases" / "fuzz" / case)
    source = AseFiles(files=(path,)) if case.endswith("xyz") else DeepmdNpy(deepmd_npy=(path,))
    config = BuildConfig(source=source, provenance=provenance, out=tmp_path / "out")
    with pytest.raises(InvalidStructure, match=where) as refused:
        build(config)
    assert "0" in str(refused.value)


def test_what_build_takes_training_takes(real_data: Path, tmp_path: Path, provenance: Provenance) -> None:
    config = BuildConfig(
        source=AseFiles(files=(str(real_data.parent / "cases" / "k1_exploded.xyz"),)),
        provenance=provenance,
        out=tmp_path / "out",
        split_by="order",
        filters=FilterConfig(invalid="reject"),
    )
    manifest = build(config)
    for name, split in manifest.splits.items():
        frames = list(Dataset(manifest=manifest, split=name).frames())
        assert collate(frames, 5.0).num_edges == split.statistics.num_edges[0]
