"""Rehearsal structures that nobody owns: random crystals, relaxed by the potential whose knowledge they stand for.

A random crystal has a few neighbours too near and others too far. Its forces are a hundred times those of the relaxed
crystals and of their vicinity of which most training data consist, and on which predictions are to be kept. So its
volume is chosen by energy, and positions and cell follow the forces for some steps: a different number for each, so
that forces of all sizes occur. Steps are those of Barzilai and Borwein (IMA J. Numer. Anal. 8, 141 (1988)), for all
crystals of a batch at once. A small random displacement and strain leaves no symmetric position.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.graphs.packing import Refused, packed
from data_pipeline.sources.random_crystals import RADII, RandomCrystals
from data_pipeline.sources.source import Frame
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.structure import SYMBOLS, InvalidStructure, Structure
from foundation import checkpoint
from foundation.interop.calculator import tabulate
from foundation.naming import resolve
from foundation.potential import Potential, Prediction

log = logging.getLogger(__name__)

BATCH = 64
"""Number of crystals that are relaxed together."""
VOLUMES = np.linspace(0.7, 1.9, 7)
"""Volumes that are tried, over that of the random crystal."""
STEPS = (10, 40)
"""Least and largest number of steps of a relaxation."""
FIRST, LEAST, MOST = 0.03, 0.003, 0.2
"""First, least and largest ratio of a step to the force [Å²/eV]."""
MAX_STEP = 0.15
"""Largest displacement of a step [Å]."""
MAX_RATTLE, MAX_STRAIN = 0.05, 0.01
"""Largest standard deviation of the displacements [Å], drawn uniformly, and largest strain."""
NEAREST = 0.55
"""Least distance over the sum of covalent radii: nearer, potentials have holes into which atoms fall."""
NEAREST_OF_ALL = 0.5
"""Least distance of any two atoms [Å]."""
MAX_FORCE, MAX_STRESS = 15.0, 0.3
"""Largest force [eV/Å] and stress [eV/Å³] of a relaxed crystal."""


def build_generated(potential: Potential, out: Path, *, num_structures: int, seed: int = 0) -> Manifest:
    """Build a data set of relaxed random crystals of all elements that a potential knows, without labels.

    Crystals that fall into a hole of the potential are left out, so it has a few less.

    Args:
        potential: The potential, in evaluation mode.
        out: Folder to write.
        num_structures: Number of random crystals.
        seed: Seed of the crystals.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the potential is one of molecules.
    """
    if potential.network.units:
        raise ValueError(
            "a potential of molecules cannot predict generated crystals: name the data to rehearse with "
            "--rehearsal.data, and for a penalty a Fisher of them, which `foundation fisher` computes"
        )

    @dataclass(frozen=True, kw_only=True)
    class RelaxedCrystals(RandomCrystals):
        """Random crystals relaxed by a potential."""

        relaxed_by: str
        """Checksum of the potential's weights."""

        def make(self, start: int, stop: int) -> Iterator[Structure]:
            """Yield the crystals with the numbers start to stop - 1."""
            return relaxed(super().make(start, stop), potential, seed)

    source = RelaxedCrystals(
        num_crystals=num_structures,
        elements=tuple(SYMBOLS[z] for z in potential.elements),
        seed=seed,
        relaxed_by=checkpoint.weights_sha256(potential),
    )
    provenance = Provenance(
        name=f"generated-{num_structures}",
        licence="CC0-1.0",
        level_of_theory="none",
        energy_convention="none: structures without labels",
        citation="none",
        source="random crystals of foundation, relaxed by the potential",
    )
    return build(BuildConfig(source=source, provenance=provenance, out=out, val_fraction=0.0, test_fraction=0.0))


