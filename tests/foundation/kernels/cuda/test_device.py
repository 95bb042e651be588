"""Everything between the operator and a device, with libraries in place of the compiler and of the driver."""

import ctypes
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from e3nn import o3

from foundation.kernels import convolution
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import compiler as c_compiler
from foundation.kernels.cuda import build, check, codegen, driver, layout, nvrtc, openequivariance
from foundation.kernels.cuda.driver import Device, Driver
from foundation.kernels.cuda.native import Kernels
from foundation.kernels.cuda.nvrtc import Compiler, NoKernels
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from launch.checks import check_kernels
from tests.foundation.kernels.cuda.emulated import compiled

PATHS = TensorProductPaths(o3.Irreps("3x0e+2x1e"), o3.Irreps("1x0e+1x1e"), o3.Irreps("1x0e+1x1e"))
SIZED = TensorProductPaths(*(o3.Irreps(text) for text in ("128x0e+64x1e+32x2e", "1x0e+1x1e+1x2e", "1x0e+1x1e+1x2e")))
STREAM = 4321


class FakeNvrtc:
    """The functions of NVRTC; the machine code is the source."""

    def __init__(self, spilled: tuple[int, ...] = (0,)) -> None:
        self.spilled, self.compiled, self.source = list(spilled), 0, b""
        self.options: list[bytes] = []

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 13, 5
        return 0

    def nvrtcGetNumSupportedArchs(self, count: Any) -> int:
        count._obj.value = 3
        return 0

    def nvrtcGetSupportedArchs(self, known: Any) -> int:
        known[:] = [75, 80, 90]
        return 0

    def nvrtcCreateProgram(self, program: Any, source: bytes, *_: Any) -> int:
        self.source = source
        return 0

    def nvrtcCompileProgram(self, program: Any, count: int, options: Any) -> int:
        self.compiled, self.options = self.compiled + 1, list(options)
        return 6 if b"refuse me" in self.source else 0

    def log(self) -> bytes:
        spilled = self.spilled[min(self.compiled, len(self.spilled)) - 1]
        return f"ptxas . 8 bytes stack frame, {spilled} bytes spill stores\nptxas info : Used 99 registers".encode()

    def nvrtcGetProgramLogSize(self, program: Any, size: Any) -> int:
        size._obj.value = len(self.log())
        return 0

    def nvrtcGetProgramLog(self, program: Any, buffer: Any) -> int:
        buffer.raw = self.log()
        return 0

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> int:
        size._obj.value = len(self.source)
        return 0

    def nvrtcGetCUBIN(self, program: Any, buffer: Any) -> int:
        buffer.raw = self.source
        return 0

    def nvrtcDestroyProgram(self, program: Any) -> int:
        return 0


class FakeCuda:
    """The functions of the driver; kernels run in the emulator."""

    def __init__(self, fail: str = "") -> None:
        self.fail, self.contexts, self.streams = fail, [], []
        self.loaded: list[bytes] = []
        self.functions: list[ctypes.CDLL] = []

    def cuInit(self, flags: int) -> int:
        return 999 if self.fail == "cuInit" else 0

    def cuDeviceGet(self, handle: Any, number: int) -> int:
        handle._obj.value = number
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, handle: Any) -> int:
        context._obj.value = 77
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.contexts.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.contexts.pop()
        return 0

    def cuModuleLoadData(self, module: Any, content: Any) -> int:
        assert self.contexts == [77]
        self.loaded.append(content.value)
        module._obj.value = len(self.loaded)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        self.functions.append(compiled(name.decode(), self.loaded[module.value - 1].decode()))
        function._obj.value = len(self.functions)
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        assert self.contexts == [77]
        *numbers, stream, arguments, extra = rest
        x, y, z, threads, ty, tz, shared = (number.value for number in numbers)
        assert (z, ty, tz, shared, extra) == (1, 1, 1, 0, None)
        self.streams.append(stream.value)
        assert self.functions[function.value - 1].run(arguments, x, y, threads, 1, None, 0) == b""
        return 700 if self.fail == "cuLaunchKernel" else 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"an illegal memory access"
        return 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own for machine code; return it. The emulator's libraries stay where they are."""
    monkeypatch.setattr(build, "writable_folder", lambda: tmp_path)
    tmp_path.chmod(0o700)
    yield tmp_path
    check._verdicts.cache_clear()
    convolution._choose.cache_clear()


