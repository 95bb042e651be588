"""Compiled kernels and their cache, in processes of their own: what is remembered per process is part of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="LOG %(message)s")
import torch
from e3nn import o3
from foundation.kernels.convolution import Convolution
from foundation.kernels.edges import EdgeIndex
from foundation.kernels.couplings import TensorProductPaths
torch.set_num_threads(1)
children = int(os.environ.get("CHILDREN", "0"))
while children and os.fork():
    children -= 1
if not children and "CHILDREN" in os.environ:
    sys.exit(max(os.wait()[1] for _ in range(int(os.environ["CHILDREN"]))))
module = Convolution(TensorProductPaths(o3.Irreps("4x0e"), o3.Irreps("1x0e+1x1e"), o3.Irreps("1x0e+1x1e")))
edges = EdgeIndex.single(torch.tensor([1, 0]), torch.tensor([0, 1]), 2)
for _ in range(2):
    out = module(torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 8), edges)
os.write(1, f"SUM {float(out.sum())}\\n".encode())  # in one piece, for several processes write to the same pipe
"""


def start(cache: Path, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.getcwd(), **environment}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, times: int = 1) -> list[str]:
    """The log lines of a program that came to the right result, so many times."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("SUM 32.0") == times, output
    return [line.removeprefix("LOG ") for line in output.splitlines() if line.startswith("LOG ")]


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "foundation" / "kernels").iterdir())


@pytest.mark.long
def test_several_processes_may_compile_at_once_and_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    assert finish(start(tmp_path, CHILDREN="4"), times=4) == []
    whole = entries(tmp_path)
    assert all(entry.suffix == ".so" for entry in whole)
    name = whole[0].name.split("-")[0]
    assert all(entry.name.startswith(name) for entry in whole)
    contents = [entry.read_bytes() for entry in whole]
    for entry, content in zip(whole, contents, strict=True):
        entry.write_bytes(content[: len(content) // 2])
    lines = finish(start(tmp_path))
    assert lines
    assert all("is damaged; compiling it again" in line for line in lines)


def test_without_a_compiler_plain_torch_computes_and_one_line_says_so(tmp_path: Path) -> None:
    (line,) = finish(start(tmp_path, PATH=str(tmp_path)))
    assert "plain torch" in line
    assert "no C compiler on PATH" in line
    assert not (tmp_path / "foundation").exists()


def test_a_compiler_that_fails_is_no_compiler(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "gcc"
    broken.parent.mkdir()
    version = '[ "$1" = --version ] && echo broken 1.0 && exit 0'
    broken.write_text(f"#!/bin/sh\n{version}\necho no space left >&2\nexit 1\n")
    broken.chmod(0o755)
    (line,) = finish(start(tmp_path, PATH=f"{broken.parent}:{os.environ['PATH']}"))
    assert "plain torch" in line
    assert "no space left" in line


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    # a file where the folder should be: root may write into any read-only folder
    (tmp_path / "foundation").write_text("")
    (line,) = finish(start(tmp_path))
    assert "cannot be written" in line


@pytest.mark.parametrize("backend", ["c", "openequivariance"])
def test_a_backend_that_is_asked_for_and_missing_is_an_error(tmp_path: Path, backend: str) -> None:
    program = PROGRAM.replace("edges =", f"module.backend = {backend!r}\nedges =")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd(), "PATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode
    assert {"c": "no C compiler on PATH", "openequivariance": "works on cuda, not on cpu"}[backend] in result.stderr
