"""Entries of paths: their places in the arrays and their nonzero couplings, from which kernels are generated."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from dataclasses import dataclass

import numpy as np

from foundation.kernels.couplings import TensorProductPaths


@dataclass(frozen=True)
class Entries:
    """Place of one path in the arrays, and its nonzero couplings."""

    number: int
    channels: int
    degrees: tuple[int, int, int]
    """Number of components of input, harmonic and output."""
    x: int
    y: int
    w: int
    out: int
    """First columns of the path in each array."""
    stride: int
    """Number of columns between components of the output."""
    odd: bool
    """True if the harmonic changes sign with the edge's direction."""
    couplings: dict[tuple[int, int], list[tuple[int, float]]]
    """Nonzero (b, value) for every (a, c)."""
    matrix: dict[tuple[int, int], int]
    """Index of every (a, c) in M."""

    def of_input(self, a: int) -> list[int]:
        """Return the output components that an input component couples to."""
        return [c for other, c in self.couplings if other == a]

    def of_output(self, c: int) -> list[int]:
        """Return the input components that couple to an output component."""
        return [a for a, other in self.couplings if other == c]


def entries_of(paths: TensorProductPaths) -> list[list[Entries]]:
    """Return the entries of the paths, grouped by input irrep."""
    x, y, out = paths.irreps_in.slices(), paths.irreps_harmonics.slices(), paths.irreps_out.slices()
    place = {item.ir: (part.start, item.mul) for item, part in zip(paths.irreps_out, out, strict=True)}
    used = dict.fromkeys(place, 0)
    groups: dict[int, list[Entries]] = {}
    weights = matrix = 0
    for number, path in enumerate(paths.paths):
        wigner = paths.wigner[number]
        couplings: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for a, b, c in sorted(np.argwhere(abs(wigner) > 1e-12).tolist(), key=lambda entry: (entry[2], entry[0])):
            couplings.setdefault((a, c), []).append((b, float(wigner[a, b, c])))
        start, stride = place[path.output]
        entry = Entries(
            number=number,
            channels=path.channels,
            degrees=(wigner.shape[0], wigner.shape[1], wigner.shape[2]),
            x=x[path.input].start,
            y=y[path.harmonic].start,
            w=weights,
            out=start + used[path.output],
            stride=stride,
            odd=paths.odd_harmonics[y[path.harmonic].start],
            couplings=couplings,
            matrix={key: matrix + k for k, key in enumerate(couplings)},
        )
        groups.setdefault(path.input, []).append(entry)
        used[path.output] += path.channels
        weights += path.channels
        matrix += len(couplings)
    return [groups[number] for number in sorted(groups)]