def device_of(library: FakeCuda, compiler: FakeNvrtc | None = None) -> Device:
    return Device(Driver(library, 0), Compiler(compiler or FakeNvrtc()), 90, lambda: STREAM)


def test_kernels_are_compiled_loaded_and_launched_on_torchs_stream(cache: Path) -> None:
    library, compiler = FakeCuda(), FakeNvrtc()
    kernels, plain = Kernels(device_of(library, compiler)), Convolution(PATHS).in_torch
    assert check.compare(kernels, PATHS.name, torch.float32, torch.device("cpu"), plain) < 1e-5
    assert set(library.streams) == {STREAM}
    assert library.contexts == []
    assert compiler.options == [b"--gpu-architecture=sm_90", *(option.encode() for option in nvrtc.OPTIONS)]
    assert compiler.compiled == len(library.loaded) == len(codegen.NAMES)


def test_a_kernel_is_compiled_once_and_a_damaged_entry_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = FakeNvrtc()
    compiler = Compiler(library)
    first = build.build(PATHS.name, "sum", torch.float32, compiler, "sm_90")
    assert build.build(PATHS.name, "sum", torch.float32, compiler, "sm_90") == first
    assert first[0].content == library.source
    assert (first[0].registers, first[0].spilled, library.compiled) == (99, 0, 1)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:-5] + b"wrong")
    assert build.build(PATHS.name, "sum", torch.float32, compiler, "sm_90") == first
    assert library.compiled == 2
    assert "is damaged; compiling it again" in caplog.text
    build.build(PATHS.name, "sum", torch.float32, compiler, "sm_80")
    assert library.compiled == 3


@pytest.mark.parametrize(("spilled", "tries", "best"), [((500, 64), 2, 64), ((500, 300, 400, 900), 5, 300)])
def test_what_does_not_fit_into_registers_gets_narrower_limits(
    cache: Path, spilled: tuple[int, ...], tries: int, best: int
) -> None:
    library = FakeNvrtc(spilled)
    code, shape = build.build(SIZED.name, "sum", torch.float32, Compiler(library), "sm_90")
    assert library.compiled == tries
    assert code.spilled == best
    budget = codegen.BUDGETS[spilled.index(best)]
    assert shape == codegen.generate(SIZED, "sum", "float", budget).shape


def test_a_device_gets_code_of_its_own_or_of_the_newest_that_the_compiler_knows() -> None:
    compiler = Compiler(FakeNvrtc())
    assert compiler.target(80) == "sm_80"
    assert compiler.target(120) == "compute_90"
    with pytest.raises(NoKernels, match=r"knows no device of capability 7.0"):
        compiler.target(70)


def test_what_the_compiler_refuses_is_said() -> None:
    with pytest.raises(NoKernels, match="cannot compile the kernels for sm_90: ptxas"):
        Compiler(FakeNvrtc()).compile("refuse me", "sm_90")


