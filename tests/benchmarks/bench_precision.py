"""What bfloat16 products cost in energies, forces and stresses of SevenNet-0 on real MPtrj frames, and in time.

Products of float32 are the reference. Beside the rounding of bfloat16 stands SevenNet-0's own error on the same frames,
to judge it by. On a CPU bfloat16 is emulated, so that its errors are measured here and its speed is not.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import foundation
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import AseFiles
from foundation.evaluation.quantities import GPA, MILLI_EV_PER_ANGSTROM, MILLI_EV_PER_ATOM
from foundation.nn.computation import Computation
from foundation.nn.matmul import Precision
from foundation.potential import Potential
from tests.benchmarks.oxides import FILE, oxides, training_step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=precision"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 200
    """Frames of mptrj-1k, evenly spaced."""
    max_atoms: int = 100
    """Larger ones are left out."""
    rounds: int = 3
    """Measured rounds of a training step in each precision."""
    device: str = "cpu"
    """torch's name of the device."""


def run(config: Config) -> None:
    """Measure and write runs/bench/precision.json."""
    torch.set_num_threads(1)
    potential = foundation.load("sevennet-0").to(config.device)
    fitting = [s for s in AseFiles(files=(FILE,)) if s.num_atoms <= config.max_atoms]
    known = [s for s in fitting if set(s.numbers.tolist()) <= set(potential.elements)]
    structures = known[:: max(1, len(known) // config.num_frames)][: config.num_frames]
    batches = [collate([structure], potential.cutoff).to(config.device) for structure in structures]
    precisions: list[Precision] = ["float32", "bf16"] if config.device == "cpu" else ["float32", "tf32", "bf16"]
    said = {precision: _said(potential, batches, precision) for precision in precisions}
    labels = [[b.energy / b.num_atoms, b.forces.double(), b.stress.double()] for b in batches]
    rows = [row for name in precisions[1:] for row in _error_rows(name, said[name], said["float32"], labels)]
    write("precision", rows + _time_rows(potential, precisions, config))


def _said(potential: Potential, batches: list[GraphBatch], precision: Precision) -> list[list[Tensor]]:
    """Return energy per atom, forces and stress of each frame."""
    potential.train().compute_as(Computation(precision=precision))  # outside training nothing is rounded
    predictions = ((potential(batch), batch) for batch in batches)
    return [
        [t.detach() for t in (p.energy / b.num_atoms, p.forces.double(), p.stress.double())] for p, b in predictions
    ]


def _error_rows(
    name: str, said: list[list[Tensor]], exact: list[list[Tensor]], labels: list[list[Tensor]]
) -> list[Row]:
    """Return the root mean square change over all frames, and of the frame that has the largest."""
    rows = []
    units = {"energy": MILLI_EV_PER_ATOM, "forces": MILLI_EV_PER_ANGSTROM, "stress": GPA}
    for place, (what, unit) in enumerate(units.items()):
        factor = unit.factor
        changes = [factor * (a[place] - b[place]).flatten() for a, b in zip(said, exact, strict=True)]
        errors = [factor * (a[place] - b[place]).flatten() for a, b in zip(exact, labels, strict=True)]
        worst = max(range(len(changes)), key=lambda frame: _rms(changes[frame]))
        for scope, change, error in (
            (f"{len(said)} frames", torch.cat(changes), torch.cat(errors)),
            ("the worst frame", changes[worst], errors[worst]),
        ):
            rows.append(
                Row(
                    measure=f"{what} of SevenNet-0 in {name}, root mean square change over {scope}",
                    value=_rms(change),
                    unit=unit.name,
                    peer="SevenNet-0's error (RMS)",
                    peer_value=_rms(error),
                    ratio=_rms(change) / _rms(error),
                    command=COMMAND,
                )
            )
    return rows


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _time_rows(potential: Potential, precisions: list[Precision], config: Config) -> list[Row]:
    batch = collate(oxides(4), potential.cutoff).to(config.device)
    step = training_step(potential, batch)

    def task(precision: Precision) -> None:
        potential.compute_as(Computation(precision=precision))
        step()

    seconds = interleaved({name: partial(task, name) for name in precisions}, config.rounds)
    return [
        Row(
            measure=f"training step of SevenNet-0 in {name}, {batch.num_edges} edges, on {config.device}",
            value=seconds[name],
            unit="s",
            peer="float32",
            peer_value=seconds["float32"],
            ratio=seconds[name] / seconds["float32"],
            command=COMMAND,
        )
        for name in precisions[1:]
    ]
