"""The wheel alone, in an empty folder of a new environment, has all that the command needs."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.launch.test_quickstart import SHORTER

PACKAGES = ("data_pipeline", "foundation", "launch")
MAIN = "import launch.__main__; raise SystemExit(launch.__main__.main())"
BUILD = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files of the repository."""
    copy, out = tmp_path_factory.mktemp("copy") / "foundation", tmp_path_factory.mktemp("wheel")
    names = (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "data_pipeline",
        "foundation",
        "launch",
        "configs",
        "model_cards",
    )
    copy.mkdir()
    for name in names:
        subprocess.run(["cp", "-a", str(REPOSITORY / name), str(copy / name)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the packages of this one without the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    # later than site-packages, and without what an editable installation of the repository would run
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(environment: Path, folder: Path, *words: str, code: str = MAIN) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [str(environment / "bin" / "python"), "-c", code, *words]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_that_the_program_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    packaged = [
        file for package in ("data_pipeline", "foundation", "launch") for file in (REPOSITORY / package).rglob("*")
    ]
    needed = [file for file in packaged if file.is_file() and "__pycache__" not in file.parts]
    configs = [Path("launch") / file.relative_to(REPOSITORY) for file in (REPOSITORY / "configs").rglob("*.yaml")]
    assert [name for name in (str(file.relative_to(REPOSITORY)) for file in needed) if name not in names] == []
    assert [str(file) for file in configs if str(file) not in names] == []
    assert len(configs) > 10


THREE_LINES = """
import socket, sys
sys.modules["sevenn"] = None
socket.socket.connect = None
import foundation, ase.build
atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64)
atoms.calc = foundation.Calculator("sevennet-0")
print(atoms.get_potential_energy())
"""


def test_a_name_gives_energies_without_sevenn_and_without_a_network(environment: Path, tmp_path: Path) -> None:
    assert -8.0 < float(run(environment, tmp_path, code=THREE_LINES).split()[-1]) < -6.0  # two atoms of rock salt
    shipped = len(list((REPOSITORY / "model_cards" / "releases").glob("*/config.json")))
    assert run(environment, tmp_path, "models", "verify").count(": ok") == shipped > 4


@pytest.mark.long
def test_the_quickstart_runs_without_arguments_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    found = run(environment, tmp_path, code="import launch, foundation; print(launch.__file__, foundation.__file__)")
    assert all(Path(file).is_relative_to(environment) for file in found.split())
    printed = run(environment, tmp_path, "quickstart", *SHORTER)
    assert 'foundation.Calculator("runs/quickstart/release")' in printed
    assert (tmp_path / "runs/quickstart/release/SHA256SUMS").is_file()
    assert "cutoff" in run(environment, tmp_path, "pretrain", "--config", "pretrain/small", "--print_config")