class PotentialOracle:
    """A potential that relaxes random crystals and labels structures, at its only level of theory, for sources."""

    def __init__(self, word: str) -> None:
        """Load the potential of a word in float32 with tabulated radial functions.

        Raises:
            FileNotFoundError: the word names no potential.
            ValueError: the potential has several levels of theory.
        """
        self._potential = resolve(word).load().cast(torch.float32).eval()
        self._potential.theory_number(None)
        self._potential.last_layer = None
        tabulate(self._potential)

    def relaxed(self, structures: Iterator[Structure], seed: int) -> Iterator[Structure]:
        """Yield structures relaxed roughly, without those that collapse."""
        return relaxed(structures, self._potential, seed)

    def labelled(self, structures: Sequence[Structure]) -> list[Frame]:
        """Return structures with energy, forces and stress; a reason for one whose atoms are nearer than any known."""
        potential, found = self._potential, list[Frame](structures)
        for pack in packed(structures, potential.cutoff):
            if isinstance(pack, Refused):
                found[pack.place] = pack.error
                continue
            batch = pack.batch(potential.dtype)
            predictions = potential(batch).split([each.num_atoms for each in pack.structures])
            for place, apart, prediction in zip(pack.places, _apart(batch), predictions, strict=True):
                structure = structures[place]
                near = InvalidStructure(f"{structure.id}: atoms are too near")
                found[place] = _with_labels(structure, prediction) if apart else near
        return found


def _with_labels(structure: Structure, prediction: Prediction) -> Frame:
    """Return a structure with a prediction as its labels, or the reason why this is none."""
    try:
        return Structure.checked(
            numbers=structure.numbers,
            positions=structure.positions,
            cell=structure.cell,
            pbc=structure.pbc,
            energy=float(prediction.energy),
            forces=prediction.forces.double().numpy(),
            stress=prediction.stress[0].double().numpy() if structure.volume > 0 else None,
            id=structure.id,
            group=structure.group,
        )
    except InvalidStructure as error:
        return InvalidStructure(f"{structure.id}: {error}")


def relaxed(structures: Iterator[Structure], potential: Potential, seed: int = 0) -> Iterator[Structure]:
    """Yield structures relaxed roughly by a potential, at its first level of theory, without those that collapse."""
    began, done = time.monotonic(), 0
    while batch := list(itertools.islice(structures, BATCH)):
        rng = np.random.default_rng([seed, done])
        found = _descended(
            _of_best_volume(batch, potential), rng.integers(*STEPS, len(batch), endpoint=True), potential
        )
        disturbed = [_disturbed(structure, rng) for structure in found]
        yield from (structure for structure, fit in zip(disturbed, _fit(disturbed, potential), strict=True) if fit)
        done += len(batch)
        log.info("relaxed %d crystals in %.0f s", done, time.monotonic() - began)


def _of_best_volume(structures: Sequence[Structure], potential: Potential) -> list[Structure]:
    """Return each structure at the volume of lowest energy."""
    factors = np.cbrt(VOLUMES).tolist()
    energies = [_predicted([_scaled(each, factor) for each in structures], potential).energy for factor in factors]
    best = torch.stack(energies).argmin(dim=0).tolist()
    return [_scaled(each, factors[number]) for each, number in zip(structures, best, strict=True)]


def _scaled(structure: Structure, factor: float) -> Structure:
    return replace(structure, positions=structure.positions * factor, cell=structure.cell * factor)


