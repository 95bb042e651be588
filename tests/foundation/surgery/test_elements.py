"""Elements that are added: what a potential says of those it knew does not change."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation.checkpoint import load, save
from foundation.interop.calculator import to_structure
from foundation.interop.published import find_published
from foundation.interop.sevennet import from_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, UnknownElement
from foundation.surgery.elements import add_elements, nearest_element

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
ELEMENTS = (13, 28, 29, 46, 47, 78, 79)


def make(theories: tuple[str, ...] = ("PBE", "SCAN"), dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    network = EquivariantNetwork(CONFIG, ELEMENTS, 12.0, len(theories))
    potential = Potential(network, ELEMENTS, theories).cast(dtype).eval()
    potential.get_buffer("reference_energies").normal_()
    potential.get_buffer("scale").uniform_(1.0, 2.0)
    return potential


@pytest.fixture
def frames(emt_manifest: Manifest) -> list[Structure]:
    return [Frames(emt_manifest, "train")[number] for number in range(4)]


def batched(structures: Sequence[Structure], dtype: torch.dtype = torch.float64) -> GraphBatch:
    return collate(structures, 5.0, dtype, [number % 2 for number in range(len(structures))])


def with_element(structure: Structure, old: int, new: int) -> Structure:
    return replace(structure, numbers=np.where(structure.numbers == old, new, structure.numbers).astype(np.uint8))


def assert_same(grown: Potential, potential: Potential, batch: GraphBatch, tolerance: float) -> None:
    ours, theirs = grown(batch), potential(batch)
    for name in ("energy", "forces", "stress"):
        a, b = getattr(ours, name).double(), getattr(theirs, name).double()
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("numbers", [(92,), (30, 3, 92)], ids=["one", "three"])
def test_what_was_known_is_predicted_as_before(frames, numbers, dtype: torch.dtype, tolerance: float) -> None:
    potential = make(dtype=dtype)
    grown = add_elements(potential, numbers)
    assert grown.dtype == dtype
    assert grown.theories == potential.theories
    assert grown.elements == (*ELEMENTS, *numbers)
    assert_same(grown, potential, batched(frames, dtype), tolerance)
    assert potential.elements == ELEMENTS


def test_four_times_the_elements_are_predicted_to_the_last_bit(frames) -> None:
    potential, others = make(dtype=torch.float32), [z for z in range(1, 29) if z not in ELEMENTS]
    grown = add_elements(potential, others[: 3 * len(ELEMENTS)])
    assert len(grown.elements) == 4 * len(ELEMENTS)
    assert_same(grown, potential, batched(frames, torch.float32), 0.0)


def test_a_new_element_begins_as_its_neighbour_in_the_periodic_table(frames) -> None:
    potential = make()
    grown = add_elements(potential, [111, 112])
    # roentgenium stands below gold, copernicium below nothing that is known
    gold = batched([with_element(frame, 13, 79) for frame in frames])
    for number, donor in ((111, 79), (112, 79)):
        strange = batched([with_element(frame, 13, number) for frame in frames])
        known = batched([with_element(frame, 13, donor) for frame in frames])
        torch.testing.assert_close(grown(strange).energy, grown(known).energy, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(grown(gold).energy, potential(gold).energy, rtol=1e-12, atol=0.0)


def test_the_element_to_begin_as_and_the_references_can_be_given(frames) -> None:
    potential = make()
    energies = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    grown = add_elements(potential, [92, 3], energies, like={92: 13})
    place = {z: grown.elements.index(z) for z in grown.elements}
    references, scale = grown.get_buffer("reference_energies"), grown.get_buffer("scale")
    assert references[:, place[92]].tolist() == [1.0, 3.0]
    assert references[:, place[3]].tolist() == [2.0, 4.0]
    assert scale[place[92]] == scale[place[13]]
    rows = grown.network.embedding.weight.view(len(grown.elements), -1)
    assert torch.equal(rows[place[92]], rows[place[13]])
    old = [place[z] for z in ELEMENTS]
    assert torch.equal(references[:, old], potential.get_buffer("reference_energies"))
    assert torch.equal(scale[old], potential.get_buffer("scale"))


def test_the_new_element_is_still_unknown_to_the_potential_it_was_added_to(frames) -> None:
    potential = make()
    add_elements(potential, [92])
    with pytest.raises(UnknownElement, match="does not know U"):
        potential(batched([with_element(frame, 13, 92) for frame in frames]))


@pytest.mark.parametrize(
    ("number", "known", "nearest"),
    [
        (35, (1, 8, 9, 17, 34, 36), 17),
        (37, (1, 3, 19, 36, 38), 19),
        (92, (26, 60, 74, 82), 60),
        (10, (1, 9, 11), 9),
        (1, (3, 9), 3),
    ],
    ids=["Br as Cl", "Rb as K", "U as Nd", "Ne as F", "H as Li"],
)
def test_the_nearest_element_is_of_the_same_group_or_next_by_number(number: int, known, nearest: int) -> None:
    assert nearest_element(number, known) == nearest


def test_a_grown_potential_is_saved_loaded_and_trained_on(frames, tmp_path: Path) -> None:
    grown = add_elements(make().train(), [3, 92])
    assert grown.training
    save(grown.eval(), tmp_path / "grown", {})
    assert_same(load(tmp_path / "grown").cast(torch.float64), grown, batched(frames), 0.0)


def test_wrong_elements_are_refused_by_name() -> None:
    potential = make()
    for numbers, like, message in (
        ([], None, "not none at all"),
        ([119], None, r"in 1-118, not \[119\]"),
        ([3, 3], None, "occurs twice"),
        ([3, 79], None, "already knows Au"),
        ([3], {3: 11}, "Li a copy of Na"),
        ([3], {29: 79}, "Cu a copy of Au"),
    ):
        with pytest.raises(ValueError, match=message):
            add_elements(potential, numbers, like=like)


def test_sevennet_0_with_one_more_element_says_the_same_of_real_frames(real_data: Path) -> None:
    atoms = ase.io.read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", "::50")
    structures = [to_structure(each) for each in atoms if len(each) <= 20][:3]
    potential = from_sevennet(find_published("sevennet-0"))
    grown = add_elements(potential, [84, 118])
    assert len(grown.elements) == 91
    assert_same(grown, potential, collate(structures, 5.0), 5e-6)
    potential.cast(torch.float64)
    exact = add_elements(potential, [84, 118])
    assert_same(exact, potential, collate(structures, 5.0, torch.float64), 1e-12)
