"""Held-out sets evaluated before and after a fine-tuning, for what it learns and forgets."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import is_dataset
from data_pipeline.store.manifest import open_manifest
from foundation.configuration import MAY_CHANGE
from foundation.datasets import PlainFiles
from foundation.evaluation.held_out import ROLES, HeldOut, Role
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """A held-out split of a data set."""

    path: Path = field(metadata=MAY_CHANGE)
    """Data set (its folder or manifest), or a plain file, glob or folder of files."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split of a data set to predict; of plain files, all frames are predicted."""
    theory: str | None = field(default=None, metadata=MAY_CHANGE)
    """Level of theory to predict, one of the potential's; None: the one in the data set's provenance, or the
    potential's only one."""
    name: str | None = field(default=None, metadata=MAY_CHANGE)
    """Name in the report; None: the data set's name."""


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig:
    """Held-out sets evaluated before and after a fine-tuning."""

    target: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of the fine-tuning's target; empty: the test split of its training data, or else val."""
    retained: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of the pretraining, in neither rehearsal nor Fisher."""
    transfer: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Data of neither kind, such as another temperature or a related chemistry."""
    alphas: tuple[float, ...] = field(default=(), metadata=MAY_CHANGE)
    """Positions between the start (0) and the result (1) at which interpolated weights are evaluated as well."""
    edge_budget: int = field(default=20000, metadata=MAY_CHANGE)
    """Number of directed edges of a batch; a larger structure is a batch of its own."""
    before: Path | None = field(default=None, metadata=MAY_CHANGE)
    """forgetting/ folder of an earlier run from the same start with the same sets, whose measurement of the start is
    reused."""

    def __post_init__(self) -> None:
        outside = [alpha for alpha in self.alphas if not 0 < alpha < 1]
        if outside:
            raise ValueError(
                f"forgetting.alphas has {', '.join(map(str, outside))}: they must lie between 0 (the start) and 1 (the "
                "result), which are measured anyway"
            )
        if self.edge_budget < 1:
            raise ValueError(f"forgetting.edge_budget must be positive, not {self.edge_budget}")


def with_plain_sets_built(config: ForgettingConfig, plain: PlainFiles) -> ForgettingConfig:
    """Return the configuration with data sets newly built from plain files in their place."""
    built = {
        role: tuple(
            item if is_dataset(item.path) else replace(item, path=plain.build([item.path]), split="test")
            for item in getattr(config, role)
        )
        for role in ROLES
    }
    return replace(config, **built)


def held_out_sets(config: ForgettingConfig, potential: Potential) -> list[HeldOut]:
    """Open the held-out sets of a fine-tuning: targets, then retained, then transfer; empty splits are left out.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: no such split, two sets of one name, or one of several levels of theory must be named.
    """
    opened: list[HeldOut] = []
    chosen: Iterator[tuple[Role, HeldOutConfig]] = ((role, item) for role in ROLES for item in getattr(config, role))
    for role, item in chosen:
        manifest = open_manifest(item.path)
        if not manifest.split(item.split).shards:  # an unknown split is refused here, not after hours of training
            log.warning("%s: its split %s is empty, so nothing is measured on it", item.path, item.split)
            continue
        theory = theory_of_data(potential, manifest.provenance.level_of_theory, item.theory)
        name = item.name or manifest.provenance.name
        if name in [other.name for other in opened]:
            raise ValueError(f"forgetting: two held-out sets are named {name!r}; give one of them another `name`")
        opened.append(
            HeldOut(name=name, role=role, dataset=Dataset(manifest=manifest, split=item.split, theory=theory))
        )
    return opened
