"""The loss by hand, its independence of micro-batches, and the errors that are logged."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation.models import EquivariantConfig
from foundation.potential import Potential, Prediction, new_potential
from foundation.training.loss import Counts, LossConfig, TermConfig, label_counts, loss, loss_terms, summed
from foundation.training.monitoring.metrics import ErrorSums
from foundation.training.monitoring.monitor import step_counts

OFF = TermConfig(weight=0.0)
MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


def atoms(num_atoms: int, *, forces: bool, stress: bool) -> Structure:
    """Far apart atoms in a periodic box, so that there can be a stress, with labels of zero."""
    return Structure.checked(
        numbers=[13] * num_atoms,
        positions=[[100.0 * n, 0, 0] for n in range(num_atoms)],
        cell=1000.0 * np.eye(3),
        pbc=[True] * 3,
        energy=0.0,
        forces=np.zeros((num_atoms, 3)) if forces else None,
        stress=np.zeros((3, 3)) if stress else None,
    )


@pytest.fixture(scope="module")
def example() -> tuple[GraphBatch, Prediction]:
    """One atom without stress, two atoms with all labels, one atom with an energy only; all labels zero."""
    structures = [
        atoms(1, forces=True, stress=False),
        atoms(2, forces=True, stress=True),
        atoms(1, forces=False, stress=False),
    ]
    batch = collate(structures, 5.0, torch.float64)
    forces = [[3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [0.0, -2.0, 0.0], [1e9, 1e9, 1e9]]
    stress = torch.full((3, 3, 3), 1e9, dtype=torch.float64)
    stress[1] = torch.diag(torch.tensor([0.3, 0.4, 0.0], dtype=torch.float64))
    prediction = Prediction(
        energy=torch.tensor([0.5, -3.0, 2.0], dtype=torch.float64),
        forces=torch.tensor(forces, dtype=torch.float64),
        stress=stress,
        atom_energies=torch.zeros(4, dtype=torch.float64),
    )
    return batch, prediction


@pytest.fixture(scope="module")
def structures(emt_manifest: Manifest) -> list[Structure]:
    """Real frames, some with labels taken away."""
    frames = Frames(emt_manifest, "train")
    chosen = [frames[number] for number in range(6)]
    chosen[1] = replace(chosen[1], has_stress=False, stress=np.zeros((3, 3), np.float32))
    chosen[4] = replace(chosen[4], has_forces=False, forces=np.zeros_like(chosen[4].forces))
    return chosen


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).train()


@pytest.mark.parametrize(
    ("term", "kind", "expected"),
    [
        # errors per atom 0.5, -1.5, 2
        ("energy", "mae", (0.5 + 1.5 + 2) / 3),
        ("energy", "mse", (0.25 + 2.25 + 4) / 3),
        ("energy", "l2", (0.5 + 1.5 + 2) / 3),
        ("energy", "huber", (0.125 + (1.5 - 0.5) + (2 - 0.5)) / 3),
        # errors (3, 4, 0), (0, 0, 1), (0, -2, 0)
        ("forces", "mae", (7 + 1 + 2) / 9),
        ("forces", "mse", (25 + 1 + 4) / 9),
        ("forces", "l2", (5 + 1 + 2) / 3),
        ("forces", "huber", (2.5 + 3.5 + 0.5 + 1.5) / 9),
        # one matrix with 0.3 and 0.4
        ("stress", "mae", 0.7 / 9),
        ("stress", "mse", 0.25 / 9),
        ("stress", "l2", 0.5),
        ("stress", "huber", 0.125 / 9),
    ],
)
def test_each_kind_of_error_by_hand(
    example: tuple[GraphBatch, Prediction], term: str, kind: str, expected: float
) -> None:
    batch, prediction = example
    terms = {"energy": OFF, "forces": OFF, "stress": OFF} | {term: TermConfig(weight=2.0, kind=kind, delta=1.0)}
    value = loss(LossConfig(**terms), prediction, batch, label_counts(batch))
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(2 * expected, rel=1e-12)


def test_terms_add_up(example: tuple[GraphBatch, Prediction]) -> None:
    batch, prediction = example
    config = LossConfig(energy=TermConfig(weight=1.0), forces=TermConfig(weight=10.0), stress=TermConfig(weight=100.0))
    terms = loss_terms(config, prediction, batch, label_counts(batch))
    expected = {"energy": 4 / 3, "forces": 10 * 10 / 9, "stress": 100 * 0.7 / 9}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-12)
    assert loss(config, prediction, batch, label_counts(batch)) == summed(terms)


@pytest.mark.parametrize("kind", ["mae", "mse", "l2", "huber", "stratified_huber"])
def test_a_structure_of_weight_three_counts_like_three_of_them(
    potential: Potential, structures: list[Structure], kind: str
) -> None:
    forces = TermConfig(weight=2.0, kind=kind)
    others = TermConfig(weight=1.0, kind="huber" if kind == "stratified_huber" else kind)
    config = LossConfig(energy=others, forces=forces, stress=others)

    def terms(chosen: list[Structure], weights: list[float], counts: Counts) -> torch.Tensor:
        batch = collate(chosen, potential.cutoff, torch.float64)
        batch = replace(batch, weight=torch.tensor(weights, dtype=torch.float64))
        return torch.stack(tuple(loss_terms(config, potential(batch), batch, counts).values()))

    counts = {
        n: torch.tensor(c, dtype=torch.float64) for n, c in (("energy", 10.0), ("forces", 100.0), ("stress", 9.0))
    }
    weighted = terms(structures[:3], [1.0, 3.0, 0.5], counts)
    single = [terms([structure], [1.0], counts) for structure in structures[:3]]
    torch.testing.assert_close(weighted, single[0] + 3 * single[1] + 0.5 * single[2], rtol=1e-10, atol=0)


def test_a_weight_does_not_change_what_the_others_count(example: tuple[GraphBatch, Prediction]) -> None:
    batch, prediction = example
    config = LossConfig(energy=TermConfig(weight=1.0), forces=OFF, stress=OFF)
    heavy = replace(batch, weight=torch.tensor([1.0, 1.0, 10.0], dtype=torch.float64))
    assert label_counts(heavy) == label_counts(batch)
    value = loss(config, prediction, heavy, label_counts(heavy)).item()
    assert value == pytest.approx((0.5 + 1.5 + 10 * 2) / 3, rel=1e-12)


def test_strata_of_the_huber_error_by_hand() -> None:
    structure = replace(
        atoms(5, forces=True, stress=False),
        forces=np.diag([1.0, 0, 0]).repeat([5, 0, 0], axis=0).astype(np.float32)
        * np.array([[99.0], [100.0], [250.0], [300.0], [-400.0]], np.float32),
    )
    batch = collate([structure], 5.0, torch.float64)
    error = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    prediction = Prediction(
        energy=batch.energy,
        forces=batch.forces + error,
        stress=batch.stress,
        atom_energies=torch.zeros(5, dtype=torch.float64),
    )
    term = TermConfig(weight=1.0, kind="stratified_huber", delta=1.0)
    value = loss(LossConfig(energy=OFF, forces=term, stress=OFF), prediction, batch, label_counts(batch))
    expected = sum(delta * (2 - 0.5 * delta) for delta in (1.0, 0.7, 0.4, 0.1, 0.1)) / 15
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["energy", "stress"])
def test_the_stratified_huber_error_is_for_forces(name: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}: stratified_huber depends on the size of forces; use huber"):
        LossConfig(**{name: TermConfig(weight=1.0, kind="stratified_huber")})


def test_counts_are_energies_atoms_with_forces_and_structures_with_stress(
    example: tuple[GraphBatch, Prediction],
) -> None:
    assert label_counts(example[0]) == {"energy": 3.0, "forces": 3.0, "stress": 1.0}
    assert label_counts(collate([], 5.0)) == {"energy": 0.0, "forces": 0.0, "stress": 0.0}


def test_a_step_without_any_force_or_stress_label_has_an_energy_loss(potential: Potential) -> None:
    batch = collate([atoms(2, forces=False, stress=False)], 5.0)
    value = loss(LossConfig(), potential(batch), batch, label_counts(batch))
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in potential.parameters())


def test_a_perfect_prediction_has_zero_loss_and_a_finite_gradient(
    example: tuple[GraphBatch, Prediction],
) -> None:
    batch, _ = example
    forces = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    prediction = Prediction(
        energy=batch.energy,
        forces=forces,
        stress=batch.stress,
        atom_energies=torch.zeros(4, dtype=torch.float64),
    )
    value = loss(LossConfig(), prediction, batch, label_counts(batch))
    value.backward()
    assert value == 0
    assert forces.grad is not None
    assert not forces.grad.any()


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 6), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6), (0, 5, 5, 6)], ids=str)
@pytest.mark.parametrize("kind", ["mae", "mse", "l2", "huber"])
def test_the_gradient_does_not_depend_on_the_grouping_into_micro_batches(
    potential: Potential, structures: list[Structure], cuts: tuple[int, ...], kind: str
) -> None:
    term = TermConfig(weight=1.0, kind=kind)
    config = LossConfig(energy=term, forces=replace(term, weight=2.0), stress=replace(term, weight=3.0))

    def gradient(groups: list[list[Structure]]) -> torch.Tensor:
        potential.zero_grad()
        batches = [collate(group, potential.cutoff, torch.float64) for group in groups]
        (counts,) = step_counts([batches], torch.device("cpu"))
        for batch in batches:
            loss(config, potential(batch), batch, counts.labels).backward()
        return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])

    whole = gradient([structures])
    parts = gradient([structures[first:last] for first, last in pairwise(cuts)])
    assert whole.abs().max() > 1e-3
    assert (parts - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"weight": 1.0, "delta": 0.0}])
def test_impossible_terms_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight >= 0 and delta > 0"):
        TermConfig(**wrong)


def errors_by_numpy(potential: Potential, structures: list[Structure]) -> dict[str, float]:
    """One structure at a time, from the labels on disk."""
    energy, forces, stress, labels = [], [], [], []
    for structure in structures:
        prediction = potential(collate([structure], potential.cutoff, torch.float64))
        energy.append(abs(prediction.energy.item() - structure.energy) / structure.num_atoms)
        if structure.has_forces:
            forces.append(np.abs(prediction.forces.detach().numpy() - structure.forces).ravel())
            labels.append((prediction.forces.detach().numpy().ravel(), structure.forces.astype(np.float64).ravel()))
        if structure.has_stress:
            stress.append(np.abs(prediction.stress[0].detach().numpy() - structure.stress).ravel())
    predicted, label = (np.concatenate(each) for each in zip(*labels, strict=True))
    return {
        "energy_mae": float(np.mean(energy)),
        "energy_rmse": float(np.mean(np.square(energy)) ** 0.5),
        "force_rmse": float(np.mean(np.square(predicted - label)) ** 0.5),
        "softening": float(np.vdot(predicted, label) / np.vdot(label, label)),
        "force_mae": float(np.concatenate(forces).mean()),
        "stress_mae": float(np.concatenate(stress).mean()),
        "frames": len(structures),
    }


def update_with(errors: ErrorSums, potential: Potential, structures: list[Structure]) -> None:
    batch = collate(structures, potential.cutoff, torch.float64)
    errors.update(potential(batch), batch)


def test_error_sums_are_numpys_over_all_batches(potential: Potential, structures: list[Structure]) -> None:
    errors = ErrorSums()
    for group in (structures[:1], structures[1:4], structures[4:]):
        update_with(errors, potential, group)
    assert errors.compute() == pytest.approx(errors_by_numpy(potential, structures), rel=1e-12)


def test_error_sums_of_two_processes_add_up(potential: Potential, structures: list[Structure]) -> None:
    own, other, handed_over = ErrorSums(), ErrorSums(), []
    update_with(own, potential, structures[:5])
    update_with(other, potential, structures[5:])

    def hand_over(sums: torch.Tensor) -> torch.Tensor:
        handed_over.append(sums)
        return sums

    other.compute(hand_over)
    both = own.compute(lambda sums: sums + handed_over[0])
    assert both == pytest.approx(errors_by_numpy(potential, structures), rel=1e-12)


def test_a_process_without_batches_has_sums_to_add(potential: Potential, structures: list[Structure]) -> None:
    full, handed_over = ErrorSums(), []
    update_with(full, potential, structures)
    full.compute(lambda sums: handed_over.append(sums) or sums)
    assert ErrorSums().compute(lambda sums: sums + handed_over[0]) == full.compute()
    assert ErrorSums().compute() == {"frames": 0.0}


def test_error_sums_leave_out_what_has_no_labels(potential: Potential) -> None:
    errors = ErrorSums()
    update_with(errors, potential, [atoms(2, forces=False, stress=False)])
    assert set(errors.compute()) == {"energy_mae", "energy_rmse", "frames"}


def test_error_sums_forget_on_reset(potential: Potential, structures: list[Structure]) -> None:
    errors = ErrorSums()
    update_with(errors, potential, structures[:3])
    errors.reset()
    update_with(errors, potential, structures[3:])
    assert errors.compute() == pytest.approx(errors_by_numpy(potential, structures[3:]), rel=1e-12)
