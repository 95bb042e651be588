"""Molecules and ions of a lithium electrolyte, and boxes packed with them at random.

Geometries are built from ideal bond lengths and angles (C-H 1.09, C=O 1.20, C-O 1.34 to 1.44, C-C 1.52, P-F 1.60 Å);
what drives the dynamics relaxes them.
"""

from collections.abc import Mapping

import ase
import ase.units
import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

CLEARANCE = 2.0
"""Smallest distance of atoms of two molecules in a new box [Å]."""
MAX_TRIES = 20_000
"""Number of random places tried for a molecule before the box is said to be too dense."""


def _molecule(symbols: str, *coordinates: tuple[float, float, float]) -> ase.Atoms:
    return ase.Atoms(symbols, positions=coordinates)


MOLECULES = {
    "Li": _molecule("Li", (0.0, 0.0, 0.0)),
    "PF6": _molecule(
        "PF6",
        (0.0, 0.0, 0.0),
        (1.6, 0.0, 0.0),
        (-1.6, 0.0, 0.0),
        (0.0, 1.6, 0.0),
        (0.0, -1.6, 0.0),
        (0.0, 0.0, 1.6),
        (0.0, 0.0, -1.6),
    ),
    "EC": _molecule(
        "COOOCCHHHH",
        (0.00, 0.00, 0.00),
        (0.00, 1.19, 0.00),
        (-1.11, -0.78, 0.00),
        (1.11, -0.78, 0.00),
        (-0.77, -2.17, 0.00),
        (0.77, -2.17, 0.00),
        (-1.15, -2.66, -0.89),
        (-1.15, -2.66, 0.89),
        (1.15, -2.66, -0.89),
        (1.15, -2.66, 0.89),
    ),
    "EMC": _molecule(
        "COOOCCCHHHHHHHH",
        (0.00, 0.00, 0.00),
        (0.00, 1.21, 0.00),
        (-1.08, -0.79, 0.00),
        (1.08, -0.79, 0.00),
        (-2.33, -0.09, 0.00),
        (2.34, -0.09, 0.00),
        (3.45, -1.12, 0.00),
        (-2.40, 0.53, -0.89),
        (-3.15, -0.82, 0.00),
        (-2.40, 0.53, 0.89),
        (2.41, 0.54, 0.89),
        (2.41, 0.54, -0.89),
        (3.36, -1.74, -0.89),
        (4.41, -0.62, 0.00),
        (3.36, -1.74, 0.89),
    ),
}
"""Molecules and ions by name; the order of their atoms is that of every molecule in a box."""


def packed(counts: Mapping[str, int], density: float, rng: np.random.Generator) -> ase.Atoms:
    """Return a cubic box of a density [g/cm³], filled at random, with each atom's molecule in the array `molecule`.

    Raises:
        ValueError: a molecule is unknown, or no place was found for one.
    """
    if unknown := counts.keys() - MOLECULES.keys():
        raise ValueError(f"molecule {min(unknown)} is unknown; there are {', '.join(MOLECULES)}")
    names = [name for name in MOLECULES for _ in range(counts.get(name, 0))]
    mass = sum(float(MOLECULES[name].get_masses().sum()) for name in names)
    side = (mass / ase.units.kg * 1e3 / density) ** (1 / 3) * 1e8
    placed = {number: np.zeros((0, 3)) for number in range(len(names))}
    # large molecules first: a small one finds room between them
    for number in sorted(range(len(names)), key=lambda number: -len(MOLECULES[names[number]])):
        others = np.concatenate(list(placed.values()))
        placed[number] = _place(MOLECULES[names[number]].positions, others, side, rng)
    box = ase.Atoms(
        numbers=np.concatenate([MOLECULES[name].numbers for name in names]),
        positions=np.concatenate([placed[number] for number in range(len(names))]),
        cell=np.eye(3) * side,
        pbc=True,
    )
    box.new_array("molecule", np.repeat(np.arange(len(names)), [len(MOLECULES[name]) for name in names]))
    return box


def _place(
    shape: Float64[np.ndarray, "atoms 3"],
    others: Float64[np.ndarray, "placed 3"],
    side: float,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "atoms 3"]:
    """Return a molecule at a random place with a random orientation, clear of others and of its own images."""
    for _ in range(MAX_TRIES):
        turned = (shape - shape.mean(axis=0)) @ Rotation.random(rng=rng).as_matrix().T + rng.uniform(0, side, 3)
        between = turned[:, None] - others
        between -= side * np.rint(between / side)
        if not len(others) or np.einsum("abi,abi->ab", between, between).min() > CLEARANCE**2:
            return turned
    raise ValueError(
        f"no room for a molecule in a box of {side:.1f} Å with {len(others)} atoms; start from a lower density"
    )


def scaled(box: ase.Atoms, factor: float) -> None:
    """Scale a box in place; its molecules keep their shapes and move with their centres."""
    molecules = box.arrays["molecule"]
    sizes = np.bincount(molecules)
    sums = np.stack([np.bincount(molecules, axis) for axis in box.positions.T], axis=1)
    box.positions += ((factor - 1) * sums / sizes[:, None])[molecules]
    box.set_cell(np.asarray(box.cell) * factor)
