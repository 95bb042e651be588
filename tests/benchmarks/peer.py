"""SevenNet-0 as its own package runs it."""

import warnings

import torch

from data_pipeline.graphs.batch import GraphBatch


def sevenn_step(batch: GraphBatch):
    """Return a function that takes a training step or predicts with sevenn's own SevenNet-0; None if not installed."""
    try:
        import sevenn._keys as key
        from sevenn.util import load_checkpoint
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_checkpoint("7net-0").build_model()
    model.set_is_batch_data(True)
    device = batch.positions.device
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def data() -> dict:
        vectors = batch.edge_vectors().float()
        values = {
            key.NODE_FEATURE: torch.tensor([model.type_map[z] for z in batch.numbers.tolist()], device=device),
            key.ATOMIC_NUMBERS: batch.numbers,
            key.POS: batch.positions.float(),
            key.EDGE_IDX: torch.stack([batch.receivers, batch.senders]),
            key.EDGE_VEC: vectors,
            key.CELL: batch.cell.float(),
            key.CELL_SHIFT: batch.shifts,
            key.CELL_VOLUME: torch.linalg.det(batch.cell).abs().float(),
            key.NUM_ATOMS: batch.num_atoms,
            key.BATCH: batch.graph_of_atom,
        }
        return values

    def step(training: bool) -> None:
        model.train(training)
        optimizer.zero_grad()
        out = model(data())
        if training:
            energy = (out[key.PRED_TOTAL_ENERGY] - batch.energy) / batch.num_atoms
            total = energy.abs().mean() + (out[key.PRED_FORCE] - batch.forces).abs().mean()
            (total + out[key.PRED_STRESS].abs().mean()).backward()
            optimizer.step()

    return step
