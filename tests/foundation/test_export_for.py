"""Exports for other programs: complete, compared with their potential, and in place of nothing else."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import to_graph
from foundation.checkpoint import save
from foundation.engine.folder import FACTS, LIBRARY
from foundation.export_for import SUFFIXES, Compute, ExportForConfig, ExportMismatch, export_for
from foundation.interop.calculator import to_structure
from foundation.interop.torch_package import arguments
from foundation.models import SymmetryFunctionsConfig
from foundation.naming import resolve
from foundation.potential import Potential
from tests.foundation.engine.test_library import ELEMENTS, NETWORKS, crystal, potential_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(potential_of(NETWORKS["even-2-blocks"], torch.float32), tmp_path / "potential", {})
    return tmp_path / "potential"


def test_the_folder_is_whole_and_compiles_anew(folder: Path, tmp_path: Path) -> None:
    config = ExportForConfig(for_="library", model=folder, out=tmp_path / "library", theory="other")
    out = export_for(config)
    for line in (out / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split()
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
    facts = json.loads((out / FACTS).read_text())
    assert (facts["elements"], facts["theory"], facts["dtype"]) == (["O", "Mg", "Cu"], "other", "float32")
    (out / LIBRARY).unlink()
    subprocess.run(facts["command"], cwd=out, shell=True, check=True)
    assert (out / LIBRARY).is_file()
    export_for(config)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        export_for(config)


def test_an_export_with_a_repulsion_is_compared_on_atoms_that_collide(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportForConfig(for_="library", model=folder, out=tmp_path / "library", theory="one", zbl=True)
    assert json.loads((export_for(config) / FACTS).read_text())["repulsion"]
    # what the library has, the potential lacks from now on
    monkeypatch.setattr("foundation.nn.repulsion.zbl_energy", lambda one, other, lengths: 0 * lengths)
    with pytest.raises(ExportMismatch, match=r"energies of the library differ .* on two atoms that collide"):
        export_for(config)


@pytest.mark.parametrize("form", ["library", "metatomic"])
def test_an_export_that_computes_something_else_is_refused_and_nothing_is_left(
    form: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "metatomic":
        pytest.importorskip("metatomic_ase")
    out = tmp_path / "out" / f"it{SUFFIXES.get(form, '')}"

    def wrong(*_: object) -> Compute:
        return lambda structure: {"energies": np.zeros(structure.num_atoms)}

    monkeypatch.setattr(f"foundation.export_for.{'compiled' if form == 'library' else '_metatomic'}", wrong)
    with pytest.raises(ExportMismatch, match=f"the energies of the {form} differ from the potential's by"):
        export_for(ExportForConfig(for_=form, model=folder, out=out, theory="one"))
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("form", ["library", "torch", "metatomic"])
def test_what_is_no_equivariant_network_is_refused(form: Any, tmp_path: Path) -> None:
    if form == "metatomic":
        pytest.importorskip("metatomic_ase")
    functions = SymmetryFunctionsConfig(radial_functions="default").network(ELEMENTS, 2)
    save(Potential(functions, ELEMENTS, ("one", "other")), tmp_path / "potential", {})
    out = tmp_path / f"it{SUFFIXES.get(form, '')}"
    with pytest.raises(ValueError, match="symmetry_functions"):
        export_for(ExportForConfig(for_=form, model=tmp_path / "potential", out=out, theory="one"))
    assert not out.exists()


def test_what_a_file_cannot_be_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"out must end in \.pt2, not it\.pt"):
        ExportForConfig(for_="torch", model=folder, out=Path("it.pt"))
    with pytest.raises(ValueError, match="table: only a library has one"):
        ExportForConfig(for_="metatomic", model=folder, out=Path("it.pt"), table=True)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"pip install 'foundation\[metatomic\]'"):
            ExportForConfig(for_="metatomic", model=folder, out=Path("it.pt"))
    mine = tmp_path / "mine.pt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.pt exists; move it away"):
        export_for(ExportForConfig(for_="metatomic", model=folder, out=mine, theory="one"))
    assert mine.read_text() == "mine"


ALONE = """
import sys
sys.modules["foundation"] = sys.modules["e3nn"] = None
import torch
package = torch._inductor.aoti_load_package("it.pt2")
given = torch.load("given.pt")
torch.save([[*package(*each)] for each in given], "found.pt")
print(package.get_metadata()["theory"])
"""


@pytest.mark.long
@pytest.mark.parametrize("zbl", [False, True])
def test_a_torch_package_computes_any_structure_without_this_package(zbl: bool, folder: Path, tmp_path: Path) -> None:
    config = ExportForConfig(
        for_="torch", model=folder, out=tmp_path / "it.pt2", theory="other", dtype="float64", zbl=zbl
    )
    assert export_for(config) == config.out
    potential = resolve(folder).load().cast(torch.float64).eval()
    if zbl:
        potential.repel()
    molecule = ase.Atoms("OMgCu", [[0, 0, 0], [0, 0, 0.9], [0, 1.9, 0]])
    structures = [to_structure(crystal()), to_structure(molecule), to_structure(ase.Atoms("O"))]
    graphs = [to_graph(each, potential.cutoff, torch.float64, 1) for each in structures]
    torch.save([arguments(each) for each in graphs], tmp_path / "given.pt")
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["other"]
    for graph, found in zip(graphs, torch.load(tmp_path / "found.pt"), strict=True):
        right = potential(graph)
        for one, wanted in zip(found, (right.atom_energies, right.forces, right.stress[0]), strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-10, atol=1e-10)
