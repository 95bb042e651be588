"""A metatomic model computes what its potential does, for systems, atoms and selected atoms, without this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ase
import pytest
import torch
from ase.build import bulk
from torch import Tensor

pytest.importorskip("metatomic_ase")
from metatensor.torch import Labels  # pyright: ignore[reportAttributeAccessIssue]
from metatomic.torch import ModelEvaluationOptions, ModelOutput, load_atomistic_model, systems_to_torch
from metatomic_ase import MetatomicCalculator
from vesin.metatomic import neighbor_lists_for_model

from data_pipeline.graphs.batch import to_graph
from foundation.checkpoint import save
from foundation.engines import EnginesConfig, engines
from foundation.interop.calculator import to_structure
from foundation.interop.metatomic_file import write_metatomic
from foundation.potential import Potential, Prediction
from tests.foundation.engine.test_library import NETWORKS, crystal, potential_of

OTHER = 1
STRUCTURES = (crystal(), ase.Atoms("OMgCu", [[0, 0, 0], [0, 0, 0.9], [0, 1.9, 0]]), ase.Atoms("O"))


def written(
    name: str, folder: Path, *, zbl: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Potential, Path]:
    potential = potential_of(NETWORKS[name]).cast(dtype)
    if zbl:
        potential.repel()
    write_metatomic(potential, OTHER, "0" * 64, to_structure(crystal()), name, folder / "model.pt")
    return potential.cast(torch.float64), folder / "model.pt"


def right(potential: Potential, atoms: ase.Atoms) -> Prediction:
    return potential(to_graph(to_structure(atoms), potential.cutoff, torch.float64, OTHER))


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("name", ["even-2-blocks", "parity-sqrt", "vectors-not-unit"])
def test_it_computes_what_the_potential_does(name: str, zbl: bool, tmp_path: Path) -> None:
    potential, file = written(name, tmp_path, zbl=zbl)
    calculator = MetatomicCalculator(str(file), check_consistency=True)
    for given in STRUCTURES:
        atoms, wanted = given.copy(), right(potential, given)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(wanted.energy), abs=1e-10)
        assert atoms.get_forces() == pytest.approx(wanted.forces.numpy(), abs=1e-10)
        assert atoms.get_potential_energies() == pytest.approx(wanted.atom_energies.numpy(), abs=1e-10)
        if atoms.pbc.all():
            assert atoms.get_stress(voigt=False) == pytest.approx(wanted.stress[0].numpy(), abs=1e-12)


def test_in_float32_it_rounds(tmp_path: Path) -> None:
    potential, file = written("even-2-blocks", tmp_path, dtype=torch.float32)
    atoms = crystal()
    atoms.calc = MetatomicCalculator(str(file), check_consistency=True)
    assert atoms.get_forces() == pytest.approx(right(potential, atoms).forces.numpy(), abs=1e-4)


def evaluated(model: Any, systems: list[Any], kind: Any, selected: Any = None) -> Tensor:
    outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
    options = ModelEvaluationOptions(length_unit="Angstrom", outputs=outputs, selected_atoms=selected)
    return model(systems, options, check_consistency=True)["energy"].block().values.detach()


def test_systems_together_and_selected_atoms(tmp_path: Path) -> None:
    potential, file = written("even-2-blocks", tmp_path)
    model = load_atomistic_model(str(file))
    systems: Any = [systems_to_torch(atoms, dtype=torch.float64) for atoms in STRUCTURES]
    for neighbors in neighbor_lists_for_model("Angstrom", model):
        neighbors.add_neighbor_list(systems)
    wanted = [right(potential, atoms) for atoms in STRUCTURES]
    whole = torch.stack([each.energy for each in wanted])
    torch.testing.assert_close(evaluated(model, systems, "system"), whole, rtol=0, atol=1e-10)
    some = Labels(["system", "atom"], torch.tensor([[0, 1], [1, 0], [1, 2]]))
    energies = torch.stack([wanted[system].atom_energies[atom] for system, atom in some.values.tolist()])
    found = evaluated(model, systems, "atom", some)
    torch.testing.assert_close(found.sort(dim=0).values[:, 0], energies.sort().values, rtol=0, atol=1e-10)


ALONE = """
import sys
sys.modules["foundation"] = sys.modules["e3nn"] = None
from ase.build import bulk
from metatomic_ase import MetatomicCalculator
atoms = bulk("MgO", "rocksalt", a=4.2)
atoms.calc = MetatomicCalculator("model.pt")
print(atoms.get_potential_energy())
"""


def test_it_opens_where_this_package_is_not_installed(tmp_path: Path) -> None:
    potential, _ = written("even-2-blocks", tmp_path)
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = float(right(potential, bulk("MgO", "rocksalt", a=4.2)).energy)
    assert float(done.stdout) == pytest.approx(wanted, abs=1e-9)


def test_the_engine_check_takes_it(tmp_path: Path) -> None:
    save(potential_of(NETWORKS["even-2-blocks"]), tmp_path / "potential", {})
    config = EnginesConfig(check=tmp_path / "potential", theory="other", only=("metatomic",))
    checks = engines(config)
    assert [check.verdict for check in checks] == ["ok", "ok"]
    assert [check.way for check in checks] == ["mode precise", "mode md"]
