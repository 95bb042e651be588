"""A library as a folder: complete, compared with its potential, and replaced only by another one."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.checkpoint import save
from foundation.engine.folder import FACTS, LIBRARY
from foundation.engine.library import Computed
from foundation.export_library import ExportLibraryConfig, LibraryMismatch, export_library, verify
from foundation.models import SymmetryFunctionsConfig
from foundation.potential import Potential
from tests.foundation.engine.test_library import ELEMENTS, NETWORKS, potential_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(potential_of(NETWORKS["even-2-blocks"], torch.float32), tmp_path / "potential", {})
    return tmp_path / "potential"


def test_the_folder_is_whole_and_compiles_anew(folder: Path, tmp_path: Path) -> None:
    config = ExportLibraryConfig(for_="library", model=folder, out=tmp_path / "library", theory="other")
    out = export_library(config)
    for line in (out / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split()
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
    facts = json.loads((out / FACTS).read_text())
    assert (facts["elements"], facts["theory"], facts["dtype"]) == (["O", "Mg", "Cu"], "other", "float32")
    (out / LIBRARY).unlink()
    subprocess.run(facts["command"], cwd=out, shell=True, check=True)
    assert (out / LIBRARY).is_file()
    export_library(config)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        export_library(config)


def test_a_library_with_a_repulsion_is_compared_on_atoms_that_collide(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportLibraryConfig(for_="library", model=folder, out=tmp_path / "library", theory="one", zbl=True)
    assert json.loads((export_library(config) / FACTS).read_text())["repulsion"]
    potential = potential_of(NETWORKS["even-2-blocks"]).repel()
    monkeypatch.setattr("foundation.nn.repulsion.zbl_energy", lambda one, other, lengths: 0 * lengths)
    with pytest.raises(LibraryMismatch, match=r"energies differ from the potential's by .* on two atoms that collide"):
        verify(potential, 0, config)


def test_a_library_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExportLibraryConfig(for_="library", model=Path("m"), out=Path("o"))
    verify(potential_of(NETWORKS["even-2-blocks"]), 0, config)

    def wrong(_: object, batch: object) -> Computed:
        return Computed(energy=0.0, atom_energies=np.zeros(1), forces=np.zeros((1, 3)), virial=np.zeros((3, 3)))

    monkeypatch.setattr("foundation.export_library.CompiledPotential.__call__", wrong)
    with pytest.raises(LibraryMismatch, match="energies differ"):
        verify(potential_of(NETWORKS["even-2-blocks"]), 0, config)


def test_what_cannot_be_compiled_is_refused() -> None:
    config = ExportLibraryConfig(for_="library", model=Path("m"), out=Path("o"))
    functions = SymmetryFunctionsConfig(radial_functions="default").network(ELEMENTS, 2)
    with pytest.raises(ValueError, match="symmetry_functions cannot be compiled"):
        verify(Potential(functions, ELEMENTS, ("one", "other")).double().eval(), 0, config)
