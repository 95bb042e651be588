"""Schedule-free AdamW: an average of the iterates replaces a decaying learning rate.

Defazio et al., arXiv:2405.15682, algorithm 1. Three points: z moves by Adam's steps, x is the average of z, which is
validated and released, and the parameters are y between the two, where gradients are taken. Our own code because the
authors' package keeps only y and z, and computes x from them before validation and y from x afterwards: that rounds, so
a run would depend on the times of validation and resume. Keeping x as well costs one more copy of the weights.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free AdamW with a constant learning rate after the warm-up."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        """Prepare the optimizer.

        Args:
            groups: Groups of parameters.
            lr: Default learning rate of groups.
            betas: Position of y between z (0) and x (1), and decay of Adam's second moment.
            eps: Added to the root of the second moment.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0, "sum_of_squares": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter with a gradient; return the result of the closure, which is called first."""
        with torch.enable_grad():
            result = None if closure is None else closure()
        for group in self.param_groups:
            group["step"] += 1
            rate = group["lr"] * (1 - group["betas"][1] ** group["step"]) ** 0.5
            group["sum_of_squares"] += rate**2
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group, rate)
        return result

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"iterate": parameter.clone(), "average": parameter.clone()}
            state["second_moment"] = torch.zeros_like(parameter)
        place, decay = group["betas"]
        moment = state["second_moment"].mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        iterate, average = state["iterate"], state["average"]
        iterate.sub_(parameter, alpha=rate * group["weight_decay"])
        iterate.addcdiv_(gradient, moment.sqrt().add_(group["eps"]), value=-rate)
        average.lerp_(iterate, rate**2 / group["sum_of_squares"])
        parameter.copy_(torch.lerp(iterate, average, place))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Set the parameters to the average x within the context, without copying or rounding."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, state in self.state.items():
            parameter.data, state["average"] = state["average"], parameter.data
