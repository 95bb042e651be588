"""Several data sets in one run: each at its level of theory, or refused when that is not said."""

import csv
import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import foundation
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Frames
from data_pipeline.loading.stream import Stream, differences
from data_pipeline.sources import EmtAlloys
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.source import Part
from data_pipeline.store.block import CorruptShard
from data_pipeline.store.manifest import Manifest, Provenance, open_manifest
from data_pipeline.structure import Structure
from foundation.datasets import DatasetConfig, open_datasets, statistics_by_theory
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from tests.foundation.reports.test_card import COMPLETE
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=4, lanes=2, edge_budget=1500, validate_every=2, log_every=2)
SHIFT = 100.0
"""What the second level of theory adds to the energy of every atom [eV]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(EmtAlloys):
    """EMT alloys by a theory whose atoms are 100 eV higher."""

    def parts(self) -> list[Part]:
        return [dataclasses.replace(part, read=functools.partial(self._read, part)) for part in super().parts()]

    def _read(self, part: Part) -> Iterator[Structure]:
        for frame in part.read():
            assert isinstance(frame, Structure)
            yield dataclasses.replace(frame, energy=frame.energy + SHIFT * frame.num_atoms)


@pytest.fixture(scope="module")
def shifted_manifest(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    out = tmp_path_factory.mktemp("shifted") / "data"
    other = dataclasses.replace(provenance, name="shifted", level_of_theory="medium theory that is not effective")
    return build(BuildConfig(source=Shifted(num_frames=60, seed=1), provenance=other, out=out, block_frames=16))


def test_different_levels_of_theory_are_not_mixed_without_saying_so(
    emt_manifest: Manifest, shifted_manifest: Manifest
) -> None:
    configs = DatasetConfig(path=emt_manifest.root), DatasetConfig(path=shifted_manifest.root)
    message = r"different levels of theory.*effective medium theory;.*that is not effective.*name the level.*`theory`"
    with pytest.raises(ValueError, match=message):
        open_datasets(configs)
    with pytest.raises(ValueError, match=message):
        open_datasets((configs[0], dataclasses.replace(configs[1], theory="other")))


def test_one_manifest_is_one_theory_with_the_name_it_is_described_by(emt_manifest: Manifest) -> None:
    datasets, theories = open_datasets(emt_manifest.root)
    assert theories == ("effective medium theory",)
    assert [(dataset.theory, dataset.repeat) for dataset in datasets] == [(0, 1.0)]


def test_data_sets_of_one_name_share_their_statistics(emt_manifest: Manifest, shifted_manifest: Manifest) -> None:
    paths = emt_manifest.root, shifted_manifest.root, emt_manifest.root
    configs = tuple(DatasetConfig(path=path, theory=name) for path, name in zip(paths, ("a", "b", "a"), strict=True))
    datasets, theories = open_datasets(configs)
    assert theories == ("a", "b")
    assert [dataset.theory for dataset in datasets] == [0, 1, 0]
    sums = statistics_by_theory(datasets, theories)
    assert sums["a"].num_frames == 2 * emt_manifest.split("train").statistics.num_frames
    assert sums["b"].num_frames == shifted_manifest.split("train").statistics.num_frames


def test_the_weight_of_a_data_set_goes_with_its_frames(emt_manifest: Manifest, shifted_manifest: Manifest) -> None:
    configs = (
        DatasetConfig(path=emt_manifest.root, theory="EMT", weight=0.25),
        DatasetConfig(path=shifted_manifest.root, theory="EMT+100"),
    )
    datasets, _ = open_datasets(configs)
    stream = Stream(datasets, cutoff=5.0, lanes=2, edge_budget=3000)
    for batch in itertools.chain.from_iterable(stream.from_step(0, 3)):
        assert batch.weight.dtype == torch.float64
        assert batch.weight.tolist() == [(0.25, 1.0)[theory] for theory in batch.theory.tolist()]
        assert batch.to(dtype=torch.float32).weight.dtype == torch.float64
    heavier, _ = open_datasets((dataclasses.replace(configs[0], weight=2.0), configs[1]))
    other = Stream(heavier, cutoff=5.0, lanes=2, edge_budget=3000)
    assert differences(other.fingerprint, stream.fingerprint) == [
        "weight of data set 1: 0.25 in the checkpoint, 2.0 now"
    ]


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must be positive, not .*; leave the data set out instead"):
        DatasetConfig(path=Path("data"), weight=weight)


def test_no_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="data is empty"):
        open_datasets(())


def test_a_data_set_that_is_all_for_evaluation_is_not_trained_on(tmp_path: Path, provenance: Provenance) -> None:
    source, out = EmtAlloys(num_frames=5), tmp_path / "held-out"
    build(BuildConfig(source=source, provenance=provenance, out=out, val_fraction=0.5, test_fraction=0.5))
    with pytest.raises(ValueError, match="held-out: no frames in the training split, all are for evaluation"):
        open_datasets(out)


@pytest.fixture(scope="module")
def run(emt_manifest: Manifest, shifted_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sets through pretraining, evaluation and export."""
    out = tmp_path_factory.mktemp("both") / "run"
    data = (
        DatasetConfig(path=emt_manifest.root, theory="EMT"),
        DatasetConfig(path=shifted_manifest.root, theory="EMT+100", repeat=2.0),
    )
    pretrain(PretrainConfig(data=data, out=out, model=MODEL, fit=FIT, machine=CPU, card=COMPLETE))
    evaluate(EvaluateConfig(model=out, data=shifted_manifest.root, theory="EMT+100"))
    export(ExportConfig(run=out, out=out / "release"))
    return out


