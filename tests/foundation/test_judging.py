"""Suites alone: for a potential by name or folder, for any ASE calculator, by name of a packaged suite."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.emt import EMT

from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.configuration import MAY_CHANGE
from foundation.evaluate import EvaluateConfig, judge
from foundation.evaluation.suites import Chart, Curve, Dimers, EquationOfState, Finding, Findings, Subject, run_suites
from foundation.evaluation.suites.crystals.equation_of_state import Crystal
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.reports.suite_report import SuitesRecord
from launch import tables
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6, bulk_modulus=140.0)


@dataclass(frozen=True, kw_only=True)
class Scan(Dimers):
    """A suite with a chart, an interval and what is not a number."""

    name: ClassVar[str] = "scan"

    count: int = field(default=3, metadata=MAY_CHANGE)

    def elements(self) -> set[int]:
        return {29}

    def run(self, subject: Subject) -> Findings:
        factors = tuple(np.linspace(0.9, 1.1, self.count))
        energies = [each.energy for each in subject.predict([COPPER.scaled(float(factor)) for factor in factors])]
        own = Curve(x=factors, y=(np.nan, *energies[1:]), low=tuple(energies), high=tuple(energies))
        reference = Curve(x=factors, y=tuple(energies), reference=True)
        return Findings(
            quantities={"lowest": Finding(value=min(energies), unit="eV", interval=(0.0, np.inf))},
            charts={"Energy": Chart(x="factor", y="energy [eV]", curves={"": own, "the same": reference})},
        )


def test_a_calculator_is_judged_by_name_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites = (EquationOfState(crystals=(COPPER,)), Scan(pairs=()))
    config = EvaluateConfig(calculator="ase.calculators.emt:EMT", suites=suites, out=tmp_path / "emt")
    record = judge(config)
    assert SuitesRecord.from_json(tmp_path / "emt" / "suites.json") == record
    assert record.theory is None
    assert record.weights_sha256 is None
    assert set(record.seconds) == set(record.suites)
    modulus = record.suites["equation of state"].quantities["Cu fcc: bulk modulus"]
    assert modulus.value == pytest.approx(137.0, abs=10.0)
    scan = record.suites["scan"]
    assert scan.quantities["lowest"].interval is None
    curve = scan.charts["Energy"].curves[""]
    assert curve.y[0] is None
    assert curve.y[1] == pytest.approx(scan.quantities["lowest"].value)
    assert (tmp_path / "emt" / "scan-energy.png").stat().st_size > 5000
    page = (tmp_path / "emt" / "index.html").read_text()
    assert "data:image/png" in page
    assert f"{modulus.value:.4g}" in page
    tables.evaluation(config, record)
    assert f"{modulus.value:.4g}" in capsys.readouterr().out


def test_a_potential_is_judged_alone_in_its_own_folder(emt_manifest: Manifest, tmp_path: Path) -> None:
    network = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
    potential = new_potential(network, {"emt": emt_manifest.split("train").statistics})
    checkpoint.save(potential, tmp_path / "small", {})
    suite = Scan(pairs=())
    record = judge(EvaluateConfig(model=tmp_path / "small", suites=(suite,), out=tmp_path / "found"))
    assert record.suites == run_suites((suite,), PotentialSubject(potential))
    assert record.theory == "emt"
    assert len(record.weights_sha256 or "") == 64
    fast = PotentialSubject(potential).calculator()
    atoms = CalculatorSubject(fast).predict([COPPER.scaled(1.0)])
    assert atoms[0].energy == pytest.approx(
        PotentialSubject(potential).predict([COPPER.scaled(1.0)])[0].energy, abs=1e-3
    )
    exact = CalculatorSubject(PotentialSubject(potential).exact_calculator())
    predicted = PotentialSubject(potential).predict([COPPER.scaled(1.0)])[0].energy
    assert exact.predict([COPPER.scaled(1.0)])[0].energy == pytest.approx(predicted, abs=1e-12)
    assert exact.exact_calculator() is None


@pytest.mark.parametrize(
    "word", ["ase.calculators.emt", "ase.calculators.emt:Emt", "no.such:EMT", "ase:Atoms", ":", "x"]
)
def test_what_is_no_calculator_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"calculator .*(an ASE calculator|nothing can be made of it)"):
        judge(EvaluateConfig(calculator=word, suites=(Scan(pairs=()),), out=tmp_path / "found"))
    assert not list(tmp_path.iterdir())


def test_options_that_measure_nothing_or_two_things_are_refused() -> None:
    with pytest.raises(ValueError, match="--data or --suites is needed"):
        EvaluateConfig(model=Path("m"))
    with pytest.raises(ValueError, match="--model NAME or --calculator MODULE:CLASS is needed"):
        EvaluateConfig(data=Path("d"))
    with pytest.raises(ValueError, match="leave --data out"):
        EvaluateConfig(calculator="a:b", data=Path("d"), suites=(Scan(pairs=()),))


def test_packaged_suites_are_known_by_name() -> None:
    for words in (["eos"], ["[eos]"], ["eos", "{pairs: [[Cu, Al]]}"], ["eos,{pairs: [[Cu, Al]]}"]):
        _, config = parse(["evaluate", "--model", "m", "--suites", *words])
        assert isinstance(config.suites[0], EquationOfState)
        assert config.suites[0].crystals[0].elements == ("Cu",)
    with pytest.raises(ValueError, match=r"no packaged suite is called 'eso'; did you mean eos\?"):
        parse(["evaluate", "--model", "m", "--suites", "eso"])


def test_subjects_of_other_programs_have_no_stress_without_one() -> None:
    class NoStress(EMT):
        def get_stress(self, *args: object, **options: object) -> np.ndarray:
            raise NotImplementedError

    assert not CalculatorSubject(NoStress()).predict([COPPER.scaled(1.0)])[0].stress.any()
    assert CalculatorSubject(EMT()).predict([COPPER.scaled(0.9)])[0].stress[0, 0] < 0
