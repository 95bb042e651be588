"""The CUDA kernels of whole models, compiled without a device: registers, spilled bytes, occupancy, and machine code.

`make test-cuda-compile` installs NVIDIA's compiler and disassembler into a folder of their own and runs this. It is not
among the common tests: the packages take 150 MB, and the compilation of all models some minutes.
"""

import argparse
import ctypes
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from foundation.kernels.convolution import Convolution
from foundation.kernels.cuda.build import MOST_SPILLED, build
from foundation.kernels.cuda.codegen import NAMES, REGISTERS
from foundation.kernels.cuda.layout import LANES, Shape
from foundation.kernels.cuda.nvrtc import Compiler
from foundation.models import EquivariantConfig, EquivariantNetwork

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = ("sevennet-0", "sevennet-l3i5", "large")
"""Configurations of configs/pretrain."""
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10}
"""Bytes of shared memory of a multiprocessor of an A100 and of an H100 or H200."""
MOST_WARPS = 64
"""Warps of a multiprocessor."""
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


class Loop(NamedTuple):
    """Instructions of an innermost loop."""

    fused: int
    """Fused multiply-adds."""
    floating: int
    """All floating-point instructions."""
    shared: int
    """Reads of shared memory."""
    all: int


def paths_of(model: str) -> list[str]:
    """Return the names of the different sets of paths of a model."""
    text = yaml.safe_load((REPOSITORY / "configs" / "pretrain" / f"{model}.yaml").read_text())["model"]
    network = EquivariantNetwork(EquivariantConfig(**text), (8,), mean_neighbors=50.0)
    found = [module.paths.name for module in network.modules() if isinstance(module, Convolution)]
    return list(dict.fromkeys(found))


def blocks_of(registers: int, shape: Shape, size: int, target: str) -> int:
    """Return the number of blocks of a kernel that a multiprocessor holds at a time."""
    per_warp = -(-registers * LANES // 256) * 256
    shared = shape.shared(size) if shape.strides else 0
    limits = (REGISTERS // (per_warp * shape.warps), MOST_WARPS // shape.warps, SHARED[target] // (shared + 1024), 32)
    return min(limits)


def loops(code: bytes, disassembler: Path) -> Iterator[Loop]:
    """Yield the innermost loops of a kernel that have many fused multiply-adds."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    names: list[str] = []
    backward: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(names)
        elif instruction := INSTRUCTION.match(line):
            names.append(instruction[2])
            target = TARGET.search(instruction[3])
            if instruction[2] == "BRA" and target and target[1] in labels:
                backward.append((labels[target[1]], len(names)))
    for begin, end in backward:
        inside = names[begin:end]
        if any(begin <= b and e < end for b, e in backward):
            continue
        fused, floating = (sum(name.startswith(kinds) for name in inside) for kinds in (("FFMA", "DFMA"), FLOATING))
        if fused >= 16:
            yield Loop(fused, floating, sum(name.startswith("LDS") for name in inside), len(inside))


FLOATING = ("FFMA", "FMUL", "FADD", "DFMA", "DMUL", "DADD")


def check(model: str, dtype: torch.dtype, compiler: Compiler, disassembler: Path) -> list[str]:
    """Print a table of a model's kernels and return those that spill too much."""
    wrong = []
    for number, paths in enumerate(paths_of(model)):
        print(f"\n{model}, convolution {number + 1}: {paths}, {str(dtype).removeprefix('torch.')}")
        print("| kernel | device | parts | registers | spilled B | shared kB | warps of 64 | FFMA of all (each loop) |")
        print("|---|---|---|---|---|---|---|---|")
        for name in NAMES:
            for target, _ in SHARED.items():
                code, shape = build(paths, name, dtype, compiler, target)
                assert code.registers is not None
                assert code.spilled is not None
                shared = shape.shared(dtype.itemsize) if shape.strides else 0
                warps = blocks_of(code.registers, shape, dtype.itemsize, target) * shape.warps
                shares = ", ".join(
                    f"{loop.fused}/{loop.all} = {loop.fused / loop.all:.2f}"
                    for loop in loops(code.content, disassembler)
                )
                cells = (name, target, shape.parts, code.registers, code.spilled, f"{shared / 1024:.1f}", warps, shares)
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
                if code.spilled > MOST_SPILLED:
                    wrong.append(f"{model} {name} {target} spills {code.spilled} bytes")
    return wrong


def main() -> int:
    """Check all models; return 1 if a kernel spills too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="folder into which NVIDIA's packages were installed")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    options = parser.parse_args()
    (library,) = options.tools.glob("nvidia/*/lib/libnvrtc.so.*")
    (disassembler,) = options.tools.glob("nvidia/*/bin/nvdisasm")
    compiler = Compiler(ctypes.CDLL(str(library)))
    wrong = [line for model in options.models
             for line in check(model, getattr(torch, options.dtype), compiler, disassembler)]  # fmt: skip
    print(f"\nNVRTC {compiler.version[0]}.{compiler.version[1]}; limit {MOST_SPILLED} bytes:", *(wrong or ["all fit"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
