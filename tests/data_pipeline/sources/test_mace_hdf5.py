"""HDF5 of MACE, written here in both of its layouts: labels, weights, parts, and what is said of bad files."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import h5py
import numpy as np
import pytest

from data_pipeline.sources import MaceHdf5, mace_hdf5
from data_pipeline.structure import InvalidStructure, Structure

VOIGT = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
Writer = Callable[..., None]


def write_value(group: h5py.Group, name: str, value: Any) -> None:
    group[name] = "None" if value is None else value


def older(batch: h5py.Group, number: int, atoms: ase.Atoms, labels: dict[str, Any], weights: dict[str, float]) -> None:
    """Labels and weights beside the positions; a label that is missing is zeros of weight zero."""
    config = batch.create_group(f"config_{number}")
    zeros = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6), "virials": np.zeros((3, 3))}
    for name, zero in zeros.items():
        write_value(config, name, labels.get(name, zero))
        write_value(config, f"{name}_weight", weights.get(name, 1.0 if name in labels else 0.0))
    for name, value in (("dipole", None), ("charges", None), ("weight", weights.get("frame", 1.0))):
        write_value(config, name, value)
    write_common(config, atoms)


def newer(batch: h5py.Group, number: int, atoms: ase.Atoms, labels: dict[str, Any], weights: dict[str, float]) -> None:
    """Labels in properties, weights in property_weights; a label that is missing is the word None of weight zero."""
    config = batch.create_group(f"config_{number}")
    properties, property_weights = config.create_group("properties"), config.create_group("property_weights")
    for name in ("energy", "forces", "stress", "virials", "dipole", "charges", "head"):
        write_value(properties, name, labels.get(name))
        write_value(property_weights, name, weights.get(name, 1.0 if name in labels else 0.0))
    write_value(config, "weight", weights.get("frame", 1.0))
    write_common(config, atoms)


def write_common(config: h5py.Group, atoms: ase.Atoms) -> None:
    write_value(config, "atomic_numbers", atoms.numbers)
    write_value(config, "positions", atoms.positions)
    write_value(config, "cell", atoms.cell[:] if atoms.pbc.any() else None)
    write_value(config, "pbc", tuple(atoms.pbc) if atoms.pbc.any() else None)
    write_value(config, "config_type", "Default")


def labels_of(atoms: ase.Atoms) -> dict[str, Any]:
    return {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": VOIGT}


@pytest.fixture(params=[older, newer], ids=["older", "newer"])
def write(request: pytest.FixtureRequest) -> Writer:
    def write_file(path: Path, *batches: list[tuple[ase.Atoms, dict[str, Any], dict[str, float]]]) -> Path:
        with h5py.File(path, "w") as file:
            file.attrs["drop_last"] = False
            for index, frames in enumerate(batches):
                batch = file.create_group(f"config_batch_{index}")
                for number, frame in enumerate(frames):
                    request.param(batch, number, *frame)
        return path

    return write_file


def read(*paths: Path) -> list[Structure]:
    return list(MaceHdf5(mace_hdf5=tuple(map(str, paths))))


def test_labels_come_through(write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    path = write(tmp_path / "train.h5", [(atoms, labels_of(atoms), {}) for atoms in copper_frames])
    structures = read(path)
    assert [s.id for s in structures] == ["train.h5:0:0", "train.h5:0:1", "train.h5:0:2"]
    for structure, atoms in zip(structures, copper_frames, strict=True):
        np.testing.assert_array_equal(structure.positions, atoms.positions)
        np.testing.assert_array_equal(structure.cell, atoms.cell[:])
        assert structure.pbc.all()
        assert structure.energy == atoms.get_potential_energy()
        np.testing.assert_allclose(structure.forces, atoms.get_forces(), atol=1e-7)
        # MACE's stress is ASE's, which the frames carry
        np.testing.assert_allclose(structure.stress, atoms.get_stress(voigt=False), atol=1e-8)
        assert structure.group == "Cu4"


@pytest.mark.parametrize("shape", [(6,), (3, 3), (9,), (1, 3, 3)])
def test_every_form_of_stress_gives_the_same_tensor(
    write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms], shape: tuple[int, ...]
) -> None:
    full = copper_frames[0].get_stress(voigt=False)
    labels = labels_of(copper_frames[0]) | {"stress": (VOIGT if shape == (6,) else full).reshape(shape)}
    (structure,) = read(write(tmp_path / "train.h5", [(copper_frames[0], labels, {})]))
    np.testing.assert_allclose(structure.stress, full, atol=1e-8)


def test_virials_stand_in_for_a_missing_stress(write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    atoms = copper_frames[0]
    full = atoms.get_stress(voigt=False)
    labels = labels_of(atoms) | {"virials": -atoms.get_volume() * full}
    del labels["stress"]
    (structure,) = read(write(tmp_path / "train.h5", [(atoms, labels, {})]))
    assert structure.has_stress
    np.testing.assert_allclose(structure.stress, full, atol=1e-8)


def test_labels_of_weight_zero_are_missing(write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    atoms = copper_frames[0]
    frames = [
        (atoms, {"energy": -1.0}, {}),
        (atoms, labels_of(atoms), {"forces": 0.0, "stress": 0.0}),
        (atoms, labels_of(atoms), {"forces": 0.5, "frame": 20.0}),
    ]
    structures = read(write(tmp_path / "train.h5", frames))
    assert [s.has_forces for s in structures] == [False, False, True]
    assert [s.has_stress for s in structures] == [False, False, True]


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ({"forces": np.zeros((4, 3))}, {}, "no energy, or its weight is zero"),
        ({"energy": -1.0}, {"energy": 0.0}, "no energy, or its weight is zero"),
        ({"energy": -1.0}, {"frame": 0.0}, "the weight of the frame is zero"),
        ({"energy": np.zeros(2)}, {}, r"the energy has shape \(2,\)"),
        ({"energy": -1.0, "stress": np.zeros(7)}, {}, r"stress has shape \(7,\)"),
        ({"energy": -1.0, "forces": np.zeros((3, 3))}, {}, r"forces has shape \(3, 3\), expected \(4, 3\)"),
    ],
)
def test_a_bad_frame_is_refused_and_reading_goes_on(
    write: Writer,
    tmp_path: Path,
    copper_frames: list[ase.Atoms],
    labels: dict[str, Any],
    weights: dict[str, float],
    message: str,
) -> None:
    frames = [(copper_frames[0], labels, weights), (copper_frames[1], labels_of(copper_frames[1]), {})]
    path = write(tmp_path / "train.h5", frames)
    (part,) = MaceHdf5(mace_hdf5=(str(path),)).parts()
    refused, kept = part.read()
    assert isinstance(kept, Structure)
    with pytest.raises(InvalidStructure, match=rf"train\.h5, config_batch_0/config_0: {message}"):
        raise refused


def test_a_molecule_has_neither_cell_nor_period(write: Writer, tmp_path: Path) -> None:
    water = ase.Atoms("OH2", positions=[[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    (structure,) = read(write(tmp_path / "train.h5", [(water, {"energy": -14.0}, {})]))
    assert not structure.pbc.any()
    assert not structure.cell.any()
    assert structure.group == "H2O"


def test_parts_are_stretches_of_batches_in_numeric_order(
    write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mace_hdf5, "PART_FRAMES", 2)
    frame = (copper_frames[0], labels_of(copper_frames[0]), {})
    for name in ("b.h5", "a.h5"):
        write(tmp_path / name, [frame] * 3, *[[frame]] * 10)
    source = MaceHdf5(mace_hdf5=(str(tmp_path),))
    parts = source.parts()
    names = ["0:0-1", "0:2-2", *[f"{batch}:0-0" for batch in range(1, 11)]]
    assert [part.name for part in parts] == [f"{file}:{name}" for file in ("a.h5", "b.h5") for name in names]
    assert 0 < sum(part.size for part in parts) <= sum(file.stat().st_size for file in tmp_path.iterdir())
    ids = [frame.id for part in parts for frame in pickle.loads(pickle.dumps(part)).read()]
    assert ids == [s.id for s in source]
    assert len(set(ids)) == 26


def test_files_that_cannot_be_read_are_named(write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder \(source\.mace_hdf5 names it\)"):
        read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no \*\.h5 or \*\.hdf5 file in this folder"):
        read(tmp_path)
    path = write(tmp_path / "train.h5", [(atoms, labels_of(atoms), {}) for atoms in copper_frames])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidStructure, match=r"train\.h5: cannot be read as HDF5"):
        read(path)
    with h5py.File(path, "w") as file:
        file["config_0/node_attrs"] = np.zeros((4, 1))
    with pytest.raises(InvalidStructure, match=r"train\.h5: no group config_batch_0"):
        read(path)


def test_a_number_that_is_missing_is_named(write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    path = write(tmp_path / "train.h5", [(atoms, labels_of(atoms), {}) for atoms in copper_frames])
    with h5py.File(path, "a") as file:
        del file["config_batch_0/config_1"]
    with pytest.raises(InvalidStructure, match="config_batch_0/config_1: cannot be read"):
        read(path)


def change(path: Path, edit: Callable[[h5py.Group], None]) -> Path:
    """Edit the first frame, in the group that holds its labels."""
    with h5py.File(path, "a") as file:
        config = file["config_batch_0/config_0"]
        edit(config.get("properties", config))
    return path


def renamed(old: str, new: str) -> Callable[[h5py.Group], None]:
    return lambda group: group.move(old, new)


def replaced(name: str, value: Any) -> Callable[[h5py.Group], None]:
    def edit(group: h5py.Group) -> None:
        if name in group:
            del group[name]
        group[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed("forces", "force"), "entry 'force' looks like it"),
        (renamed("forces", "REF_forces"), "entry 'REF_forces' looks like it"),
        (renamed("stress", "Stress"), "entry 'Stress' looks like it"),
        (renamed("energy", "E_tot"), r"no energy.*'E_tot' \(-10\)"),
        (replaced("forces", np.ones((4, 3), dtype=bool)), "forces is of type bool"),
        (replaced("energy", True), "energy is of type bool"),
        (replaced("stress", np.arange(9.0)), "the stress is not symmetric"),
        (replaced("total_charge", 1.0), "has charge 1 .*by total_charge"),
        (replaced("total_spin", 3.0), "spin multiplicity 3 .*by total_spin"),
        (replaced("forces", h5py.SoftLink("forces")), "forces is a link"),
        (replaced("forces", h5py.SoftLink("nowhere")), "forces is a link"),
        (replaced("forces", h5py.ExternalLink("other.h5", "forces")), "forces is a link"),
        (lambda group: (group.move("forces", "old"), group.create_group("forces")), "forces is a group, not an array"),
        (
            lambda group: (group.move("forces", "old"), group.create_dataset("forces", (10**7, 3), "f4", chunks=True)),
            "forces has 30,000,000 numbers",
        ),
    ],
)
def test_what_means_something_else_is_refused_by_name(
    write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms], edit: Callable, message: str
) -> None:
    path = change(write(tmp_path / "train.h5", [(atoms, labels_of(atoms), {}) for atoms in copper_frames]), edit)
    (part,) = MaceHdf5(mace_hdf5=(str(path),)).parts()
    refused, *others = part.read()
    with pytest.raises(InvalidStructure, match=rf"train\.h5, config_batch_0/config_0: .*{message}"):
        raise refused
    assert [frame.energy for frame in others] == [-11.0, -12.0]


@pytest.mark.parametrize("name", ["Cell", "lattice", "PBC", "periodic"])
def test_a_cell_or_periodicity_under_another_name_is_refused(
    write: Writer, tmp_path: Path, copper_frames: list[ase.Atoms], name: str
) -> None:
    path = write(tmp_path / "train.h5", [(copper_frames[0], labels_of(copper_frames[0]), {})])
    with h5py.File(path, "a") as file:
        right = "cell" if name in ("Cell", "lattice") else "pbc"
        file["config_batch_0/config_0"].move(right, name)
    with pytest.raises(InvalidStructure, match=rf"{name!r}.* call it {right!r}"):
        read(path)


@pytest.mark.parametrize("name", ["config_batch_0", "config_batch_x"])
def test_batches_that_are_none_are_named(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file[name] = np.zeros(3)
    with pytest.raises(InvalidStructure, match=r"train\.h5: its batches cannot be read"):
        read(tmp_path / "train.h5")
