"""A suite is one file and one member of the union; report, tables, cards and forgetting then have its findings."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pytest
import torch

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import Manifest
from foundation import Calculator, checkpoint
from foundation.configuration import MAY_CHANGE
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.suites import (
    Dimers,
    Finding,
    Findings,
    Subject,
    Suite,
    SuiteConfig,
    check_suites,
    run_suites,
)
from foundation.evaluation.suites.crystals.equation_of_state import Crystal
from foundation.export import ExportConfig, export
from foundation.finetune import FinetuneConfig, finetune
from foundation.interop.subject import PotentialSubject
from foundation.models import EquivariantConfig
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import CardFacts
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.forgetting_record import Forgetting
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from launch import tables
from launch.verbs import parse
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=2, lanes=1, edge_budget=3000, validate_every=2, checkpoint_every=2, log_every=1)
OPTIM = OptimConfig(learning_rate=0.01, warmup_steps=0)
CARD = CardFacts(
    name="A test", description="x", authors="x", licence="CC0-1.0", intended_use="x", limitations="x", citation="x"
)
COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)


@dataclass(frozen=True, kw_only=True)
class Compression(Dimers):
    """A new suite. It stands for one more member of the union, of which it is one by inheritance."""

    name: ClassVar[str] = "compression"

    factor: float = field(default=0.8, metadata=MAY_CHANGE)

    def elements(self) -> set[int]:
        return {29}

    def run(self, subject: Subject) -> Findings:
        before, after = subject.predict([COPPER.scaled(1.0), COPPER.scaled(self.factor)])
        work = Finding(value=after.energy - before.energy, unit="eV", reference=1.5)
        return Findings(quantities={"work": work, "lost": Finding(value=np.nan)})


SUITES = (Compression(pairs=()),)


@pytest.fixture(scope="module")
def run(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suites") / "run"
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=OPTIM, fit=FIT, machine=CPU, card=CARD))
    return out


def by_hand(potential: Potential) -> float:
    """Return the work of the compression by the calculator, in float64."""
    energies = []
    for factor in (1.0, 0.8):
        atoms = to_atoms(COPPER.scaled(factor))
        atoms.calc = Calculator(potential, dtype=torch.float64)
        energies.append(float(atoms.get_potential_energy()))
    return energies[1] - energies[0]


def test_a_suite_is_in_the_report_the_tables_and_the_card(
    run: Path, emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(model=run, data=emt_manifest.root, suites=SUITES)
    found = evaluate(config)
    work = by_hand(checkpoint.load(run))
    finding = found.suites["compression"].quantities["work"]
    assert finding.value == pytest.approx(work, abs=1e-9)
    assert found.suites["compression"].quantities["lost"].value is None
    assert Evaluation.from_json(run / "report" / "evaluation.json").suites == found.suites
    page = (run / "report" / "index.html").read_text()
    assert f"<td>compression, work [eV]</td><td>{work:.4g}</td><td>1.5</td>" in page
    tables.evaluation(config, found)
    assert f"{work:.4g}" in capsys.readouterr().out
    card = (export(ExportConfig(run=run, out=tmp_path / "release")) / "README.md").read_text()
    assert f"| compression, work [eV] | {work:.4g} | 1.5 |" in card
    assert "| compression, lost | – | – |" in card


def test_a_suite_is_run_before_and_after_a_fine_tuning(run: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    options = {"data": emt_manifest.root, "optim": OPTIM, "fit": FIT, "machine": CPU, "card": CARD}
    finetune(FinetuneConfig(start=run, out=out, suites=SUITES, **options))
    report = Forgetting.from_json(out / "forgetting" / "forgetting.json")
    old, new = (by_hand(checkpoint.load(folder)) for folder in (run, out))
    assert report.suites.before["compression"].quantities["work"].value == pytest.approx(old, abs=1e-9)
    assert report.suites.after["compression"].quantities["work"].value == pytest.approx(new, abs=1e-9)
    shown = f"<td>compression, work [eV]</td><td>{old:.4g}</td><td>{new:.4g}</td><td>1.5</td>"
    assert shown in (out / "forgetting" / "index.html").read_text()
    card = (export(ExportConfig(run=out, out=tmp_path / "release")) / "README.md").read_text()
    assert f"| compression, work [eV] | {old:.4g} → {new:.4g} | 1.5 |" in card


def test_a_report_without_suites_is_read_and_its_card_has_no_section(
    run: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    evaluate(EvaluateConfig(model=run, data=emt_manifest.root))
    file = run / "report" / "evaluation.json"
    older = json.loads(file.read_text())
    del older["suites"]
    file.write_text(json.dumps(older))
    assert Evaluation.from_json(file).suites == {}
    card = (export(ExportConfig(run=run, out=tmp_path / "release")) / "README.md").read_text()
    assert "## Suites" not in card


def test_predictions_are_in_order_in_float64_and_leave_the_potential_alone(run: Path) -> None:
    potential = checkpoint.load(run)
    structures = [COPPER.scaled(factor) for factor in np.linspace(0.8, 1.2, 70)]
    found = PotentialSubject(potential).predict(structures)
    assert len(found) == 70
    for number in (0, 63, 64, 69):
        atoms = to_atoms(structures[number])
        atoms.calc = Calculator(checkpoint.load(run), dtype=torch.float64)
        assert found[number].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        assert found[number].forces == pytest.approx(atoms.get_forces(), abs=1e-10)
        assert found[number].stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-10)
    assert potential.dtype == torch.float32


def test_what_cannot_be_run_is_refused_before_anything_is_done(
    run: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    iron = Dimers(pairs=(("Cu", "Fe"),))
    message = "dimers has Fe, unknown to the potential"
    with pytest.raises(ValueError, match=message):
        evaluate(EvaluateConfig(model=run, data=emt_manifest.root, out=tmp_path / "report", suites=(iron,)))
    with pytest.raises(ValueError, match=message):
        finetune(FinetuneConfig(start=run, data=emt_manifest.root, out=tmp_path / "tuned", fit=FIT, suites=(iron,)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="dimers occurs twice"):
        check_suites([Dimers(pairs=()), Dimers(pairs=())], [29])


def test_the_suites_of_a_file_are_told_apart_by_their_first_field(run: Path) -> None:
    first = [fields(member)[0].name for member in get_args(SuiteConfig)]
    assert len(set(first)) == len(first)
    text = "[{pairs: [[Cu, Al]]}, {crystals: [{elements: [Cu], prototype: fcc, lattice_constant: 3.6}], span: 0.05}]"
    _, config = parse(["evaluate", "--model", "m", "--data", "d", "--suites", text])
    assert [suite.name for suite in config.suites] == ["dimers", "equation of state"]
    found = run_suites(config.suites, PotentialSubject(checkpoint.load(run)))
    assert [len(findings.quantities) for findings in found.values()] == [4, 3]
    assert all(isinstance(suite, Suite) for suite in config.suites)


def test_a_misspelt_suite_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"suites: the kind of suites is missing; give one of the options .*pairs, .*crystals"
    ):
        parse(["evaluate", "--model", "m", "--data", "d", "--suites", "[{paris: [[Cu, Al]]}]"])