def test_each_theory_has_its_own_reference_energies(run: Path) -> None:
    potential = foundation.load(run / "release")
    assert potential.theories == ("EMT", "EMT+100")
    lower, higher = potential.get_buffer("reference_energies").numpy()
    np.testing.assert_allclose(higher - lower, SHIFT, atol=3.0)


def test_the_shift_of_a_theory_is_no_error(run: Path) -> None:
    errors = json.loads((run / "report" / "evaluation.json").read_text())["errors"]
    assert errors["composition_energy_mae"] < 5.0
    assert errors["energy_mae"] < 5.0


def test_the_calculator_predicts_the_theory_it_is_told_to(run: Path, emt_manifest: Manifest) -> None:
    potential = foundation.load(run / "release")
    atoms = to_atoms(Frames(emt_manifest, "test")[0])
    energies = []
    for theory in potential.theories:
        atoms.calc = foundation.Calculator(potential, theory=theory)
        energies.append(atoms.get_potential_energy() / len(atoms))
    assert energies[1] - energies[0] == pytest.approx(SHIFT, abs=3.0)
    with pytest.raises(ValueError, match=r"EMT, EMT\+100; name one, not None"):
        foundation.Calculator(potential)


def test_a_release_describes_both_sets_and_has_golden_predictions_at_both_theories(run: Path) -> None:
    card = (run / "release" / "README.md").read_text()
    for expected in ("emt-test", "shifted (each frame 2 times a pass)", "here called EMT+100", 'theory="EMT"'):
        assert expected in card
    golden = json.loads((run / "release" / "golden.json").read_text())
    assert [record["theory"] for record in golden] == 3 * ["EMT", "EMT+100"]


def test_evaluating_at_no_theory_in_particular_is_refused(run: Path, emt_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"levels of theory are EMT, EMT\+100; name one"):
        evaluate(EvaluateConfig(model=run, data=emt_manifest.root))


def logged(run: Path, name: str) -> list[float]:
    with (run / "logs" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_every_process_logs_how_long_it_waited_for_data(run: Path) -> None:
    shares = logged(run, "speed/data_wait")
    assert shares
    assert all(0.0 < share < 1.0 for share in shares)


def test_a_run_goes_on_without_a_block_that_cannot_be_read(emt_manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(emt_manifest.root, tmp_path / "data")
    manifest = open_manifest(tmp_path / "data")
    (shard,) = manifest.shard_paths("train")
    content = bytearray(shard.read_bytes())
    content[int(manifest.index("train").blocks.offset[1]) + 1000] ^= 1
    shard.write_bytes(content)
    fit = dataclasses.replace(FIT, corrupt="quarantine")
    pretrain(PretrainConfig(data=tmp_path / "data", out=tmp_path / "run", model=MODEL, fit=fit, machine=CPU))
    assert logged(tmp_path / "run", "seen/quarantined_frames")[-1] == 16.0
    with pytest.raises(CorruptShard, match=r"train-000000\.tar, block at byte"):
        pretrain(PretrainConfig(data=tmp_path / "data", out=tmp_path / "again", model=MODEL, fit=FIT, machine=CPU))
