"""Short-range repulsion of nuclei, added to any network without training: atoms that collide are pushed apart.

Potentials are trained on few structures with atoms closer than a bond, and may have holes there. The universal
screened Coulomb energy of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Solids, Pergamon, 1985) is
switched on inside the sum of the covalent radii: it is zero beyond OUTER times that sum, below every bond length, and
complete below INNER times it. The switch has two continuous derivatives, so forces, stress and energy stay consistent.
"""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.sources.random_crystals import RADII

OUTER, INNER = 0.7, 0.35
"""Distances over the sum of covalent radii between which it is switched on; the shortest bond, that of the nitrogen
molecule, has 0.77."""
COULOMB = 14.3996454784
"""Energy of two elementary charges times their distance, e²/(4π ε₀) [eV Å]."""
BOHR = 0.529177210903
"""Bohr radius [Å]."""
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Factors and exponents of the universal screening function."""
DESCRIPTION = (
    f"with the repulsion of Ziegler, Biersack and Littmark between atoms closer than {OUTER:g} times the sum of their "
    "covalent radii"
)
"""Description for the model card."""


class Repulsion(torch.nn.Module):
    """The repulsion, in float64; it has no weights."""

    def __init__(self) -> None:
        """Take the covalent radii of Cordero et al. (Dalton Trans. 2008, 2832), as in ASE [Å]."""
        super().__init__()
        self.register_buffer("_radii", torch.from_numpy(RADII).to(torch.float64), persistent=False)

    def forward(self, batch: GraphBatch) -> Float64[Tensor, " atoms"]:
        """Return the energy of each atom [eV], half of that of each of its pairs."""
        edges, radii = batch.pair_edges, self.get_buffer("_radii")
        first, second = batch.receivers[edges], batch.senders[edges]
        lengths = torch.linalg.vector_norm(batch.pair_vectors(), dim=1)
        reach = radii[batch.numbers[first]] + radii[batch.numbers[second]]
        near = (lengths < OUTER * reach).nonzero().squeeze(1)
        first, second, lengths = first[near], second[near], lengths[near]
        receivers, senders = torch.cat([first, second]), torch.cat([second, first])
        return self.along(batch.numbers, receivers, senders, lengths.repeat(2))

    def along(
        self,
        numbers: Int[Tensor, " atoms"],
        receivers: Int[Tensor, " edges"],
        senders: Int[Tensor, " edges"],
        lengths: Float64[Tensor, " edges"],
    ) -> Float64[Tensor, " atoms"]:
        """Return the energy of each atom [eV] by its edges, which have the lengths [Å]; far ones add nothing."""
        radii = self.get_buffer("_radii")
        reach = radii[numbers[receivers]] + radii[numbers[senders]]
        charges = numbers[receivers].double(), numbers[senders].double()
        energies = 0.5 * zbl_energy(*charges, lengths) * switch(lengths / reach)
        return lengths.new_zeros(numbers.shape[0]).index_add(0, receivers, energies)


def zbl_energy(
    one: Float64[Tensor, " pairs"], other: Float64[Tensor, " pairs"], lengths: Float64[Tensor, " pairs"]
) -> Float64[Tensor, " pairs"]:
    """Return the screened Coulomb energy of two nuclei [eV].

    Args:
        one: Atomic number of the first.
        other: Atomic number of the second.
        lengths: Distance [Å].
    """
    scaled = lengths * (one**0.23 + other**0.23) / (0.8854 * BOHR)
    screening = torch.stack([factor * torch.exp(-exponent * scaled) for factor, exponent in SCREENING]).sum(dim=0)
    return COULOMB * one * other / lengths * screening


def switch(ratio: Float64[Tensor, " pairs"]) -> Float64[Tensor, " pairs"]:
    """Return the share of the repulsion by the distance over the sum of covalent radii: 1 below INNER, 0 from OUTER."""
    x = ((OUTER - ratio) / (OUTER - INNER)).clamp(0, 1)
    return x**3 * (10 - 15 * x + 6 * x * x)
