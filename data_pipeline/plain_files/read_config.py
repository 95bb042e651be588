"""Options for reading plain files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.building.splits import SplitBy


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """Options for files of labelled frames. Each is found from the files if it is not given."""

    format: str | None = None
    """ASE's name of the files' format; None: by their names, or as ASE finds out."""
    energy_key: str | None = None
    """Entry with the total energy [eV], such as REF_energy; None: the only one, or the one that others agree with, and
    for VASP the free energy, whose derivatives the forces are."""
    forces_key: str | None = None
    """Entry with the forces [eV/Å], such as REF_forces; None: the only one, or the one that others agree with."""
    stress_key: str | None = None
    """Entry with the stress; None: the only one, or the one that others agree with."""
    virials_key: str | None = None
    """Entry with the virial −stress·volume [eV], in place of the stress."""
    stress_unit: Literal["eV/A^3", "GPa", "kbar"] | None = None
    """Unit of the stress, which is then not doubted; None: the one that its name or the frames state, else eV/Å³."""
    stress_positive_in: Literal["tension", "compression"] = "tension"
    """Sign of the stress in the files."""
    group_key: str | None = None
    """Entry that names the group of a frame, such as a trajectory; None: the chemical formula."""
    ignored_entries: tuple[str, ...] = ()
    """Entries that look like labels but are not; otherwise a frame whose only label is such an entry is left out."""
    charged: Literal["refuse", "keep"] = "refuse"
    """Treatment of frames with a charge or unpaired electrons, which a potential does not know."""
    split_by: SplitBy | None = None
    """Unit of the split, as in `build`; None: whole groups if there are at least five or group_key names them, else
    contiguous blocks of frames."""
    val_fraction: float | None = None
    """Fraction for validation; None: 0.1, and 0 if there are fewer than ten frames or --val names files."""
    test_fraction: float | None = None
    """Fraction for the final evaluation; None: 0.1, and 0 if there are fewer than ten frames or --test names files."""
    split_seed: int | None = None
    """Seed of the split; None: the first that comes near the fractions."""
    name: str | None = None
    """Short name of the data; None: that of the file or folder."""
    level_of_theory: str | None = None
    """Functional, code and pseudopotentials of the labels; None: as VASP's files state it, else not stated."""
    licence: str | None = None
    """Licence of the data; None: not stated, and the data are not passed on."""


@dataclass(frozen=True, kw_only=True)
class BuildFilesConfig:
    """Options for building a data set from plain files; everything else is found from them, and said."""

    data: tuple[str, ...]
    """Files of labelled frames, globs, folders and structure_lists."""
    out: Path
    """Folder to write."""
    val: tuple[str, ...] = ()
    """Files for validation."""
    test: tuple[str, ...] = ()
    """Files for the final evaluation."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Options of reading and splitting."""
    cutoffs: tuple[float, ...] = (5.0,)
    """Cutoffs of the models to train [Å]: edges are counted at these."""
    overwrite: bool = False
    """Replace an existing data set."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is empty: name at least one file")
