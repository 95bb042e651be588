"""Hardware of a run: the same run on other hardware differs only in this section of its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.training.strategy import StrategyName

LIMITS = {**dict.fromkeys(("devices", "num_nodes"), (1, 10**6)), "num_workers": (0, 1024)}
"""Smallest and largest value of each number."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Hardware of a run: the steps are the same on any hardware, to rounding over several processes."""

    accelerator: Literal["auto", "cpu", "gpu"] = field(default="auto", metadata=MAY_CHANGE)
    """Device type: GPUs, CPUs, or GPUs if available (auto)."""
    devices: int = field(default=1, metadata=MAY_CHANGE)
    """Number of processes per node."""
    num_nodes: int = field(default=1, metadata=MAY_CHANGE)
    """Nodes."""
    strategy: StrategyName = field(default="ddp", metadata=MAY_CHANGE)
    """Division of the work among processes: each with the whole optimizer (ddp), or with a part of its state (zero-1)
    and of the gradient (zero-2), also in the host's memory (zero-2-offload). ZeRO needs the extra 'cluster'."""
    num_workers: int = field(default=1, metadata=MAY_CHANGE)
    """Number of worker processes per rank that read shards and build graphs; 0 uses the training process."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.devices * self.num_nodes


def check_lanes(lanes: int, machine: MachineConfig) -> None:
    """Check that the number of processes divides the lanes.

    Raises:
        ValueError: it does not; the message names the numbers that do.
    """
    if lanes % machine.world_size:
        sizes = [size for size in range(1, lanes + 1) if lanes % size == 0]
        raise ValueError(f"{lanes} lanes cannot be shared by {machine.world_size} processes; use one of {sizes}")


def with_machine(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration with the section `machine`, whose options used to be in `fit`."""
    fit = record.get("fit")
    if "machine" in record or not isinstance(fit, Mapping):
        return dict(record)
    moved = {name: fit[name] for name in MACHINE_OPTIONS if name in fit}
    rest = {name: value for name, value in fit.items() if name not in moved}
    return {**record, "fit": rest, "machine": moved} if moved else dict(record)


MACHINE_OPTIONS = tuple(item.name for item in fields(MachineConfig))
"""Options of `machine`."""
