"""Muon: the update of a weight matrix is its orthogonalised momentum; AdamW for all other parameters.

Jordan et al., https://kellerjordan.github.io/posts/muon (2024). Our own code because torch.optim.Muon takes only whole
matrices, while the weight of an equivariant linear map is one flat vector of a matrix per irrep (e3nn's layout), and
because it orthogonalises in bfloat16. A step costs fifteen products of the size of each matrix, for any batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic a s + b s³ + c s⁵, whose iteration maps singular values to 0.7 to 1.2 in five steps."""
NUM_ITERATIONS = 5
RMS_OF_ADAM = 0.2
"""Root mean square of an update over the learning rate: about Adam's (Liu et al., arXiv:2502.16982, section 2.2), so
that one learning rate and one weight decay serve both kinds of parameters."""


class Muon(torch.optim.Optimizer):
    """Muon for groups with `shapes`, AdamW for those without."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        """Prepare the optimizer.

        Args:
            groups: Groups of parameters; `shapes` of a group are those of the consecutive matrices in each of its
                parameters, or empty for AdamW.
            lr: Default learning rate of groups.
            momentum: Decay of the momentum of matrices (Nesterov's).
            betas: Decay of AdamW's two moments.
            eps: Added to the root of AdamW's second moment.
        """
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "shapes": ()}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter with a gradient; return the result of the closure, which is called first."""
        with torch.enable_grad():
            result = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["shapes"]:
                    self._orthogonal_step(parameter, parameter.grad, group)
                else:
                    self._adamw_step(parameter, parameter.grad, group)
        return result

    def _orthogonal_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        for part, update in zip(_matrices(parameter, group["shapes"]), _matrices(ahead, group["shapes"]), strict=True):
            scale = RMS_OF_ADAM * math.sqrt(max(update.shape))
            part.sub_(orthogonalized(update), alpha=group["lr"] * scale)

    def _adamw_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.tensor(0.0)}
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        beta1, beta2 = group["betas"]
        adamw(
            [parameter],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _matrices(flat: Tensor, shapes: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Return the matrices of a parameter, as views."""
    parts = flat.view(-1).split([rows * columns for rows, columns in shapes])
    return (part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def orthogonalized(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return approximately U Vᵀ of a matrix U S Vᵀ: singular values become 0.7 to 1.2, unless nearly zero.

    Newton-Schulz iteration in the matrix's float type.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (torch.linalg.matrix_norm(wide) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
