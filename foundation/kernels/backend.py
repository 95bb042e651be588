"""Layers that have several implementations, and the choice of one."""

import logging
from abc import abstractmethod
from functools import cache
from typing import Literal

import torch

from foundation.kernels.cpu import compiler

logger = logging.getLogger(__name__)

Backend = Literal["auto", "c", "torch", "cuda", "openequivariance"]


class Implemented(torch.nn.Module):
    """A layer with several implementations."""

    def __init__(self) -> None:
        super().__init__()
        self.backend: Backend = "auto"
        """The implementation."""

    @abstractmethod
    def chosen(self, device: str, dtype: torch.dtype) -> Backend:
        """Return the implementation on a kind of device, with 'auto' resolved.

        Raises:
            ImportError: a requested one is not installed.
            NoCompiler: the C backend is asked for and cannot be compiled.
            ValueError: the requested one does not work there.
        """


def backend_of(model: torch.nn.Module, device: torch.device) -> Backend:
    """Return the backend of a model's layers on a device in its float type, with 'auto' resolved.

    For a model without such layers it is plain torch.

    Raises:
        NoCompiler: the C backend is asked for and cannot be compiled.
        ValueError: the backend does not work on the device.
    """
    module = next((module for module in model.modules() if isinstance(module, Implemented)), None)
    return "torch" if module is None else module.chosen(device.type, next(model.parameters()).dtype)


def describe_backend(model: torch.nn.Module, device: torch.device) -> str:
    """Describe the backend of a model's layers on a device, for a log.

    Raises:
        NoCompiler: the C backend is asked for and cannot be compiled.
        ValueError: the backend does not work on the device.
    """
    backend = backend_of(model, device)
    return compiler.describe() if backend == "c" else backend


def check_device(backend: Backend, device: str, layer: str) -> None:
    """Refuse a backend on a kind of device for which it has no implementation.

    Raises:
        ValueError: naming both.
    """
    works_on = {"c": "cpu", "cuda": "cuda", "openequivariance": "cuda"}
    if backend in works_on and works_on[backend] != device:
        raise ValueError(f"the {backend} backend of {layer} works on {works_on[backend]}, not on {device}")


@cache
def say_once(message: str) -> None:
    """Log a warning, the same only once."""
    logger.warning(message)
