"""NVIDIA's driver through ctypes: compiled kernels are loaded and launched, in torch's context and on its stream."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from foundation.kernels.cuda import nvrtc
from foundation.kernels.cuda.build import build
from foundation.kernels.cuda.layout import LANES, KernelName, Shape
from foundation.kernels.cuda.native import Kernels
from foundation.kernels.cuda.nvrtc import Compiler, NoKernels

LIBRARY = "libcuda.so.1"


class Driver:
    """The driver on one device; its functions may also be those of another object with the same names."""

    def __init__(self, library: Any, device: int) -> None:
        """Retain the device's primary context, which torch uses too.

        Raises:
            NoKernels: the driver refuses.
        """
        self._library, self._context = library, ctypes.c_void_p()
        handle = ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(handle), device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            NoKernels: it fails.
        """
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise NoKernels(f"the CUDA driver's {name} fails with error {status}: {(text.value or b'').decode()}")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context the current one: threads of autograd may have none yet."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def load(self, content: bytes, name: str) -> ctypes.c_void_p:
        """Return a function of a module, which stays loaded.

        Raises:
            NoKernels: the driver refuses it.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self.current():
            self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(content))
            self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function


class LoadedKernel:
    """A kernel on a device."""

    def __init__(self, driver: Driver, content: bytes, name: KernelName, shape: Shape, stream: Callable[[], int]):
        self.shape = shape
        self._driver, self._stream = driver, stream
        self._function = driver.load(content, name)

    def launch(self, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        """Run the kernel on the current stream.

        Raises:
            NoKernels: the driver refuses.
        """
        values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
        held = (ctypes.c_int64 * len(values))(*values)
        first, size = ctypes.addressof(held), ctypes.sizeof(ctypes.c_int64)
        pointers = (ctypes.c_void_p * len(values))(*(first + size * number for number in range(len(values))))
        grid, block = (*blocks, 1), (LANES * self.shape.warps, 1, 1)
        dimensions = [ctypes.c_uint(number) for number in (*grid, *block, 0)]
        with self._driver.current():
            self._driver.call(
                "cuLaunchKernel", self._function, *dimensions, ctypes.c_void_p(self._stream()), pointers, None
            )


class Device:
    """A machine (see native.py) on a CUDA device."""

    def __init__(self, driver: Driver, compiler: Compiler, capability: int, stream: Callable[[], int]) -> None:
        """Make one.

        Args:
            driver: The driver on the device.
            compiler: The compiler.
            capability: Compute capability, 90 for 9.0.
            stream: Returns the handle of the stream on which torch works.

        Raises:
            NoKernels: the compiler has nothing for the capability.
        """
        self.compiler, self.target = compiler, compiler.target(capability)
        self._driver, self._stream = driver, stream
        self._kernels: dict[tuple[str, KernelName, torch.dtype], LoadedKernel] = {}

    def kernel(self, paths: str, name: KernelName, dtype: torch.dtype) -> LoadedKernel:
        """Return a kernel, compiled and loaded at its first use.

        Raises:
            NoKernels: it cannot be.
        """
        key = paths, name, dtype
        if key not in self._kernels:
            code, shape = build(paths, name, dtype, self.compiler, self.target)
            self._kernels[key] = LoadedKernel(self._driver, code.content, name, shape, self._stream)
        return self._kernels[key]


@cache
def device(number: int) -> Device:
    """Return a CUDA device of torch's.

    Raises:
        NoKernels: there is no driver or no compiler, or one of them refuses.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoKernels(f"the CUDA driver cannot be loaded: {error}") from error
    torch.cuda.init()
    major, minor = torch.cuda.get_device_capability(number)
    driver = Driver(library, number)
    return Device(driver, nvrtc.compiler(), 10 * major + minor, lambda: torch.cuda.current_stream(number).cuda_stream)


def kernels(number: int) -> Kernels:
    """Return the convolution's kernels on a CUDA device of torch's.

    Raises:
        NoKernels: there is no driver or no compiler, or one of them refuses.
    """
    return Kernels(device(number))
