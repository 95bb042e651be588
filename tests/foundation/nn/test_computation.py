"""One record says how a network computes; one call sets all of it, and what is impossible is refused by name."""

import pytest
import torch

from foundation.kernels.convolution import Convolution
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.computation import Computation, Option, refuse_options
from foundation.nn.matmul import Matmul
from foundation.potential import Potential


@pytest.fixture
def potential() -> Potential:
    config = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
    return Potential(EquivariantNetwork(config, (13, 29), 20.0), (13, 29), ("EMT",))


def test_one_call_sets_every_layer_and_the_next_one_takes_it_back(potential: Potential) -> None:
    asked = Computation(backend="torch", precision="bf16", radial_table=64, recompute=True)
    for computation in (asked, Computation()):
        potential.compute_as(computation)
        convolutions = [module for module in potential.modules() if isinstance(module, Convolution)]
        products = [module for module in potential.modules() if isinstance(module, Matmul)]
        assert len(convolutions) == 2
        assert {module.backend for module in convolutions} == {computation.backend}
        assert {module.rounded for module in products} == {computation.precision == "bf16"}
        assert potential.network.computation == computation
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_table_of_too_few_distances_is_refused() -> None:
    with pytest.raises(ValueError, match="from 16 to 65,536 knots"):
        Computation(radial_table=3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Computation(radial_table=64), "radial_table 64 is not possible: there is nothing to tabulate; leave it at 0"),
        (Computation(recompute=True), "recompute True is not possible: there are no blocks; leave it at False"),
    ],
    ids=["radial_table", "recompute"],
)
def test_what_a_network_cannot_do_is_refused_by_name(asked: Computation, said: str) -> None:
    refused: dict[Option, str] = {"radial_table": "there is nothing to tabulate", "recompute": "there are no blocks"}
    refuse_options(Computation(precision="bf16", backend="torch"), refused)
    with pytest.raises(ValueError, match=said):
        refuse_options(asked, refused)
