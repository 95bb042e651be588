"""The gradient of an optimizer step does not depend on how many processes share its lanes."""

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Stream
from data_pipeline.store.manifest import Manifest, open_manifest
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.training.loss import LossConfig, TermConfig, loss
from foundation.training.monitoring.monitor import step_counts

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
LOSS = LossConfig(forces=TermConfig(weight=20.0, kind="huber", delta=0.1))
LANES, STEPS = 4, (0, 3)


def _added_up(sums: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(sums)
    return sums


def gradient(rank: int, world_size: int, root: Path) -> torch.Tensor:
    """Return the summed gradient of some steps, float64, over the lanes of a rank; reduced over the process group."""
    manifest = open_manifest(root)
    torch.manual_seed(0)
    potential = new_potential(MODEL, {"EMT": manifest.split("train").statistics}).cast(torch.float64).train()
    stream = Stream(
        [Dataset(manifest=manifest)],
        cutoff=5.0,
        lanes=LANES,
        edge_budget=700,
        rank=rank,
        world_size=world_size,
        oversize="alone",
    )
    for step in STEPS:
        (batches,) = stream.from_step(step, step + 1)
        batches = [batch.to(dtype=torch.float64) for batch in batches]
        (counts,) = step_counts([batches], torch.device("cpu"), _added_up if world_size > 1 else torch.clone)
        for batch in batches:
            loss(LOSS, potential(batch), batch, counts.labels).backward()
    flat = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])
    if world_size > 1:
        torch.distributed.all_reduce(flat)
    return flat


def work(rank: int, world_size: int, root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=world_size
    )
    flat = gradient(rank, world_size, root)
    if rank == 0:
        torch.save(flat, out)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_one_process_and_several_have_the_same_gradient(
    world_size: int, emt_manifest: Manifest, tmp_path: Path
) -> None:
    expected = gradient(0, 1, emt_manifest.root)
    out = tmp_path / "gradient.pt"
    torch.multiprocessing.spawn(work, args=(world_size, emt_manifest.root, out), nprocs=world_size)
    found = torch.load(out, weights_only=True)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
