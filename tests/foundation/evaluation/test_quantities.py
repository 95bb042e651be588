"""Quantities: how they are shown, and that a new one is a single entry, found in every log, report, card and table."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.frame_errors import Term
from foundation.evaluation.predictions import predict
from foundation.evaluation.quantities import (
    MILLI_EV_PER_ANGSTROM,
    QUANTITIES,
    Quantity,
    Ratio,
    Trivial,
    notes,
    rows,
    summary,
)
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.finetuning.tradeoff import write_tradeoff
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.report import ReportConfig, report
from foundation.reports.card import CardFacts
from foundation.training.fit_config import FitConfig
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from launch import tables
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=2,
    lanes=1,
    edge_budget=3000,
    validate_every=2,
    checkpoint_every=2,
    log_every=1,
)
OPTIM = OptimConfig(learning_rate=0.01, warmup_steps=0)
CARD = CardFacts(
    name="A test", description="x", authors="x", licence="CC0-1.0", intended_use="x", limitations="x", citation="x"
)


def test_numbers_have_as_many_digits_as_say_something() -> None:
    force = QUANTITIES["force_mae"]
    assert [force.text(value) for value in (1.2345, 0.084, 0.00123, 0.0, None, float("nan"))] == [
        "1,234", "84.0", "1.23", "0.00", "–", "–",
    ]  # fmt: skip
    assert force.text(-0.0123456, 4) == "−12.35"
    assert [force.text(value) for value in (1e300, -2e-10)] == ["1.00e+303", "−2.00e−07"]
    assert QUANTITIES["softening"].text(0.84219) == "0.842"
    assert QUANTITIES["stress_mae"].text(1 / 160.2176634) == "1.00"


def test_errors_stand_beside_those_of_a_trivial_predictor() -> None:
    table = rows({"energy_mae": 0.1, "composition_energy_mae": 0.2, "softening": 0.9, "num_frames": 5.0})
    assert [tuple(row) for row in table] == [
        ("energy MAE [meV/atom]", "100.0", "200.0 (composition)", "0.500"),
        ("softening slope", "0.900", "–", "–"),
    ]
    assert rows({"force_mae": 0.1, "zero_force_mae": 0.0})[0].ratio == "–"
    with pytest.raises(KeyError, match="composition_energy_mae"):
        rows({"energy_mae": 0.1})
    assert notes(["softening", "num_frames"]) == [QUANTITIES["softening"].note]


def test_names_of_quantities_are_free_for_elements_and_data_sets() -> None:
    names = [
        name for key, each in QUANTITIES.items() for name in (key, each.trivial.key if each.trivial else key + "_")
    ]
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names)
    assert all(each.median in QUANTITIES for each in QUANTITIES.values() if each.median)


ALUMINIUM_SQUARE = Term(
    name="aluminium_square", per="atom", of=lambda x: torch.where(x.numbers == 13, x.force_error.square().sum(1), 0.0)
)
ALUMINIUM_ZERO = Term(
    name="aluminium_zero", per="atom", of=lambda x: torch.where(x.numbers == 13, x.labelled_forces.square().sum(1), 0.0)
)
ALUMINIUM_COUNT = Term(
    name="aluminium_count", per="atom", of=lambda x: 3.0 * ((x.numbers == 13) & x.has_forces).double()
)
ALUMINIUM_RMSE = Quantity(
    name="force RMSE of aluminium",
    short="aluminium",
    unit=MILLI_EV_PER_ANGSTROM,
    formula=Ratio(top=ALUMINIUM_SQUARE, bottom=ALUMINIUM_COUNT, root=True),
    trivial=Trivial(key="zero_aluminium_rmse", name="zero", top=ALUMINIUM_ZERO),
    note="Aluminium is the metal of the test",
)


def test_a_new_quantity_is_one_entry(
    tmp_path: Path,
    emt_manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(QUANTITIES, "aluminium_rmse", ALUMINIUM_RMSE)
    data, run, tuned = emt_manifest.root, tmp_path / "run", tmp_path / "tuned"
    with caplog.at_level("INFO"):
        pretrain(PretrainConfig(data=data, out=run, model=MODEL, optim=OPTIM, fit=FIT, machine=CPU, card=CARD))
    in_log = [row for row in read_rows(run / "logs") if row["kind"] != "start"]
    assert all(row.get("train/aluminium_rmse") or row.get("val/aluminium_rmse") for row in in_log)
    assert any("aluminium" in record.getMessage() for record in caplog.records)
    facts = report(ReportConfig(run=run))
    assert facts[0].validation["val/aluminium_rmse"] == in_log[-1]["val/aluminium_rmse"]
    assert "validation force RMSE of aluminium [meV/Å], last" in (run / "curves" / "index.html").read_text()

    values = evaluate(EvaluateConfig(model=run, data=emt_manifest.root))
    found = predict(checkpoint.load(run), emt_manifest, "test", edge_budget=20000)
    aluminium = found.forces[found.numbers == 13]
    error, size = (np.sqrt(np.square(each).mean()) for each in (aluminium[:, 1] - aluminium[:, 0], aluminium[:, 0]))
    assert values.errors["aluminium_rmse"] == pytest.approx(error, rel=1e-12)
    assert values.errors["zero_aluminium_rmse"] == pytest.approx(size, rel=1e-12)
    shown = [f"{1000 * error:.1f}", f"{1000 * size:.1f} (zero)", f"{error / size:.3f}"]
    cells = [ALUMINIUM_RMSE.title, *shown]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in (run / "report" / "index.html").read_text()
    tables.errors(values)
    printed = " ".join(capsys.readouterr().out.replace("│", "").split())  # the name is wrapped where it is narrow
    assert "force RMSE of aluminium" in printed
    assert " ".join(shown) in printed
    card = (export(ExportConfig(run=run, out=tmp_path / "release")) / "README.md").read_text()
    assert f"| {' | '.join(cells)} |" in card
    assert "Aluminium is the metal of the test." in card

    held_out = ForgettingConfig(
        target=(HeldOutConfig(path=emt_manifest.root),),
        retained=(HeldOutConfig(path=emt_manifest.root, split="val", name="old"),),
    )
    finetune(
        FinetuneConfig(
            start=run, data=data, out=tuned, fit=FIT, machine=CPU, optim=OPTIM, forgetting=held_out, card=CARD
        )
    )
    sets = json.loads((tuned / "forgetting" / "forgetting.json").read_text())["sets"]
    assert sets["emt-test"]["before"]["aluminium_rmse"]["value"] == pytest.approx(error, rel=1e-9)
    assert ALUMINIUM_RMSE.title in (tuned / "forgetting" / "index.html").read_text()
    card = (export(ExportConfig(run=tuned, out=tmp_path / "tuned-release")) / "README.md").read_text()
    assert ALUMINIUM_RMSE.title in next(
        line for line in card.splitlines() if line.startswith("| held-out set | frames")
    )
    write_tradeoff([tuned], tmp_path / "plane")
    assert ALUMINIUM_RMSE.title in (tmp_path / "plane" / "index.html").read_text()


def test_a_quantity_without_labels_is_nowhere(emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Term(name="none", per="frame", of=lambda x: torch.zeros_like(x.energy_error))
    absent = dataclasses.replace(ALUMINIUM_RMSE, formula=Ratio(top=ALUMINIUM_SQUARE, bottom=none))
    monkeypatch.setitem(QUANTITIES, "absent", absent)
    torch.manual_seed(0)
    potential = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics})
    found = summary(predict(potential, emt_manifest, "test", edge_budget=5000).errors())
    assert "force_mae" in found
    assert "absent" not in found


def test_names_and_units_are_spelled_in_one_file() -> None:
    root = Path(__file__).resolve().parents[3]
    files = [
        path
        for room in ("foundation", "launch")
        for path in (root / room).rglob("*")
        if path.suffix in (".py", ".html")
    ]
    files.append(root / "model_cards" / "TEMPLATE.md")
    # units in which labels may have been written by mistake are not those of quantities
    files = [path for path in files if path.name not in ("energy_zero.py", "contradictions.py")]
    own = {path.name for path in files if any(word in path.read_text() for word in ("meV", "oftening slope", "160.2"))}
    assert own == {"quantities.py"}


@pytest.mark.parametrize(
    ("value", "text"), [(2.1e-8, "2.10e−05"), (-3e-7, "−3.00e−04"), (2e-6, "0.0020"), (0.0, "0.00")]
)
def test_a_small_number_is_not_a_row_of_zeros(value: float, text: str) -> None:
    assert QUANTITIES["energy_mae"].text(value) == text
