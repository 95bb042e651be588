"""Extrapolation: shares, ranks against an independent implementation, the file of atoms, and the two commands."""

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from scipy.stats import mannwhitneyu, spearmanr

from foundation.checkpoint import save
from foundation.evaluation.suites.extrapolation import Extrapolation, rank_correlation, ranking_area
from foundation.interop.calculator import Calculator
from foundation.interop.subject import CalculatorSubject
from foundation.models import EquivariantConfig
from foundation.potential import Potential
from foundation.reports.suite_report import SuitesRecord
from launch.__main__ import main

ELEMENTS = (13, 29)
NETWORK = EquivariantConfig(irreps="12x0e+4x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


def alloy(spacing: float, seed: int) -> ase.Atoms:
    atoms = bulk("Cu", "fcc", a=spacing, cubic=True)
    atoms.symbols[seed % 4] = "Al"
    atoms.rattle(0.04, seed=seed)
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a potential, its training data, new frames and the coverage."""
    folder = tmp_path_factory.mktemp("extrapolation")
    torch.manual_seed(0)
    save(Potential(NETWORK.network(ELEMENTS), ELEMENTS, ("EMT",)), folder / "potential", {})
    ase.io.write(folder / "training.xyz", [alloy(3.7, seed) for seed in range(30)])
    ase.io.write(folder / "new.xyz", [alloy(3.7 if seed % 2 else 3.0, seed) for seed in range(40, 52)])
    words = ["coverage", "--model", str(folder / "potential"), "--data", str(folder / "training.xyz")]
    assert main([*words, "--out", str(folder / "coverage.safetensors")]) == 0
    return folder


def test_the_suite_finds_the_frames_that_are_compressed(folder: Path) -> None:
    suite = f"{{extrapolated: {folder}/new.xyz, coverage: {folder}/coverage.safetensors, atoms: {folder}/atoms.xyz}}"
    words = ["evaluate", "--model", str(folder / "potential"), "--suites", suite, "--out", str(folder / "report")]
    assert main(words) == 0
    found = SuitesRecord.from_json(folder / "report" / "suites.json").suites["extrapolation"]
    values = {name: finding.value for name, finding in found.quantities.items()}
    assert values["frames"] == 12
    assert values["atoms"] == 48
    assert values["share beyond 99.9 % of the training data"] == pytest.approx(0.5, abs=0.05)
    closer = values["share closer than any such pair"]
    assert closer is not None
    assert 0.5 <= closer < 0.75
    assert values["share of unseen elements"] == 0
    assert set(found.charts) == {"Distance from the training data", "Force error by distance"}
    written = ase.io.read(folder / "atoms.xyz", ":")
    assert len(written) == 12
    beyond = [(atoms.arrays["extrapolation"] > 1).mean() for atoms in written]
    assert [share > 0.5 for share in beyond] == [seed % 2 == 0 for seed in range(40, 52)]
    assert all(atoms.arrays["contact"].shape == (4,) for atoms in written)
    # by another way: the calculator's errors, ranked by scipy
    calculator, errors = Calculator(folder / "potential"), []
    for frame in ase.io.read(folder / "new.xyz", ":"):
        labels = frame.get_forces()
        frame.calc = calculator
        errors.append(np.linalg.norm(frame.get_forces() - labels, axis=1))
    distances = np.concatenate([atoms.arrays["extrapolation"] for atoms in written])
    expected = spearmanr(distances, np.concatenate(errors)).statistic
    assert values["rank correlation with the force error"] == pytest.approx(expected, abs=1e-3)


def test_ranks_agree_with_scipy() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 10, 60).astype(float), random.normal(size=60)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    positive = random.random(60) < 0.3
    area = mannwhitneyu(one[positive], one[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert ranking_area(one, positive) == pytest.approx(area, abs=1e-12)
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert np.isnan(ranking_area(one, np.zeros(60, dtype=bool)))


def test_a_calculator_and_a_missing_file_are_refused(folder: Path) -> None:
    suite = Extrapolation(extrapolated=str(folder / "new.xyz"), coverage=folder / "coverage.safetensors")
    with pytest.raises(ValueError, match="looks into a network"):
        suite.run(CalculatorSubject(EMT()))
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        Extrapolation(extrapolated="x", coverage=Path("y"), max_frames=0)
