"""The diagonal Fisher of a potential: how much the loss on data it has learned depends on each of its weights.

F_i is the mean over structures of the squared derivative of the training loss of that structure alone: the 'empirical'
Fisher (Kirkpatrick et al., PNAS 114, 3521 (2017); of interatomic potentials, Kim et al., arXiv:2506.15223). It scales
with the square of the loss and belongs to the weights it was computed at, so that both are kept with it and a mismatch
is refused. A file takes 8 bytes a weight for F beside the weights themselves, and 8 to know each structure again.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int64
from torch import Tensor

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store import durable, lock
from data_pipeline.store.json_record import parse_json
from data_pipeline.store.manifest import open_manifest
from foundation import checkpoint
from foundation.datasets import refuse_unlabelled
from foundation.finetuning.penalties import mismatches
from foundation.finetuning.squared_gradients import SquaredGradients, check_choice, squared_gradients
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data
from foundation.training.loss import LossConfig, without_labels
from foundation.training.strategy import is_rank_zero, process_group, sum_over_ranks
from foundation.untrusted import CorruptFile, Layout, check_finite, check_layout, read_layout, refusing, require, typed

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
FACTS, CHECKSUM = "facts", "sha256"
"""Entries of the header of a Fisher file: what it is, as JSON, and the checksum of that and of the tensors."""
MAX_NAMED = 3
"""Differences that an error names."""
VALUES, WEIGHTS, STRUCTURES = "fisher.", "theta_star.", "structures"
"""Beginnings of the names of the tensors that belong to a parameter, and the name of the keys of the structures."""
FACT_NAMES = (
    "num_structures",
    "num_above_threshold",
    "num_unknown",
    "loss_threshold",
    "data",
    "weights_sha256",
)
"""Fields of a Fisher that are JSON as they are."""


class CorruptFisher(CorruptFile):
    """A file that is not the Fisher that was saved; the message names it."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """The facts in the header of a Fisher file."""

    schema_version: int
    num_structures: int
    num_above_threshold: int
    num_unknown: int
    loss_threshold: float | None
    loss: LossConfig
    data: tuple[dict[str, str], ...]
    weights_sha256: str

    def __post_init__(self) -> None:
        if self.num_structures < 1 or min(self.num_above_threshold, self.num_unknown) < 0:
            raise ValueError("num_structures must be at least 1, num_above_threshold and num_unknown at least 0")


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    """The diagonal Fisher to compute: of which potential, for which loss, over which data."""

    model: Path
    """Release folder or run folder."""
    data: Path
    """Manifest of data that the model has learned, or its folder."""
    out: Path
    """File to write, by convention of suffix .safetensors; an older one is replaced once the new one is complete."""
    split: str = "train"
    """Split whose structures are used."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss whose derivatives are squared: that of the fine-tuning which will use the Fisher."""
    max_structures: int | None = None
    """Use this many structures, chosen at random; all when absent."""
    loss_threshold: float | None = None
    """Leave out structures whose loss is above this, which the model has not learned; none when absent."""
    seed: int = 0
    """Seed of the choice of structures."""
    device: str = "cpu"
    """torch's name of the device."""
    theory: str | None = None
    """Level of theory of the data, one of the potential's; when absent the one that the data set is described as, or
    the only one there is."""
    previous: Path | None = None
    """Fisher of the start of the fine-tuning that made the model, to which this one is added (online EWC): what was
    learned before stays protected in a chain of fine-tunings."""
    gamma: float = 1.0
    """Factor of the previous one."""

    def __post_init__(self) -> None:
        check_choice(self.max_structures, self.loss_threshold)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be from 0 (forget the previous Fisher) to 1 (add both), not {self.gamma}")
        if self.gamma != 1 and self.previous is None:
            raise ValueError("gamma is the factor of the previous Fisher: name its file with --previous")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fisher:
    """The diagonal Fisher of a potential, with all that decides what it may be used for."""

    values: dict[str, Tensor]
    """Mean squared derivative of the loss by parameter name, float64."""
    theta_star: dict[str, Tensor]
    """The parameters that it was computed at."""
    num_structures: int
    """Structures that the mean is over."""
    num_above_threshold: int
    """Structures left out because their loss is above the threshold."""
    num_unknown: int
    """Structures left out because the potential does not know an element."""
    loss_threshold: float | None
    """The threshold of the loss."""
    loss: LossConfig
    """The loss."""
    data: tuple[dict[str, str], ...]
    """Name, split and manifest fingerprint of each data set."""
    structures: Int64[Tensor, " structures"]
    """Keys of the structures that the mean is over, in order (foundation/finetuning/frame_keys.py)."""
    weights_sha256: str
    """Checksum of the potential's weights, the one in its config.json."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(value.numel() for value in self.values.values())

    @property
    def num_unprotected(self) -> int:
        """Number of weights whose Fisher is zero, such as those of elements that the data do not have."""
        return sum(int((value == 0).sum()) for value in self.values.values())

    def facts(self) -> dict[str, Any]:
        """Return what a card says of it, as JSON."""
        return {name: getattr(self, name) for name in (*FACT_NAMES, "num_parameters", "num_unprotected")}

    def most_of_trace(self) -> tuple[str, float]:
        """Return the parameter that has most of the trace, and which part: a penalty as it is holds little else."""
        sums = {name: float(value.sum()) for name, value in self.values.items()}
        name = max(sums, key=lambda name: sums[name])
        return name, sums[name] / max(sum(sums.values()), 1e-300)

    def check(self, potential: Potential, loss: LossConfig) -> None:
        """Refuse to serve for another potential, or for training with another loss.

        Raises:
            ValueError: names, shapes or weights of the parameters or the loss differ; the message says which.
        """
        parameters = dict(potential.named_parameters())
        theirs, ours = asdict(self.loss), asdict(loss)
        found = [
            f"loss.{name} was {theirs[name]} and is {ours[name]} now" for name in ours if theirs[name] != ours[name]
        ]
        missing = [name for name in parameters if name not in self.values]
        other = [f"the potential has {name}, which the Fisher has not" for name in missing]
        other += mismatches(potential, self.values, "the Fisher")
        if not other:
            pairs = ((name, value.cpu().double(), parameters[name]) for name, value in self.theta_star.items())
            differ = [name for name, star, ours in pairs if not torch.equal(star, ours.detach().cpu().double())]
            other += [f"the weights {name} differ" for name in differ]
        found += other
        if found:
            more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise ValueError(
                f"the Fisher was computed of another potential or loss: {'; '.join(found[:MAX_NAMED])}{more}. Compute "
                "it again with `foundation fisher`, of the start (--model) and with the fine-tuning's loss (--loss)."
            )


def diagonal_fisher(
    potential: Potential,
    datasets: Sequence[Dataset],
    loss_config: LossConfig,
    *,
    max_structures: int | None = None,
    loss_threshold: float | None = None,
    seed: int = 0,
) -> Fisher:
    """Return the diagonal Fisher of a potential; all processes of a process group share the work and get the whole.

    The arguments are those of squared_gradients().

    Raises:
        ValueError: what squared_gradients() refuses, or no structure was left to use.
    """
    grouped = torch.distributed.is_initialized()
    part = squared_gradients(
        potential,
        datasets,
        loss_config,
        rank=torch.distributed.get_rank() if grouped else 0,
        world_size=torch.distributed.get_world_size() if grouped else 1,
        max_structures=max_structures,
        loss_threshold=loss_threshold,
        seed=seed,
    )
    whole = SquaredGradients(
        sums=sum_over_ranks(part.sums), counts=sum_over_ranks(part.counts), keys=sum_over_ranks(part.keys)
    )
    return fisher_from(whole, potential, datasets, loss_config, loss_threshold)


def fisher_from(
    whole: SquaredGradients,
    potential: Potential,
    datasets: Sequence[Dataset],
    loss_config: LossConfig,
    loss_threshold: float | None,
) -> Fisher:
    """Return the Fisher that the sums over all structures make.

    Raises:
        ValueError: no structure was left to use.
    """
    used, above, unknown = (int(count) for count in whole.counts)
    if used == 0:
        raise ValueError(
            f"no structure is left for the Fisher: {above} have a loss above the threshold {loss_threshold}, {unknown} "
            "an element that the potential does not know. Raise the threshold or give other data."
        )
    named = {name: parameter.detach().cpu().clone() for name, parameter in potential.named_parameters()}
    means = (whole.sums / used).cpu().split([parameter.numel() for parameter in named.values()])
    return Fisher(
        values={name: mean.view_as(named[name]).clone() for name, mean in zip(named, means, strict=True)},
        theta_star=named,
        num_structures=used,
        num_above_threshold=above,
        num_unknown=unknown,
        loss_threshold=loss_threshold,
        loss=loss_config,
        data=tuple(
            {"name": each.manifest.provenance.name, "split": each.split, "fingerprint": each.manifest.fingerprint}
            for each in datasets
        ),
        structures=whole.keys[whole.keys != 0].unique().cpu(),
        weights_sha256=checkpoint.weights_sha256(potential),
    )


def merge(old: Fisher, new: Fisher, gamma: float) -> Fisher:
    """Return gamma F_old + F_new at the new weights: online EWC (Schwarz et al., ICML 2018, section 3.2).

    Raises:
        ValueError: gamma is outside 0 to 1, or the two are of different parameters or losses.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 (forget the old Fisher) to 1 (add both), not {gamma}")
    shapes = [{name: tuple(value.shape) for name, value in each.values.items()} for each in (old, new)]
    if shapes[0] != shapes[1]:
        different = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise ValueError(f"two Fishers of different parameters cannot be merged: {', '.join(dict.fromkeys(different))}")
    if old.loss != new.loss:
        raise ValueError(f"two Fishers of different losses cannot be merged: {old.loss} and {new.loss}")
    return replace(
        new,
        values={name: gamma * old.values[name] + value for name, value in new.values.items()},
        num_structures=old.num_structures + new.num_structures,
        num_above_threshold=old.num_above_threshold + new.num_above_threshold,
        num_unknown=old.num_unknown + new.num_unknown,
        data=old.data + new.data,
        structures=torch.cat([old.structures, new.structures]).unique(),
    )


