"""Compilation of C source to a loaded library: once per machine, kept in the user's cache.

A cache entry is named by its origin (source, flags, compiler, processor) and its own checksum, so any number of
processes may write it at once and a damaged one is detected. Compiling takes some seconds, loading none.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from data_pipeline.store import durable
from foundation.kernels import trusted

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "XDG_CACHE_HOME"
"""Environment variable with the user's cache folder, if not ~/.cache."""
COMPILERS = ("gcc", "clang", "cc")
FLAGS = ("-O2", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-w")
"""Flags without -ffast-math: the source decides the order of sums, and so the bits of the result."""
CHECKSUM = 32
"""Number of digits of a checksum in the name of an entry."""
X86_FLAGS = ("-mprefer-vector-width=512",)
GCC_FLAGS = ("--param=avoid-fma-max-bits=0",)
"""For AMD's processors gcc splits a fused multiply-add whose sum waits for the one before: in the smallest tiles of a
product, not in others, so that a row's bits would depend on the number of rows."""


class NoCompiler(RuntimeError):
    """No C compiler here can make the kernels; the message says what was tried."""


@cache
def compiler() -> tuple[str, str]:
    """Return the path of the first C compiler found and the first line of its version.

    Raises:
        NoCompiler: none was found.
    """
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return path, result.stdout.splitlines()[0]
    raise NoCompiler(f"no C compiler on PATH (tried {', '.join(COMPILERS)}); install one, gcc for instance")


@cache
def processor() -> str:
    """Return the target of the compiler: the processor's model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = {line.split(":")[0].strip(): line for line in text.splitlines() if ":" in line}
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *(lines[name] for name in names if name in lines)])


def vector_bits() -> int:
    """Return the width of this processor's vectors [bits], as the kernels use them."""
    features = processor()
    return 512 if re.search(r"\bavx512f\b", features) else 256 if re.search(r"\bavx\b", features) else 128


def describe() -> str:
    """Describe the compiled kernels, for a log."""
    return f"C, {vector_bits()}-bit vectors, {compiler()[1]}"


def cache_folder() -> Path:
    """Return the folder of compiled kernels: foundation/kernels in the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "foundation" / "kernels"


def flags() -> list[str]:
    """Return the compiler's flags on this machine.

    Raises:
        NoCompiler: no compiler was found.
    """
    machine = X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ()
    return [*FLAGS, *machine, *(() if "clang" in compiler()[1] else GCC_FLAGS)]


def load(source: str | tuple[str, ...], defines: tuple[str, ...]) -> ctypes.CDLL:
    """Return the library of a C source, or of several files, from the cache or compiled now.

    Raises:
        NoCompiler: no compiler was found, or it fails on the source.
        UntrustedCode: somebody else could have written to the cache.
    """
    return _library(source, defines)[0]


def build(source: str | tuple[str, ...], defines: tuple[str, ...]) -> Path:
    """Return the file of the library of load(), in the cache.

    Raises:
        NoCompiler: no compiler was found, or it fails on the source.
        UntrustedCode: somebody else could have written to the cache.
    """
    return _library(source, defines)[1]


def _library(source: str | tuple[str, ...], defines: tuple[str, ...]) -> tuple[ctypes.CDLL, Path]:
    path, version = compiler()
    sources = (source,) if isinstance(source, str) else source
    given = [*flags(), *defines]
    name = hashlib.sha256("\0".join([*sources, *given, version, processor()]).encode()).hexdigest()[:32]
    _share_openmp()
    for entry in sorted(cache_folder().glob(f"{name}-*.so")):
        loaded = trusted.load_library(entry, entry.stem.split("-")[1], CACHE_VARIABLE)
        if loaded is not None:
            return loaded, entry
        logger.warning("%s is damaged; compiling it again", entry)
        entry.unlink(missing_ok=True)
    return _compile(path, given, sources, name)


def _compile(path: str, given: list[str], sources: tuple[str, ...], name: str) -> tuple[ctypes.CDLL, Path]:
    """Compile into a temporary file, load it, and only then rename it: another process may remove an entry."""
    folder = writable_folder()
    trusted.refuse_untrusted_folder(folder, CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        library, files = Path(temporary) / "kernel.so", []
        for number, source in enumerate(sources):
            files.append(Path(temporary) / f"kernel{number}.c")
            files[-1].write_text(source)
        result = subprocess.run(
            [path, *given, "-o", str(library), *map(str, files), "-lm"], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise NoCompiler(f"{path} cannot compile the kernels: {result.stderr.strip()[:500]}")
        library.chmod(0o600)
        checksum = hashlib.sha256(library.read_bytes()).hexdigest()
        loaded = trusted.load_library(library, checksum, CACHE_VARIABLE)
        if loaded is None:
            raise NoCompiler(f"{library} changed right after it was compiled; try again")
        entry = folder / f"{name}-{checksum[:CHECKSUM]}.so"
        durable.put_in_place(library, entry)
    return loaded, entry


@cache
def writable_folder() -> Path:
    """Return the cache folder or, if it cannot be written, a temporary one for this process."""
    folder = cache_folder()
    try:
        trusted.make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        temporary = tempfile.mkdtemp(prefix="foundation-kernels-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        logger.warning("kernels are compiled anew for this process: %s cannot be written (%s)", folder, error)
        return Path(temporary)
    return folder


@cache
def _share_openmp() -> None:
    """Make the kernels use the OpenMP runtime loaded by torch: two would compete for the cores."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for library in sorted(set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so[^/\s]*", maps))):
        # the already loaded library, never another file now at its path
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
