"""The equivariant convolution as a module, with its choice of backend and the plain-torch implementation.

Backends are generated C and generated CUDA C (foundation::convolution on a CPU and on CUDA), OpenEquivariance (on CUDA,
with its own derivatives) and plain torch, which runs anywhere and has derivatives of any order. In plain torch, the
Clebsch-Gordan tensor is contracted with Y first, per edge: the small matrix that results is shared by all channels, so
the rest is one batched matrix product. That makes e3nn's per-path slices and their zero-filled gradients unnecessary,
at the price of messages (edges × components × channels) in memory.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from functools import cache

import torch
from e3nn import o3
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.backend import Backend, Implemented, check_device, say_once
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import native
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.kernels.cuda import check, openequivariance
from foundation.kernels.cuda.nvrtc import NoKernels
from foundation.kernels.edges import EdgeIndex, spread
from foundation.kernels.operator import convolution, convolution_of_hidden


class Convolution(Implemented):
    """The operator for a fixed set of paths, without parameters."""

    def __init__(self, paths: TensorProductPaths) -> None:
        super().__init__()
        self.paths = TensorProductPaths.named(paths.name)
        # kept outside the buffers, which a cast to float32 and back would round
        self._exact = self.paths.couplings
        self._used = list(self._exact)
        self._couplings: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def forward(
        self,
        features: Float[Tensor, "atoms features"],
        harmonics: Float[Tensor, "pairs harmonics"],
        weights: Float[Tensor, "pairs weights"],
        edges: EdgeIndex,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the sum over each atom's edges of features times harmonics times weights."""
        if not self.paths.paths:
            return features.new_zeros(features.shape[0], 0)
        backend = self.chosen(features.device.type, features.dtype)
        if backend in ("c", "cuda"):
            return convolution(features, harmonics, weights, list(edges), self.paths.name)
        if backend == "openequivariance":
            return self._assemble(openequivariance.outputs(self.paths.name, features, harmonics, weights, edges))
        return self.in_torch(features, harmonics, weights, edges)

    def in_torch(
        self,
        features: Float[Tensor, "atoms features"],
        harmonics: Float[Tensor, "pairs harmonics"],
        weights: Float[Tensor, "pairs weights"],
        edges: EdgeIndex,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the same in plain torch, whatever the backend."""
        return self._assemble(self._plain(features, harmonics, weights, edges))

    def of_hidden(
        self,
        features: Float[Tensor, "atoms features"],
        harmonics: Float[Tensor, "pairs harmonics"],
        hidden: Float[Tensor, "pairs hidden"],
        matrix: Float[Tensor, "hidden weights"],
        edges: EdgeIndex,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the same with the weights hidden @ matrix, in C, which makes them where they are used.

        They are not kept for the gradient, and their own gradient is never in memory, which is most of the memory of a
        prediction. Made twice instead, they cost it a twentieth of its time; a training step would make them six times.
        """
        return convolution_of_hidden(features, harmonics, hidden, matrix, list(edges), self.paths.name)

    def chosen(self, device: str, dtype: torch.dtype) -> Backend:
        """Return the implementation on a kind of device, with 'auto' resolved."""
        return chosen_backend(self.backend, device, dtype, self.paths.name)

    def _plain(self, features: Tensor, harmonics: Tensor, weights: Tensor, edges: EdgeIndex) -> list[Tensor]:
        """Return the result of every path, computed in plain torch."""
        paths, num_atoms, num_edges = self.paths, features.shape[0], edges.senders.shape[0]
        harmonics, weights = spread(edges, harmonics, weights, paths.odd_harmonics)
        receivers = edges.receivers()
        inputs = features.split([item.dim for item in paths.irreps_in], dim=1)
        path_weights = weights.split([path.channels for path in paths.paths], dim=1)
        outputs: dict[int, Tensor] = {}
        for number in self._used:
            item, numbers = paths.irreps_in[number], paths.of_input(number)
            sizes = [paths.paths[p].output.dim for p in numbers]
            coupling = (harmonics @ self._coupling(number, harmonics)).view(num_edges, sum(sizes), item.ir.dim)
            neighbors = inputs[number].index_select(0, edges.senders).view(num_edges, item.ir.dim, item.mul)
            expanded = [path_weights[p].unsqueeze(1).expand(-1, k, -1) for p, k in zip(numbers, sizes, strict=True)]
            messages = torch.bmm(coupling, neighbors) * torch.cat(expanded, dim=1)
            zeros = messages.new_zeros(num_atoms, sum(sizes) * item.mul)
            summed = zeros.index_add(0, receivers, messages.flatten(1)).view(num_atoms, sum(sizes), item.mul)
            outputs |= dict(zip(numbers, summed.split(sizes, dim=1), strict=True))
        return [outputs[p] for p in range(len(paths.paths))]

    def _coupling(self, number: int, like: Tensor) -> Tensor:
        """Return an input irrep's coupling in the type and on the device of another tensor."""
        key = (number, like.dtype, like.device)
        if key not in self._couplings:
            self._couplings[key] = self._exact[number].to(like)
        return self._couplings[key]

    def _assemble(self, outputs: list[Tensor]) -> Float[Tensor, "atoms outputs"]:
        """Concatenate the paths' results by output irrep."""
        blocks: dict[o3.Irrep, list[Tensor]] = {}
        for path, output in zip(self.paths.paths, outputs, strict=True):
            blocks.setdefault(path.output, []).append(output)
        return torch.cat([torch.cat(parts, dim=2).flatten(1) for parts in blocks.values()], dim=1)


@torch.compiler.assume_constant_result
def chosen_backend(backend: Backend, device: str, dtype: torch.dtype, paths: str) -> Backend:
    """Return the backend of a convolution (by its paths' name); 'auto' becomes the best available one.

    Raises:
        ImportError: OpenEquivariance is requested but not installed.
        NoCompiler: the C backend is asked for and cannot be compiled.
        NoKernels: the own CUDA kernels are asked for and cannot be compiled, or fail their self-check.
        ValueError: the backend does not work on the device.
    """
    number = torch.cuda.current_device() if device == "cuda" and torch.cuda.is_available() else 0
    return _choose(backend, device, number, dtype, paths)


@cache
def _choose(backend: Backend, device: str, number: int, dtype: torch.dtype, paths: str) -> Backend:
    check_device(backend, device, "the convolution")
    best: dict[str, tuple[Backend, ...]] = {"cpu": ("c",), "cuda": ("cuda", "openequivariance")}
    reasons = []
    for wanted in best.get(device, ()) if backend == "auto" else (backend,):
        try:
            _try(wanted, number, dtype, paths)
        except (NoCompiler, NoKernels, ImportError) as error:
            if backend != "auto":
                raise
            reasons.append(str(error))
            continue
        if reasons:
            say_once(f"convolutions are computed by {wanted}, more slowly; please report this line: {reasons[0]}")
        return wanted
    if reasons:
        say_once(f"convolutions are computed by plain torch, several times slower: {'; '.join(reasons)}")
    return "torch"


def _try(backend: Backend, number: int, dtype: torch.dtype, paths: str) -> None:
    """Compile what a backend needs, and check it where it has never run before."""
    if backend == "c":
        native.library(paths, dtype)
    elif backend == "cuda":
        found = cuda_verdict(number, dtype, paths)
        if not found.works:
            raise NoKernels(f"the own CUDA kernels are not used: {found.finding}")
    elif backend == "openequivariance" and not openequivariance.available():
        raise ImportError("OpenEquivariance is not installed: pip install 'foundation[cuda]'")


def cuda_verdict(number: int, dtype: torch.dtype, paths: str) -> check.Verdict:
    """Return whether the own kernels of a set of paths (by name) work on a CUDA device, checked at the first call."""
    return check.verdict(number, dtype, paths, Convolution(TensorProductPaths.named(paths)).in_torch)


def cuda_verdicts(model: torch.nn.Module, number: int) -> list[check.Verdict]:
    """Return the verdicts on a CUDA device for every set of paths of a model, in the type of its parameters."""
    found = {module.paths.name for module in model.modules() if isinstance(module, Convolution) and module.paths.paths}
    dtype = next(model.parameters()).dtype
    return [cuda_verdict(number, dtype, name) for name in sorted(found)]
