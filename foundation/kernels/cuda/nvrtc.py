"""NVIDIA's run-time compiler through ctypes: CUDA C to machine code, without a toolkit or a device.

The library comes with every CUDA build of torch, or alone as the package nvidia-cuda-nvrtc.
"""

import ctypes
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

OPTIONS = ("--std=c++17", "--ptxas-options=-v")
"""Options besides the architecture; the second makes the compiler say how many registers it used."""
USED = re.compile(r"Used (\d+) registers")
SPILLED = re.compile(r"(\d+) bytes spill stores")


class NoKernels(RuntimeError):
    """The CUDA kernels cannot be compiled or run here; the message says why."""


class Code(NamedTuple):
    """A compiled kernel."""

    content: bytes
    """Machine code, or PTX for a device that the compiler does not know."""
    registers: int | None
    """Registers of a lane; None if the compiler does not say."""
    spilled: int | None
    """Bytes of a lane that did not fit into registers; None if the compiler does not say."""


class Compiler:
    """The compiler; its functions may also be those of another object with the same names."""

    def __init__(self, library: Any) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)
        """Version of the compiler."""
        count = ctypes.c_int()
        self._check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        known = (ctypes.c_int * count.value)()
        self._check(library.nvrtcGetSupportedArchs(known))
        self.architectures = sorted(known)
        """Architectures it knows: 90 for the capability 9.0."""

    def target(self, capability: int) -> str:
        """Return the architecture for a device: its own, or a virtual one if the device is newer than the compiler.

        Raises:
            NoKernels: the compiler is too new for the device.
        """
        if capability in self.architectures:
            return f"sm_{capability}"
        older = [each for each in self.architectures if each < capability]
        if not older:
            raise NoKernels(
                f"NVRTC {self.version[0]}.{self.version[1]} knows no device of capability {capability / 10}, only "
                f"from {self.architectures[0] / 10} on; install a torch built for an older CUDA"
            )
        return f"compute_{older[-1]}"

    def compile(self, source: str, target: str) -> Code:
        """Compile a source.

        Raises:
            NoKernels: it is refused.
        """
        library, program = self._library, ctypes.c_void_p()
        created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
        self._check(created)
        try:
            given = [option.encode() for option in (f"--gpu-architecture={target}", *OPTIONS)]
            status = library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
            log = self._bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace")
            if status:
                raise NoKernels(f"NVRTC cannot compile the kernels for {target}: {log.strip()[:500]}")
            kind = "CUBIN" if target.startswith("sm_") else "PTX"
            content = self._bytes(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))
        used, spilled = (pattern.findall(log) for pattern in (USED, SPILLED))
        return Code(content, max(map(int, used), default=None), max(map(int, spilled), default=None))

    def _bytes(self, program: ctypes.c_void_p, size_of: str, get: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, size_of)(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, get)(program, buffer))
        return buffer.raw[: size.value]

    def _check(self, status: int) -> None:
        if status:
            raise NoKernels(f"NVRTC fails with its error {status}")


def places() -> Iterator[str]:
    """Yield the files and names by which the library may be loaded, those of torch's own CUDA first."""
    major = (torch.version.cuda or "").split(".")[0]
    for package in ("nvidia", "torch"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found = Path(folder).glob("**/lib/libnvrtc.so.*" if package == "nvidia" else "lib/libnvrtc*.so*")
            names = sorted((str(path) for path in found if "builtins" not in path.name), reverse=True)
            yield from sorted(names, key=lambda name: not name.endswith(f".so.{major}"))
    yield from dict.fromkeys((f"libnvrtc.so.{major}", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"))


@cache
def compiler() -> Compiler:
    """Return the compiler.

    Raises:
        NoKernels: it is not installed.
    """
    for place in places():
        try:
            library = ctypes.CDLL(place)
        except OSError:
            continue
        return Compiler(library)
    raise NoKernels("NVRTC is not installed: pip install nvidia-cuda-nvrtc, or a CUDA build of torch")
