"""Operations that ask the device, counted on the CPU, where they run as well.

Copies from the device to the host are not seen, because the CPU needs none.
"""

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "histc")
"""Operations whose result, or its size, the host needs; and every `unique`."""


class Questions(TorchDispatchMode):
    """Counter of operations that ask the device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        of_unknown_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in ASKING or name.startswith(("unique", "_unique")) or by_mask or of_unknown_size:
            places = traceback.extract_stack()
            # an optimizer's own count of steps is on the host
            if not any("/torch/optim/" in place.filename for place in places):
                own = [place for place in places if "/foundation/" in place.filename]
                self.asked.append(f"{name} at {own[-1].filename}:{own[-1].lineno}")
        return func(*args, **(kwargs or {}))
