"""The diagonal Fisher of a potential: sensitivity of the loss on learned data to each weight.

F_i is the mean over structures of the squared derivative of the training loss of that single structure: the 'empirical'
Fisher (Kirkpatrick et al., PNAS 114, 3521 (2017); of interatomic potentials, Kim et al., arXiv:2506.15223). It scales
with the square of the loss and belongs to the weights at which it was computed, so both are stored with it and a
mismatch is refused. A file takes 8 bytes per weight for F in addition to the weights, and 8 per structure for its key.
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
from data_pipeline.plain_files import ReadConfig
from data_pipeline.store import durable, lock
from data_pipeline.store.json_record import parse_json
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.untrusted import (
    CorruptFile,
    Layout,
    check_finite,
    check_layout,
    read_layout,
    refusing,
    require,
    typed,
)
from foundation import checkpoint
from foundation.datasets import one_split, refuse_unlabelled
from foundation.finetuning.penalties import mismatches
from foundation.finetuning.squared_gradients import SquaredGradients, check_choice, squared_gradients
from foundation.naming import Choice, resolve
from foundation.potential import Potential
from foundation.surgery.theories import theory_of_data
from foundation.training.loss import LossConfig, without_labels
from foundation.training.strategy import is_rank_zero, process_group, sum_over_ranks

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
NAMELESS = 2
"""First schema whose keys are of the content of frames, not of their names."""
FACTS, CHECKSUM = "facts", "sha256"
"""Entries of the header of a Fisher file: facts as JSON, and the checksum of facts and tensors."""
MAX_NAMED = 3
"""Number of differences that an error names."""
VALUES, WEIGHTS, STRUCTURES = "fisher.", "theta_star.", "structures"
"""Prefixes of the names of a parameter's tensors, and the name of the tensor of structure keys."""
FACT_NAMES = (
    "num_structures",
    "num_above_threshold",
    "num_unknown",
    "loss_threshold",
    "data",
    "weights_sha256",
)
"""Fields of a Fisher that are stored as JSON."""


