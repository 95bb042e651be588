"""Shared fixtures: where the real data are, and small data sets built once per session."""

import os
from pathlib import Path

# before numpy is there, whose threads would else wait for each other on a busy machine, a hundred times longer than
# they compute; processes that tests start would each take all cores. Another number may be asked for.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance

REPOSITORY = Path(__file__).resolve().parents[1]
# neither the user's caches nor the user's settings take part; kernels that are compiled here are kept from run to run
for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
    os.environ[variable] = str(REPOSITORY / "build" / "tests" / variable.split("_")[1].lower())

# the same examples in every run, however slow the machine
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Compute with the threads that OMP_NUM_THREADS says: one, because the machine of the tests is small."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the published DFT data: FOUNDATION_DATA, or shared/data beside the checkout. CI requires it."""
    folder = Path(os.environ.get("FOUNDATION_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        message = f"no data in {folder}: set FOUNDATION_DATA to the folder that holds mptrj-1k/ and the other sets"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    """Provenance of a test data set, every fact given."""
    return Provenance(
        name="emt-test",
        licence="CC0-1.0",
        level_of_theory="effective medium theory",
        energy_convention="relative to the bulk elements",
        citation="Jacobsen et al., Surf. Sci. 366, 394 (1996)",
        source="data_pipeline/sources/emt.py",
    )


@pytest.fixture(scope="session")
def emt_manifest(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Manifest:
    """120 EMT frames in blocks of 16, split by group; do not write to it."""
    out = tmp_path_factory.mktemp("emt") / "data"
    config = BuildConfig(source=EmtAlloys(num_frames=120), provenance=provenance, out=out, block_frames=16)
    return build(config)
