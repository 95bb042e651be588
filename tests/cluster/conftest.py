"""A SLURM for the session, and the run that all the disturbed ones are compared with."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load
from launch.__main__ import main
from tests.cluster.slurm import Slurm, wait_until, why_not
from tests.conftest import REPOSITORY

ARGUMENTS = """
--model.irreps 8x0e+4x1e --model.num_blocks 2 --model.max_degree 1 --model.radial_sizes [8] --model.readout_channels 4
--fit.steps 200 --fit.lanes 2 --fit.edge_budget 1500 --machine.num_workers 1 --fit.validate_every 100
--fit.checkpoint_every 20 --fit.log_every 10
""".split()
"""A run of some ten seconds, so that there is time to disturb it."""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Four nodes; stopped at the end of the session, however it ends."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Slurm() as cluster:
        yield cluster


@dataclass(frozen=True)
class Run:
    """A training run of two processes in a folder of its own."""

    out: Path
    data: Path

    @property
    def command(self) -> list[str]:
        """What to launch."""
        return ["pretrain", "--data", str(self.data), "--out", str(self.out), *ARGUMENTS]

    def start_locally(self, max_restarts: int, log: Path) -> subprocess.Popen:
        """Start it on this machine."""
        launcher = [sys.executable, "-m", "launch", "launch", "local", "--processes", "2"]
        command = [*launcher, "--max-restarts", str(max_restarts), "--", *self.command, "--machine.accelerator", "cpu"]
        with log.open("w") as file:
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)

    def launch(self, slurm: Slurm, *options: str) -> None:
        """Write the script of a job on two nodes."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(slurm.configuration))
            patch.chdir(REPOSITORY)
            time = [] if "--time" in options else ["--time", "10"]
            assert main(["launch", "slurm", "--nodes", "2", *time, *options, "--", *self.command]) == 0

    def submit(self, slurm: Slurm, *options: str) -> str:
        """Submit it and return the job's number."""
        self.launch(slurm, "--submit", "true", *options)
        (job,) = slurm.run("squeue", "-h", "-n", self.out.name, "-o", "%i").split()
        return job

    def wait_for_checkpoint(self) -> None:
        """Return when training is well under way."""
        wait_until(lambda: any((self.out / "checkpoints").glob("step=*.ckpt")), 150)

    @property
    def log(self) -> str:
        """What the job said, in all of its starts."""
        return "\n".join(path.read_text() for path in sorted(self.out.glob("slurm-*.log")))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The potential that came out."""
        return load(self.out).state_dict()


@pytest.fixture
def run(emt_manifest: Manifest, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """A run that has not been started; its folder, and so its job, has the name of the test."""
    return Run(tmp_path / request.node.name, emt_manifest.root)


@pytest.fixture(scope="session")
def undisturbed(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that a run on two processes ends with when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(folder / "run", emt_manifest.root)
    process = run.start_locally(0, folder / "log")
    assert process.wait(300) == 0, (folder / "log").read_text()
    return run.weights
