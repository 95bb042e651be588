"""Recorded predictions: those of the potential, for any structures in turn, from work that can be recorded."""

import dataclasses

import pytest
import torch

import foundation
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest
from foundation.engine.network import Unsupported
from foundation.interop.calculator import tabulate
from foundation.models import EquivariantConfig
from foundation.potential import Potential, Prediction, UnknownElement, new_potential
from foundation.recording import CudaGraphs, RecordedPotential
from tests.foundation.repeater import Repeater, Watcher
from tests.small_networks import SMALL_NETWORKS

FRAMES = list(EmtAlloys(num_frames=12))
BATCHES = [(0, 1), (1, 2), (0, 1), (3, 4), (7, 1), (8, 2), (0, 1)]


def potential_of(name: str, manifest: Manifest, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_NETWORKS[name], cutoff=5.0)
    return new_potential(config, {"EMT": manifest.split("train").statistics}).cast(dtype).eval()


def batch_of(first: int, count: int, potential: Potential) -> GraphBatch:
    return collate(FRAMES[first : first + count], potential.cutoff, potential.dtype)


def check(found: Prediction, expected: Prediction, tolerance: float) -> None:
    for field in ("energy", "forces", "stress", "atom_energies"):
        ours, theirs = getattr(found, field), getattr(expected, field)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert (found.uncertainty is None) == (expected.uncertainty is None)
    if found.uncertainty is not None and expected.uncertainty is not None:
        torch.testing.assert_close(found.uncertainty.forces, expected.uncertainty.forces, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.uncertainty.energy, expected.uncertainty.energy, rtol=1e-4, atol=1e-6)
        assert found.uncertainty.reasons == expected.uncertainty.reasons


@pytest.mark.parametrize("name", [name for name, each in SMALL_NETWORKS.items() if isinstance(each, EquivariantConfig)])
def test_recorded_predictions_are_the_potentials(name: str, emt_manifest: Manifest) -> None:
    potential, recorder = potential_of(name, emt_manifest), Repeater()
    recorded = RecordedPotential(recorder, potential)
    found = [recorded(batch_of(*each, potential)) for each in BATCHES]
    for each, prediction in zip(BATCHES, found, strict=True):
        check(prediction, potential(batch_of(*each, potential)), 1e-12)
    assert 1 < recorder.recorded < len(BATCHES)


def test_a_release_keeps_its_uncertainties_and_its_table(emt_manifest: Manifest) -> None:
    potential, recorder = foundation.load("sevennet-0"), Watcher()
    tabulate(potential.cast(torch.float32).eval())
    recorded = RecordedPotential(recorder, potential)
    for each in [(0, 1), (1, 2)]:
        batch = batch_of(*each, potential)
        found = recorded(batch)
        check(found, potential(batch), 2e-5)
        assert found.uncertainty is not None
    assert recorder.asked == []


def test_an_element_that_the_potential_does_not_know_is_refused(emt_manifest: Manifest) -> None:
    potential = potential_of("even-2-blocks", emt_manifest)
    recorded, batch = RecordedPotential(Repeater(), potential), batch_of(0, 1, potential)
    with pytest.raises(UnknownElement, match="Og"):
        recorded(dataclasses.replace(batch, numbers=torch.full_like(batch.numbers, 118)))


def test_a_network_whose_work_has_no_fixed_size_is_refused(emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        RecordedPotential(Repeater(), potential_of("symmetry-functions", emt_manifest))


def test_on_a_processor_the_engine_is_refused(emt_manifest: Manifest) -> None:
    with pytest.raises(Unsupported, match="not on cpu"):
        foundation.Calculator(potential_of("even-2-blocks", emt_manifest), engine="recorded")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_predictions_from_cuda_graphs_are_the_potentials(emt_manifest: Manifest) -> None:
    potential = potential_of("even-2-blocks", emt_manifest).cuda()
    recorded = RecordedPotential(CudaGraphs(), potential)
    for each in BATCHES:
        batch = batch_of(*each, potential)
        check(recorded(batch), potential(batch.to("cuda")), 1e-9)
