"""The convolution's kernels on the CPU: generated C, called through ctypes."""

import ctypes
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.codegen import generate
from foundation.kernels.cpu.dense import packed, product_of_packed
from foundation.kernels.edges import EdgeIndex

POINTERS = ("x", "y", "w", "g", "vx", "vy", "vw", "gx", "gy", "gw", "gg", "own", "by_edge")
OF_HIDDEN = ("hidden", "packed", "packed_back", "ghidden")


class _Edges(ctypes.Structure):
    """`Edges` of loops.c."""

    _fields_ = [
        ("num_atoms", ctypes.c_int64),
        ("num_edges", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in EdgeIndex._fields),
        ("num_threads", ctypes.c_int32),
    ]


class _Arrays(ctypes.Structure):
    """`Arrays` of loops.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*POINTERS, *OF_HIDDEN)),
        ("num_hidden", ctypes.c_int64),
        ("product", ctypes.c_void_p),
    ]


@cache
def library(name: str, dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled kernels of a set of paths (by `TensorProductPaths.name`) in a float type.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    return compiler.load(generate(TensorProductPaths.named(name)), (f"-DREAL={real}",))


def forward(
    name: str,
    features: Float[Tensor, "atoms features"],
    harmonics: Float[Tensor, "pairs harmonics"],
    weights: Float[Tensor, "pairs weights"],
    edges: EdgeIndex,
) -> Float[Tensor, "atoms outputs"]:
    """Return the convolution."""
    return _forward(name, edges, {"x": features, "y": harmonics, "w": weights}, {})


def forward_of_hidden(
    name: str,
    features: Float[Tensor, "atoms features"],
    harmonics: Float[Tensor, "pairs harmonics"],
    hidden: Float[Tensor, "pairs hidden"],
    matrix: Float[Tensor, "hidden weights"],
    edges: EdgeIndex,
) -> Float[Tensor, "atoms outputs"]:
    """Return the convolution with the weights hidden @ matrix, which are never in memory."""
    given = {"x": features, "y": harmonics, "hidden": hidden, "packed": packed(matrix)}
    return _forward(name, edges, given, _constants(hidden))


def _forward(name: str, edges: EdgeIndex, tensors: dict[str, Tensor], constants: dict[str, int | None]) -> Tensor:
    features = tensors["x"]
    out = features.new_empty(len(features), TensorProductPaths.named(name).irreps_out.dim)
    arrays, kept = _arrays(tensors, constants)
    described = _edges(edges, len(features))
    library(name, features.dtype).forward(
        ctypes.byref(described), ctypes.byref(arrays), ctypes.c_void_p(out.data_ptr())
    )
    del kept
    return out


def backward(
    name: str,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor] | None,
    edges: EdgeIndex,
) -> list[Tensor]:
    """Return the gradients of S(x, Y, W, g) for x, Y and W; with tangents, those of the double backward, also for g."""
    x, y, w, g = inputs
    gradients = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, y, w)]
    given = dict(zip(("gx", "gy", "gw"), gradients, strict=True)) | {"x": x, "y": y, "w": w, "g": g}
    if tangents is not None:
        gradients.append(torch.empty_like(g, memory_format=torch.contiguous_format))
        given |= dict(zip(("vx", "vy", "vw"), tangents, strict=True)) | {"gg": gradients[3]}
    _backward(name, edges, given, {})
    return gradients


def backward_of_hidden(
    name: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor], matrix: Float[Tensor, "hidden weights"], edges: EdgeIndex
) -> list[Tensor]:
    """Return the gradients of S(x, Y, hidden @ matrix, g) for x, Y and hidden; inputs are x, Y, hidden and g."""
    x, y, hidden, g = inputs
    gradients = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, y, hidden)]
    given = dict(zip(("gx", "gy", "ghidden"), gradients, strict=True)) | {"x": x, "y": y, "hidden": hidden, "g": g}
    given |= {"packed": packed(matrix), "packed_back": packed(matrix.t())}
    _backward(name, edges, given, _constants(hidden))
    return gradients


def _backward(name: str, edges: EdgeIndex, tensors: dict[str, Tensor], constants: dict[str, int | None]) -> None:
    x = tensors["x"]
    described = _edges(edges, len(x))
    tensors["own"] = torch.empty_like(tensors["gx"])
    arrays, kept = _arrays(tensors, constants)
    run = library(name, x.dtype).backward
    if not run(ctypes.byref(described), ctypes.byref(arrays)):
        # several threads on one large structure
        by_edge = x.new_empty(len(edges.senders), x.shape[1])
        arrays, kept = _arrays(tensors | {"by_edge": by_edge}, constants)
        run(ctypes.byref(described), ctypes.byref(arrays))
    del kept


def _constants(hidden: Tensor) -> dict[str, int | None]:
    return {"num_hidden": hidden.shape[1], "product": product_of_packed(hidden.dtype)}


def _arrays(tensors: dict[str, Tensor], constants: dict[str, int | None]) -> tuple[_Arrays, list[Tensor]]:
    """Return the pointers, and the contiguous tensors that they point to."""
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    pointers = {name: tensor.data_ptr() for name, tensor in kept.items()}
    return _Arrays(**pointers, **constants), list(kept.values())


def _edges(edges: EdgeIndex, num_atoms: int) -> _Edges:
    """Return the edges as the C struct."""
    pointers = {name: getattr(edges, name).data_ptr() for name in EdgeIndex._fields}
    return _Edges(num_atoms=num_atoms, num_edges=len(edges.senders), num_threads=torch.get_num_threads(), **pointers)
