"""A potential compiled as a library and called from Python."""

import ctypes
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float64, Int

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.structure import SYMBOLS
from foundation.engine.network import NetworkSource, network_source
from foundation.kernels.cpu import compiler
from foundation.potential import Potential, UnknownElement

MAGIC = b"FNDMODEL"
REAL = {torch.float32: ("float", np.float32), torch.float64: ("double", np.float64)}
"""Float types: C's name and NumPy's."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Factor of the checksum; odd, so that a change of one word always changes the sum."""
Exchange = Callable[[object, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """Atoms with their neighbours; the first ones have edges, those after them are ghosts of other processes."""

    numbers: Int[np.ndarray, " atoms"]
    """Atomic numbers."""
    row_pointers: Int[np.ndarray, " local_plus_one"]
    """The edges of atom i are row_pointers[i] to row_pointers[i + 1]."""
    senders: Int[np.ndarray, " edges"]
    """Atom at the far end of each edge."""
    vectors: Float64[np.ndarray, "edges 3"]
    """Vector of each edge, to its sender [Å]."""
    exchange: Exchange | None = None
    """Function that fills in the rows of ghosts: it is given None, the address of all rows and their width."""

    @staticmethod
    def of(batch: GraphBatch) -> "System":
        """Return one structure as a system without ghosts."""
        return System(
            numbers=batch.numbers.numpy(),
            row_pointers=batch.row_pointers.numpy(),
            senders=batch.senders.numpy(),
            vectors=batch.edge_vectors().detach().numpy(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Computed:
    """Results of a library."""

    energy: float
    """Energy of the local atoms [eV]."""
    atom_energies: Float64[np.ndarray, " local"]
    """Energy of each [eV]."""
    forces: Float64[np.ndarray, "atoms 3"]
    """Forces [eV/Å]; those on ghosts are parts of their owners'."""
    virial: Float64[np.ndarray, "3 3"]
    """Derivative of the energy by strain [eV]."""
    distances: Float64[np.ndarray, " local"] | None = None
    """Distance of each local atom from the training data, if the potential's release has uncertainties."""


class _System(ctypes.Structure):
    """`foundation_system` of foundation_model.h."""

    _fields_ = [
        ("num_local", ctypes.c_int64),
        ("num_atoms", ctypes.c_int64),
        ("num_edges", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("elements", "row_pointers", "senders", "vectors")),
        ("num_threads", ctypes.c_int32),
        ("exchange", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)),
        ("context", ctypes.c_void_p),
    ]


class _Result(ctypes.Structure):
    """`foundation_result` of foundation_model.h."""

    _fields_ = [
        ("energy", ctypes.c_double),
        ("atom_energies", ctypes.c_void_p),
        ("forces", ctypes.c_void_p),
        ("atom_virials", ctypes.c_void_p),
        ("virial", ctypes.c_double * 9),
        ("distances", ctypes.c_void_p),
    ]


class CompiledPotential:
    """A potential at one level of theory as a compiled library, in the potential's float type."""

    def __init__(self, potential: Potential, theory: int = 0, *, table: bool = True) -> None:
        """Compile a potential, or take its library from the cache.

        Args:
            potential: The potential.
            theory: Number of its level of theory.
            table: Take radial functions from a table of polynomials, which is faster: forces of float64 then differ by
                about 1e-6 eV/Å, and those of float32 no more than by rounding.

        Raises:
            NoCompiler: there is no C compiler, or it fails.
            ValueError: its network cannot be compiled.
        """
        source, dtype = network_source(potential, theory, table=table), potential.dtype
        self.elements, self._arguments = potential.elements, (potential, theory, table)
        self._places = np.full(len(SYMBOLS), -1, np.int32)
        self._places[list(potential.elements)] = np.arange(len(potential.elements))
        self._library = compiler.load(source.sources, definitions(source, dtype))
        self._library.foundation_last_error.restype = ctypes.c_char_p
        self._model = ctypes.c_void_p()
        with tempfile.NamedTemporaryFile(suffix=".weights") as file:
            file.write(weights_file(source, dtype))
            file.flush()
            self._check(self._library.foundation_open(file.name.encode(), ctypes.byref(self._model)))

    def __call__(self, batch: GraphBatch) -> Computed:
        """Return the predictions for one structure.

        Raises:
            UnknownElement: the potential does not know an element.
        """
        return self.compute(System.of(batch))

    def compute(self, system: System) -> Computed:
        """Return the predictions for a system.

        Raises:
            UnknownElement: the potential does not know an element.
            ValueError: its arrays contradict each other.
        """
        local, atoms = len(system.row_pointers) - 1, len(system.numbers)
        elements = self._places[system.numbers]
        if (elements < 0).any():
            unknown = SYMBOLS[int(system.numbers[elements < 0][0])]
            raise UnknownElement(
                f"the potential does not know {unknown}; it was trained on {len(self.elements)} elements"
            )
        energies, forces = np.empty(local), np.empty((atoms, 3))
        arrays = {
            "elements": elements,
            "row_pointers": np.ascontiguousarray(system.row_pointers, np.int64),
            "senders": np.ascontiguousarray(system.senders, np.int64),
            "vectors": np.ascontiguousarray(system.vectors, np.float64),
        }
        described = _System(
            num_local=local,
            num_atoms=atoms,
            num_edges=len(system.senders),
            num_threads=torch.get_num_threads(),
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        if system.exchange is not None:
            described.exchange = type(described.exchange)(system.exchange)
        result = _Result(atom_energies=energies.ctypes.data, forces=forces.ctypes.data)
        distances = None if self._arguments[0].last_layer is None else np.empty(local)
        if distances is not None:
            result.distances = distances.ctypes.data
        self._check(self._library.foundation_compute(self._model, ctypes.byref(described), ctypes.byref(result)))
        virial = np.array(result.virial).reshape(3, 3)
        return Computed(energy=result.energy, atom_energies=energies, forces=forces, virial=virial, distances=distances)

    def __reduce__(self) -> tuple:
        potential, theory, table = self._arguments
        return partial(CompiledPotential, table=table), (potential, theory)

    def _check(self, status: int) -> None:
        if status:
            raise ValueError(self._library.foundation_last_error().decode())

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.foundation_close(self._model)


def weights_file(source: NetworkSource, dtype: torch.dtype) -> bytes:
    """Return the file of numbers of a library in a float type."""
    real = REAL[dtype][1]
    content = source.constants.astype(np.float64).tobytes() + source.numbers.astype(real).tobytes()
    sizes = (source.layout, real().itemsize, len(source.numbers), len(source.constants), _checksum(content))
    return MAGIC + struct.pack("<5Q", *sizes) + content


def definitions(source: NetworkSource, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the compiler's definitions of a float type and of the fingerprint."""
    name = REAL[dtype][0]
    return (f"-DREAL={name}", f"-DDOUBLE={int(name == 'double')}", f"-DLAYOUT={source.layout}u")


def _checksum(content: bytes) -> int:
    """Return Σ word[i] FACTOR^(words - i) modulo 2^64 of words of 8 bytes, as api.c does word by word."""
    words = np.frombuffer(content + bytes(-len(content) % 8), np.uint64)
    powers = np.multiply.accumulate(np.full(len(words), FACTOR))
    return int((words * powers[::-1]).sum(dtype=np.uint64))
