"""Cells and positions of any size: the edges are those found by trying every pair, or the frame is refused by name."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase.build import bulk

from data_pipeline.building.edge_count import EdgeCounter
from data_pipeline.graphs.batch import collate, neighbor_list
from data_pipeline.sources import AseFiles
from data_pipeline.structure import InvalidStructure
from tests.data_pipeline.trying import by_trying, num_shifts
from tests.fuzz.harness import Mutation, Target

CUTOFFS = (3.0, 5.0)
MAX_SHIFTS, MAX_TRIALS = 20_000, 10_000_000
"""Shifts, and shifts of all pairs, that are tried; larger frames are only compared between search and count."""
NUM_FRAMES = 3

Geometry = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Cell and positions [Å], and periodicity."""


def geometry(number: int) -> Geometry:
    """Return a crystal whose distances are at no cutoff."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=number)
    return np.array(atoms.cell), atoms.positions, np.array(atoms.pbc)


def write(folder: Path, frames: list[Geometry]) -> None:
    """Write frames with all digits."""
    lines = []
    for cell, positions, pbc in frames:
        lattice = " ".join(map(repr, cell.reshape(-1).tolist()))
        periodic = " ".join("FT"[int(flag)] for flag in pbc)
        lines += [
            str(len(positions)),
            f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 energy=-1.0 pbc="{periodic}"',
        ]
        lines += ["Cu " + " ".join(map(repr, row)) for row in positions.tolist()]
    (folder / "frames.extxyz").write_text("\n".join(lines) + "\n")


def make(folder: Path) -> None:
    """Write the crystals."""
    write(folder, [geometry(number) for number in range(NUM_FRAMES)])


def read(folder: Path) -> list[list[int]]:
    """Return the edges of each frame at the cutoffs, which training and build agree on."""
    frames = list(AseFiles(files=(str(folder / "frames.extxyz"),)))
    counts = []
    for frame, counted in zip(frames, EdgeCounter(CUTOFFS)(frames), strict=True):
        if isinstance(counted, InvalidStructure):
            raise counted
        counts.append(counted.counts)
        for cutoff, number in zip(CUTOFFS, counted.counts, strict=True):
            edges = neighbor_list(frame, cutoff)
            assert len(edges.distances) == number
            shifts = num_shifts(frame, cutoff)
            if shifts < MAX_SHIFTS and shifts * frame.num_atoms**2 < MAX_TRIALS:
                assert number == 2 * len(by_trying(frame, cutoff))
    batch = collate(frames, max(CUTOFFS))
    assert batch.num_edges == sum(count[1] for count in counts)
    assert float(batch.edge_vectors().norm(dim=1).max()) < max(CUTOFFS) + 1e-6
    return counts


def changed(change: Callable[[Geometry, random.Random], Geometry]) -> Mutation:
    """Return the mutation that changes the geometry of one frame, or of one after another change of the cell."""

    def edit(folder: Path, chance: random.Random) -> str:
        frames, number = [geometry(number) for number in range(NUM_FRAMES)], chance.randrange(NUM_FRAMES)
        cell, positions, pbc = frames[number]
        if chance.random() < 0.5:
            pbc = np.array([chance.random() < 0.5 for _ in range(3)])
        frames[number] = change((cell, positions.copy(), pbc), chance)
        if chance.random() < 0.3:
            frames[number] = long_vector(frames[number], chance)
        write(folder, frames)
        return f"frame {number}"

    return Mutation(edit=edit)


def magnitude(chance: random.Random, low: float, high: float) -> float:
    return chance.choice((-1, 1)) * math.exp(chance.uniform(math.log(low), math.log(high)))


def long_vector(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    cell = cell.copy()
    cell[chance.randrange(3)] *= magnitude(chance, 1e-7, 1e9)
    return cell, positions, pbc


def sheared(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    one, other = chance.sample(range(3), 2)
    cell = cell.copy()
    cell[one] += round(magnitude(chance, 1, 1e7)) * cell[other]
    return cell, positions, pbc


def needle(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    one, other = chance.sample(range(3), 2)
    cell = cell.copy()
    cell[one] = cell[other] + magnitude(chance, 1e-8, 1.0) * np.eye(3)[one]
    return cell, positions, pbc


def scaled(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    factor = abs(magnitude(chance, 1e-4, 1e9))
    return factor * cell, (factor if chance.random() < 0.5 else 1.0) * positions, pbc


def far_atom(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    positions[chance.randrange(len(positions)), chance.randrange(3)] += magnitude(chance, 1, 1e12)
    return cell, positions, pbc


def moved(frame: Geometry, chance: random.Random) -> Geometry:
    cell, positions, pbc = frame
    return cell, positions + magnitude(chance, 1e2, 1e10), pbc


def crowded(frame: Geometry, chance: random.Random) -> Geometry:
    cell, _, pbc = frame
    drawn = np.random.default_rng(chance.randrange(2**32)).uniform(size=(chance.randrange(2, 5000), 3))
    return 10 * cell, abs(magnitude(chance, 1e-3, 100.0)) * drawn, pbc


TARGETS = (
    Target(
        name="geometry",
        make=make,
        read=read,
        mutations={
            change.__name__.replace("_", " "): changed(change)
            for change in (long_vector, sheared, needle, scaled, far_atom, moved, crowded)
        },
        refusals=(InvalidStructure,),
    ),
)
