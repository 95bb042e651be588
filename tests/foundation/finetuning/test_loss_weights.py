"""Weights of the loss of a fine-tuning: gradients of the same length at the start, and none without labels."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance
from data_pipeline.structure import SYMBOLS
from foundation import checkpoint
from foundation.datasets import DatasetConfig
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.loss_weights import balanced_loss, gradients_at_start
from foundation.potential import Potential
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, TermConfig, label_counts, loss_terms
from tests.foundation.surgery.test_prepare_start import make
from tests.machine import CPU

KINDS = LossConfig(
    energy=TermConfig(weight=3.0, kind="huber", delta=0.1),
    forces=TermConfig(weight=7.0, kind="l2"),
    stress=TermConfig(weight=1.0, kind="mse"),
)


def length(potential: Potential, manifest: Manifest, loss: LossConfig, name: str) -> float:
    """Return the length of the gradient of a term over all training frames, as one step."""
    batch = collate(list(Frames(manifest, "train")), potential.cutoff, potential.dtype)
    term = loss_terms(loss, potential.train()(batch), batch, label_counts(batch))[name]
    gradients = torch.autograd.grad(term, list(potential.parameters()), allow_unused=True)
    return float(torch.cat([each.flatten() for each in gradients if each is not None]).norm())


@pytest.fixture(scope="module")
def few(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    return labelled(emt_manifest, tmp_path_factory.mktemp("few"), provenance, stress=True)


def labelled(emt_manifest: Manifest, folder: Path, provenance: Provenance, *, stress: bool) -> Manifest:
    """Build twelve frames, with or without stress."""
    lines: list[str] = []
    for frame in [frame for frame in Frames(emt_manifest, "train") if frame.num_atoms < 8][:12]:
        cell = " ".join(map(str, frame.cell.flatten()))
        words = f'Lattice="{cell}" pbc="T T T" Properties=species:S:1:pos:R:3:forces:R:3 energy={frame.energy!r}'
        if stress:
            assert frame.stress is not None
            words += f' stress="{" ".join(map(str, frame.stress.flatten()))}"'
        lines += [str(frame.num_atoms), words]
        assert frame.forces is not None
        for z, position, force in zip(frame.numbers.tolist(), frame.positions, frame.forces, strict=True):
            lines.append(" ".join(map(str, [SYMBOLS[z], *position, *force])))
    (folder / "few.extxyz").write_text("\n".join(lines) + "\n")
    source = AseFiles(files=(str(folder / "few.extxyz"),))
    config = BuildConfig(
        source=source,
        provenance=provenance,
        out=folder / "data",
        val_fraction=0.25,
        test_fraction=0.0,
        split_by="order",
    )
    return build(config)


def test_the_terms_have_gradients_of_the_same_length(few: Manifest) -> None:
    start = make()
    before = [each.clone() for each in start.parameters()]
    loss, reasons = balanced_loss(start, [Dataset(manifest=few)], KINDS)
    assert not start.training
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    assert loss.forces == KINDS.forces
    assert (loss.energy.kind, loss.energy.delta, loss.stress.kind) == ("huber", 0.1, "mse")
    lengths = {name: length(start, few, loss, name) for name in ("energy", "forces", "stress")}
    assert lengths["energy"] == pytest.approx(lengths["forces"], rel=1e-2)  # weights have three digits
    assert lengths["stress"] == pytest.approx(lengths["forces"], rel=1e-2)
    assert f"energy {loss.energy.weight:g}, forces 7, stress {loss.stress.weight:g}" in reasons[0]


def test_a_step_along_their_sum_makes_no_label_worse_if_the_cosines_say_so(few: Manifest) -> None:
    start = make()
    loss, _ = balanced_loss(start, [Dataset(manifest=few)])
    cosines = gradients_at_start(start, [Dataset(manifest=few)], LossConfig()).cosines
    assert np.allclose(np.diag(cosines), 1.0)
    batch = collate(list(Frames(few, "train")), start.cutoff, start.dtype)

    def terms(potential: Potential) -> dict[str, float]:
        return {
            name: float(value.detach())
            for name, value in loss_terms(loss, potential.train()(batch), batch, label_counts(batch)).items()
        }

    before = terms(start)
    found = loss_terms(loss, start.train()(batch), batch, label_counts(batch))
    torch.stack(tuple(found.values())).sum().backward()
    with torch.no_grad():
        for each in start.parameters():
            if each.grad is not None:
                each -= 1e-7 * each.grad
    after = terms(start)
    falling = dict(zip(before, cosines.sum(axis=1) > 0.05, strict=True))
    assert any(falling.values())
    assert all(after[name] < before[name] for name, falls in falling.items() if falls)


def test_a_label_that_the_data_lack_has_no_weight_and_is_named(
    emt_manifest: Manifest, tmp_path: Path, provenance: Provenance
) -> None:
    bare = labelled(emt_manifest, tmp_path, provenance, stress=False)
    loss, reasons = balanced_loss(make(), [Dataset(manifest=bare)])
    assert loss.stress.weight == 0
    assert loss.energy.weight > 0
    assert reasons[1] == "loss.stress.weight 0: the data have no stress"


def test_a_fine_tuning_records_the_weights_and_goes_on_with_them(
    emt_manifest: Manifest, tmp_path: Path, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = labelled(emt_manifest, tmp_path, provenance, stress=False)
    checkpoint.save(make(dtype=torch.float32), tmp_path / "start", {"method": "", "datasets": [], "config": {}})
    fit = FitConfig(steps=1, lanes=1, edge_budget=2000, log_every=1, checkpoint_every=1, validate_every=1)
    config = FinetuneConfig(
        start=tmp_path / "start", data=bare.root, out=tmp_path / "run", fit=fit, machine=CPU, references="keep"
    )
    with pytest.raises(ValueError, match=r"has no stress, but loss\.stress\.weight is 5"):
        finetune(dataclasses.replace(config, loss=LossConfig()))
    data = dataclasses.replace(config, data=(DatasetConfig(path=bare.root, theory="EMT"),))
    finetune(data)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["loss"]
    assert record["stress"]["weight"] == 0
    assert record["energy"]["weight"] not in (0, 20)
    monkeypatch.setattr("foundation.finetuning.preparation.balanced_loss", None)
    finetune(dataclasses.replace(data, fit=dataclasses.replace(fit, resume=True)))
