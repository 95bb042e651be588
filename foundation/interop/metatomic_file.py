"""Potentials as metatomic models (.pt), for the programs that read these: ASE, i-PI, LAMMPS, PLUMED, chemiscope.

The file holds plain torch alone: it opens where this package is not installed. It knows one level of theory.

metatomic is an optional package: pip install 'foundation[metatomic]'.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List, Optional, no_type_check  # noqa: UP035 (TorchScript knows these alone)

import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap  # pyright: ignore[reportAttributeAccessIssue]
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatomic_ase import MetatomicCalculator
from torch import Tensor

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.structure import Structure
from foundation.interop.traced import AtomEnergies
from foundation.potential import Potential


class MetatomicModule(torch.nn.Module):
    """Energies of metatomic's systems by a traced network; TorchScript compiles the methods."""

    cutoff: float

    def __init__(self, energies: torch.nn.Module, cutoff: float) -> None:
        """Take the traced energies and the cutoff [Å]."""
        super().__init__()
        self.energies = energies
        self.cutoff = cutoff

    @no_type_check
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """Return the one neighbour list that is needed: each pair of atoms once."""
        return [NeighborListOptions(self.cutoff, full_list=False, strict=True)]

    @no_type_check
    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """Return the energy of every system [eV], or of every atom, as far as atoms are selected."""
        if "energy" not in outputs:
            return {}
        of_atoms: List[Tensor] = []  # noqa: UP006
        rows: List[Tensor] = []  # noqa: UP006
        for number, system in enumerate(systems):
            of_atoms.append(self.of_atoms(system).unsqueeze(1))
            atoms = torch.arange(len(system), device=system.positions.device)
            rows.append(torch.stack([torch.full_like(atoms, number), atoms], dim=1))
        names, samples, values = ["system", "atom"], torch.cat(rows), torch.cat(of_atoms)
        if selected_atoms is not None:
            chosen = Labels(names, samples).select(selected_atoms)
            samples, values = samples[chosen], values[chosen]
        if outputs["energy"].sample_kind == "system":
            owners, names = samples[:, 0], ["system"]
            values = torch.zeros(len(systems), 1, dtype=values.dtype, device=values.device).index_add(0, owners, values)
            samples = torch.arange(len(systems), device=values.device).unsqueeze(1)
        components: List[Labels] = []  # noqa: UP006
        one = torch.zeros(1, 1, dtype=torch.int64, device=values.device)
        block = TensorBlock(
            values.to(systems[0].positions.dtype), Labels(names, samples), components, Labels(["energy"], one)
        )
        return {"energy": TensorMap(Labels(["_"], one), [block])}

    @no_type_check
    def of_atoms(self, system: System) -> Tensor:
        """Return the energies of a system's atoms [eV], its pairs put in the order of their lower atoms."""
        neighbors = system.get_neighbor_list(NeighborListOptions(self.cutoff, full_list=False, strict=True))
        ends = neighbors.samples.values[:, :2].to(torch.int64)
        first, second = ends.min(dim=1).values, ends.max(dim=1).values
        order = torch.argsort(first, stable=True)
        signs = torch.where(ends[:, 0] > ends[:, 1], -1.0, 1.0).to(neighbors.values.dtype)
        vectors = (neighbors.values.reshape(-1, 3) * signs.unsqueeze(1))[order]
        first, second, count = first[order], second[order], first.shape[0]
        receivers = torch.cat([first, second])
        edges = torch.argsort(receivers, stable=True)  # of both directions, the first half being the pairs' own
        place = torch.empty_like(edges)
        place[edges] = torch.arange(2 * count, device=edges.device)
        opposite = torch.where(edges < count, edges + count, edges - count)
        atoms = torch.arange(len(system) + 1, device=edges.device)
        return self.energies(
            system.types.to(torch.int64),
            vectors,
            torch.searchsorted(receivers[edges], atoms),
            torch.cat([second, first])[edges],
            torch.where(edges < count, edges, edges - count),
            place[opposite],
        )


def write_metatomic(
    potential: Potential, theory: int, weights_sha256: str, example: Structure, name: str, file: Path
) -> None:
    """Write a potential at one of its levels of theory as a metatomic model.

    Args:
        potential: The potential.
        theory: Number of the level of theory.
        weights_sha256: Checksum of its weights.
        example: Structure with which it is traced; the model then computes any.
        name: Name of the model.
        file: File to write.

    Raises:
        Unsupported: its network does not compute along the edges of another program.
    """
    energies = AtomEnergies(potential, theory)
    graph = to_graph(example, potential.cutoff, torch.float64)
    given = (graph.numbers, graph.pair_vectors(), graph.row_pointers, graph.senders, graph.pairs, graph.reverse)
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="atom", description=potential.theories[theory])},
        atomic_types=list(potential.elements),
        interaction_range=potential.network.reach,
        length_unit="Angstrom",
        supported_devices=["cpu"],  # a traced graph keeps the device that it was traced on
        dtype=str(potential.dtype).removeprefix("torch."),
    )
    metadata = ModelMetadata(
        name=name,
        description=f"{potential.network.describe()}; level of theory: {potential.theories[theory]}",
        extra={"weights_sha256": weights_sha256},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and metatomic about themselves
        traced: Any = torch.jit.trace(energies, tuple(each.clone() for each in given), check_trace=False)
        module: Any = MetatomicModule(traced, float(potential.cutoff)).eval()
        AtomisticModel(module, metadata, capabilities).save(str(file))


def opened(file: Path) -> Callable[[Structure], dict[str, np.ndarray]]:
    """Return the function of a model by metatomic's own calculator, which checks that the model is consistent.

    It returns energies of the atoms [eV], forces [eV/Å] and stress [eV/Å³] of a structure, by name.
    """
    calculator = MetatomicCalculator(str(file), check_consistency=True)

    def compute(structure: Structure) -> dict[str, np.ndarray]:
        atoms = to_atoms(structure)
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False)
        return {"energies": atoms.get_potential_energies(), "forces": atoms.get_forces(), "stress": stress}

    return compute
