"""The page of a data set: its numbers, its warnings, its figures, and nothing from elsewhere."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.inspection import inspect_manifest
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.manifest import Manifest, Provenance, Split
from data_pipeline.structure import Structure
from foundation.reports.data_report import write_data_report

FIGURES = ("elements", "energy", "force", "size", "stress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, emt_manifest: Manifest) -> Path:
    path = tmp_path_factory.mktemp("page") / "deep"
    write_data_report(emt_manifest, path)
    return path


def test_page_numbers_and_figures_are_written(folder: Path, emt_manifest: Manifest) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["index.html", "inspection.json", *(f"{figure}.png" for figure in FIGURES)])
    assert json.loads((folder / "inspection.json").read_text()) == asdict(inspect_manifest(emt_manifest))
    for figure in FIGURES:
        assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_page_holds_the_numbers_and_the_provenance(folder: Path, emt_manifest: Manifest) -> None:
    page = (folder / "index.html").read_text()
    train = emt_manifest.split("train").statistics
    assert "<b>120</b>frames" in page
    assert f"<td>train</td><td>{train.num_frames}</td><td>{train.num_atoms}</td>" in page
    assert f"<td>{train.force_rms:.3f}</td>" in page
    provenance = emt_manifest.provenance
    for fact in (provenance.licence, provenance.level_of_theory, provenance.energy_convention, provenance.citation):
        assert f"<dd>{fact}</dd>" in page
    for warning in inspect_manifest(emt_manifest).warnings:
        assert warning[1:] in page


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,iVBORw0KGgo', page)) == len(FIGURES)
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|<script|<link', page)
    assert '<meta name="viewport"' in page


def test_the_page_has_no_undefined_values_and_escapes_names(tmp_path: Path, emt_manifest: Manifest) -> None:
    provenance = replace(emt_manifest.provenance, name="a <set> & more")
    write_data_report(replace(emt_manifest, provenance=provenance), tmp_path)
    page = re.sub(r'src="data:[^"]*"', "", (tmp_path / "index.html").read_text())
    assert "<h1>a &lt;set&gt; &amp; more</h1>" in page
    for leftover in ("{{", "{%", "Undefined", "None"):
        assert leftover not in page
    assert not re.search(r"\bnan\b", page)


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path, folder: Path, emt_manifest: Manifest) -> None:
    write_data_report(emt_manifest, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_labels_that_are_missing_and_splits_that_are_empty_have_no_figure(
    tmp_path: Path, provenance: Provenance
) -> None:
    cell = {"cell": np.zeros((3, 3)), "pbc": [False] * 3}
    atom = Structure.checked(numbers=[2], positions=[[0.0, 0.0, 0.0]], energy=-1e5, **cell)
    full, empty = Statistics(cutoffs=(5.0,)), Statistics(cutoffs=(5.0,))
    full.add([atom] * 5, np.zeros((5, 1), dtype=int))
    splits = {
        name: Split(shards=(), statistics=statistics, index_sha256="")
        for name, statistics in (("train", full), ("val", empty))
    }
    write_data_report(Manifest(provenance=provenance, splits=splits, build_config={}), tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == ["elements", "energy", "size"]
    assert "No frames in val" in (tmp_path / "index.html").read_text()
