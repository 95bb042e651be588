"""How the processes of a run share its work."""

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only


class FlatGradientStrategy(DDPStrategy):
    """DDP's process group and launcher without its wrapper: the module itself sums the gradient, in one flat buffer."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes to the run folder, before or after any process group is up."""
    return getattr(rank_zero_only, "rank", 0) == 0
