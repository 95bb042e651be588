"""sevenn's own models, in float32 as it runs them and in float64, on the neighbour lists of this project."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from e3nn import o3
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.potential import Potential, Prediction

PEER_NAMES = {
    "sevennet-0": "7net-0",
    "sevennet-0-22may2024": "7net-0_22May2024",
    "sevennet-l3i5": "7net-l3i5",
    "sevennet-mf-0": "7net-mf-0",
}
"""sevenn's names of the models that foundation.load() knows."""


class Sevenn:
    """A model as sevenn builds it from a checkpoint."""

    def __init__(self, checkpoint: str | Path) -> None:
        with warnings.catch_warnings():
            # sevenn 0.13 and what it imports warn of torch's scripting and of missing accelerators
            warnings.simplefilter("ignore")
            from sevenn.util import load_checkpoint

            model = load_checkpoint(str(checkpoint)).build_model()
        # the number of the level of theory is given by number, not by name
        model.eval_modal_map = False
        model.set_is_batch_data(True)
        self.model, self.dtype, self.theories = model, torch.float32, model.modal_map or {}
        for module in model._modules.values():
            module.register_forward_hook(self._cast)

    def _cast(self, module: torch.nn.Module, inputs: tuple, output: dict) -> dict:
        """Undo what sevenn puts into float32 whatever the model: the one-hot vectors."""
        for name, value in output.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                output[name] = value.to(self.dtype)
        return output

    @contextlib.contextmanager
    def _in(self, dtype: torch.dtype) -> Iterator[None]:
        """Run in a float type: e3nn keeps its Wigner 3j symbols rounded to the type that it was built in."""
        before = torch.get_default_dtype()
        if dtype != self.dtype:
            self.model.to(dtype)
            for name, buffer in self.model.named_buffers():
                if "_w3j_" in name:
                    degrees = map(int, name.split("_w3j_")[1].split("_"))
                    buffer.copy_(o3.wigner_3j(*degrees, dtype=torch.float64))
            self.dtype = dtype
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def predict(
        self, structures: Sequence[Structure], dtype: torch.dtype, theory: str | None = None, *, training: bool = False
    ) -> Prediction:
        """Return what sevenn says of structures, with this project's sign of the stress."""
        from sevenn import _keys as key

        self.model.train(training)
        with self._in(dtype):
            out = self.model(self._inputs(structures, dtype, theory))
        xx, yy, zz, xy, yz, zx = out[key.PRED_STRESS].unbind(1)
        rows = [torch.stack(row, dim=1) for row in ((xx, xy, zx), (xy, yy, yz), (zx, yz, zz))]
        return Prediction(
            energy=out[key.PRED_TOTAL_ENERGY].double(),
            forces=out[key.PRED_FORCE],
            stress=-torch.stack(rows, dim=1),
            atom_energies=out[key.ATOMIC_ENERGY].squeeze(1).double(),
        )

    def _inputs(self, structures: Sequence[Structure], dtype: torch.dtype, theory: str | None) -> dict[str, Tensor]:
        from sevenn import _keys as key

        batch = collate(structures, self.model.cutoff)
        volumes = torch.linalg.det(batch.cell).abs().to(dtype)
        return {
            key.ATOMIC_NUMBERS: batch.numbers,
            key.NODE_FEATURE: batch.numbers,
            key.POS: batch.positions.to(dtype),
            key.EDGE_IDX: torch.stack([batch.receivers, batch.senders]),
            key.EDGE_VEC: batch.edge_vectors().to(dtype),
            key.CELL_VOLUME: torch.where(volumes > 0, volumes, 1.0),
            key.NUM_ATOMS: batch.num_atoms,
            key.BATCH: batch.graph_of_atom,
            **({key.MODAL_TYPE: torch.full((batch.num_graphs,), self.theories[theory])} if theory else {}),
        }


def differences(ours: Sequence[Prediction], theirs: Sequence[Prediction], volumes: Sequence[float]) -> dict[str, float]:
    """Return the largest difference of energies, forces and stresses over the largest value of each.

    Stress counts where there is a volume, and is left out where there is none.
    """
    solid = torch.tensor(volumes) > 0
    found = {}
    for name in ("energy", "forces", "stress"):
        a, b = (torch.cat([getattr(p, name).detach().double() for p in side]) for side in (ours, theirs))
        if name == "stress":
            a, b = a[solid], b[solid]
        if len(b):
            found[name] = float((a - b).abs().max() / b.abs().max())
    return found


def squares(prediction: Prediction, structures: Sequence[Structure]) -> Tensor:
    """Return a smooth loss of energies per atom, forces and stresses."""
    sizes = torch.tensor([structure.num_atoms for structure in structures])
    energy = (prediction.energy / sizes + 1.0).square().mean()
    return energy + prediction.forces.square().mean() + 100.0 * prediction.stress.square().mean()


def gradients(peer: Sevenn) -> dict[str, Tensor]:
    """Return the gradients of sevenn's parameters, with its other tensors as they are."""
    found = {name: value.grad for name, value in peer.model.named_parameters() if value.grad is not None}
    return dict(peer.model.state_dict()) | found


def predict(potential: Potential, structures: Sequence[Structure], theory: int = 0) -> Prediction:
    """Return what a potential says of structures."""
    return potential(collate(structures, potential.cutoff, torch.float64, [theory] * len(structures)))
