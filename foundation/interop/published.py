"""SevenNet models in the sevenn package: their files, and the known facts of their training.

They are identified by the checksum of their file, so these facts never apply to another file.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

NOT_STATED = "not stated in the file"
MPTRJ = {
    "name": "MPtrj",
    "licence": "MIT",
    "level_of_theory": "PBE and PBE+U, VASP, Materials Project settings",
    "energy_convention": "total energies of VASP, without the Materials Project's corrections",
    "citation": "B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023)",
    "source": "figshare.com/articles/dataset/23713842",
    "theory": "PBE",
}
R2SCAN = {
    "name": "Materials Project r2SCAN",
    "licence": NOT_STATED,
    "level_of_theory": "r2SCAN, VASP, Materials Project settings",
    "energy_convention": NOT_STATED,
    "citation": "J. Kim et al., J. Am. Chem. Soc. 147, 1042 (2025)",
    "source": "materialsproject.org",
    "theory": "R2SCAN",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model in the sevenn package."""

    name: str
    """Name by which it is asked for."""
    file: str
    """File, below pretrained_potentials/."""
    sha256: str
    """Checksum of the file."""
    citation: str
    """Citation requested by its authors."""
    datasets: tuple[dict[str, str], ...]
    """Training data."""


PUBLISHED = {
    each.name: each
    for each in (
        Published(
            name="sevennet-0",
            file="SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
            sha256="7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
            citation="Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024)",
            datasets=(MPTRJ,),
        ),
        Published(
            name="sevennet-0-22may2024",
            file="SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
            sha256="5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1",
            citation="Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024)",
            datasets=(MPTRJ | {"energy_convention": NOT_STATED},),
        ),
        Published(
            name="sevennet-l3i5",
            file="SevenNet_l3i5/checkpoint_l3i5.pth",
            sha256="a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
            citation="Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024)",
            datasets=(MPTRJ,),
        ),
        Published(
            name="sevennet-mf-0",
            file="SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
            sha256="81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",
            citation="J. Kim et al., J. Am. Chem. Soc. 147, 1042 (2025)",
            datasets=(MPTRJ | {"energy_convention": NOT_STATED}, R2SCAN),
        ),
    )
}
"""Models by name."""


def find_published(name: str) -> Path:
    """Return the file of a published model in the installed sevenn package.

    Args:
        name: Name of the model, one of PUBLISHED.

    Raises:
        FileNotFoundError: the package is not installed, or lacks the file.
    """
    package = "sevenn==0.13.0"
    spec = importlib.util.find_spec("sevenn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name}: a model of the sevenn package, which is not installed: pip install {package}")
    file = Path(spec.origin).parent / "pretrained_potentials" / PUBLISHED[name].file
    if not file.is_file():
        raise FileNotFoundError(f"{name}: the installed sevenn package lacks {file}: pip install {package}")
    return file


def published_of(sha256: str) -> Published | None:
    """Return the published model whose file has a checksum."""
    return next((model for model in PUBLISHED.values() if model.sha256 == sha256), None)
