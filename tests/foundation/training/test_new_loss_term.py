"""A new term of the loss is an entry and a field of its configuration: it trains, and is in the log and the figure."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.configuration import DECIDES
from foundation.models import EquivariantConfig
from foundation.potential import Prediction, new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.report import ReportConfig, report
from foundation.training.fit_config import FitConfig
from foundation.training.loss import TERMS, LossConfig, LossTerm, TermConfig, label_counts, loss
from foundation.training.monitoring.metrics_file import read_rows
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=2, lanes=1, edge_budget=2000, validate_every=2, log_every=1)


def _pressure(term: TermConfig, prediction: Prediction, batch: GraphBatch) -> Float64[Tensor, ""]:
    error = torch.einsum("nii->n", prediction.stress - batch.stress)[batch.has_stress] / 3
    return term.weight * (batch.weight[batch.has_stress] * error.square()).sum()


PRESSURE = LossTerm(label="stress", count=lambda batch: batch.has_stress.sum(), sum=_pressure)


@dataclass(frozen=True, kw_only=True)
class WithPressure(LossConfig):
    """The loss with a term of the pressure."""

    pressure: TermConfig = field(default_factory=lambda: TermConfig(weight=5000.0, kind="mse"), metadata=DECIDES)
    """Mean square error of the pressure."""


def test_a_new_term_of_the_loss_is_one_entry(
    tmp_path: Path, emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics})
    batch = collate([Frames(emt_manifest, "train")[number] for number in range(4)], potential.cutoff)
    before = loss(LossConfig(), potential(batch), batch, label_counts(batch))
    monkeypatch.setitem(TERMS, "pressure", PRESSURE)
    prediction = potential(batch)
    error = (prediction.stress - batch.stress).diagonal(dim1=1, dim2=2).mean(dim=1)
    after = loss(WithPressure(), prediction, batch, label_counts(batch))
    assert (after - before).item() == pytest.approx(5000 * error.square().mean().item(), rel=1e-5)

    out = tmp_path / "run"
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, loss=WithPressure(), fit=FIT, machine=CPU))
    rows = [row for row in read_rows(out / "logs") if row["kind"] == "train"]
    assert all(row["train/loss_pressure"] > 0 for row in rows)
    terms = [rows[0][f"train/loss_{name}"] for name in ("energy", "forces", "stress", "pressure")]
    assert rows[0]["train/loss"] == pytest.approx(sum(terms))
    report(ReportConfig(run=out))
    assert (out / "curves" / "loss.png").is_file()
