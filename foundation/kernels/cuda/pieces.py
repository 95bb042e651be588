"""Pieces of source that several kernels share."""

from dataclasses import dataclass

from foundation.kernels.cuda.layout import Item, KernelName, Part, Shape
from foundation.kernels.entries import Entries


@dataclass(frozen=True)
class Kernel:
    """A generated kernel: its parts, and the names of its arguments in their order."""

    name: KernelName
    parts: tuple[Part, ...]
    shape: Shape
    inputs: tuple[str, ...]
    """Names of the arrays that it reads."""
    results: tuple[str, ...]
    """Names of the arrays that it writes."""
    double: bool
    """True for a kernel of the double backward, which has tangents too."""


def loads(name: str, item: Item, where: str) -> list[str]:
    """Return code that reads the features of an item: name{slice}_{component}."""
    first, channels = item.entries[0].x, item.channels
    return [
        f"const T {name}{s}_{a} = load({where} + {first + a * channels + u}, {on});"
        for s, u, on in item.lanes()
        for a in range(item.inputs)
    ]


def weights(entry: Entries, item: Item, double: bool) -> list[str]:
    """Return code that reads a path's weights: w{slice}, and v{slice} of the tangent."""
    names = (("w", "ws"), ("v", "vs")) if double else (("w", "ws"),)
    return [f"const T {n}{s} = load_past({p} + {entry.w + u}, {on});" for n, p in names for s, u, on in item.lanes()]
