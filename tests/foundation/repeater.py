"""Recorder for tests on the CPU, and the questions that recorded work must not ask."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foundation.recording import Work
from tests.foundation.training.device_questions import Questions


class Repeater:
    """Recorder that works on the CPU: a recording does the work again, with the tensors that it was made with."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Work) -> tuple[Callable[[], None], list[Tensor]]:
        self.recorded += 1
        results = [torch.full_like(each, torch.nan) for each in work()]

        def replay() -> None:
            for place, value in zip(results, work(), strict=True):
                place.copy_(value)

        return replay, results


class HostConstants(Questions):
    """Counter that also counts tensors made from numbers of the host, which a recording cannot copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "lift_fresh":
            self.asked.append("a tensor from numbers of the host")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Watcher(Repeater):
    """Recorder that keeps the questions that the work asks when it is recorded, after a first run."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def record(self, work: Work) -> tuple[Callable[[], None], list[Tensor]]:
        work()
        with HostConstants() as questions:
            work()
        self.asked += questions.asked
        return super().record(work)
