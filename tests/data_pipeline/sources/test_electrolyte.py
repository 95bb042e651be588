"""An electrolyte as data: boxes of whole molecules, refused frames, labels of molecules from source to shard."""

import itertools
from pathlib import Path
from typing import Any

import ase
import ase.io
import ase.units
import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Stream
from data_pipeline.sources import AseFiles, Electrolyte, SourceConfig, electrolyte, molecules
from data_pipeline.sources.bonds import Bonds
from data_pipeline.sources.molecules import CLEARANCE, MOLECULES, packed, scaled
from data_pipeline.store.manifest import Provenance, open_manifest
from data_pipeline.structure import InvalidStructure, Structure

COUNTS = {"EC": 2, "EMC": 1, "PF6": 1, "Li": 1}
TWO = (300.0, 500.0)
SHORT = Electrolyte(molecules=COUNTS, trajectory_temperatures=TWO, frames=3, interval=2, warm_up=2, density=0.5)


class Springs(Calculator):
    """Springs of a strength [eV/Å²] between the atoms of each molecule, and as strong a repulsion of molecules."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 (as ASE declares it)

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength, self._bonds, self._lengths = strength, np.zeros((0, 2), int), np.zeros(0)

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, ase.Atoms)
        if not len(self._bonds):
            # all pairs of a molecule, which keep its angles as well
            molecule = self.atoms.arrays["molecule"]
            pairs = itertools.combinations(range(len(molecule)), 2)
            self._bonds = np.array([(i, j) for i, j in pairs if molecule[i] == molecule[j]])
        i, j = self._bonds.T
        vectors = self.atoms.positions[j] - self.atoms.positions[i]
        lengths = np.linalg.norm(vectors, axis=1)
        if not len(self._lengths):
            self._lengths = lengths
        pulls = (self._strength * (lengths - self._lengths) / lengths)[:, None] * vectors
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, pulls)
        np.add.at(forces, j, -pulls)
        energy = 0.5 * self._strength * float(((lengths - self._lengths) ** 2).sum())
        molecule = self.atoms.arrays["molecule"]
        near = self.atoms.get_all_distances(mic=True, vector=True)
        apart = np.linalg.norm(near, axis=2) + 9.0 * (molecule[:, None] == molecule)
        overlap = np.maximum(2.2 - apart, 0.0)
        energy += 0.25 * self._strength * float((overlap**2).sum())
        forces -= self._strength * ((overlap / apart)[:, :, None] * near).sum(axis=1)
        self.results = {"energy": energy, "forces": forces, "stress": np.zeros(6)}


def test_geometries_are_those_of_the_molecules() -> None:
    bonds = {"Li": 0, "PF6": 6, "EC": 10, "EMC": 14}
    for name, molecule in MOLECULES.items():
        assert len(Bonds().within(molecule)) == bonds[name], name
        assert len(set(Bonds().molecules(molecule).tolist())) == 1
        lengths = molecule.get_all_distances()
        for first, second, length in ("C", "H", 1.09), ("P", "F", 1.6):
            for i, j in Bonds().within(molecule):
                if {str(molecule.symbols[i]), str(molecule.symbols[j])} == {first, second}:
                    assert lengths[i, j] == pytest.approx(length, abs=0.02)


def test_boxes_have_their_density_and_room_between_molecules(monkeypatch: pytest.MonkeyPatch) -> None:
    box = packed(COUNTS, 0.6, np.random.default_rng(0))
    mass = float(box.get_masses().sum()) / ase.units.kg * 1e3
    assert mass / (box.get_volume() * 1e-24) == pytest.approx(0.6)
    distances, molecule = box.get_all_distances(mic=True), box.arrays["molecule"]
    assert distances[molecule[:, None] != molecule].min() > CLEARANCE
    shape = box.get_all_distances()
    before = [shape[np.ix_(molecule == m, molecule == m)] for m in range(5)]
    volume = box.get_volume()
    scaled(box, 0.9)
    assert box.get_volume() == pytest.approx(0.9**3 * volume)
    after = box.get_all_distances()
    for m, old in enumerate(before):
        np.testing.assert_allclose(after[np.ix_(molecule == m, molecule == m)], old, atol=1e-9)
    assert (
        packed(COUNTS, 0.6, np.random.default_rng(0)).positions
        != packed(COUNTS, 0.6, np.random.default_rng(1)).positions
    ).any()
    with pytest.raises(ValueError, match="unknown"):
        packed({"DMC": 1}, 0.6, np.random.default_rng(0))
    monkeypatch.setattr(molecules, "MAX_TRIES", 50)
    with pytest.raises(ValueError, match="lower density"):
        packed({"EC": 2}, 3.0, np.random.default_rng(0))


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[Structure]:
    monkeypatch.setattr(electrolyte, "calculator_of", lambda *_: Springs(20.0))
    return list(SHORT)


def test_frames_are_whole_molecules_at_the_density(frames: list[Structure]) -> None:
    assert len(frames) == 2 * 3
    assert len({frame.id for frame in frames}) == 6
    assert len({frame.group for frame in frames}) == 2
    for frame in frames:
        assert frame.has_molecules
        assert np.bincount(frame.molecules).tolist() == [1, 7, 10, 10, 15]
        density = float(ase.Atoms(frame.numbers).get_masses().sum()) / ase.units.kg * 1e27 / frame.volume
        assert density == pytest.approx(0.5)
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        assert np.abs(frame.forces).max() > 0.1
        assert len(Bonds().within(atoms)) >= 40


def test_frames_of_broken_molecules_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(electrolyte, "calculator_of", lambda *_: Springs(0.0))
    monkeypatch.setattr(electrolyte, "TIME_STEP", 20.0)
    (part, _) = SHORT.parts()
    found = list(part.read())
    assert len(found) == 3
    assert all(isinstance(frame, InvalidStructure) for frame in found)
    assert "a bond was" in str(found[0])


def test_wrong_options_are_refused() -> None:
    for changes in ({"trajectory_temperatures": ()}, {"frames": 0}, {"density": 0.1}, {"molecules": {"EC": 0}}):
        with pytest.raises(ValueError, match="must"):
            Electrolyte(**{"molecules": COUNTS, **changes})


def built(source: SourceConfig, out: Path) -> Path:
    facts = dict.fromkeys(("name", "level_of_theory", "energy_convention", "citation", "licence", "source"), "Springs")
    settings = {"cutoffs": (3.0,), "molecule_cutoffs": (7.0, 9.0), "val_fraction": 0.0, "test_fraction": 0.0}
    build(BuildConfig(source=source, provenance=Provenance(**facts), out=out, split_by="order", **settings))
    return out


def written(frames: list[Structure], path: Path, name: str) -> Path:
    for frame in frames:
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        atoms.new_array(name, frame.molecules.astype(int))
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces.astype(float))
        ase.io.write(path, atoms, format="extxyz", append=True)
    return path


@pytest.mark.parametrize("name", ["grain", "molecule-id"])
def test_labels_of_molecules_reach_the_batches_of_training(frames: list[Structure], tmp_path: Path, name: str) -> None:
    file = written(frames, tmp_path / "frames.extxyz", name)
    manifest = open_manifest(built(AseFiles(files=(str(file),)), tmp_path / "data"))
    statistics = manifest.split("train").statistics
    assert statistics.cutoffs == (3.0, MoleculeCutoff(7.0), MoleculeCutoff(9.0))
    stream = Stream([Dataset(manifest=manifest)], cutoff=MoleculeCutoff(9.0), lanes=1, edge_budget=400)
    batches = [batch for step in itertools.islice(stream, 4) for batch in step]
    assert len(batches) == 4
    for batch in batches:
        assert batch.molecule is not None
        assert batch.graph_of_molecule is not None
        assert torch.bincount(batch.molecule).tolist() == [1, 7, 10, 10, 15] * batch.num_graphs
        assert batch.num_edges <= 400
    with pytest.raises(
        ValueError, match=r"between molecules were counted at 7.0, 9.0 Å, not at 8.0 Å; .* molecule_cutoffs"
    ):
        statistics.cutoff_number(MoleculeCutoff(8.0))
    with pytest.raises(ValueError, match=r"edges were counted at 3.0 Å, not at 9.0 Å; .* its cutoffs"):
        statistics.cutoff_number(9.0)


def test_molecules_are_found_from_bonds_on_request(frames: list[Structure], tmp_path: Path) -> None:
    file = written(frames, tmp_path / "frames.extxyz", "unread")
    assert not next(iter(AseFiles(files=(str(file),)))).has_molecules
    for frame, source in zip(frames, AseFiles(files=(str(file),), molecule_key="bonds"), strict=True):
        np.testing.assert_array_equal(source.molecules, frame.molecules)