def save(fisher: Fisher, path: Path) -> None:
    """Write a Fisher as safetensors with its facts in the header; the file appears only when it is complete."""
    tensors = {VALUES + name: value.contiguous().cpu() for name, value in fisher.values.items()}
    tensors |= {WEIGHTS + name: value.contiguous().cpu() for name, value in fisher.theta_star.items()}
    tensors[STRUCTURES] = fisher.structures.contiguous().cpu()
    kept = {name: getattr(fisher, name) for name in FACT_NAMES}
    facts = json.dumps(kept | {"loss": asdict(fisher.loss), "schema_version": SCHEMA_VERSION}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.whole_file(path) as partial:
        safetensors.torch.save_file(tensors, partial, metadata={FACTS: facts, CHECKSUM: _checksum(facts, tensors)})


def read(path: Path) -> Fisher:
    """Return the Fisher of a file; see Fisher.check() for whether it may be used.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFisher: it is no Fisher, not the one that was saved, or written by a newer version of the program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no Fisher there; make one with `foundation fisher`")
    with refusing(path, CorruptFisher, "not a Fisher ({}); compute it again with `foundation fisher`"):
        layout, header = read_layout(path)
        require(header, (FACTS, CHECKSUM))
        values = typed(dict[str, Any], parse_json(header[FACTS].encode()), FACTS)
        version = typed(int, values["schema_version"], "schema_version")
        if version > SCHEMA_VERSION:
            newer = f"schema {version} is newer than this program's {SCHEMA_VERSION}"
            raise CorruptFisher(f"{path}: {newer}; update it")
        facts = typed(_Facts, values, "")
        _check_names(layout)
        tensors = safetensors.torch.load_file(path)
        if _checksum(header[FACTS], tensors) != header[CHECKSUM]:
            raise CorruptFisher(f"{path}: differs from its checksum; copy it or compute it again")
        check_finite(tensors)
        means, theta_star = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in (VALUES, WEIGHTS)
        )
        negative = [name for name, value in means.items() if bool((value < 0).any())]
        if negative:
            raise ValueError(f"{VALUES}{negative[0]} is a mean of squares and has a negative number")
    kept: dict[str, Any] = {name: getattr(facts, name) for name in FACT_NAMES}
    return Fisher(values=means, theta_star=theta_star, structures=tensors[STRUCTURES], loss=facts.loss, **kept)


def _check_names(layout: Layout) -> None:
    """Refuse tensors that are not a mean of squares and a weight for each parameter, and the keys of the structures."""
    names = [name.removeprefix(VALUES) for name in layout if name.startswith(VALUES)]
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in names:
        _, shape = layout[VALUES + name]
        kind, _ = layout.get(WEIGHTS + name, (torch.float64, ()))
        expected |= {
            VALUES + name: (torch.float64, shape),
            WEIGHTS + name: (kind if kind.is_floating_point else torch.float64, shape),
        }
    count = math.prod(layout.get(STRUCTURES, (torch.int64, ()))[1])
    check_layout(layout, expected | {STRUCTURES: (torch.int64, (count,))})


def load(path: Path, potential: Potential, loss: LossConfig) -> Fisher:
    """Return the Fisher of a file for a fine-tuning that begins with a potential and uses a loss.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFisher: it is no Fisher, or not the one that was saved.
        ValueError: it was computed of another potential or loss.
    """
    fisher = read(path)
    try:
        fisher.check(potential, loss)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return fisher


def compute_fisher(config: FisherConfig) -> Fisher:
    """Compute the diagonal Fisher of a potential, write it, and return it.

    Processes that torchrun or srun have started share the work; the first one writes.

    Raises:
        FileNotFoundError: no potential, manifest or previous Fisher there.
        IsADirectoryError: the file to write is a folder.
        FileExistsError: it exists and is no Fisher.
        InUse: another process writes it.
        ValueError: no such device or split, no labels, no structure that can be used, or it has to be said which of
            several levels of theory the data are at.
    """
    if config.out.is_dir():
        raise IsADirectoryError(f"{config.out} is a folder: --out is the file to write")
    with lock.hold(lock.beside(config.out), config.out) if is_rank_zero() else nullcontext():
        if config.out.exists():
            _refuse_other(config.out)
        return _compute(config)


def _refuse_other(file: Path) -> None:
    """Refuse to replace a file that is no Fisher."""
    try:
        read(file)
    except CorruptFisher as error:
        raise FileExistsError(f"{file} exists and is no Fisher, so it stays as it is; choose another --out") from error


def _compute(config: FisherConfig) -> Fisher:
    previous = None if config.previous is None else read(config.previous)
    manifest = open_manifest(config.data)
    potential, device = checkpoint.load(config.model), _device(config.device)
    theory = theory_of_data(potential, manifest.provenance.level_of_theory, config.theory)
    datasets = [Dataset(manifest=manifest, split=config.split, theory=theory)]
    refuse_unlabelled(datasets)
    for term, sentence in without_labels(datasets[0], config.loss).items():
        log.warning("%s: nothing of the Fisher is from %s", sentence, term)
    with process_group(device) as rank:
        fisher = diagonal_fisher(
            potential.to(device),
            datasets,
            config.loss,
            max_structures=config.max_structures,
            loss_threshold=config.loss_threshold,
            seed=config.seed,
        )
    if previous is not None:
        fisher = merge(previous, fisher, config.gamma)
    if rank:
        return fisher
    save(fisher, config.out)
    name, part = fisher.most_of_trace()
    log.info(
        "%s: Fisher over %d structures (%d above the threshold of the loss and %d of unknown elements left out); "
        "%d of %d weights have none and are not protected; %.1f %% of the trace is on the %d of %s",
        *(config.out, fisher.num_structures, fisher.num_above_threshold, fisher.num_unknown),
        *(fisher.num_unprotected, fisher.num_parameters, 100 * part, fisher.values[name].numel(), name),
    )
    return fisher


def _device(name: str) -> torch.device:
    trouble = f"device: {name!r} is none that torch can use here; cpu always is one"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(trouble) from error
    # asked without putting anything on it, which is left to the process whose device it is
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(trouble)
    return device


def _checksum(facts: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(facts.encode() + safetensors.torch.save(tensors)).hexdigest()
