"""Distribution of a run over processes: DDP with one flat gradient, or DeepSpeed's ZeRO stages 1 and 2.

Stage 3 is not offered: it removes the parameters between layers, but the derivative by positions inside the model,
whose graph the loss differentiates again, needs them. With fewer than 10^8 parameters it would save nothing either:
activations fill the memory, which the edge budget or recomputation reduce.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from foundation.kernels.trusted import refuse_untrusted_extensions
from foundation.training.lightning_internals import shard_of, start_processes_on_cpu, sum_gradients_as

# no zero-3: it removes parameters between layers, but forces, which the loss differentiates again, need them
StrategyName = Literal["ddp", "zero-1", "zero-2", "zero-2-offload"]


def make_strategy(name: StrategyName, world_size: int, clip_norm: float) -> Strategy | str:
    """Return the strategy for Lightning.

    Raises:
        ValueError: ZeRO with a single process, or without DeepSpeed.
    """
    if name == "ddp":
        return FlatGradientStrategy() if world_size > 1 else "auto"
    if world_size == 1:
        raise ValueError(f"strategy {name} shards the optimizer over processes, but the run has one: use ddp")
    return ZeroStrategy(int(name[5]), offload=name.endswith("offload"), clip_norm=clip_norm)


def plugins_for(name: StrategyName) -> list[Any]:
    """Return the plugins of a strategy: the launcher of the processes, and the conversion of batches."""
    return [cluster_environment(), *([] if name == "ddp" else [_OwnPrecision("32-true")])]


class _OwnPrecision(DeepSpeedPrecision):
    """DeepSpeed's precision without conversion of module and batches: the potential converts them itself."""

    def convert_input(self, data: Any) -> Any:
        """Return the batch."""
        return data

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module."""
        return module


class FlatGradientStrategy(DDPStrategy):
    """DDP's process group and launcher without its wrapper: the module itself sums the gradient, in one flat buffer."""

    def configure_ddp(self) -> None:
        """Do nothing: the module is not wrapped."""


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO with checkpoints like other strategies': one whole file for any number of processes.

    DeepSpeed's own checkpoints are folders of pickles per process that only the same number of processes can read.
    """

    def __init__(self, stage: int, *, offload: bool, clip_norm: float) -> None:
        """Prepare a stage; with offload, the optimizer's state and work are on the host.

        Raises:
            UntrustedCode: somebody else could have written DeepSpeed's compiled extensions.
            ValueError: DeepSpeed is not installed.
        """
        refuse_untrusted_extensions()
        try:
            super().__init__(stage=stage, offload_optimizer=offload, logging_batch_size_per_gpu=1)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"strategy zero-{stage} needs DeepSpeed: pip install 'foundation[cluster]', or use ddp"
            ) from error
        assert isinstance(self.config, dict)
        self.config |= {"gradient_clipping": clip_norm, "zero_force_ds_cpu_optimizer": False}

    def setup_environment(self) -> None:
        """Start the process group, also on CPUs, where Lightning does not expect DeepSpeed."""
        if self.root_device.type == "cuda":
            super().setup_environment()
        else:
            start_processes_on_cpu(self)

    @property
    def root_device(self) -> torch.device:
        """Device of this process; DeepSpeed needs an index also for CPUs."""
        assert self.parallel_devices is not None
        device = self.parallel_devices[self.local_rank]
        return torch.device("cpu", 0) if device.type == "cpu" else device

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which holds this process's part of the gradient and of the optimizer's state."""
        return self.deepspeed_engine.optimizer

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning restores the optimizer, through this class."""
        return True

    def init_deepspeed(self) -> None:
        """Wrap the module; the gradient is summed in the parameters' own float type."""
        super().init_deepspeed()
        assert self.lightning_module is not None
        sum_gradients_as(self.zero, next(self.lightning_module.parameters()).dtype)

    def save_checkpoint(self, checkpoint: dict, filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint like any other strategy."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint like any other strategy."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Load weights into the module; load_optimizer_state_dict copies them to DeepSpeed's master weights."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the whole state of the optimizer in torch's format; all processes must call it together."""
        inner, state, groups = self.zero.optimizer, {}, []
        for parameters, group in zip(self.zero.bit16_groups, inner.param_groups, strict=True):
            partition = group["params"][0]
            numbers = list(range(len(state), len(state) + len(parameters)))
            groups.append(group | {"params": numbers})
            for number, parameter in zip(numbers, parameters, strict=True):
                values = inner.state[partition].items()
                state[number] = {name: self._gather(parameter, partition, value) for name, value in values}
        return {"state": {number: values for number, values in state.items() if values}, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load this process's part of an optimizer's state, and of the module's present weights."""
        saved, inner = checkpoint["optimizer_states"][0], self.zero.optimizer
        for parameters, group, theirs in zip(
            self.zero.bit16_groups, inner.param_groups, saved["param_groups"], strict=True
        ):
            partition = group["params"][0]
            group |= {name: value for name, value in theirs.items() if name != "params"}
            states = [saved["state"].get(number, {}) for number in theirs["params"]]
            own = inner.state[partition]
            for name, value in states[0].items():
                own[name] = torch.zeros_like(partition) if torch.is_tensor(value) and value.dim() else value
            for parameter, values in zip(parameters, states, strict=True):
                for name, value in values.items():
                    shard = shard_of(parameter)
                    if _is_sharded(own[name], partition) and shard is not None:
                        theirs_slice, own_slice = shard
                        own[name][own_slice] = value.flatten()[theirs_slice].to(partition)
        self.zero.refresh_fp32_params()

    def _gather(self, parameter: Any, partition: Tensor, value: Any) -> Any:
        """Return the state of a whole parameter, of which this process may hold a part."""
        if not _is_sharded(value, partition):
            return value
        whole = torch.zeros(parameter.numel(), dtype=value.dtype, device=self.root_device)
        shard = shard_of(parameter)
        if shard is not None:
            of_parameter, of_partition = shard
            whole[of_parameter] = value[of_partition].to(whole)
        return sum_over_ranks(whole).view_as(parameter)


def _is_sharded(value: Any, partition: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == partition.shape


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place, and return it.

    Without Lightning's barrier before every reduction, which would be a second communication per step.
    """
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def cluster_environment() -> ClusterEnvironment:
    """Return the environment that started this process: torchrun, srun, or a shell.

    Lightning's own guess complains of a missing srun on any machine with SLURM installed.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "SLURM_STEP_ID" in os.environ:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[int]:
    """Join the processes started by torchrun or srun, for work other than a run, and yield the rank of this one.

    A single process joins nothing.

    Args:
        device: Device of the work; 'cuda' is the GPU with the process's local rank.
    """
    environment = cluster_environment()
    rank, world_size = environment.global_rank(), environment.world_size()
    if world_size == 1 or torch.distributed.is_initialized():
        yield rank
        return
    os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    if device.type == "cuda":
        torch.cuda.set_device(environment.local_rank())
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        yield rank
    finally:
        torch.distributed.destroy_process_group()


def is_rank_zero() -> bool:
    """Return whether this process writes to the run folder, also before and after a process group exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def device_type(accelerator: str) -> str:
    """Return the type of device that a run computes on here: cuda or cpu."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
