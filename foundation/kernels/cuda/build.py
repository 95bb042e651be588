"""Kernels from source to machine code: the limits of a warp that fit, and a cache by content.

A kernel is generated for a guess of the limits first. If the compiler then reports that values did not fit into the
registers, it is generated again for narrower limits.
"""

import hashlib
import json
import logging
from pathlib import Path

import torch

from data_pipeline.store import durable
from foundation.kernels import trusted
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu.compiler import CACHE_VARIABLE, CHECKSUM, writable_folder
from foundation.kernels.cuda.codegen import BUDGETS, Source, first_budget, generate
from foundation.kernels.cuda.layout import KernelName, Shape, TooLarge
from foundation.kernels.cuda.nvrtc import OPTIONS, Code, Compiler, NoKernels

logger = logging.getLogger(__name__)

REALS = {torch.float32: "float", torch.float64: "double"}
"""Float types of the kernels, and their names in C."""
MOST_SPILLED = 64
"""Bytes of a lane that may lie in memory instead of in registers."""


def build(name: str, kernel: KernelName, dtype: torch.dtype, compiler: Compiler, target: str) -> tuple[Code, Shape]:
    """Return a kernel of a set of paths (by `TensorProductPaths.name`), from the cache or compiled now.

    Raises:
        NoKernels: there is none for the type or the paths, or the compiler refuses it.
        UntrustedCode: somebody else could have written to the cache.
    """
    if dtype not in REALS:
        raise NoKernels(f"there are no CUDA kernels for {dtype}, only for float32 and float64")
    paths = TensorProductPaths.named(name)
    try:
        best: tuple[Code, Shape] | None = None
        for budget in BUDGETS[first_budget(paths, kernel, REALS[dtype]) :]:
            source = generate(paths, kernel, REALS[dtype], budget)
            code = _compiled(source, compiler, target)
            if best is None or (code.spilled or 0) < (best[0].spilled or 0):
                best = code, source.shape
            if (code.spilled or 0) <= MOST_SPILLED:
                break
    except TooLarge as error:
        raise NoKernels(str(error)) from error
    assert best is not None
    return best


def _compiled(source: Source, compiler: Compiler, target: str) -> Code:
    """Return the code of a source; an entry of the cache is named by its origin and its checksum."""
    parts = (source.text, target, *OPTIONS, *map(str, compiler.version))
    name, folder = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:CHECKSUM], writable_folder()
    for entry in sorted(folder.glob(f"{name}-*.cuda")):
        content = trusted.read_code(entry, entry.stem.split("-")[1], CACHE_VARIABLE)
        if content is not None:
            return _parsed(content)
        logger.warning("%s is damaged; compiling it again", entry)
        entry.unlink(missing_ok=True)
    code = compiler.compile(source.text, target)
    _keep(code, folder, name)
    return code


def _keep(code: Code, folder: Path, name: str) -> None:
    trusted.refuse_untrusted_folder(folder, CACHE_VARIABLE)
    content = json.dumps([code.registers, code.spilled]).encode() + b"\n" + code.content
    checksum = hashlib.sha256(content).hexdigest()[:CHECKSUM]
    with durable.whole_file(folder / f"{name}-{checksum}.cuda", shared=True, flush=False) as partial:
        with partial.open("xb") as file:
            file.write(content)
        partial.chmod(0o600)


def _parsed(content: bytes) -> Code:
    report, _, code = content.partition(b"\n")
    return Code(code, *json.loads(report))
