"""The model of torch-sim: its own conformance test, and the calculator's numbers."""

import ase
import numpy as np
import pytest
import torch
import torch_sim
from ase.build import bulk, molecule
from torch_sim.models.interface import validate_model_outputs

from foundation.interop.calculator import Calculator
from foundation.interop.torch_sim_model import TorchSimModel
from foundation.models import EquivariantConfig
from foundation.potential import Potential, UnknownElement

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
ELEMENTS = (14, 26)


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential(MODEL.network(ELEMENTS, num_theories=2), ELEMENTS, ("one", "other")).double().eval()


def crystals() -> list[ase.Atoms]:
    crystals = [bulk("Si", cubic=True), bulk("Fe", cubic=True).repeat((2, 1, 1))]
    for number, atoms in enumerate(crystals):
        atoms.set_cell(atoms.cell[:] @ np.array([[1.0, 0.04, 0], [0, 0.98, 0.02], [0.01, 0, 1.03]]), scale_atoms=True)
        atoms.rattle(0.1, seed=number)
    return crystals


def test_the_conformance_test_of_torch_sim_passes(potential: Potential) -> None:
    model = TorchSimModel(potential, theory="other")
    validate_model_outputs(model, model.device, model.dtype)


@pytest.mark.parametrize("mode", ["precise", "md"])
def test_numbers_are_the_calculators(mode: str, potential: Potential) -> None:
    model, calculator = (each(potential, theory="other", mode=mode) for each in (TorchSimModel, Calculator))
    found = model(torch_sim.io.atoms_to_state(crystals(), model.device, torch.float64))
    tolerance = {"precise": 1e-12, "md": 1e-5}[mode]
    ends = np.cumsum([len(each) for each in crystals()])
    for number, (atoms, end) in enumerate(zip(crystals(), ends, strict=True)):
        atoms.calc = calculator
        forces = found["forces"][end - len(atoms) : end]
        assert float(found["energy"][number]) == pytest.approx(atoms.get_potential_energy(), abs=tolerance)
        np.testing.assert_allclose(forces.double(), atoms.get_forces(), atol=tolerance)
        np.testing.assert_allclose(found["stress"][number].double(), atoms.get_stress(voigt=False), atol=tolerance)


def test_atoms_that_collide_repel_each_other_on_request(potential: Potential) -> None:
    atoms = crystals()[0]
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.7]
    atoms.calc = Calculator(potential, theory="one", zbl=True)
    model = TorchSimModel(potential, theory="one", zbl=True)
    found = model(torch_sim.io.atoms_to_state([atoms], model.device, torch.float64))
    assert float(found["energy"][0]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert float(found["energy"][0]) > 100 + float(
        TorchSimModel(potential, theory="one")(torch_sim.io.atoms_to_state([atoms], model.device, torch.float64))[
            "energy"
        ][0]
    )


def test_a_potential_is_copied_and_what_it_cannot_do_is_refused(potential: Potential) -> None:
    model = TorchSimModel(potential, theory="one", dtype="float32")
    assert (potential.dtype, model.dtype) == (torch.float64, torch.float32)
    moving = TorchSimModel(potential, theory="one", mode="md")
    assert (moving.potential.dtype, moving.dtype) == (torch.float32, torch.float64)
    with pytest.raises(UnknownElement):
        model(torch_sim.io.atoms_to_state([molecule("H2O", cell=[9, 9, 9], pbc=True)], model.device, model.dtype))
    with pytest.raises(ValueError, match="one, other"):
        TorchSimModel(potential)
    with pytest.raises(ValueError, match="mode must be"):
        TorchSimModel(potential, theory="one", mode="fast")
