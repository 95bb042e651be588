"""Thermal conductivity: modes that add up, crystals without one, and the benchmark's columns."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from data_pipeline.sources.materials import Material
from foundation.interop.calculator import to_structure
from foundation.interop.conductivity import (
    MODES,
    Modes,
    by_mode,
    conduct_all,
    conductivity_row,
    error_of,
    is_imaginary,
    read_references,
)

needs_phono3py = pytest.mark.skipif(
    importlib.util.find_spec("phono3py") is None, reason="phono3py is in the extra `discovery`"
)
ENTRIES = {"fc2_supercell": np.diag([2, 2, 2]), "fc3_supercell": np.diag([2, 2, 2]), "q_point_mesh": [3, 3, 3]}


def aluminium(**entries: object) -> Material:
    structure = to_structure(bulk("Al", "fcc", a=4.0, cubic=True))
    return Material(id="mp-134", structure=structure, energy=None, entries=entries or ENTRIES)


@needs_phono3py
def test_modes_of_aluminium_add_up_to_its_conductivity(tmp_path: Path) -> None:
    (row,), total = conduct_all([aluminium()], EMT(), tmp_path, "1-of-1")
    assert total == 1
    assert row["errors"] == []
    assert row["initial_spg_num"] == row["final_spg_num"] == 225
    assert not row["has_imag_ph_modes"]
    tensor, modes = np.array(row["kappa_tot_rta"])[0], np.array(row[MODES])[0]
    assert tensor[:3] == pytest.approx(tensor[0], rel=1e-6), "a cubic crystal conducts the same in all directions"
    assert tensor[3:] == pytest.approx(0.0, abs=1e-6 * tensor[0])
    assert modes.sum(axis=(0, 1)) / sum(row["mode_weights"]) == pytest.approx(tensor, abs=1e-9 * tensor[0])
    assert sum(row["mode_weights"]) == 27
    assert error_of(row, Modes(conductivity=modes[..., :3].mean(axis=-1))) == 0.0
    again, _ = conduct_all([aluminium()], EMT(), tmp_path, "1-of-1")
    assert again == [json.loads(json.dumps(row))]


@needs_phono3py
def test_a_crystal_that_fails_has_a_row_with_the_reason() -> None:
    row = conductivity_row(aluminium(fc2_supercell=[2, 2, 2]), EMT())
    assert row["errors"] == ["ValueError: it has no fc3_supercell, q_point_mesh"]
    iron = Material(id="mp-13", structure=to_structure(bulk("Fe", cubic=True)), energy=None, entries=ENTRIES)
    unknown = conductivity_row(iron, EMT())
    assert "Fe" in unknown["errors"][0]
    for failed in (row, unknown):
        assert failed["kappa_tot_rta"] is None
        assert error_of(failed, Modes(conductivity=np.ones((4, 3)))) == 2.0


def test_coherence_is_shared_by_heat_capacity() -> None:
    # two modes whose coherence is 1 in each order; the second has three times the heat capacity of the first
    pairs = np.zeros((1, 1, 2, 2, 6))
    pairs[0, 0, :, :, 0] = [[5.0, 1.0], [1.0, 7.0]]
    capacities = np.array([[[1.0, 3.0]]])
    assert by_mode(pairs, capacities)[0, 0, :, 0] == pytest.approx([5.0 + 2 * 3 / 4, 7.0 + 2 * 1 / 4])
    # none at absolute zero
    assert by_mode(pairs, np.zeros((1, 1, 2)))[0, 0, :, 0].sum() == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("gamma", "elsewhere", "imaginary"),
    [
        ([-0.005, 0.0, 0.001, 3.0], [1.0, 1.0, 2.0, 3.0], False),
        ([-0.02, 0.0, 0.001, 3.0], [1.0, 1.0, 2.0, 3.0], True),
        ([0.0, 0.0, 0.0, -0.001], [1.0, 1.0, 2.0, 3.0], True),
        ([0.0, 0.0, 0.0, 3.0], [-0.001, 1.0, 2.0, 3.0], True),
        ([0.0, 0.0, 0.0, np.nan], [1.0, 1.0, 2.0, 3.0], True),
    ],
)
def test_only_acoustic_modes_at_the_origin_may_be_slightly_below_zero(
    gamma: list[float], elsewhere: list[float], imaginary: bool
) -> None:
    assert is_imaginary(np.array([gamma, elsewhere])) == imaginary


def test_references_are_read_with_averages_or_tensors(tmp_path: Path) -> None:
    average = np.arange(6.0).reshape(1, 2, 3)
    voigt = np.concatenate([np.repeat(average[..., None], 3, axis=-1), np.ones((1, 2, 3, 3))], axis=-1)
    rows = [
        {"material_id": "mp-1", "mode_kappa_tot_avg": average.tolist()},
        {"mp_id": "mp-2", "mode_kappa_tot_rta": voigt.tolist()},
    ]
    (tmp_path / "kappas.json").write_text(json.dumps(rows))
    found = read_references(tmp_path / "kappas.json")
    assert list(found) == ["mp-1", "mp-2"]
    for modes in found.values():
        assert modes.conductivity == pytest.approx(average[0])
    (tmp_path / "bad.json").write_text(json.dumps([{"material_id": "mp-1"}]))
    with pytest.raises(ValueError, match="no mode_kappa_tot_avg"):
        read_references(tmp_path / "bad.json")