def test_the_compiler_of_torchs_own_cuda_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc-builtins.so.13.0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no library")

    def spec_of(package: str) -> Any:
        return types.SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if package == "nvidia" else None

    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", spec_of)
    for version, first in (("12.8", "libnvrtc.so.12"), ("13.0", "libnvrtc.so.13"), (None, "libnvrtc.so.12")):
        monkeypatch.setattr(torch.version, "cuda", version)
        found = list(nvrtc.places())
        assert Path(found[0]).name == first
        assert len([name for name in found if name.startswith(str(tmp_path))]) == 2
    monkeypatch.setattr(nvrtc, "places", lambda: iter([str(tmp_path / "cuda_nvrtc" / "lib" / "libnvrtc.so.12")]))
    with pytest.raises(NoKernels, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.compiler.__wrapped__()


def test_other_types_and_too_large_irreps_have_no_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(FakeNvrtc())
    with pytest.raises(NoKernels, match="only for float32 and float64"):
        build.build(PATHS.name, "sum", torch.bfloat16, compiler, "sm_90")
    monkeypatch.setattr(layout, "MOST_SHARED", 1000)
    with pytest.raises(NoKernels, match="bytes of shared memory, of 1,000; choose fewer or lower irreps"):
        build.build(SIZED.name, "sum", torch.float32, compiler, "sm_90")


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, library: FakeCuda) -> None:
    """Let torch say that there is a CUDA device; its tensors stay on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100")
    monkeypatch.setattr(driver, "device", lambda number: device_of(library))
    compare = check.compare
    monkeypatch.setattr(
        check,
        "compare",
        lambda kernels, name, dtype, device, plain: compare(kernels, name, dtype, torch.device("cpu"), plain),
    )


def test_the_own_kernels_are_chosen_where_they_pass_the_check(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, library := FakeCuda())
    with torch.inference_mode():
        assert Convolution(PATHS).chosen("cuda", torch.float32) == "cuda"
    assert library.streams
    count = len(library.streams)
    assert Convolution(PATHS).chosen("cuda", torch.float32) == "cuda"
    assert len(library.streams) == count
    found = convolution.cuda_verdict(0, torch.float32, PATHS.name)
    assert found.works
    assert "sm_90 by NVRTC 13.5" in found.finding


@pytest.mark.parametrize(("installed", "expected"), [(True, "openequivariance"), (False, "torch")])
@pytest.mark.parametrize("fail", ["cuInit", "cuLaunchKernel"])
def test_kernels_that_fail_are_replaced_and_one_line_says_what_to_report(
    fail: str,
    installed: bool,
    expected: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    convolution.say_once.cache_clear()
    on_a_gpu(monkeypatch, FakeCuda(fail))
    monkeypatch.setattr(openequivariance, "available", lambda: installed)
    assert Convolution(PATHS).chosen("cuda", torch.float32) == expected
    (record,) = caplog.records
    for part in (f"{fail} fails with error", "an illegal memory access", "NVIDIA H100", torch.__version__, "3x0e"):
        assert part in record.message
    module = Convolution(PATHS)
    module.backend = "cuda"
    with pytest.raises(NoKernels, match=fail):
        module.chosen("cuda", torch.float32)


def test_wrong_numbers_are_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, FakeCuda())
    monkeypatch.setitem(check.TOLERANCE, torch.float32, 1e-12)
    found = convolution.cuda_verdict(0, torch.float32, PATHS.name)
    assert not found.works
    assert "from plain torch, which may be 1e-12" in found.finding


def test_preflight_shows_the_verdict(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EquivariantConfig(irreps="3x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,))
    potential = Potential(EquivariantNetwork(config, (8,), mean_neighbors=20.0), (8,), ("PBE",))
    on_a_gpu(monkeypatch, FakeCuda())
    check_ok = check_kernels(potential, 0)
    assert check_ok is not None
    assert check_ok.verdict == "ok"
    assert "self-check of 2 convolutions: own kernels for sm_90" in check_ok.finding
    check._verdicts.cache_clear()
    on_a_gpu(monkeypatch, FakeCuda("cuLaunchKernel"))
    failed = check_kernels(potential, 0)
    assert failed is not None
    assert (failed.verdict, "please report this line" in failed.advice) == ("warn", True)
    assert "an illegal memory access (NVIDIA H100" in failed.finding


def test_without_a_device_there_are_no_own_kernels() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    check._verdicts.cache_clear()
    assert not convolution.cuda_verdict(0, torch.float32, PATHS.name).works
    check._verdicts.cache_clear()


def test_the_cache_is_that_of_the_other_kernels() -> None:
    assert build.writable_folder is c_compiler.writable_folder
