"""What a run says of itself: errors as sums that are exact over any number of processes."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graph import GraphBatch
from foundation.potential import Prediction


class ErrorSums:
    """Sums and counts of absolute errors over any number of batches; adding those of several processes is exact.

    One vector rather than a torchmetrics object per label: a process without any batch then takes part in the same,
    single reduction as the others.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = torch.zeros(7, dtype=torch.float64)

    def update(self, prediction: Prediction, batch: GraphBatch) -> None:
        """Add a batch."""
        has_forces = batch.has_forces[batch.graph_of_atom]
        energy = ((prediction.energy - batch.energy) / batch.num_atoms).detach().abs()
        forces = (prediction.forces - batch.forces)[has_forces].detach().abs()
        stress = (prediction.stress - batch.stress)[batch.has_stress].detach().abs()
        sums = [part for error in (energy, forces, stress) for part in (error.double().sum(), _size(error))]
        self._sums = self._sums.to(energy.device) + torch.stack([*sums, _size(batch.num_atoms)])

    def compute(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the errors there are labels for: energy per atom [eV], force component [eV/Å], stress [eV/Å³].

        Args:
            reduce: Adds a tensor up over processes.
        """
        *sums, frames = reduce(self._sums).tolist()
        pairs = zip(("energy_mae", "force_mae", "stress_mae"), sums[::2], sums[1::2], strict=True)
        return {**{name: total / count for name, total, count in pairs if count}, "frames": frames}


def _size(tensor: Tensor) -> Float64[Tensor, ""]:
    return torch.tensor(float(tensor.numel()), dtype=torch.float64, device=tensor.device)
