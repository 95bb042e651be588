"""A device that runs the CUDA kernels on the CPU: compiled by the C compiler through emulator.h."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import compiler
from foundation.kernels.cuda.codegen import BUDGETS, Source, first_budget, generate
from foundation.kernels.cuda.layout import Budget, KernelName, Shape

HEADER = Path(__file__).with_name("emulator.h")
FLAGS = ("-x", "c++", "-std=c++17", "-O0", "-fno-exceptions", "-fno-rtti")


class Fault(AssertionError):
    """An error in a kernel that the emulator found."""


def compiled(name: str, source: str) -> ctypes.CDLL:
    """Return a library whose `run` runs a kernel: see emulate() in emulator.h."""
    call = (
        'extern "C" const char *run(void **arguments, unsigned x, unsigned y, unsigned threads, uint64_t seed, '
        f"const Buffer *given, int count) {{ return emulate({name}, arguments, x, y, threads, seed, given, count); }}"
    )
    library = compiler.load("\n".join([HEADER.read_text(), source, call]), FLAGS)
    library.run.restype = ctypes.c_char_p
    return library


class EmulatedKernel:
    """A kernel on the CPU."""

    def __init__(self, name: str, source: Source, seed: int) -> None:
        self._library, self._seed = compiled(name, source.text), seed
        self.shape: Shape = source.shape

    def launch(self, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        """Run the kernel with warps, lanes and blocks in random order.

        Raises:
            Fault: it is not right on some device.
        """
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        ends = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]
        buffers = (ctypes.c_uint64 * (2 * len(ends)))(*(end for pair in ends for end in pair))
        values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
        held = (ctypes.c_int64 * len(values))(*values)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(held) + 8 * n for n in range(len(values))))
        found = self._library.run(
            pointers, *blocks, 32 * self.shape.warps, ctypes.c_uint64(self._seed), buffers, len(ends)
        )
        if found:
            raise Fault(found.decode())


class Emulator:
    """A machine (see native.py) of emulated kernels."""

    def __init__(
        self, seed: int = 1, budget: Budget | None = None, change: Callable[[Source], Source] = lambda source: source
    ) -> None:
        """Make one.

        Args:
            seed: Seed of the order in which lanes and blocks run.
            budget: Limits of a warp in place of the generator's choice.
            change: Change of the source, to see that it is found.
        """
        self._seed, self._budget, self._change = seed, budget, change

    def kernel(self, paths: str, name: KernelName, dtype: torch.dtype) -> EmulatedKernel:
        """Return a kernel."""
        return EmulatedKernel(name, self._change(source_of(paths, name, dtype, self._budget)), self._seed)


@cache
def source_of(name: str, kernel: KernelName, dtype: torch.dtype, budget: Budget | None) -> Source:
    """Return the source of a kernel."""
    paths, real = TensorProductPaths.named(name), {torch.float32: "float", torch.float64: "double"}[dtype]
    return generate(paths, kernel, real, budget or BUDGETS[first_budget(paths, kernel, real)])
