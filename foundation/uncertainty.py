"""Uncertainty as a command: training data are read once, held-out data calibrate, a folder gets its trust signal."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.store import durable, lock
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint, last_layer
from foundation.datasets import one_split
from foundation.evaluation import calibration
from foundation.evaluation.calibration import HeldOut, TrainingSums, training_sums
from foundation.finetuning import protection
from foundation.interop.calculator import tabulate
from foundation.last_layer import UNSCALED, TrustFacts
from foundation.potential import Potential
from foundation.reports.trust import card_section, draw, with_section

log = logging.getLogger(__name__)

FEWEST_FRAMES = 4
"""Smallest number of frames of held-out data: half of them calibrate, half judge."""


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Potential, its training data, and held-out data for the calibration."""

    model: Path
    """Release folder or run folder; an uncertainty that it has already is replaced."""
    data: Path | tuple[Path, ...]
    """Data set that it was trained on, or plain files; labels are needed for the coverage only."""
    split: str = "train"
    """Split of a data set; of plain files, all frames are used."""
    calibration: tuple[Path, ...] = ()
    """Held-out data sets or plain files with labels, the first one like the training data; half of the frames
    calibrate, half judge. None given: the training data's own, in calibration_split."""
    calibration_split: str = "val"
    """Split of the data sets of the calibration."""
    theory: str | None = None
    """Level of theory of the data, one of the potential's; None: its only one."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    max_frames: int = 20_000
    """Largest number of frames of each data set, spread evenly over the split."""
    device: str = "cpu"
    """torch's name of the device."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {self.max_frames}")


def add_uncertainty(config: UncertaintyConfig) -> Path:
    """Add uncertainty and coverage to the folder of a potential, and return the folder.

    Raises:
        FileNotFoundError: no potential in the folder, or no data.
        CorruptCheckpoint: the potential is damaged.
        FileExistsError: the folder holds other files, which would be lost.
        ValueError: data have no frame whose elements are known, or no labels; the network has no features; or the level
            of theory is unknown.
        InUse: another process writes there.
    """
    folder = _folder(config.model)
    with lock.hold(lock.beside(folder), folder):
        checkpoint.refuse_to_replace(folder, "potential")
        potential, described = checkpoint.load(folder), checkpoint.describe(folder)
        potential.last_layer = None
        potential = potential.to(torch.device(config.device)).cast(torch.float32)
        tabulate(potential)
        found, parts = _measured(config, potential, described.weights_sha256)
        with durable.whole_folder(lock.real(folder)) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            last_layer.save(found, partial)
            draw(found, parts, partial / last_layer.FIGURE)
            if (folder / checkpoint.CARD).is_file():
                text = (folder / checkpoint.CARD).read_text()
                (partial / checkpoint.CARD).write_text(with_section(text, card_section(found.facts), protection.TITLE))
            checkpoint.write_checksums(partial)
            checkpoint.load(partial)
    for name, judged in found.facts.judged.items():
        log.info("%s: %s", name, json.dumps(judged.__dict__))
    return folder


def _folder(model: Path) -> Path:
    """Return the folder of a potential; one without a folder has nowhere to keep the uncertainty."""
    if not model.exists():
        raise FileNotFoundError(
            f"{model}: no such folder; a published potential becomes one with `foundation convert --from sevennet "
            f"--checkpoint {model} --out FOLDER`"
        )
    return checkpoint.find(model)


def _measured(
    config: UncertaintyConfig, potential: Potential, weights_sha256: str
) -> tuple[last_layer.LastLayer, dict[str, HeldOut]]:
    """Return the calibrated last layer, and the held-out errors that judge it by name of their data."""
    theory = potential.theory_number(config.theory)
    with _frames(config, config.data, config.split, potential) as (manifest, frames):
        sums = training_sums(potential, frames, theory)
        facts = _facts(potential, manifest, sums, theory, weights_sha256)
    log.info("%d frames of %s, %d atoms, in the covariance", sums.num_frames, facts.data, facts.num_atoms)
    potential.last_layer = calibration.with_facts(potential, sums, facts)
    parts: dict[str, HeldOut] = {}
    for data in config.calibration or (config.data,):
        with _frames(config, data, config.calibration_split, potential) as (manifest, frames):
            if not manifest.labelled:
                raise ValueError(f"{data} has no labels, so errors cannot be measured on it")
            found = calibration.held_out(potential, frames, theory)
        if len(found.energy_errors) < FEWEST_FRAMES:
            raise ValueError(
                f"{data} has {len(found.energy_errors)} held-out frames; half of them calibrate and half judge, so "
                f"at least {FEWEST_FRAMES} are needed: choose another --calibration or --calibration_split"
            )
        parts[manifest.provenance.name] = found
    facts = replace(facts, calibration_split=config.calibration_split)
    facts = calibration.calibrated(facts, [each.part(0) for each in parts.values()])
    judging = {name: each.part(1) for name, each in parts.items()}
    facts = calibration.judged(calibration.with_facts(potential, sums, facts).cpu(), judging)
    return calibration.with_facts(potential, sums, facts).cpu(), judging


@contextmanager
def _frames(
    config: UncertaintyConfig, data: Path | tuple[Path, ...], split: str, potential: Potential
) -> Iterator[tuple[Manifest, Iterator[Structure]]]:
    """Open data, and give its manifest with the frames of a split, spread evenly."""
    with one_split(data, config.read, split=split, cutoff=potential.cutoff) as manifest:
        frames = Dataset(manifest=manifest, split=split).frames()
        chosen = np.linspace(0, len(frames) - 1, min(config.max_frames, len(frames))).round().astype(int)
        yield manifest, (frames[place] for place in np.unique(chosen).tolist())


def _facts(
    potential: Potential, manifest: Manifest, sums: TrainingSums, theory: int, weights_sha256: str
) -> TrustFacts:
    """Return what was seen in the training data, without a calibration."""
    forces, low = sums.largest_force, sums.lowest_pressure
    counts = zip(potential.elements, sums.counts.tolist(), strict=True)
    return TrustFacts(
        format=last_layer.FORMAT,
        weights_sha256=weights_sha256,
        data=manifest.provenance.name,
        manifest_fingerprint=manifest.fingerprint,
        theories=(potential.theories[theory],),
        num_frames=sums.num_frames,
        num_atoms=int(sums.counts.sum()),
        elements={SYMBOLS[number]: count for number, count in counts if count},
        largest_force=forces if np.isfinite(forces) else None,
        lowest_pressure=low if np.isfinite(low) else None,
        highest_pressure=sums.highest_pressure if np.isfinite(low) else None,
        limit=float(np.finfo(np.float64).max),
        energy=UNSCALED,
        forces=UNSCALED,
    )
