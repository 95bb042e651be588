"""Held-out sets that a fine-tuning is measured on, before and after: what it learns, and what it forgets."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import open_manifest
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.held_out import ROLES, HeldOut, Role
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """A held-out split of a data set."""

    path: Path = field(metadata=MAY_CHANGE)
    """Manifest, or its folder."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split to predict."""
    theory: str | None = field(default=None, metadata=MAY_CHANGE)
    """Level of theory to predict, one of the potential's; when absent the one that the data set is described as, or the
    only one there is."""
    name: str | None = field(default=None, metadata=MAY_CHANGE)
    """Name in the report; the data set's name if None."""


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig:
    """What a fine-tuning is measured on, before and after."""

    target: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of what is adapted to; when empty, the test split of the fine-tuning's own data, or else val."""
    retained: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data of the pretraining, which are in no rehearsal and no Fisher either."""
    transfer: tuple[HeldOutConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Data of neither, such as another temperature or a related chemistry."""
    alphas: tuple[float, ...] = field(default=(), metadata=MAY_CHANGE)
    """Interpolations of the weights between the start (0) and the result (1) that are measured as well."""
    edge_budget: int = field(default=20000, metadata=MAY_CHANGE)
    """Directed edges of a batch; a larger structure is a batch of its own."""
    before: Path | None = field(default=None, metadata=MAY_CHANGE)
    """forgetting/ folder of an earlier run from the same start with the same sets, whose measurement of the start is
    taken over instead of made again."""

    def __post_init__(self) -> None:
        outside = [alpha for alpha in self.alphas if not 0 < alpha < 1]
        if outside:
            raise ValueError(
                f"forgetting.alphas has {', '.join(map(str, outside))}: they lie between 0 (the start) and 1 (the "
                "result), which are measured anyway"
            )
        if self.edge_budget < 1:
            raise ValueError(f"forgetting.edge_budget must be positive, not {self.edge_budget}")


def held_out_sets(config: ForgettingConfig, potential: Potential) -> list[HeldOut]:
    """Open the held-out sets of a fine-tuning: targets, then retained, then transfer.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: no such split, two sets of one name, or it has to be said which of several levels of theory to
            predict.
    """
    opened: list[HeldOut] = []
    chosen: Iterator[tuple[Role, HeldOutConfig]] = ((role, item) for role in ROLES for item in getattr(config, role))
    for role, item in chosen:
        manifest = open_manifest(item.path)
        manifest.split(item.split)  # refused here, not after hours of training
        theory = theory_of_data(potential, manifest.provenance.level_of_theory, item.theory)
        name = item.name or manifest.provenance.name
        if name in [other.name for other in opened]:
            raise ValueError(f"forgetting: two held-out sets are called {name!r}; give one of them another `name`")
        opened.append(
            HeldOut(name=name, role=role, dataset=Dataset(manifest=manifest, split=item.split, theory=theory))
        )
    return opened
