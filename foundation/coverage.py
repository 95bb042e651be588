"""Coverage as a command: the environments of a potential's training data become one small file."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from foundation.datasets import one_split
from foundation.evaluation.coverage import Coverage, coverage_of
from foundation.naming import Choice, resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CoverageConfig:
    """Potential, its training data, and the file to write."""

    model: Path
    """Potential: its folder, run or published name."""
    data: Path | tuple[Path, ...]
    """Data set that it was trained on, or plain files; labels are not used."""
    out: Path
    """File to write, such as coverage.safetensors."""
    split: str = "train"
    """Split of a data set; of plain files, all frames are used."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    max_frames: int = 20_000
    """Largest number of frames, spread evenly over the split."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    device: str = "cpu"
    """torch's name of the device."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {self.max_frames}")


def cover(config: CoverageConfig) -> Coverage:
    """Write the coverage of a potential's training data, and return it.

    Raises:
        FileNotFoundError: no potential or no data there.
        ValueError: the split has no frame whose elements are all known, or the network has no features.
    """
    potential = resolve(config.model, config.checkpoint).load()
    potential = potential.to(torch.device(config.device)).cast(torch.float32).eval()
    with one_split(config.data, config.read, split=config.split, cutoff=potential.cutoff) as manifest:
        frames = Dataset(manifest=manifest, split=config.split).frames()
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(config.max_frames, len(frames))).round().astype(int))

        some = [frames[place] for place in chosen.tolist()]
        known = [each for each in some if set(each.numbers.tolist()) <= set(potential.elements)]
        if known and len({each.group for each in known}) == 1:
            log.warning("all frames are of one group: each is compared with the others, however alike they are")
            known = [replace(each, group=str(place)) for place, each in enumerate(known)]
        found = coverage_of(potential, known, manifest.provenance.name)
    found.save(config.out)
    log.info(
        "%d atoms of %d elements, %d environments kept: %s",
        found.counts.sum(),
        len(found.elements),
        len(found.kept),
        config.out,
    )
    return found
