"""A training step through torch.compile, in a process of its own because Dynamo cannot trace the shape checks.

Dynamo sees a graph traced by make_fx: it cannot differentiate twice, nor put guards on e3nn's irreps.
"""

import os
import subprocess
import sys

PROGRAM = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import EmtAlloys
from foundation.models import EquivariantConfig, EquivariantNetwork

torch.set_num_threads(1)
torch.manual_seed(0)
batch = collate(list(EmtAlloys(num_frames=2)), 4.0)
shape = {"irreps": "8x0e+3x1e", "max_degree": 1, "num_blocks": 2, "radial_sizes": (8,)}
config = EquivariantConfig(**shape, cutoff=4.0, cutoff_onset=3.5)
network = EquivariantNetwork(config, (28, 29), mean_neighbors=20.0)
names, weights = zip(*network.named_parameters())
elements = batch.numbers % 2

def energy(positions, *weights):
    moved = GraphBatch(**{**vars(batch), "positions": positions})
    return torch.func.functional_call(network, dict(zip(names, weights)), (moved, elements))

def energy_and_forces(positions, *weights):
    energies = energy(positions, *weights)
    (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
    return energies, gradient

def gradients(function):
    positions = batch.positions.clone().requires_grad_()
    energies, forces = function(positions, *weights)
    return torch.autograd.grad(energies.square().sum() + forces.square().sum(), weights)

def calls(graph):
    names = (str(node.target).split(".")[1] for node in graph.graph.nodes if "foundation" in str(node.target))
    return sorted(names)

traced = make_fx(energy_and_forces)(batch.positions.clone().requires_grad_(), *weights)
# the embedding, two maps of each block, and the readout; forces need no gradient of the embedding
forward = {"convolution": 2, "perceptron": 2, "gate": 2, "mix": 7}
backward = {"convolution_backward": 2, "perceptron_backward": 2, "gate_backward": 2, "mix_backward": 5}
expected = sorted(name for name, count in (forward | backward).items() for _ in range(count))
assert calls(traced) == expected, calls(traced)
expected = gradients(energy_and_forces)
for ours, wanted in zip(gradients(torch.compile(traced, backend="aot_eager", fullgraph=True)), expected, strict=True):
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))

print("DONE")
"""


def test_energy_forces_and_the_gradient_of_their_loss_are_those_of_the_eager_step() -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "DONE" in result.stdout, result.stderr
