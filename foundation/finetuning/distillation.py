"""Distillation rehearsal: predictions of a frozen potential replace labels.

Structures then need no labels, and a fine-tuning without access to the pretraining's labels can still be kept close to
the start's predictions (learning without forgetting, Li and Hoiem, ECCV 2016; compared with other methods as
pseudo-labelled replay by Tompa et al., arXiv:2606.12704). A batch costs one more evaluation with forces and stress,
without derivatives by weights. The labels are as good as the start: its errors are theirs.
"""

import copy
from dataclasses import replace

import torch

from data_pipeline.graphs.batch import GraphBatch
from foundation.potential import Potential


class Teacher:
    """A frozen copy of a potential that labels structures.

    Not an nn.Module, so the trainer neither optimises nor saves it; it is moved to each batch's device.
    """

    def __init__(self, potential: Potential) -> None:
        """Copy a potential in its present state.

        Raises:
            ValueError: the potential has adapters, so it is no longer the start.
        """
        if any(".adapter." in name for name, _ in potential.named_parameters()):
            raise ValueError("the potential has adapters: make the teacher before adding them")
        self._potential = copy.deepcopy(potential).eval().requires_grad_(False)

    def relabel(self, batch: GraphBatch) -> GraphBatch:
        """Return the batch with labels replaced by the potential's energies, forces and stresses.

        Each structure is predicted at its own level of theory. Its stress is labelled if its lattice vectors enclose a
        volume. All labels are detached, in the batch's float type.

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
