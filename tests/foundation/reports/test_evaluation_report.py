"""The report: three files, and no number in them that is none."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.evaluation.predictions import Predictions
from foundation.evaluation.quantities import QUANTITIES, summary
from foundation.reports.evaluation_report import Evaluated, write_report

FACTS = Evaluated(
    dataset="a <set> & more",
    split="test",
    manifest_fingerprint="0123456789abcdef" * 4,
    level_of_theory="PBE",
    weights_sha256="fedcba9876543210" * 4,
)
LABELS = {
    "all": ("forces", "stress"),
    "energy-and-forces": ("forces",),
    "energy-and-stress": ("stress",),
    "energy-only": (),
}


def make_errors(labels: tuple[str, ...]) -> Predictions:
    rng = np.random.default_rng(0)
    forces, stress = rng.normal(size=(20, 2, 3)), rng.normal(size=(5, 2, 3, 3))
    return Predictions(
        ids=tuple(f"frame-{number}" for number in range(5)),
        num_atoms=np.full(5, 4),
        numbers=np.resize([13, 29], 20) if "forces" in labels else np.zeros(0, np.int64),
        energy=rng.normal(size=(5, 3)),
        forces=forces if "forces" in labels else np.zeros((0, 2, 3)),
        stress=stress if "stress" in labels else np.zeros((0, 2, 3, 3)),
        has_forces=np.full(5, "forces" in labels),
        has_stress=np.full(5, "stress" in labels),
        num_skipped=2,
    )


def read_strictly(file: Path) -> Any:
    """Read JSON as other programs do: NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{file.name} holds {constant}")

    return json.loads(file.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_three_files_are_written_and_the_numbers_returned(tmp_path: Path, labels: tuple[str, ...]) -> None:
    errors, folder = make_errors(labels), tmp_path / "deep" / "report"
    values = write_report(errors, folder, FACTS)
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "index.html", "parity.png"]
    assert read_strictly(folder / "evaluation.json") == asdict(values)
    counts = {"num_frames": 5.0, "num_atoms": 20.0, "num_skipped": 2.0}
    assert values.errors == counts | summary(errors.errors())
    assert asdict(FACTS).items() <= asdict(values).items()
    assert ("force_mae" in values.errors) == ("forces" in labels)
    assert ("stress_mae" in values.errors) == ("stress" in labels)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_the_page_has_no_undefined_values(tmp_path: Path, labels: tuple[str, ...]) -> None:
    write_report(make_errors(labels), tmp_path, FACTS)
    page = re.sub(r'src="data:[^"]*"', "", (tmp_path / "index.html").read_text())
    for leftover in ("{{", "{%", "Undefined", "None", "nan", "inf"):
        assert leftover not in page


def test_the_page_shows_the_errors_the_facts_and_what_was_left_out(tmp_path: Path) -> None:
    errors = make_errors(("forces", "stress"))
    write_report(errors, tmp_path, FACTS)
    page, values = (tmp_path / "index.html").read_text(), summary(errors.errors())
    assert "Evaluation on a &lt;set&gt; &amp; more, test split" in page
    for key, quantity in QUANTITIES.items():
        assert f"<td>{quantity.title}</td><td>{quantity.text(values[key], 4)}</td>" in page
    assert "2 frames left out" in page
    assert "Weights fedcba9876543210…" in page
    assert all(name in page for name in errors.ids)


def test_the_plot_is_a_png_and_in_the_page(tmp_path: Path) -> None:
    write_report(make_errors(("forces", "stress")), tmp_path, FACTS)
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert 'src="data:image/png;base64,iVBORw0KGgo' in (tmp_path / "index.html").read_text()


def test_the_same_errors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(make_errors(("forces", "stress")), tmp_path / name, FACTS)
    for file in ("evaluation.json", "parity.png", "index.html"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_labels_that_are_all_zero_have_no_ratio(tmp_path: Path) -> None:
    errors = make_errors(("forces", "stress"))
    errors.forces[:, 0] = 0.0
    errors.stress[:, 0] = 0.0
    errors = replace(errors, energy=np.tile(errors.energy[:, :1], (1, 3)))
    values = write_report(errors, tmp_path, FACTS)
    assert "softening" not in values.errors
    page = (tmp_path / "index.html").read_text()
    assert all(f"<td>0.000 ({name})</td><td>–</td>" in page for name in ("zero", "composition"))


def test_a_single_frame_is_enough(tmp_path: Path) -> None:
    whole = make_errors(())
    single = replace(
        whole,
        ids=("only",),
        num_atoms=np.array([4]),
        energy=whole.energy[:1],
        has_forces=np.array([False]),
        has_stress=np.array([False]),
    )
    assert write_report(single, tmp_path, FACTS).errors["num_frames"] == 1.0