class _Descent:
    """Descent of one structure: its present state, and the last step with the forces before it."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        # a strain moves the surface of the cell by about this length [Å]
        self._length = float(np.cbrt(structure.volume)) * np.sqrt(structure.num_atoms)
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def follow(self, forces: Float64[np.ndarray, "atoms 3"], stress: Float64[np.ndarray, "3 3"]) -> None:
        """Move atoms and cell along the forces [eV/Å] and the stress [eV/Å³]."""
        along = np.vstack([forces, -stress * self.structure.volume / self._length])
        step = self._rate(along) * along
        step *= min(1.0, MAX_STEP / max(float(np.linalg.norm(step, axis=1).max()), 1e-12))
        deformation = np.eye(3) + step[-3:] / self._length
        positions = (self.structure.positions + step[:-3]) @ deformation
        self.structure = replace(self.structure, positions=positions, cell=self.structure.cell @ deformation)
        self._last = step, along

    def _rate(self, along: Float64[np.ndarray, "rows 3"]) -> float:
        """Return the ratio of the next step to the forces [Å²/eV]."""
        if self._last is None:
            return FIRST
        step, before = self._last
        change = before - along
        product = float((step * change).sum())
        # a negative curvature tells nothing about the length of a step
        rate = product / max(float(np.square(change).sum()), 1e-12) if product > 0 else FIRST
        return min(max(rate, LEAST), MOST)


def _descended(
    structures: Sequence[Structure], numbers: Int64[np.ndarray, " structures"], potential: Potential
) -> list[Structure]:
    """Return structures after a number of steps each, without those that collapse."""
    descents = [_Descent(structure) for structure in structures]
    fallen: set[int] = set()
    for done in range(int(numbers.max())):
        active = [place for place in range(len(descents)) if done < numbers[place] and place not in fallen]
        batch = collate([descents[place].structure for place in active], potential.cutoff, potential.dtype)
        apart = _apart(batch)
        fallen |= {place for place, fit in zip(active, apart, strict=True) if not fit}
        active = [place for place in active if place not in fallen]
        if not active:
            continue
        prediction = _predicted([descents[place].structure for place in active], potential)
        atoms = np.cumsum([descents[place].structure.num_atoms for place in active])[:-1]
        forces = np.split(prediction.forces.double().cpu().numpy(), atoms)
        for place, force, stress in zip(active, forces, prediction.stress.double().cpu().numpy(), strict=True):
            descents[place].follow(force, stress)
    return [descent.structure for place, descent in enumerate(descents) if place not in fallen]


def _disturbed(structure: Structure, rng: np.random.Generator) -> Structure:
    """Return a structure with random displacements and a random strain."""
    strain = rng.uniform(-MAX_STRAIN, MAX_STRAIN, (3, 3))
    deformation = np.eye(3) + (strain + strain.T) / 2
    displaced = structure.positions + rng.normal(0.0, rng.uniform(0.0, MAX_RATTLE), structure.positions.shape)
    return replace(structure, positions=displaced @ deformation, cell=structure.cell @ deformation)


def _fit(structures: Sequence[Structure], potential: Potential) -> list[bool]:
    """Return whether each structure has sensible distances, forces and stress."""
    batch = collate(structures, potential.cutoff, potential.dtype).to(potential.device)
    prediction = potential(batch)
    forces = torch.zeros(batch.num_graphs, device=batch.positions.device, dtype=prediction.forces.dtype)
    forces = forces.scatter_reduce(0, batch.graph_of_atom.long(), prediction.forces.norm(dim=1), "amax")
    stresses = prediction.stress.abs().amax(dim=(1, 2))
    calm = (forces <= MAX_FORCE) & (stresses <= MAX_STRESS)
    return [bool(each) and apart for each, apart in zip(calm, _apart(batch), strict=True)]


def _apart(batch: GraphBatch) -> list[bool]:
    """Return whether all atoms of each structure are far enough from each other."""
    distances = batch.pair_vectors().norm(dim=1)
    ends = batch.senders[batch.pair_edges].long(), batch.receivers[batch.pair_edges].long()
    radii = torch.from_numpy(RADII).to(distances)[batch.numbers.long()]
    least = (NEAREST * (radii[ends[0]] + radii[ends[1]])).clamp(min=NEAREST_OF_ALL)
    near = torch.zeros(batch.num_graphs, device=distances.device).index_add(
        0, batch.graph_of_atom[ends[1]].long(), (distances < least).float()
    )
    return (near == 0).tolist()


def _predicted(structures: Sequence[Structure], potential: Potential) -> Prediction:
    return potential(collate(structures, potential.cutoff, potential.dtype).to(potential.device))
