"""How the processes of a run share its work."""

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only


class FlatGradientStrategy(DDPStrategy):
    """DDP's process group and launcher without its wrapper: the module itself sums the gradient, in one flat buffer."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def cluster_environment() -> ClusterEnvironment:
    """Return who started this process: torchrun, srun, or a shell.

    Lightning guesses too, but takes a machine where SLURM is installed for one where srun was forgotten.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "SLURM_STEP_ID" in os.environ:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes to the run folder, before or after any process group is up."""
    return getattr(rank_zero_only, "rank", 0) == 0
