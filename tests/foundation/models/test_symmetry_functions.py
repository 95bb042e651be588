"""The Behler-Parrinello network: its functions as in the papers, its derivatives, its elements and theories."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float64

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.structure import Structure
from foundation.kernels.backend import Backend
from foundation.models import DataFacts, SymmetryFunctionsConfig, SymmetryFunctionsNetwork
from foundation.nn.computation import Computation
from foundation.potential import Potential
from foundation.surgery.elements import add_elements
from foundation.surgery.theories import add_theory, keep_theory

ELEMENTS = (8, 13, 29)
CONFIG = SymmetryFunctionsConfig(
    radial_functions=((0.1, 0.0), (1.0, 2.0)),
    angular_functions=((0.02, 1.0, 1.0), (0.05, 3.0, -1.0)),
    wide_functions=((0.03, 2.0, 1.0),),
    cutoff=4.0,
    hidden_sizes=(8, 6),
)


def structure(numbers: list[int], seed: int = 0, positions: Any = None) -> Structure:
    """Atoms in a small periodic cell, so that an atom is a neighbour more than once."""
    cell = np.array([[3.4, 0.0, 0.0], [0.6, 3.7, 0.0], [-0.5, 0.8, 4.2]])
    places = np.array([[0.05, 0.1, 0.0], [0.52, 0.45, 0.1], [0.1, 0.55, 0.5], [0.55, 0.05, 0.55]])
    moved = places + 0.02 * np.random.default_rng(seed).normal(size=places.shape)
    positions = moved[: len(numbers)] @ cell if positions is None else positions
    pbc = np.full(3, positions is None or len(numbers) > 3)
    return Structure.checked(numbers=np.array(numbers), positions=positions, cell=cell * pbc[0], pbc=pbc, energy=0.0)


def batch_of(*structures: Structure) -> GraphBatch:
    return collate(structures, CONFIG.cutoff, torch.float64)


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    network = CONFIG.network(ELEMENTS, facts=DataFacts(mean_neighbors=12.0))
    potential = Potential(network, ELEMENTS, ("PBE",)).cast(torch.float64)
    for name, parameter in potential.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    potential.get_buffer("scale").copy_(torch.tensor([1.0, 1.5, 0.7]))
    return potential.eval()


def sample() -> list[tuple[GraphBatch, torch.Tensor]]:
    """Forty structures, a batch each."""
    batches = [batch_of(structure([8, 13, 29, [8, 13, 29][seed % 3]], seed)) for seed in range(40)]
    return [(batch, torch.tensor([ELEMENTS.index(z) for z in batch.numbers.tolist()])) for batch in batches]


def standardized(potential: Potential, *, whitening: bool) -> Potential:
    """Return a potential whose inputs are standardized over the sample."""
    network = replace(CONFIG, whitening=whitening).network(ELEMENTS, facts=DataFacts(mean_neighbors=12.0)).double()
    assert isinstance(network, SymmetryFunctionsNetwork)
    network.standardize(sample())
    made = Potential(network, ELEMENTS, ("PBE",)).cast(torch.float64).eval()
    made.get_buffer("scale").copy_(potential.get_buffer("scale"))
    return made


def by_hand(batch: GraphBatch, config: SymmetryFunctionsConfig) -> Float64[np.ndarray, "atoms functions"]:
    """The formulas, term by term."""

    def smooth(length: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * length / config.cutoff)) if length < config.cutoff else 0.0

    vectors, kinds = batch.edge_vectors().numpy(), [ELEMENTS.index(z) for z in batch.numbers.tolist()]
    pairs = list(itertools.combinations_with_replacement(range(len(ELEMENTS)), 2))
    num_radial, num_near, num_wide = (
        len(each) for each in (config.radial_functions, config.angular_functions, config.wide_functions)
    )
    begins = len(ELEMENTS) * num_radial, len(ELEMENTS) * num_radial + len(pairs) * num_near
    found = np.zeros((len(kinds), begins[1] + len(pairs) * num_wide))
    for atom in range(len(kinds)):
        edges = [edge for edge, receiver in enumerate(batch.receivers.tolist()) if receiver == atom]
        kind = {edge: kinds[int(batch.senders[edge])] for edge in edges}
        for edge, (number, (width, centre)) in itertools.product(edges, enumerate(config.radial_functions)):
            r = float(np.linalg.norm(vectors[edge]))
            found[atom, kind[edge] * num_radial + number] += math.exp(-width * (r - centre) ** 2) * smooth(r)
        for j, k in itertools.combinations(edges, 2):
            a, b, c = (float(np.linalg.norm(v)) for v in (vectors[j], vectors[k], vectors[k] - vectors[j]))
            cosine, pair = float(vectors[j] @ vectors[k]) / (a * b), pairs.index(tuple(sorted((kind[j], kind[k]))))
            for number, (width, exponent, sign) in enumerate(config.angular_functions):
                bend = 2 ** (1 - exponent) * (1 + sign * cosine) ** exponent
                value = bend * math.exp(-width * (a * a + b * b + c * c)) * smooth(a) * smooth(b) * smooth(c)
                found[atom, begins[0] + pair * num_near + number] += value
            for number, (width, exponent, sign) in enumerate(config.wide_functions):
                bend = 2 ** (1 - exponent) * (1 + sign * cosine) ** exponent
                value = bend * math.exp(-width * (a * a + b * b)) * smooth(a) * smooth(b)
                found[atom, begins[1] + pair * num_wide + number] += value
    return found


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_the_functions_are_those_of_the_papers(potential: Potential, backend: Backend) -> None:
    batch, network = batch_of(structure([8, 13, 29, 13]), structure([29, 29, 8, 8], 1)), potential.network
    assert isinstance(network, SymmetryFunctionsNetwork)
    elements = torch.tensor([ELEMENTS.index(z) for z in batch.numbers.tolist()])
    network.compute_as(Computation(backend=backend))
    found = network.inputs(batch, elements).detach() * network.get_buffer("deviation")[elements]
    expected = by_hand(batch, CONFIG)
    assert (expected > 1e-3).mean() > 0.5
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-13)


def test_typical_values_are_about_those_of_a_crystal() -> None:
    batch = batch_of(structure([29, 29, 29, 29]))
    network = CONFIG.network((29,), facts=DataFacts(mean_neighbors=batch.num_edges / 4)).double()
    assert isinstance(network, SymmetryFunctionsNetwork)
    values = network.inputs(batch, torch.zeros(4, dtype=torch.int64))
    assert float(values.min()) > 0.2
    assert float(values.max()) < 5.0


def test_a_loss_of_forces_has_the_gradient_that_differences_have(potential: Potential) -> None:
    batch = batch_of(structure([8, 13, 29, 13]))
    weight = potential.get_parameter("network.layers.0.weight")

    def loss() -> torch.Tensor:
        prediction = potential.train()(batch)
        return prediction.forces.square().sum() + prediction.stress.square().sum() + prediction.energy.square().sum()

    direction = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad(loss(), weight)
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        values.append(float(loss().detach()))
        with torch.no_grad():
            weight -= sign * step * direction
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_straight_angle_has_finite_derivatives(exponent: float, sign: float) -> None:
    config = SymmetryFunctionsConfig(
        radial_functions=((0.1, 0.0),), angular_functions=((0.01, exponent, sign),), cutoff=4.0, hidden_sizes=(4,)
    )
    potential = Potential(config.network((8,)), (8,), ("PBE",)).cast(torch.float64).train()
    line = structure([8, 8, 8], positions=np.array([[0.0, 0, 0], [1.3, 0, 0], [2.6, 0, 0]]))
    potential(batch_of(line)).forces.square().sum().backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("whitening", [None, False, True])
def test_a_new_element_begins_as_its_source_whatever_it_is_mixed_with(
    potential: Potential, whitening: bool | None
) -> None:
    if whitening is not None:
        potential = standardized(potential, whitening=whitening)
    grown = add_elements(potential, (47,), like={47: 29})
    before = potential(batch_of(structure([8, 13, 29, 29])))
    for numbers in ([8, 13, 29, 29], [8, 13, 47, 29], [8, 13, 47, 47]):
        after = grown(batch_of(structure(numbers)))
        torch.testing.assert_close(after.energy, before.energy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after.forces, before.forces, rtol=1e-11, atol=1e-11)


def test_theories_are_added_and_kept_without_changing_what_is_said(potential: Potential) -> None:
    batch = batch_of(structure([8, 13, 29, 13]))
    before = potential(batch)
    two = add_theory(potential, "r2SCAN")
    with torch.no_grad():
        two.get_parameter("network.theory_bias")[1] += 0.3
    there = [two(collate([structure([8, 13, 29, 13])], 4.0, torch.float64, [number])) for number in (0, 1)]
    torch.testing.assert_close(there[0].energy, before.energy, rtol=1e-12, atol=1e-12)
    assert float((there[1].forces - before.forces).abs().max()) > 1e-4
    for number, theory in enumerate(two.theories):
        kept = keep_theory(two, theory)
        assert "network.theory_bias" not in kept.state_dict()
        torch.testing.assert_close(kept(batch).forces, there[number].forces, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whitening", [False, True])
def test_inputs_of_the_sample_have_mean_zero_and_deviation_one(potential: Potential, whitening: bool) -> None:
    network = standardized(potential, whitening=whitening).network
    assert isinstance(network, SymmetryFunctionsNetwork)
    values, kinds = (
        torch.cat(each) for each in zip(*((network.inputs(*each), each[1]) for each in sample()), strict=True)
    )
    for kind in range(len(ELEMENTS)):
        own = values[kinds == kind].detach()
        torch.testing.assert_close(own.mean(dim=0), torch.zeros_like(own[0]), rtol=0, atol=1e-6)
        covariance = own.T @ own / (len(own) - 1)
        variances = torch.diag(covariance)
        # a principal component that hardly varies is not magnified to 1
        assert float(variances.max()) < 1 + 1e-5
        assert int((variances > 1 - 1e-5).sum()) >= (8 if whitening else 15)
        apart = covariance - torch.diag(variances)
        assert (float(apart.abs().max()) < 1e-5) == whitening


def test_the_default_functions_scale_with_the_cutoff() -> None:
    six, three = (
        SymmetryFunctionsConfig(radial_functions="default", angular_functions="default", cutoff=cutoff).functions
        for cutoff in (6.0, 3.0)
    )
    assert (len(six.radial), len(six.near), len(six.wide)) == (8, 18, 0)
    assert six.radial[0] == (0.003214, 0.0)
    assert three.radial[0] == pytest.approx((4 * 0.003214, 0.0))
    assert three.near[-1] == pytest.approx((4 * 0.089277, 4.0, -1.0))


@pytest.mark.parametrize("name", ["radial_table", "recompute", "backend"])
def test_what_it_cannot_compute_is_refused_by_name(potential: Potential, name: str) -> None:
    if name == "backend":
        potential.compute_as(Computation(backend="openequivariance"))
        with pytest.raises(ValueError, match="symmetry functions works on cuda, not on cpu"):
            potential(batch_of(structure([8, 13, 29, 13])))
        return
    values: dict[str, Any] = {"radial_table": 64, "recompute": True}
    with pytest.raises(ValueError, match=f"{name} {values[name]} is not possible"):
        potential.compute_as(Computation(**{name: values[name]}))
    potential.compute_as(Computation(backend="torch", precision="bf16"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radial_functions": ()}, "need 1 to 1024 radial_functions"),
        ({"radial_functions": ((-1.0, 0.0),)}, "width η is negative"),
        ({"radial_functions": ((float("nan"), 0.0),)}, "must be numbers up to 1024"),
        ({"angular_functions": ((0.1, 1.5, 1.0),)}, "ζ of 1 or at least 2"),
        ({"angular_functions": ((0.1, 2.0, 0.5),)}, "λ of 1 or -1"),
        ({"cutoff": float("inf")}, "cutoff must be a length"),
        ({"cutoff_power": 0}, "cutoff_power must be from 1 to 100"),
        ({"hidden_sizes": ()}, "hidden_sizes: 1 to 16"),
        ({"hidden_sizes": (10**9,)}, "hidden_sizes: 1 to 16 of 1 to 16384"),
    ],
)
def test_what_cannot_be_is_refused_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymmetryFunctionsConfig(**{"radial_functions": ((0.1, 0.0),), **change})


def test_more_parameters_than_a_machine_has_are_refused_before_they_are_there() -> None:
    config = SymmetryFunctionsConfig(
        radial_functions=((0.1, 0.0),), angular_functions=((0.1, 1.0, 1.0),) * 1024, hidden_sizes=(16384,)
    )
    with pytest.raises(ValueError, match=r"symmetry functions of 89 elements make .* parameters"):
        config.network(tuple(range(1, 90)))