class CorruptFisher(CorruptFile):
    """A file that is not a saved Fisher; the message names it."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Facts in the header of a Fisher file."""

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
    """The diagonal Fisher to compute: its potential, loss and data."""

    model: Path
    """Potential, by its folder, run or published name."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    data: Path | tuple[Path, ...]
    """Data that the model has learned: a data set, or plain files, globs or folders of files, which are read for this
    computation only."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    out: Path
    """File to write, with suffix .safetensors by convention; an older one is replaced once the new one is complete."""
    split: str = "train"
    """Split of the data set whose structures are used; of plain files, all frames are."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss whose derivatives are squared; use that of the fine-tuning."""
    max_structures: int | None = None
    """Number of structures to use, chosen at random; None uses all."""
    loss_threshold: float | None = None
    """Loss above which structures are left out as not learned by the model; None leaves out none."""
    seed: int = 0
    """Seed of the choice of structures."""
    device: str = "cpu"
    """torch's name of the device."""
    theory: str | None = None
    """Level of theory of the data, one of the potential's; None: the one in the data set's provenance, or the
    potential's only one."""
    previous: Path | None = None
    """Fisher of the start of the fine-tuning that made the model, to which this one is added (online EWC), to protect
    earlier knowledge in a chain of fine-tunings."""
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
    """The diagonal Fisher of a potential, with the facts needed to check its use."""

    values: dict[str, Tensor]
    """Mean squared derivative of the loss by parameter name, float64."""
    theta_star: dict[str, Tensor]
    """Parameters at which it was computed."""
    num_structures: int
    """Number of structures in the mean."""
    num_above_threshold: int
    """Number of structures left out because their loss is above the threshold."""
    num_unknown: int
    """Number of structures left out because the potential does not know an element."""
    loss_threshold: float | None
    """Threshold of the loss."""
    loss: LossConfig
    """The loss."""
    data: tuple[dict[str, str], ...]
    """Name, split and manifest fingerprint of each data set."""
    structures: Int64[Tensor, " structures"]
    """Content keys of the structures in the mean, in order; none from a file of schema 1, which had keys of names."""
    weights_sha256: str
    """Checksum of the potential's weights, as in its config.json."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(value.numel() for value in self.values.values())

    @property
    def num_unprotected(self) -> int:
        """Number of weights whose Fisher is zero, such as those of elements missing from the data."""
        return sum(int((value == 0).sum()) for value in self.values.values())

    def facts(self) -> dict[str, Any]:
        """Return what a card says of it, as JSON."""
        return {name: getattr(self, name) for name in (*FACT_NAMES, "num_parameters", "num_unprotected")}

    def most_of_trace(self) -> tuple[str, float]:
        """Return the parameter with the largest share of the trace, and the share. A raw penalty does little else."""
        sums = {name: float(value.sum()) for name, value in self.values.items()}
        name = max(sums, key=lambda name: sums[name])
        return name, sums[name] / max(sum(sums.values()), 1e-300)

    def check(self, potential: Potential, loss: LossConfig) -> None:
        """Check that this Fisher belongs to a potential and a training loss.

        Raises:
            ValueError: names, shapes or weights of the parameters or the loss differ; the message names them.
        """
        parameters = dict(potential.named_parameters())
        theirs, ours = asdict(self.loss), asdict(loss)
        found = [
            f"loss.{name} was {theirs[name]} and is {ours[name]} now" for name in ours if theirs[name] != ours[name]
        ]
        missing = [name for name in parameters if name not in self.values]
        other = [f"the potential has {name}, the Fisher does not" for name in missing]
        other += mismatches(potential, self.values, "the Fisher")
        if not other:
            pairs = ((name, value.cpu().double(), parameters[name]) for name, value in self.theta_star.items())
            differ = [name for name, star, ours in pairs if not torch.equal(star, ours.detach().cpu().double())]
            other += [f"the weights {name} differ" for name in differ]
        found += other
        if found:
            more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise ValueError(
                f"the Fisher was computed for another potential or loss: {'; '.join(found[:MAX_NAMED])}{more}. Compute "
                "it again with `foundation fisher`, for the start (--model) and the fine-tuning's loss (--loss)."
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
    """Return the diagonal Fisher of a potential; the processes of a group share the work, and each gets the whole.

    The arguments are those of squared_gradients().

    Raises:
        ValueError: squared_gradients() refuses, or no structure remains.
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
    """Return the Fisher from the sums over all structures.

    Raises:
        ValueError: no structure remains.
    """
    used, above, unknown = (int(count) for count in whole.counts)
    if used == 0:
        raise ValueError(
            f"no structure remains for the Fisher: {above} have a loss above the threshold {loss_threshold}, {unknown} "
            "have an element unknown to the potential. Raise the threshold or give other data."
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
        ValueError: gamma is outside 0 to 1, or the two have different parameters or losses.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 (forget the old Fisher) to 1 (add both), not {gamma}")
    shapes = [{name: tuple(value.shape) for name, value in each.values.items()} for each in (old, new)]
    if shapes[0] != shapes[1]:
        different = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise ValueError(f"Fishers with different parameters cannot be merged: {', '.join(dict.fromkeys(different))}")
    if old.loss != new.loss:
        raise ValueError(f"Fishers with different losses cannot be merged: {old.loss} and {new.loss}")
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
        partial.write_bytes(safetensors.torch.save(tensors, {FACTS: facts, CHECKSUM: checksum(facts, tensors)}))


def read(path: Path) -> Fisher:
    """Return the Fisher of a file; Fisher.check() tells whether it may be used.

    Raises:
        FileNotFoundError: no such file.
        CorruptFisher: it is not a Fisher, differs from its checksum, or was written by a newer version of the program.
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
        if checksum(header[FACTS], tensors) != header[CHECKSUM]:
            raise CorruptFisher(f"{path}: differs from its checksum; copy it or compute it again")
        check_finite(tensors)
        means, theta_star = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in (VALUES, WEIGHTS)
        )
        negative = [name for name, value in means.items() if bool((value < 0).any())]
        if negative:
            raise ValueError(f"{VALUES}{negative[0]} is a mean of squares but has a negative number")
    structures = tensors[STRUCTURES]
    if version < NAMELESS:
        log.warning(
            "%s: an older version of the program wrote it and knew frames by name, so held-out frames are not compared "
            "with its own; compute it again with `foundation fisher` to have them compared",
            path,
        )
        structures = structures[:0]
    kept: dict[str, Any] = {name: getattr(facts, name) for name in FACT_NAMES}
    return Fisher(values=means, theta_star=theta_star, structures=structures, loss=facts.loss, **kept)


def _check_names(layout: Layout) -> None:
    """Check that the tensors are a mean of squares and a weight for each parameter, and the keys of the structures."""
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
    """Return the Fisher of a file for a fine-tuning with a given start and loss.

    Raises:
        FileNotFoundError: no such file.
        CorruptFisher: it is not a Fisher, or differs from its checksum.
        ValueError: it was computed for another potential or loss.
    """
    fisher = read(path)
    try:
        fisher.check(potential, loss)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return fisher


def compute_fisher(config: FisherConfig) -> Fisher:
    """Compute the diagonal Fisher of a potential, write it, and return it.

    Processes started by torchrun or srun share the work; the first one writes.

    Raises:
        FileNotFoundError: no potential, manifest or previous Fisher there.
        IsADirectoryError: the file to write is a folder.
        FileExistsError: it exists and is not a Fisher.
        InUse: another process writes it.
        InvalidStructure: a frame of plain files is refused.
        ValueError: no such device or split, no labels, no usable structure, or one of several levels of theory must be
            named.
    """
    if config.out.is_dir():
        raise IsADirectoryError(f"{config.out} is a folder: --out is the file to write")
    with lock.hold(lock.beside(config.out), config.out) if is_rank_zero() else nullcontext():
        if config.out.exists():
            _refuse_other(config.out)
        return _compute(config)


def _refuse_other(file: Path) -> None:
    """Refuse to replace a file that is not a Fisher."""
    try:
        read(file)
    except CorruptFisher as error:
        raise FileExistsError(
            f"{file} exists and is not a Fisher, so it is not replaced; choose another --out"
        ) from error


def _compute(config: FisherConfig) -> Fisher:
    previous = None if config.previous is None else read(config.previous)
    device = _device(config.device)
    potential = resolve(config.model, config.checkpoint).load()
    with one_split(config.data, config.read, split=config.split, cutoff=potential.cutoff) as manifest:
        fisher, rank = _computed(config, potential, manifest, device)
    if previous is not None:
        fisher = merge(previous, fisher, config.gamma)
    if rank:
        return fisher
    save(fisher, config.out)
    name, part = fisher.most_of_trace()
    log.info(
        "%s: Fisher over %d structures (left out: %d above the loss threshold, %d with unknown elements); "
        "%d of %d weights have none and are not protected; %.1f %% of the trace is on the %d of %s",
        *(config.out, fisher.num_structures, fisher.num_above_threshold, fisher.num_unknown),
        *(fisher.num_unprotected, fisher.num_parameters, 100 * part, fisher.values[name].numel(), name),
    )
    return fisher


def _computed(
    config: FisherConfig, potential: Potential, manifest: Manifest, device: torch.device
) -> tuple[Fisher, int]:
    """Return the Fisher of a potential on a data set, and the rank of this process."""
    theory = theory_of_data(potential, manifest.provenance.level_of_theory, config.theory)
    datasets = [Dataset(manifest=manifest, split=config.split, theory=theory)]
    refuse_unlabelled(datasets)
    for term, sentence in without_labels(datasets[0], config.loss).items():
        log.warning("%s: the Fisher has no contribution from %s", sentence, term)
    with process_group(device) as rank:
        fisher = diagonal_fisher(
            potential.to(device),
            datasets,
            config.loss,
            max_structures=config.max_structures,
            loss_threshold=config.loss_threshold,
            seed=config.seed,
        )
    return fisher, rank


def _device(name: str) -> torch.device:
    trouble = f"device: torch cannot use {name!r} here; cpu always works"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(trouble) from error
    # checked without allocating on it, which is left to the process that owns it
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(trouble)
    return device


def checksum(facts: str, tensors: dict[str, Tensor]) -> str:
    """Return the checksum of facts and tensors, for the header of their file."""
    return hashlib.sha256(facts.encode() + safetensors.torch.save(tensors)).hexdigest()
