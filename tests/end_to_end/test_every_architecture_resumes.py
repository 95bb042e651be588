"""An interrupted run goes on in the same bits, whatever its architecture, its optimizer and its graphs are made of."""

import shutil
from pathlib import Path

import ase
import ase.io
import pytest

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Provenance
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.reading import newest_checkpoint, steps_in
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from tests.machine import CPU
from tests.same_state import same_state
from tests.small_networks import OF_MOLECULES, SMALL_NETWORKS, box_of_molecules

NETWORKS = {**SMALL_NETWORKS, "grains": OF_MOLECULES["grains"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    ase.io.write(folder / "frames.extxyz", [box_of_molecules(seed) for seed in range(8)], format="extxyz")
    facts = dict.fromkeys(("name", "level_of_theory", "energy_convention", "citation", "licence", "source"), "EMT")
    config = BuildConfig(
        source=AseFiles(files=(str(folder / "frames.extxyz"),)),
        provenance=Provenance(**facts),
        out=folder / "data",
        cutoffs=(4.0,),
        molecule_cutoffs=(OF_MOLECULES["grains"].cutoff,),
        split_by="order",
        val_fraction=0.25,
        test_fraction=0.0,
    )
    return build(config).root


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_goes_on_in_the_same_bits(name: str, data: Path, tmp_path: Path) -> None:
    def config(out: Path, resume: bool = False) -> PretrainConfig:
        fit = FitConfig(
            steps=4, lanes=1, edge_budget=600, validate_every=2, checkpoint_every=2, keep_checkpoints=3, log_every=1,
            resume=resume,
        )  # fmt: skip
        optim = OptimConfig(optimizer="muon", warmup_steps=1)  # AdamW has the weights that are no matrices
        return PretrainConfig(data=data, out=out, model=NETWORKS[name], optim=optim, fit=fit, machine=CPU)

    pretrain(config(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "halved")
    for path, step in steps_in(tmp_path / "halved" / "checkpoints").items():
        if step > 2:
            path.unlink()
    assert newest_checkpoint(tmp_path / "halved").step == 2
    pretrain(config(tmp_path / "halved", resume=True))
    assert same_state(tmp_path / "whole", tmp_path / "halved")
