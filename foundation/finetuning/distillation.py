"""Distillation rehearsal: what a frozen potential says takes the place of labels.

Structures then need none, and a fine-tuning that has no access to the pretraining's labels can still be held to what
the start said (learning without forgetting, Li and Hoiem, ECCV 2016; as pseudo-labelled replay compared with other ways
by Tompa et al., arXiv:2606.12704). A batch costs one more evaluation with forces and stress, without derivatives by
weights. The labels are worth as much as the start is: where it is wrong, so are they.
"""

import copy
from dataclasses import replace

import torch

from data_pipeline.graphs.batch import GraphBatch
from foundation.potential import Potential


class Teacher:
    """A frozen copy of a potential that labels structures.

    It is no module, so that a trainer that holds it neither trains it, saves it nor moves it; it follows the batches.
    """

    def __init__(self, potential: Potential) -> None:
        """Copy a potential as it is now.

        Raises:
            ValueError: the potential has adapters, so it is no longer the start.
        """
        if any(".adapter." in name for name, _ in potential.named_parameters()):
            raise ValueError("the potential has adapters: make the teacher of it before it gets them")
        self._potential = copy.deepcopy(potential).eval().requires_grad_(False)

    def relabel(self, batch: GraphBatch) -> GraphBatch:
        """Return the batch with the potential's energies, forces and stresses in place of the labels.

        Each structure at its own level of theory. Its stress counts as labelled where its lattice vectors enclose a
        volume; elsewhere there is none. All comes detached, in the batch's own float type.

        Raises:
            UnknownElement: an atom's element is not among the potential's.
        """
        prediction = self._potential.to(batch.positions.device)(batch)
        return replace(
            batch,
            energy=prediction.energy,
            forces=prediction.forces.to(batch.forces.dtype),
            stress=prediction.stress.to(batch.stress.dtype),
            has_forces=torch.ones_like(batch.has_forces),
            has_stress=torch.linalg.det(batch.cell) != 0,
        )
