"""What every network answers: its parameters, their stages, its elements and theories, how it computes."""

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.models import ARCHITECTURES, DataFacts, EnergyModel, architecture_named
from foundation.nn.computation import Computation
from tests.small_networks import OF_MOLECULES, SMALL_NETWORKS

ELEMENTS = (8, 13, 29)
NETWORKS = SMALL_NETWORKS | OF_MOLECULES


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> EnergyModel:
    torch.manual_seed(0)
    return NETWORKS[request.param].network(ELEMENTS, 2, DataFacts(mean_neighbors=3.0))


def test_every_architecture_is_among_the_small_networks_and_has_its_name() -> None:
    assert {config.architecture for config in NETWORKS.values()} == set(ARCHITECTURES)
    assert all(architecture_named(name) is kind for name, kind in ARCHITECTURES.items())
    with pytest.raises(ValueError, match="architecture 'mace' is unknown; known are equivariant"):
        architecture_named("mace")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_theories", [1, 3])
def test_the_number_of_parameters_is_known_before_they_are_there(name: str, num_theories: int) -> None:
    config = NETWORKS[name]
    network = config.network(ELEMENTS, num_theories)
    assert config.num_parameters(len(ELEMENTS), num_theories) == sum(p.numel() for p in network.parameters())


def test_every_parameter_belongs_to_one_stage(network: EnergyModel) -> None:
    stages = network.parameter_stages()
    assert list(stages)[-1] == "readout"
    for name, _ in network.named_parameters():
        found = [stage for stage, shells in stages.items() if any(fnmatchcase(name, shell) for shell in shells)]
        assert len(found) == 1, name


def test_a_phrase_describes_it(network: EnergyModel) -> None:
    assert network.describe()
    assert "\n" not in network.describe()


def test_its_elements_can_be_changed_and_its_theories_mixed(network: EnergyModel) -> None:
    grown = network.with_elements((*ELEMENTS, 47), (0, 1, 2, 2))
    fewer = network.with_theories(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    size = type(network.config).num_parameters
    assert sum(p.numel() for p in grown.parameters()) == size(grown.config, 4, 2)
    assert sum(p.numel() for p in fewer.parameters()) == size(fewer.config, 3, 1)


def test_it_knows_how_it_computes(network: EnergyModel) -> None:
    assert network.computation == Computation()
    asked = Computation(backend="torch", precision="bf16")
    network.compute_as(asked)
    assert network.computation == asked


def test_energies_and_features_at_once_are_those_apart(network: EnergyModel) -> None:
    numbers, labels = np.array([13, 29, 8, 8, 13, 8]), [0, 1, 1, 1, 2, 2]
    if not network.units or (13, 8) not in network.units:
        numbers[5:], labels = 13, [0, 1, 1, 1, 2, 3]
    if network.units == ((13, 8),):
        numbers, labels = np.array([13, 8, 13, 8]), [0, 0, 1, 1]
    places = np.array([[0, 0, 0], [2.5, 0, 0], [2.5, 1.6, 0], [2.5, 0, 1.7], [0, 3.2, 0], [0, 0, 3.4]])[: len(numbers)]
    structure = Structure.checked(
        numbers=numbers, positions=places, cell=np.zeros((3, 3)), pbc=[False] * 3, energy=0.0, molecules=labels
    )
    batch = collate([structure], network.cutoff, torch.float32)
    elements = torch.tensor([ELEMENTS.index(number) for number in numbers.tolist()])
    energies, features = network.energies_and_features(batch, elements)
    assert torch.equal(energies, network(batch, elements))
    assert torch.equal(features, network.features(batch, elements))
    assert features.shape[0] == len(numbers)
    assert torch.equal(EnergyModel.energies_and_features(network, batch, elements)[1], features)
