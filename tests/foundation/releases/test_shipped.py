"""The shipped releases, SevenNet's weights and students: one command makes them, and their name alone loads them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import foundation
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.checkpoint import CHECKSUMS, GOLDEN, LICENCE
from foundation.golden import verify_golden
from foundation.interop.published import find_published
from foundation.interop.sevennet import from_sevennet
from foundation.naming import SavedPotential, resolve
from foundation.released import BEGIN, END, ListConfig, TableConfig, listed, write_table
from foundation.releases.cache import verify
from foundation.releases.registry import Registry, Release, read_registry, registry
from foundation.reports.evaluation_report import Evaluation
from launch.__main__ import main
from launch.distill import read_distillation
from launch.yaml_files import read_mapping
from tests.conftest import REPOSITORY
from tests.foundation.interop.sevenn_peer import PEER_NAMES, Sevenn

SHIPPED = [release for release in registry().releases if release.folder]
NAMES = [release.name for release in SHIPPED]
SEVENNETS = [name for name in NAMES if name in PEER_NAMES]
TRAINED_HERE = [name for name in NAMES if name not in SEVENNETS]
MEGABYTE = 1e6


@pytest.mark.parametrize("release", SHIPPED, ids=lambda release: release.name)
def test_the_registry_is_true(release: Release) -> None:
    assert release.shipped is not None
    verify(release.shipped, release.sha256)
    described = checkpoint.describe(release.shipped)
    assert {SYMBOLS[number] for number in described.elements} == set(release.elements)
    assert described.theories == release.theories
    assert described.dtype == "float32"
    assert described.origin.name == release.name
    assert described.origin.card["licence"] == release.licence


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sevennet")])
def test_the_notice_of_sevennets_authors_comes_along(name: str) -> None:
    release = registry().find(name)
    assert release is not None
    assert release.shipped is not None
    notice = (release.shipped / LICENCE).read_text()
    assert "Copyright (c) 2024 Yutack Park" in notice
    assert "The above copyright notice and this permission notice shall be included" in notice


def test_the_package_stays_small() -> None:
    sizes = [sum(path.stat().st_size for path in release.shipped.iterdir()) for release in SHIPPED if release.shipped]
    assert max(sizes) <= 8 * MEGABYTE
    assert sum(sizes) <= 24 * MEGABYTE


@pytest.mark.parametrize("name", SEVENNETS)
def test_the_weights_are_those_of_the_file(name: str) -> None:
    ours, theirs = foundation.load(name).state_dict(), from_sevennet(find_published(name)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == "sevennet-l3i5" else []) for name in SEVENNETS]
)
def test_the_golden_values_are_sevenns(name: str) -> None:
    found = resolve(name)
    assert isinstance(found, SavedPotential)
    peer = Sevenn(PEER_NAMES[name])
    for record in json.loads((found.folder / GOLDEN).read_text()):
        given = {key: np.array(record[key]) for key in ("numbers", "positions", "cell", "pbc")}
        structure = Structure.checked(**given, energy=0.0)
        theory = record["theory"] if name == "sevennet-mf-0" else None
        said = peer.predict([structure], torch.float64, theory)
        for key, value in (("energy", said.energy), ("forces", said.forces), ("stress", said.stress[0])):
            golden = torch.tensor(record[key], dtype=torch.float64)
            error = (value.detach().squeeze() - golden).abs()
            assert bool((error <= 1e-8 * (1 + golden.abs())).all()), (key, float(error.max()))


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_what_was_trained_here_gives_its_golden_values_with_an_uncertainty_and_names_no_place(name: str) -> None:
    found = resolve(name)
    assert isinstance(found, SavedPotential)
    verify_golden(found.folder)
    assert found.load().last_layer is not None
    for file in ("config.json", "evaluation.json", "uncertainty.json", "README.md"):
        assert not re.search(r"[\s\"](/\w+){2}", (found.folder / file).read_text()), file


@pytest.mark.parametrize("name", [name for name in TRAINED_HERE if name.startswith("student")])
def test_a_students_findings_keep_the_limits_of_its_acceptance(name: str) -> None:
    (plan,) = (
        read_distillation(file, quick=False)
        for file in sorted((REPOSITORY / "configs/distill").glob("*.yaml"))
        if read_mapping(file)["pretrain"]["card"]["name"] == name
    )
    release = registry().find(name)
    assert release is not None
    assert release.shipped is not None
    evaluation = Evaluation.from_json(release.shipped / checkpoint.EVALUATION)
    forces = {"dynamics of the teacher: force MAE": 1000 * evaluation.errors["force_mae"]}
    for bar in plan.bars:
        suite = evaluation.suites.get(bar.suite)
        value = suite.quantities[bar.quantity].value if suite else forces[bar.quantity]
        assert value is not None, bar.quantity
        assert bar.at_least is None or value >= bar.at_least, bar.quantity
        assert bar.at_most is None or value <= bar.at_most, bar.quantity


def test_one_command_makes_a_release_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["convert", "--config", "configs/convert/sevennet-0.yaml", "--out", str(tmp_path / "again")]) == 0
    folder = SHIPPED[0].shipped
    assert folder is not None
    # another processor may round the golden values otherwise
    for name in (*checkpoint.checksums_in(folder).keys() - {GOLDEN}, LICENCE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_name_needs_neither_sevenn_nor_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for word in ("sevennet-0", "7net-0", "SevenNet-0", "7net-0_11July2024", "sevennet-0@1"):
        assert resolve(word).describe().origin.converted_from.name == "sevennet-0"


def test_the_table_of_the_page_is_that_of_the_releases(tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "potentials.md"
    copy = tmp_path / "potentials.md"
    copy.write_text(re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{END}", page.read_text(), flags=re.DOTALL))
    write_table(TableConfig(out=copy))
    assert copy.read_text() == page.read_text()
    with pytest.raises(ValueError, match="the table belongs between two lines"):
        write_table(TableConfig(out=REPOSITORY / "README.md"))


def test_potentials_are_listed_by_what_they_know() -> None:
    assert [each.release.name for each in listed(ListConfig(elements=("Li", "S")))] == [
        *SEVENNETS,
        "sevennet-0-tp-1",
        "student-argyrodite-sevennet-0-1",
    ]
    assert [each.release.name for each in listed(ListConfig(theory="R2SCAN"))] == ["sevennet-mf-0"]
    assert listed(ListConfig(elements=("Og",))) == []


VALID = """releases:
- {name: a, version: "1", aliases: [b], licence: MIT, theories: [PBE], elements: [Al], sha256: SUM, folder: a,
   addresses: []}
removed: []
""".replace("SUM", "a" * 64)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: a", "name: A b", "is no name"),
        ("aliases: [b]", "aliases: [a]", "a occurs twice"),
        ("folder: a", "folder: ../a", "is no folder of the package"),
        ("folder: a", "folder: null", "neither a folder nor an address"),
        ("elements: [Al]", "elements: [Xx]", "Xx is no element"),
        ("a" * 64, "ab", "no checksum"),
        ("licence: MIT, ", "", "licence"),
        ("removed: []", "removed: [{name: c, successor: d, reason: x}]", "successor of c, d, is no release"),
        ("removed: []", "removed: []\nadded: []", "added is unknown"),
    ],
)
def test_a_wrong_registry_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(VALID)
    assert isinstance(read_registry(file), Registry)
    file.write_text(VALID.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_registry(file)


def test_the_list_of_checksums_covers_every_file() -> None:
    for release in SHIPPED:
        assert release.shipped is not None
        names = {path.name for path in release.shipped.iterdir()} - {CHECKSUMS}
        assert names == checkpoint.checksums_in(release.shipped).keys()
