"""What training begins with is compared with the start, on whatever the start can predict of the data."""

import ase
import ase.io
import pytest
import torch
from ase.build import bulk

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance
from foundation.finetuning.step_zero import CHECKED_FRAMES, NotTheStart, check_step_zero, first_batches
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.surgery.elements import add_elements
from foundation.surgery.theories import add_theory

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
METALS = (13, 28, 29, 46, 47, 78, 79)


@pytest.fixture
def start() -> Potential:
    torch.manual_seed(0)
    return Potential(EquivariantNetwork(CONFIG, METALS, 12.0), METALS, ("EMT",))


@pytest.fixture(scope="module")
def mixed(provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Crystals of copper and of rhodium in turn."""
    folder = tmp_path_factory.mktemp("mixed")
    frames: list[ase.Atoms] = [bulk(symbol, cubic=True) for symbol in ("Rh", "Cu") * 5]
    ase.io.write(folder / "frames.extxyz", frames)
    source = AseFiles(files=(str(folder / "frames.extxyz"),), labels="none")
    split = {"split_by": "order", "val_fraction": 0.0, "test_fraction": 0.0}
    return build(BuildConfig(source=source, provenance=provenance, out=folder / "data", **split))


def checked(start: Potential, potential: Potential, dataset: Dataset, *, same_references: bool = True) -> int:
    batches = first_batches(start, [dataset])
    count, largest = check_step_zero(start, potential, batches, same_references=same_references)
    assert largest < 1e-5
    assert potential.training
    return count


def copy_of(start: Potential) -> Potential:
    twin = Potential(EquivariantNetwork(CONFIG, METALS, 12.0), METALS, start.theories)
    twin.load_state_dict(start.state_dict())
    return twin


def test_the_start_itself_is_the_start(start: Potential, emt_manifest: Manifest) -> None:
    assert checked(start, copy_of(start), Dataset(manifest=emt_manifest)) == CHECKED_FRAMES


def test_other_weights_are_not_the_start(start: Potential, emt_manifest: Manifest) -> None:
    other = copy_of(start)
    with torch.no_grad():
        other.network.readout[1].weight.mul_(1.01)
    with pytest.raises(NotTheStart, match="before the first step"):
        checked(start, other, Dataset(manifest=emt_manifest))


def test_other_references_are_the_start_only_if_they_may_be(start: Potential, emt_manifest: Manifest) -> None:
    other, dataset = copy_of(start), Dataset(manifest=emt_manifest)
    other.get_buffer("reference_energies").add_(0.5)
    assert checked(start, other, dataset, same_references=False) == CHECKED_FRAMES
    with pytest.raises(NotTheStart, match="energies per atom"):
        checked(start, other, dataset)


def test_frames_with_a_new_element_are_left_out_and_the_others_are_not(start: Potential, mixed: Manifest) -> None:
    grown = add_elements(start, (45,))
    assert checked(start, grown, Dataset(manifest=mixed)) == 5
    with torch.no_grad():
        grown.network.readout[1].weight.mul_(2.0)
    with pytest.raises(NotTheStart):
        checked(start, grown, Dataset(manifest=mixed))


def test_data_at_a_new_level_of_theory_are_compared_at_one_of_the_start(
    start: Potential, emt_manifest: Manifest
) -> None:
    dataset = Dataset(manifest=emt_manifest, theory=1)
    assert checked(start, add_theory(start, "other"), dataset) == CHECKED_FRAMES
    moved = add_theory(start, "other")
    moved.get_buffer("reference_energies")[0] += 1.0
    with pytest.raises(NotTheStart, match="energies per atom"):
        checked(start, moved, dataset)
