"""Agreement with sevenn 0.13 on its published models: energies, forces, stresses, parameter gradients, and back again.

Every difference is the largest one over the whole set, over the largest value of the same quantity. In float32 both
programs round; what rounding sevenn's own float32 numbers carry (against its float64 ones) stands beside.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import torch
from ase.build import add_adsorbate, bcc110, diamond111, fcc111, hcp0001, molecule
from ase.collections import g2

import foundation
from data_pipeline.sources.source import resolve
from data_pipeline.structure import Structure
from foundation.interop.calculator import to_structure
from foundation.interop.sevennet import our_weights, to_sevennet
from foundation.potential import Prediction
from tests.benchmarks.rows import Row, write
from tests.foundation.interop.sevenn_peer import PEER_NAMES, Sevenn, differences, gradients, predict, squares

COMMAND = "make bench BENCH=sevennet"
PEER = "sevenn 0.13, its own rounding"
CASES = (
    ("sevennet-0", None),
    ("sevennet-0-22may2024", None),
    ("sevennet-l3i5", None),
    ("sevennet-mf-0", "PBE"),
    ("sevennet-mf-0", "R2SCAN"),
)
BARS = {torch.float32: 1e-6, torch.float64: 1e-10}
GRADIENT_BARS = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the models are compared on."""

    data: str = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
    """Crystals."""
    num_frames: int = 200
    """Crystals to take, evenly from those of the file that are not too large."""
    max_atoms: int = 20
    """Atoms of the largest crystal to take; sevenn takes most of the time."""
    num_molecules: int = 20
    """Molecules to take, evenly from the G2 set."""
    num_gradient_frames: int = 8
    """Crystals to take the gradient of the loss over, the smallest of those."""


def run(config: Config) -> None:
    """Compare and write runs/bench/sevennet.json."""
    torch.set_num_threads(1)
    frames = [atoms for atoms in ase.io.read(resolve(config.data, field="data"), ":") if len(atoms) <= config.max_atoms]
    crystals = [to_structure(atoms) for atoms in frames[:: len(frames) // config.num_frames][: config.num_frames]]
    names = g2.names[:: len(g2.names) // config.num_molecules][: config.num_molecules]
    sets = {
        "crystals of MPtrj": crystals,
        "molecules": [to_structure(molecule(name)) for name in names],
        "slabs": slabs(),
    }
    few = sorted(crystals, key=lambda structure: structure.num_atoms)[: config.num_gradient_frames]
    peers = {name: Sevenn(PEER_NAMES[name]) for name in dict.fromkeys(name for name, _ in CASES)}
    rows = []
    for name, theory in CASES:
        rows += values(name, theory, peers[name], sets)
    rows += parameter_gradients("sevennet-0", peers["sevennet-0"], few)
    for name, theory in CASES:
        rows.append(round_trip(name, theory, peers[name], [*few, *sets["molecules"][:4]]))
    write("sevennet", rows)


def slabs() -> list[Structure]:
    """Return surfaces, periodic in two directions, with and without something on them."""
    clean = [
        fcc111("Cu", (2, 2, 4), vacuum=8),
        bcc110("Fe", (2, 2, 4), vacuum=8),
        hcp0001("Ti", (2, 2, 4), vacuum=8),
        diamond111("Si", (2, 2, 4), vacuum=8),
    ]
    covered = fcc111("Pt", (2, 2, 4), vacuum=8)
    add_adsorbate(covered, molecule("CO"), 1.8, "ontop", mol_index=1)
    for number, slab in enumerate((*clean, covered)):
        slab.rattle(0.05, seed=number)
    return [to_structure(slab) for slab in (*clean, covered)]


def values(name: str, theory: str | None, peer: Sevenn, sets: dict[str, list[Structure]]) -> list[Row]:
    """Return the differences of energies, forces and stresses on every set."""
    potential = foundation.load(name)
    number, title, rows = potential.theory_number(theory), _title(name, theory), []
    for kind, structures in sets.items():
        volumes, results = [structure.volume for structure in structures], {}
        for dtype in BARS:
            mine = [predict(potential.cast(dtype), [structure], number) for structure in structures]
            results[dtype] = mine, [peer.predict([structure], dtype, theory) for structure in structures]
        rounding = differences(results[torch.float32][1], results[torch.float64][1], volumes)
        for dtype, (mine, theirs) in results.items():
            for quantity, difference in differences(mine, theirs, volumes).items():
                measure = f"{title}, {len(structures)} {kind}: {quantity}, {_short(dtype)}"
                own = rounding[quantity] if dtype == torch.float32 else None
                rows.append(_row(measure, difference, BARS[dtype], own))
    return rows


def parameter_gradients(name: str, peer: Sevenn, structures: Sequence[Structure]) -> list[Row]:
    """Return the differences of the gradient of a loss of energies, forces and stresses."""
    rows = []
    for dtype, bar in GRADIENT_BARS.items():
        potential = foundation.load(name).cast(dtype).train()
        squares(predict(potential, structures), structures).backward()
        peer.model.zero_grad()
        squares(peer.predict(structures, dtype, training=True), structures).backward()
        expected = our_weights(gradients(peer), potential.network, (0, 13))
        worst = 0.0
        for weight, parameter in potential.network.named_parameters():
            assert parameter.grad is not None
            difference = (parameter.grad - expected[weight]).abs().max() / expected[weight].abs().max()
            worst = max(worst, float(difference))
        measure = f"{name}, {len(structures)} crystals: gradient of E+F+S loss, worst parameter tensor, {_short(dtype)}"
        rows.append(_row(measure, worst, bar))
    return rows


def round_trip(name: str, theory: str | None, peer: Sevenn, structures: Sequence[Structure]) -> Row:
    """Return the difference in sevenn of a model and of what was read from it and written again."""
    with tempfile.TemporaryDirectory() as folder:
        to_sevennet(foundation.load(name), Path(folder) / "again.pth")
        again = Sevenn(Path(folder) / "again.pth")

    def energies_and_forces(model: Sevenn) -> list[Prediction]:
        return [model.predict([structure], torch.float32, theory) for structure in structures]

    found = differences(energies_and_forces(again), energies_and_forces(peer), [s.volume for s in structures])
    return _row(f"{_title(name, theory)} read, written and run by sevenn, float32", max(found.values()), 1e-6)


def _row(measure: str, value: float, bar: float, rounding: float | None = None) -> Row:
    return Row(
        measure=measure,
        value=value,
        unit="relative",
        peer=None if rounding is None else PEER,
        peer_value=rounding,
        bar=bar,
        holds=value <= bar,
        command=COMMAND,
    )


def _title(name: str, theory: str | None) -> str:
    return f"{name} at {theory}" if theory else name


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
