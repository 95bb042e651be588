"""Levels of theory kept and added: what a potential says of the others does not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load, save
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, Prediction
from foundation.surgery.theories import add_theory, keep_theory, theory_of_data

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
ELEMENTS = (13, 28, 29, 46, 47, 78, 79)


def make(theories: tuple[str, ...], biases: bool | None = None) -> Potential:
    torch.manual_seed(0)
    network = EquivariantNetwork(replace(CONFIG, theory_biases=biases), ELEMENTS, 12.0, len(theories))
    potential = Potential(network, ELEMENTS, theories).cast(torch.float64).eval()
    potential.get_buffer("reference_energies").normal_()
    potential.get_buffer("scale").fill_(1.7)
    return potential


@pytest.fixture
def say(emt_manifest: Manifest):
    """What a potential says of two frames at a level of theory."""
    frames = [Frames(emt_manifest, "train")[number] for number in (0, 1)]

    def predict(potential: Potential, theory: str) -> Prediction:
        return potential(collate(frames, 5.0, torch.float64, [potential.theory_number(theory)] * 2))

    return predict


def assert_same(one: Prediction, other: Prediction, tolerance: float = 1e-12) -> None:
    for name in ("energy", "forces", "stress"):
        a, b = getattr(one, name).double(), getattr(other, name).double()
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name


@pytest.mark.parametrize("biases", [None, False], ids=["biases", "references only"])
@pytest.mark.parametrize("theory", ["PBE", "SCAN", "HSE"])
def test_the_theory_that_is_kept_is_predicted_as_before(say, theory: str, biases: bool | None) -> None:
    potential = make(("PBE", "SCAN", "HSE"), biases)
    kept = keep_theory(potential, theory)
    assert kept.theories == (theory,)
    assert kept.get_buffer("reference_energies").shape == (1, len(ELEMENTS))
    assert_same(say(kept, theory), say(potential, theory))


def test_levels_of_theory_differ_in_forces_too(say) -> None:
    potential = make(("PBE", "SCAN"))
    difference = say(potential, "PBE").forces - say(potential, "SCAN").forces
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("theories", "biases"),
    [(("PBE",), None), (("PBE",), True), (("PBE", "SCAN"), None), (("PBE", "SCAN"), False)],
    ids=["one, no bias", "one, bias", "two, biases", "two, references only"],
)
def test_an_added_theory_leaves_the_others_as_they_are(say, theories: tuple[str, ...], biases: bool | None) -> None:
    potential = make(theories, biases)
    before = {theory: say(potential, theory) for theory in theories}
    grown = add_theory(potential, "HSE", like=theories[-1])
    assert grown.theories == (*theories, "HSE")
    assert grown.network.config.theory_biases
    for theory in theories:
        assert_same(say(grown, theory), before[theory])
        assert_same(say(potential, theory), before[theory], 0.0)
    assert_same(say(grown, "HSE"), before[theories[-1]])


def test_an_added_theory_without_a_model_is_the_mean(say) -> None:
    potential = make(("PBE", "SCAN"))
    grown = add_theory(potential, "HSE")
    references = grown.get_buffer("reference_energies")
    torch.testing.assert_close(references[2], references[:2].mean(dim=0))
    biases = grown.network.blocks[0].self_interaction_1.theory_weight
    torch.testing.assert_close(biases[2], biases[:2].mean(dim=0))
    assert_same(say(add_theory(make(("PBE",)), "HSE"), "HSE"), say(make(("PBE",)), "PBE"))


def test_an_added_theory_can_have_its_own_references(say, emt_manifest: Manifest) -> None:
    potential, energies = make(("PBE", "SCAN")), torch.linspace(-3, 3, 7, dtype=torch.float64)
    grown = add_theory(potential, "HSE", like="PBE", reference_energies=energies)
    assert torch.equal(grown.get_buffer("reference_energies")[2], energies)
    change = energies - potential.get_buffer("reference_energies")[0]
    moved = [sum(change[ELEMENTS.index(z)] for z in Frames(emt_manifest, "train")[n].numbers.tolist()) for n in (0, 1)]
    difference = say(grown, "HSE").energy - say(potential, "PBE").energy
    np.testing.assert_allclose(difference, moved, rtol=1e-10)


def test_an_added_theory_can_be_trained_apart(say) -> None:
    grown = add_theory(make(("PBE",)), "HSE")
    before = say(grown, "PBE")
    for name, parameter in grown.named_parameters():
        if name.endswith("theory_weight"):
            parameter.data[1] += 0.5
    assert_same(say(grown, "PBE"), before, 0.0)
    assert (say(grown, "HSE").forces - before.forces).abs().max() > 1e-3


def test_keeping_what_was_there_undoes_adding(say) -> None:
    potential = make(("PBE", "SCAN"))
    again = keep_theory(add_theory(potential, "HSE"), "SCAN")
    expected = keep_theory(potential, "SCAN")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-14, atol=0.0)


def test_in_float32_predictions_move_by_rounding_only(say) -> None:
    potential = make(("PBE", "SCAN")).cast(torch.float32)
    for changed in (keep_theory(potential, "SCAN"), add_theory(potential, "HSE")):
        assert changed.dtype == torch.float32
        assert_same(say(changed, "SCAN"), say(potential, "SCAN"), 2e-6)


def test_a_changed_potential_is_saved_and_loaded(say, tmp_path) -> None:
    grown = add_theory(make(("PBE",)), "HSE")
    save(grown, tmp_path / "grown", {})
    assert_same(say(load(tmp_path / "grown").cast(torch.float64), "HSE"), say(grown, "HSE"), 0.0)


def test_training_mode_stays(say) -> None:
    assert keep_theory(make(("PBE", "SCAN")).train(), "PBE").training


def test_names_are_checked() -> None:
    potential = make(("PBE", "SCAN"))
    with pytest.raises(ValueError, match="already has a level of theory SCAN"):
        add_theory(potential, "SCAN")
    for wrong in (lambda: add_theory(potential, "HSE", like="LDA"), lambda: keep_theory(potential, "LDA")):
        with pytest.raises(ValueError, match="levels of theory are PBE, SCAN; name one, not LDA"):
            wrong()


def test_data_are_at_the_level_that_is_named_or_described_or_the_only_one() -> None:
    one, two = make(("PBE",)), make(("PBE", "SCAN"))
    assert theory_of_data(two, "PBE", "SCAN") == 1
    assert theory_of_data(two, "SCAN") == 1
    assert theory_of_data(one, "PBE of some code") == 0
    assert theory_of_data(two, "SCAN of some code") == 1
    with pytest.raises(ValueError, match="are PBE, SCAN; name one"):
        theory_of_data(two, "LDA of some code")
    with pytest.raises(ValueError, match="name one, not HSE"):
        theory_of_data(one, "PBE", "HSE")
