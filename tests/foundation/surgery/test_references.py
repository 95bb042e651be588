"""Reference energies estimated from residuals: what moves, by how much, and what the report says of it."""

import dataclasses

import numpy as np
import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, UnknownElement
from foundation.surgery.references import fit_shifts, refit_references

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
ELEMENTS = (13, 28, 29, 46, 47, 78, 79, 92)


def make(theories: tuple[str, ...] = ("PBE",)) -> Potential:
    torch.manual_seed(0)
    network = EquivariantNetwork(CONFIG, ELEMENTS, 12.0, len(theories))
    potential = Potential(network, ELEMENTS, theories).cast(torch.float64).eval()
    potential.get_buffer("reference_energies").normal_()
    potential.get_buffer("scale").fill_(0.05)
    return potential


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relabelled(EmtAlloys):
    """Frames whose energies are a potential's, moved by an energy for each element."""

    def parts(self):
        moves = dict(zip(ELEMENTS, SHIFTS.tolist(), strict=True))
        potential = make()

        def relabelled(part):
            for frame in part.read():
                energy = float(potential(to_graph(frame, 5.0, torch.float64)).energy)
                yield dataclasses.replace(frame, energy=energy + sum(moves[int(z)] for z in frame.numbers))

        return [dataclasses.replace(part, read=lambda part=part: relabelled(part)) for part in super().parts()]


SHIFTS = np.array([-300.0, 12.0, 0.5, -1.0, 700.0, 3.0, -40.0, 1.0])


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    """Energies as the potential's, but for another zero of energy."""
    out = tmp_path_factory.mktemp("moved") / "data"
    return build(BuildConfig(source=Relabelled(num_frames=100), provenance=provenance, out=out))


def compositions(manifest: Manifest) -> np.ndarray:
    frames = Frames(manifest, "train")
    return np.array([[np.mean(frame.numbers == z) for z in ELEMENTS] for frame in frames])


def test_another_zero_of_energy_is_found_whatever_its_size(moved: Manifest) -> None:
    potential = make()
    references, report = refit_references(potential, [Dataset(manifest=moved)])
    shift = (references - potential.get_buffer("reference_energies"))[0].numpy()
    fractions = compositions(moved)
    np.testing.assert_allclose(fractions @ shift, fractions @ SHIFTS, atol=1e-3)
    errors = report["PBE"].energy_error
    assert errors.before.rmse > 50
    assert errors.after.rmse < 1e-3
    assert abs(errors.after.mean) < 1e-4


def test_only_elements_of_the_data_move_and_the_report_says_by_how_much(moved: Manifest) -> None:
    potential = make(("SCAN", "PBE"))
    references, report = refit_references(potential, [Dataset(manifest=moved, theory=1)])
    before = potential.get_buffer("reference_energies")
    assert torch.equal(references[0], before[0])
    assert references[1, -1] == before[1, -1]
    assert list(report) == ["PBE"]
    assert report["PBE"].num_structures == moved.split("train").statistics.num_frames
    assert list(report["PBE"].elements) == ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
    silver = report["PBE"].elements["Ag"]
    assert silver.before == float(before[1, 4])
    assert silver.after == float(references[1, 4])
    assert silver.moved == pytest.approx(silver.after - silver.before)


def test_only_the_elements_that_may_move_do(moved: Manifest) -> None:
    potential = make()
    references, report = refit_references(potential, [Dataset(manifest=moved)], elements=[47, 92])
    changed = references != potential.get_buffer("reference_energies")
    assert changed.nonzero().tolist() == [[0, 4]]
    assert list(report["PBE"].elements) == ["Ag"]


def test_elements_that_cannot_be_told_apart_share_the_shift() -> None:
    fractions = np.tile([24 / 52, 4 / 52, 20 / 52, 4 / 52], (60, 1))
    residuals = 0.3 + 1e-3 * np.random.default_rng(0).normal(size=60)
    np.testing.assert_allclose(fit_shifts(fractions, residuals), residuals.mean(), rtol=1e-9)


def test_elements_that_can_be_told_apart_are() -> None:
    rng = np.random.default_rng(1)
    fractions = rng.dirichlet(np.ones(4), size=200)
    expected = np.array([0.2, -0.7, 1.5, 0.0])
    found = fit_shifts(fractions, fractions @ expected + 0.01 * rng.normal(size=200))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_seed_chooses_the_structures_and_the_potential_stays_as_it_is(moved: Manifest) -> None:
    potential = make().train()
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    data = [Dataset(manifest=moved)]
    runs = [refit_references(potential, data, max_structures=10, seed=seed) for seed in (0, 0, 1)]
    assert runs[0][1]["PBE"].num_structures == 10
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert potential.training
    assert all(torch.equal(value, before[name]) for name, value in potential.state_dict().items())


def test_what_cannot_be_estimated_from_is_refused(moved: Manifest) -> None:
    with pytest.raises(ValueError, match="max_structures must be at least 1, not 0"):
        refit_references(make(), [Dataset(manifest=moved)], max_structures=0)
    few = Potential(EquivariantNetwork(CONFIG, (29, 79), 12.0), (29, 79), ("PBE",))
    with pytest.raises(UnknownElement, match="does not know"):
        refit_references(few, [Dataset(manifest=moved)])
