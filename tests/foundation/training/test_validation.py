"""Validation: a run without any says so, and frames that it leaves out are counted."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.subset import Subset
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.structure import SYMBOLS
from foundation.finetuning.selection import with_elements
from foundation.models import EquivariantConfig
from foundation.models.equivariant import EquivariantNetwork
from foundation.potential import Potential
from foundation.training.additions import Additions
from foundation.training.fit import fit
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=2, lanes=1, edge_budget=3000, validate_every=1, log_every=1)


@pytest.fixture(scope="module")
def unvalidated(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    """Frames that are all for training."""
    named = dataclasses.replace(provenance, name="all-train")
    out = tmp_path_factory.mktemp("unvalidated") / "data"
    source = EmtAlloys(num_frames=12)
    return build(BuildConfig(source=source, provenance=named, out=out, val_fraction=0.0, test_fraction=0.0))


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    """A potential for all elements of the EMT frames but the last."""
    torch.manual_seed(0)
    known = emt_manifest.split("train").statistics.elements[:-1]
    return Potential(EquivariantNetwork(MODEL, known, mean_neighbors=10.0), known, ("EMT",))


@pytest.fixture
def warnings_of(potential: Potential, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """Train on the frames of data sets that have known elements only, and return the warnings."""

    def make(*manifests: Manifest, watched: tuple[Dataset, ...] = (), **changes: int) -> list[str]:
        datasets = []
        for manifest in manifests:
            whole = Dataset(manifest=manifest)
            datasets.append(dataclasses.replace(whole, subset=Subset(with_elements(whole, (), potential.elements))))
        with caplog.at_level(logging.WARNING):
            fit(
                potential,
                datasets,
                config=dataclasses.replace(FIT, **changes),
                machine=CPU,
                loss=LossConfig(),
                optim=OptimConfig(),
                out=tmp_path / "run",
                record={},
                additions=Additions(watched=watched),
            )
        return [record.getMessage() for record in caplog.records if "valid" in record.getMessage()]

    return make


def num_unknown(manifest: Manifest, split: str, potential: Potential) -> tuple[int, int, str]:
    """Return how many frames of a split have an unknown element, of how many, and the symbol of that element."""
    frames = list(Frames(manifest, split))
    unknown = set(manifest.split("train").statistics.elements) - set(potential.elements)
    return sum(bool(unknown & set(f.numbers.tolist())) for f in frames), len(frames), SYMBOLS[unknown.pop()]


def test_a_run_without_validation_says_so_in_one_line(
    unvalidated: Manifest, warnings_of: Callable[..., list[str]]
) -> None:
    (line,) = warnings_of(unvalidated)
    assert line.startswith("no validation in this run: all-train without frames in split val")
    assert "\n" not in line


def test_one_that_is_over_before_the_interval_is_validated_at_its_end(
    emt_manifest: Manifest, warnings_of: Callable[..., list[str]]
) -> None:
    assert not any(line.startswith("no validation") for line in warnings_of(emt_manifest, validate_every=500))


def test_a_set_that_is_not_validated_beside_one_that_is_watched_is_named(
    unvalidated: Manifest, emt_manifest: Manifest, potential: Potential, warnings_of: Callable[..., list[str]]
) -> None:
    number, total, symbol = num_unknown(emt_manifest, "test", potential)
    without, counted = warnings_of(unvalidated, watched=(Dataset(manifest=emt_manifest, split="test"),))
    assert without.startswith("no validation on all-train:")
    assert counted == (
        f"validation: emt-test (test): {number} of {total} frames are left out, the potential does not know {symbol}"
    )


def test_frames_of_unknown_elements_are_counted_once(
    emt_manifest: Manifest, potential: Potential, tmp_path: Path, warnings_of: Callable[..., list[str]]
) -> None:
    number, total, symbol = num_unknown(emt_manifest, "val", potential)
    assert 0 < number < total
    (line,) = warnings_of(emt_manifest)
    assert line == (
        f"validation: emt-test (val): {number} of {total} frames are left out, the potential does not know {symbol}"
    )
    rows = [row for row in read_rows(tmp_path / "run" / "logs") if "val/frames" in row]
    assert [row["val/frames"] for row in rows] == [total - number] * 2
