"""Materials of a benchmark in batches: the lines are those of ASE's optimizer one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from data_pipeline.sources.materials import Material
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import InvalidStructure
from foundation.interop.calculator import Calculator, to_structure
from foundation.interop.relaxations import one_by_one, read_relaxed, relax_all
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.simulation.materials import in_batches

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture(scope="module")
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


def materials() -> list[Material | None]:
    found: list[Material | None] = []
    for number, symbol in enumerate(["Cu", "Al", "Au", "U"]):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[0] = symbol
        atoms.set_cell(atoms.cell[:] * [1.03, 0.98, 1.0], scale_atoms=True)
        atoms.rattle(0.05, seed=number)
        found.append(Material(id=f"m-{number}", structure=to_structure(atoms), energy=None))
    refused = Material(id="m-4", structure=InvalidStructure("the cell has no volume"), energy=None)
    return [*found, refused, None]


def test_lines_are_those_of_ases_optimizer(potential: Potential, tmp_path: Path) -> None:
    ends = {"max_force": 0.05, "max_steps": 12}
    counts: list[int] = []
    ways = {"one": one_by_one(Calculator(potential), **ends), "batch": in_batches(potential, 0, **ends)}
    for name, relaxer in ways.items():
        assert relax_all(materials(), relaxer, tmp_path / name, "part", tell=counts.append) == 6
        # nothing is left to do
        assert relax_all(materials(), relaxer, tmp_path / name, "part", tell=counts.append) == 6
    assert counts == [1, 2, 3, 4, 5] * 2
    for one, other in zip(read_relaxed(tmp_path / "one"), read_relaxed(tmp_path / "batch"), strict=True):
        assert (one.id, one.number, one.num_steps, one.converged) == (
            other.id, other.number, other.num_steps, other.converged
        )  # fmt: skip
        if one.energy is None:
            assert other.error is not None
            continue
        assert other.energy == pytest.approx(one.energy, abs=1e-8)
        assert other.energy_before == pytest.approx(one.energy_before, abs=1e-10)
        assert other.max_force == pytest.approx(one.max_force, rel=1e-5)
        assert np.abs(np.array(other.positions) - np.array(one.positions)).max() < 1e-6
        assert np.abs(np.array(other.cell) - np.array(one.cell)).max() < 1e-6
    assert [each.id for each in read_relaxed(tmp_path / "batch") if each.error] == ["m-3", "m-4"]
