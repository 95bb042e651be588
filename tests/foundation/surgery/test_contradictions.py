"""Forces and stress in another unit or with the wrong sign are refused by their agreement with the start."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk

from data_pipeline.plain_files import ReadConfig, build_plain
from foundation.datasets import DatasetConfig, open_datasets, statistics_by_theory
from foundation.interop.calculator import Calculator
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.surgery.contradictions import contradiction
from foundation.surgery.start import prepare_start


def labels_and_predictions(error: float = 0.2, size: float = 1.0, number: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    predictions = rng.normal(0, size, number)
    return predictions + rng.normal(0, error * size, number), predictions


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["forces", "stress"])
def test_a_soft_or_stiff_start_is_no_contradiction(kind: str, factor: float) -> None:
    labels, predictions = labels_and_predictions()
    assert contradiction(kind, factor * labels, predictions, "mine") is None


@pytest.mark.parametrize(
    ("kind", "factor", "looks"),
    [
        ("forces", -1.0, "as with the wrong sign"),
        ("forces", -0.6, "as with the wrong sign"),
        ("forces", 1 / 51.422067, "as in Hartree/bohr"),
        ("forces", -1 / 25.711034, "as in Rydberg/bohr and with the wrong sign"),
        ("forces", 23.060548, "as in kcal/mol/Å"),
        ("forces", 0.08, "as in another unit"),
        ("stress", -1.0, "as with the wrong sign"),
        ("stress", 160.21766, "as in GPa"),
        ("stress", -1602.1766, "as in kbar and with the wrong sign"),
    ],
)
def test_another_unit_or_sign_is_named(kind: str, factor: float, looks: str) -> None:
    labels, predictions = labels_and_predictions()
    sentence = contradiction(kind, factor * labels, predictions, "mine")
    assert sentence is not None
    assert f"{looks}. " in sentence
    assert "--references keep" in sentence


def test_without_agreement_or_enough_numbers_there_is_no_verdict() -> None:
    for options in ({"error": 3.0}, {"number": 12}, {"size": 1e-4}):
        labels, predictions = labels_and_predictions(**options)
        assert contradiction("forces", -labels, predictions, "mine") is None
    assert contradiction("stress", np.zeros(0), np.zeros(0), "mine") is None


@pytest.mark.parametrize("wrong", ["forces", "stress", None])
def test_a_fine_tuning_refuses_them_before_it_begins(tmp_path: Path, wrong: str | None) -> None:
    torch.manual_seed(0)
    model = EquivariantConfig(irreps="8x0e+4x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
    start = Potential(EquivariantNetwork(model, (29,), 12.0), (29,), ("EMT",)).cast(torch.float64).eval()
    start.get_buffer("scale").fill_(1.0)
    frames = []
    for number in range(10):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=number)
        atoms.set_cell(atoms.cell * (1 + 0.01 * number), scale_atoms=True)
        atoms.calc = Calculator(start)
        labels = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces() * (-1 if wrong == "forces" else 1),
            "stress": atoms.get_stress(voigt=False) * (-1 if wrong == "stress" else 1),
        }
        atoms.calc = None
        atoms.info |= {"energy": labels["energy"], "stress": labels["stress"]}
        atoms.arrays["forces"] = labels["forces"]
        frames.append(atoms)
    ase.io.write(tmp_path / "mine.xyz", frames, format="extxyz")
    built = build_plain([str(tmp_path / "mine.xyz")], tmp_path / "data", ReadConfig())
    opened = open_datasets((DatasetConfig(path=built.manifest.root, theory="EMT"),))
    given = (statistics_by_theory(*opened), opened[0])
    if wrong is None:
        prepare_start(start, Path("start"), *given, references="auto")
        return
    with pytest.raises(ValueError, match=rf"the {wrong} of mine contradicts? the start's: they are -1 times as large"):
        prepare_start(start, Path("start"), *given, references="auto")
    prepare_start(start, Path("start"), *given, references="keep")
