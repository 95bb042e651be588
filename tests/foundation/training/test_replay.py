"""Training from recordings: the same weights as without, one recording for a bucket, and work that can be recorded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.graphs.padding import Bucket
from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.penalties import L2Penalty
from foundation.kernels.backend import Backend
from foundation.models import EquivariantConfig
from foundation.nn.computation import Computation
from foundation.potential import Potential, new_potential
from foundation.recording import CudaGraphs, Recorder
from foundation.training import fit as fitting
from foundation.training import module as training_module
from foundation.training.additions import Additions, Rehearsal
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, TermConfig, label_counts, loss_terms, summed
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig
from foundation.training.replay import Computed, Replay, check_recording
from tests.foundation.repeater import Repeater, Watcher
from tests.machine import CPU
from tests.small_networks import SMALL_NETWORKS

FIT = FitConfig(steps=6, lanes=2, edge_budget=1500, validate_every=3, checkpoint_every=3, log_every=1)
OPTIM = OptimConfig(learning_rate=3e-3, schedule="constant", warmup_steps=0, ema_decay=0.0)
LOSS = LossConfig(forces=TermConfig(weight=20.0, kind="stratified_huber"))
FRAMES = list(EmtAlloys(num_frames=16))
RECORDABLE = [name for name, config in SMALL_NETWORKS.items() if isinstance(config, EquivariantConfig)]


def potential_of(name: str, manifest: Manifest, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_NETWORKS[name], cutoff=5.0)
    return new_potential(config, {"EMT": manifest.split("train").statistics}).cast(dtype).train()


def computed_by(potential: Potential) -> Callable[[GraphBatch, dict[str, Tensor]], Computed]:
    def compute(batch: GraphBatch, counts: dict[str, Tensor]) -> Computed:
        prediction = potential(batch)
        terms = loss_terms(LOSS, prediction, batch, counts)
        return Computed(summed(terms), terms, prediction)

    return compute


@pytest.mark.parametrize("protected", [False, True])
def test_a_run_from_recordings_ends_with_the_same_weights(
    protected: bool, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: FitConfig, out: Path) -> Tensor:
        potential = potential_of("even-2-blocks", emt_manifest)
        old = Rehearsal(datasets=(Dataset(manifest=emt_manifest, split="test"),), ratio=0.5, weight=2.0)
        additions = Additions(rehearsal=old, penalty=L2Penalty(potential, weight=0.5)) if protected else Additions()
        data = [Dataset(manifest=emt_manifest)]
        fitting.fit(potential, data, config=config, machine=CPU, loss=LOSS, optim=OPTIM, out=out, record={},
                    additions=additions)  # fmt: skip
        return torch.cat([parameter.detach().flatten() for parameter in potential.parameters()])

    expected = train(FIT, tmp_path / "as written")
    recorder = Repeater()
    monkeypatch.setattr(fitting, "check_recording", lambda *given: None)
    monkeypatch.setattr(training_module, "CudaGraphs", lambda: recorder)
    found = train(dataclasses.replace(FIT, cuda_graphs=True), tmp_path / "recorded")
    assert 0 < recorder.recorded < 2 * FIT.steps
    assert float((found - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("name", RECORDABLE)
def test_every_batch_has_its_own_result_and_a_bucket_is_recorded_once(name: str, emt_manifest: Manifest) -> None:
    potential, recorder = potential_of(name, emt_manifest), Repeater()
    replay, buckets = Replay(recorder, potential, computed_by(potential)), set[Bucket]()
    for first, count in [(0, 2), (2, 1), (3, 4), (7, 2), (1, 1), (0, 2), (9, 2), (11, 2)]:
        batch = collate(FRAMES[first : first + count], 5.0, torch.float64)
        buckets.add(Bucket.of(batch))
        counts = label_counts(batch)
        found, gradients = replay(batch, counts)
        expected = computed_by(potential)(batch, counts)
        right = torch.autograd.grad(expected.share, replay.parameters, materialize_grads=True)
        for field in ("energy", "forces", "stress", "atom_energies"):
            ours, theirs = getattr(found.prediction, field), getattr(expected.prediction, field)
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)
        for ours, theirs in zip([found.share, *gradients], [expected.share.detach(), *right], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))
        assert {key: float(each) for key, each in found.terms.items()} == pytest.approx(
            {key: float(each.detach()) for key, each in expected.terms.items()}
        )
    assert recorder.recorded == len(buckets) > 1


def test_weights_at_another_place_are_recorded_again(emt_manifest: Manifest) -> None:
    potential, recorder = potential_of("even-2-blocks", emt_manifest), Repeater()
    replay, batch = Replay(recorder, potential, computed_by(potential)), collate(FRAMES[:2], 5.0, torch.float64)
    for parameter in potential.parameters():
        replay(batch, label_counts(batch))
        parameter.data = parameter.data.clone()
    assert recorder.recorded == len(list(potential.parameters()))


@pytest.mark.parametrize("table", [0, 16])
@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("name", RECORDABLE)
def test_the_work_asks_nothing_and_copies_nothing_from_the_host(
    name: str, backend: Backend, table: int, emt_manifest: Manifest
) -> None:
    potential = potential_of(name, emt_manifest, torch.float32)
    potential.compute_as(Computation(backend=backend, radial_table=table))
    watcher = Watcher()
    batch = collate(FRAMES[:4], 5.0, torch.float32)
    Replay(watcher, potential, computed_by(potential))(batch, label_counts(batch))
    assert watcher.asked == []


@pytest.mark.parametrize(
    ("fit", "machine", "device", "name", "message"),
    [
        ({}, {}, "cpu", "even-2-blocks", "on a cpu"),
        ({"recompute": True}, {}, "cuda", "even-2-blocks", "recompute"),
        ({}, {"strategy": "zero-2"}, "cuda", "even-2-blocks", "zero-2"),
        ({}, {}, "cuda", "symmetry-functions", "this network"),
    ],
)
def test_a_run_that_cannot_record_is_refused(
    fit: dict[str, Any], machine: dict[str, Any], device: str, name: str, message: str, emt_manifest: Manifest
) -> None:
    config = FitConfig(steps=1, cuda_graphs=True, **fit)
    potential, hardware = potential_of(name, emt_manifest), MachineConfig(accelerator="cpu", **machine)
    with pytest.raises(ValueError, match=f"cuda_graphs.*{message}"):
        check_recording(config, hardware, potential, device)
    check_recording(dataclasses.replace(config, cuda_graphs=False), hardware, potential, device)


def test_a_run_on_a_gpu_may_record(emt_manifest: Manifest) -> None:
    check_recording(FitConfig(steps=1, cuda_graphs=True), CPU, potential_of("even-2-blocks", emt_manifest), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "torch"])
def test_a_cuda_graph_has_the_numbers_of_what_it_recorded(backend: Backend, emt_manifest: Manifest) -> None:
    potential, recorder = potential_of("even-2-blocks", emt_manifest).cuda(), CudaGraphs()
    assert isinstance(recorder, Recorder)
    potential.compute_as(Computation(backend=backend))
    replay = Replay(recorder, potential, computed_by(potential))
    for first, count in [(0, 2), (3, 4), (7, 2), (0, 2)]:
        batch = collate(FRAMES[first : first + count], 5.0, torch.float64).to("cuda")
        counts = label_counts(batch)
        found, gradients = replay(batch, counts)
        expected = computed_by(potential)(batch, counts)
        right = torch.autograd.grad(expected.share, replay.parameters, materialize_grads=True)
        torch.testing.assert_close(found.prediction.forces, expected.prediction.forces.detach(), rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(gradients, right, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
