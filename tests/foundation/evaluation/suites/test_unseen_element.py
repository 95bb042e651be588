"""An unseen element: its vector is the mean of its neighbours', and the potential is as before afterwards."""

import copy
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.graphs.batch import to_graph
from foundation.evaluation.suites.labelled import Labelled
from foundation.evaluation.suites.unseen_element import UnseenElement
from foundation.interop.calculator import to_structure
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.models import EquivariantConfig
from foundation.potential import Potential

CA, SR, BA, O = 20, 38, 56, 8  # noqa: E741 (oxygen)
NETWORK = EquivariantConfig(irreps="8x0e+4x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
MEAN, MIDDLE = "oxides: with the mean of Ca and Ba", "oxides: with random vectors, the middle one"


def potential(*elements: int) -> Potential:
    torch.manual_seed(0)
    return Potential(NETWORK.network(elements), elements, ("theory",)).cast(torch.float64).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return labelled frames of three oxides, of which two hold strontium."""
    random, frames = np.random.default_rng(0), []
    for metal, spacing in (("Ca", 4.8), ("Sr", 5.2), ("Ba", 5.5)):
        for seed in range(2):
            atoms = bulk(f"{metal}O", "rocksalt", a=spacing, cubic=True)
            atoms.rattle(0.1, seed=seed)
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=random.normal(size=(8, 3)))
            frames.append(atoms)
    ase.io.write(tmp_path / "oxides.xyz", frames)
    return tmp_path / "oxides.xyz"


def suite(file: Path, **options: object) -> UnseenElement:
    return UnseenElement(
        inserted="Sr",
        neighbours=("Ca", "Ba"),
        frames=(Labelled(path=str(file), name="oxides"),),
        random_vectors=3,
        **options,
    )


def by_hand(file: Path, grown: Potential) -> float:
    """Return the mean absolute error of force components on the frames with strontium [meV/Å]."""
    errors = []
    for atoms in ase.io.read(file, ":"):
        if SR in atoms.numbers:
            found = grown(to_graph(to_structure(atoms), grown.cutoff, torch.float64)).forces.numpy()
            errors.append(np.abs(found - atoms.get_forces()).ravel())
    return 1000 * float(np.concatenate(errors).mean())


def test_a_known_element_is_judged_with_every_vector(file: Path) -> None:
    known = potential(O, CA, SR, BA)
    subject = PotentialSubject(known)
    before = copy.deepcopy(subject.potential.state_dict())
    found = suite(file).run(subject).quantities
    assert found["oxides: frames"].value == 2
    assert found["oxides: with its own vector"].value == pytest.approx(by_hand(file, known), rel=1e-6)
    changed = copy.deepcopy(known)
    rows = changed.network.element_vectors()
    rows[2] = (rows[1] + rows[3]) / 2
    assert found[MEAN].value == pytest.approx(by_hand(file, changed), rel=1e-6)
    rows[2] = rows[3]
    assert found["oxides: with the vector of Ba"].value == pytest.approx(by_hand(file, changed), rel=1e-6)
    forces = [atoms.get_forces() for atoms in ase.io.read(file, ":") if SR in atoms.numbers]
    assert found["oxides: with forces of zero"].value == pytest.approx(1000 * np.abs(forces).mean(), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in subject.potential.state_dict().items())


def test_an_unknown_element_is_inserted(file: Path) -> None:
    subject = PotentialSubject(potential(O, CA, BA))
    found = suite(file).run(subject).quantities
    assert "oxides: with its own vector" not in found
    assert subject.potential.elements == (O, CA, BA)
    # a network in which Sr is a copy of Ba predicts what Ba does
    swapped = file.with_name("swapped.xyz")
    frames = [atoms for atoms in ase.io.read(file, ":") if SR in atoms.numbers]
    errors = []
    for atoms in frames:
        labels = atoms.get_forces()
        atoms.symbols[atoms.numbers == SR] = "Ba"
        predicted = subject.potential(to_graph(to_structure(atoms), subject.potential.cutoff, torch.float64)).forces
        errors.append(np.abs(predicted.numpy() - labels).ravel())
    assert found["oxides: with the vector of Ba"].value == pytest.approx(1000 * np.concatenate(errors).mean(), rel=1e-5)
    assert found[MIDDLE].interval is not None
    assert found == suite(file).run(subject).quantities
    ase.io.write(swapped, [atoms for atoms in ase.io.read(file, ":") if SR not in atoms.numbers])
    with pytest.raises(ValueError, match="no frame of split 'test' with forces holds Sr"):
        suite(swapped).run(subject)


def test_what_cannot_be_judged_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="looks into a network"):
        suite(file).run(CalculatorSubject(EMT()))
    with pytest.raises(ValueError, match="other than Sr"):
        UnseenElement(inserted="Sr", neighbours=("Sr",), frames=(Labelled(path="x"),))
    with pytest.raises(ValueError, match="random_vectors must be at least 1"):
        UnseenElement(inserted="Sr", neighbours=("Ca",), frames=(Labelled(path="x"),), random_vectors=0)
    assert suite(file).elements() == {CA, BA}
