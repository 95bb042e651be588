"""The hardware that small runs in tests ask for: one process without workers, on a CPU wherever there is a GPU too."""

from foundation.training.machine import MachineConfig

CPU = MachineConfig(accelerator="cpu", num_workers=0)
