"""A potential compiled as a library and called from Python."""

import ctypes
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from data_pipeline.graphs.batch import GraphBatch
from foundation.engine.network import NetworkSource, network_source
from foundation.kernels.cpu import compiler
from foundation.potential import Potential

MAGIC = b"FNDMODEL"
REAL = {torch.float32: ("float", np.float32), torch.float64: ("double", np.float64)}


class _System(ctypes.Structure):
    _fields_ = [
        ("num_local", ctypes.c_int64),
        ("num_atoms", ctypes.c_int64),
        ("num_edges", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("elements", "row_pointers", "senders", "vectors")),
        ("num_threads", ctypes.c_int32),
        ("exchange", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        ("energy", ctypes.c_double),
        ("atom_energies", ctypes.c_void_p),
        ("forces", ctypes.c_void_p),
        ("virial", ctypes.c_double * 9),
    ]


def weights_file(source: NetworkSource, dtype: torch.dtype) -> bytes:
    """Return the file of numbers of a library."""
    real = REAL[dtype][1]
    content = source.constants.astype(np.float64).tobytes() + source.numbers.astype(real).tobytes()
    sizes = (source.layout, real().itemsize, len(source.numbers), len(source.constants), _fnv1a(content))
    return MAGIC + struct.pack("<5Q", *sizes) + content


def defines(source: NetworkSource, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the compiler's definitions for a float type."""
    name = REAL[dtype][0]
    return (f"-DREAL={name}", f"-DDOUBLE={int(name == 'double')}", f"-DLAYOUT={source.layout}u")


def _fnv1a(content: bytes) -> int:
    total = 14695981039346656037
    for byte in content:
        total = ((total ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return total


class CompiledPotential:
    """A potential's energies, forces and virial by its compiled library."""

    def __init__(self, potential: Potential, theory: int = 0, *, table: bool = True) -> None:
        source = network_source(potential, theory, table=table)
        dtype = potential.dtype
        self._library = compiler.load(source.sources, defines(source, dtype))
        self._library.foundation_last_error.restype = ctypes.c_char_p
        self._model = ctypes.c_void_p()
        self._positions = potential.get_buffer("_position").cpu().numpy().astype(np.int32)
        with tempfile.NamedTemporaryFile(suffix=".weights") as file:
            Path(file.name).write_bytes(weights_file(source, dtype))
            self._check(self._library.foundation_open(file.name.encode(), ctypes.byref(self._model)))

    def __call__(self, batch: GraphBatch) -> tuple[Any, ...]:
        """Return energy [eV], energies of atoms, forces [eV/Å] and virial [eV] of one structure."""
        vectors = np.ascontiguousarray(batch.edge_vectors().numpy())
        elements = np.ascontiguousarray(self._positions[batch.numbers.numpy()])
        rows, senders = batch.row_pointers.numpy(), batch.senders.numpy()
        atoms = len(elements)
        energies, forces = np.empty(atoms), np.empty((atoms, 3))
        system = _System(
            num_local=atoms,
            num_atoms=atoms,
            num_edges=len(senders),
            elements=elements.ctypes.data,
            row_pointers=rows.ctypes.data,
            senders=senders.ctypes.data,
            vectors=vectors.ctypes.data,
            num_threads=torch.get_num_threads(),
        )
        result = _Result(atom_energies=energies.ctypes.data, forces=forces.ctypes.data)
        self._check(self._library.foundation_compute(self._model, ctypes.byref(system), ctypes.byref(result)))
        virial: Float64[np.ndarray, "3 3"] = np.array(result.virial).reshape(3, 3)
        return result.energy, energies, forces, virial

    def _check(self, status: int) -> None:
        if status:
            raise ValueError(self._library.foundation_last_error().decode())

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.foundation_close(self._model)
