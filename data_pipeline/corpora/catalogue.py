"""Public corpora by name: addresses of their files, their provenance, and the source that reads them.

Every entry names the origin of its facts in `facts`. An unpublished size or checksum is None: then the download cannot
be verified and logs so. Only exact sizes are given as size; rounded ones of documentation are in `volume`.
"""

import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from data_pipeline.corpora.archives import unpack, unpacked_name
from data_pipeline.corpora.download import DownloadError, download
from data_pipeline.sources import SourceConfig
from data_pipeline.store.manifest import Provenance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a corpus."""

    name: str
    """Path below the folder of the corpus; .tar.gz and .zip are unpacked beside themselves."""
    url: str
    """Address."""
    size: int | None = None
    """Exact size [bytes]; None if unpublished."""
    checksum: str | None = None
    """md5:... or sha256:...; None if unpublished."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A public data set."""

    name: str
    """Name in this catalogue."""
    title: str
    """Full name, with the number of frames."""
    volume: str
    """Size of the download according to its documentation."""
    files: tuple[RemoteFile, ...]
    """Files to download; empty if programs may not download them."""
    source: Mapping[str, Any]
    """Options of the source that reads it, that source's own field first; a tuple holds patterns of paths."""
    licence: str
    """Licence of the data (SPDX identifier)."""
    citation: str
    """Citation."""
    level_of_theory: str
    """Functional, code and pseudopotentials of the labels."""
    energy_convention: str
    """Meaning of the energies."""
    homepage: str
    """Web page that describes it."""
    facts: str
    """Origin of the facts of this entry."""
    access: str = ""
    """Instructions to get the files if programs may not download them."""


def find_corpus(name: str) -> Corpus:
    """Return a corpus by its name.

    Raises:
        ValueError: no corpus has this name.
    """
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}; choose one of {', '.join(CORPORA)}")
    return CORPORA[name]


def fetch(corpus: Corpus, folder: Path) -> list[Path]:
    """Download and unpack the files of a corpus missing from the folder; return the files and unpacked folders.

    Raises:
        DownloadError: a file cannot be downloaded, or the corpus must be downloaded by hand.
    """
    if not corpus.files:
        raise DownloadError(f"{corpus.name} must be downloaded by hand. {corpus.access}")
    logger.info("%s: %s, %s, into %s", corpus.name, corpus.title, corpus.volume, folder)
    paths = []
    for file in corpus.files:
        path = folder / file.name
        unpacked = path.with_name(unpacked_name(path.name))
        if unpacked != path and unpacked.is_dir():
            paths.append(unpacked)
            continue
        path = download(file.url, path, size=file.size, checksum=file.checksum)
        paths.append(path if unpacked == path else unpack(path))
    return paths


def corpus_build(name: str, folder: Path) -> tuple[SourceConfig, Provenance]:
    """Return the source that reads a corpus in a folder, and its provenance.

    Raises:
        ValueError: unknown corpus.
        FileNotFoundError: its files are not in the folder.
    """
    corpus = find_corpus(name)
    options = {
        key: _paths(corpus, value, folder) if isinstance(value, tuple) else value
        for key, value in corpus.source.items()
    }
    provenance = Provenance(
        name=corpus.name,
        licence=corpus.licence,
        level_of_theory=corpus.level_of_theory,
        energy_convention=corpus.energy_convention,
        citation=corpus.citation,
        source=corpus.homepage,
    )
    return make_source(options), provenance


def make_source(options: Mapping[str, Any]) -> SourceConfig:
    """Return the source whose first field is the first of the options.

    Raises:
        ValueError: no source has this field.
    """
    own = next(iter(options))
    for source_class in get_args(SourceConfig):
        if fields(source_class)[0].name == own:
            return source_class(**options)
    raise ValueError(f"no source begins with the field {own!r}")


def _paths(corpus: Corpus, patterns: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    found = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern.replace("{folder}", glob.escape(str(folder))), recursive=True))
        if not matches:
            how = corpus.access or f"Download it with --corpus {corpus.name} --download."
            raise FileNotFoundError(f"{pattern.replace('{folder}', str(folder))}: not found. {how}")
        found += [str(Path(match)) for match in matches]
    return tuple(found)


OMAT24_SUBSETS = (
    "rattled-1000",
    "rattled-1000-subsampled",
    "rattled-500",
    "rattled-500-subsampled",
    "rattled-300",
    "rattled-300-subsampled",
    "aimd-from-PBE-1000-npt",
    "aimd-from-PBE-1000-nvt",
    "aimd-from-PBE-3000-npt",
    "aimd-from-PBE-3000-nvt",
    "rattled-relax",
)
_OMAT24 = "https://dl.fbaipublicfiles.com/opencatalystproject/data/omat"
_OMAT24_CITATION = "L. Barroso-Luque et al., Open Materials 2024 (OMat24), arXiv:2410.12771 (2024)"
_OMAT24_DOCS = "fairchem, docs/inorganic_materials/datasets/omat24.md"
_ALEXANDRIA_CITATION = "J. Schmidt et al., Adv. Mater. 35, 2210788 (2023)"
_MPTRJ_CITATION = "B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3"
_MATPES = "https://s3.us-east-1.amazonaws.com/materialsproject-contribs/MatPES_2025_1"


def _omat24(name: str, title: str, volume: str, split: str, version: str, subsets: tuple[str, ...]) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        volume=volume,
        files=tuple(
            RemoteFile(name=f"{split}/{subset}.tar.gz", url=f"{_OMAT24}/{version}/omat/{split}/{subset}.tar.gz")
            for subset in subsets
        ),
        source={"aselmdb": tuple(f"{{folder}}/{split}/{subset}/" for subset in subsets)},
        licence="CC-BY-4.0",
        citation=_OMAT24_CITATION,
        level_of_theory="DFT, PBE(+U), VASP, PBE_54 pseudopotentials",
        energy_convention="total energies of VASP; other pseudopotentials than MPtrj and sAlex, so not compatible",
        homepage="https://huggingface.co/datasets/facebook/OMAT24",
        facts=f"{_OMAT24_DOCS} (addresses, volumes, licence; its counts of training structures are some 90 times too "
        "small for its volumes and are left out); code and pseudopotentials: matbench-discovery data/datasets.yml",
    )


def _salex(name: str, split: str, title: str, volume: str) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        volume=volume,
        files=(RemoteFile(name=f"{split}.tar.gz", url=f"{_OMAT24}/241018/sAlex/{split}.tar.gz"),),
        source={"aselmdb": (f"{{folder}}/{split}/",)},
        licence="CC-BY-4.0",
        citation=f"{_OMAT24_CITATION}; {_ALEXANDRIA_CITATION}",
        level_of_theory="DFT, PBE(+U), VASP, PBE pseudopotentials, as in Alexandria",
        energy_convention="total energies of VASP, without corrections",
        homepage="https://huggingface.co/datasets/facebook/OMAT24",
        facts=f"{_OMAT24_DOCS}; code and pseudopotentials: matbench-discovery data/datasets.yml",
    )


def _matpes(functional: str, level: str, count: str) -> Corpus:
    file = f"MatPES-{functional}-2025.1.json.gz"
    return Corpus(
        name=f"matpes-{functional.lower()}",
        title=f"MatPES 2025.1, {level}, {count} frames",
        volume="volume not documented",
        files=(RemoteFile(name=file, url=f"{_MATPES}/{file}"),),
        source={"matpes_json": (f"{{folder}}/{file}",)},
        licence="BSD-3-Clause",
        citation="A. D. Kaplan et al., A Foundational Potential Energy Surface Dataset for Materials, "
        "arXiv:2503.04070 (2025)",
        level_of_theory=f"DFT, {level}, VASP, static (MatPESStaticSet of pymatgen)",
        energy_convention="total energies of VASP, without corrections",
        homepage="https://matpes.ai",
        facts="README of materialyzeai/matpes (address, citation, settings; 2025.2 exists and is hosted elsewhere); "
        "frames: pymatviz; licence: the repository's LICENSE and colabfit/MatPES-PBE-2025.1",
    )


_ENTRIES = (
    Corpus(
        name="mptrj",
        title="MPtrj 2022.9, relaxations of the Materials Project, 1,580,395 frames of 145,923 materials",
        volume="11.35 GiB",
        files=(
            RemoteFile(
                name="MPtrj_2022.9_full.json",
                url="https://figshare.com/ndownloader/files/41619375",
                size=12_188_168_685,
                checksum="md5:50ead5f27f9a4f6beb7564c4188f1e9f",
            ),
        ),
        source={"mptrj_json": ("{folder}/MPtrj_2022.9_full.json",), "energy": "uncorrected"},
        licence="MIT",
        citation=_MPTRJ_CITATION,
        level_of_theory="DFT, PBE and PBE+U, VASP, PBE pseudopotentials of the Materials Project",
        energy_convention="uncorrected_total_energy: total energies of VASP; with the MP2020 corrections beside them",
        homepage="https://figshare.com/articles/dataset/23713842",
        facts="figshare article 23713842, version 2 (size and md5 as its API states them, quoted alike by two "
        "independent public repositories); matbench-discovery data/datasets.yml (licence, counts, code)",
    ),
    Corpus(
        name="mptrj-extxyz",
        title="MPtrj 2022.9 as extxyz, one file per material",
        volume="1.5 GB",
        files=(
            RemoteFile(
                name="mp-trj.zip",
                url="https://figshare.com/ndownloader/files/49034296",
                size=1_521_713_089,
                checksum="md5:7f433171e4e5f2ef9304dccd42d5488f",
            ),
        ),
        source={"files": ("{folder}/mp-trj/**/*.extxyz",), "format": "extxyz"},
        licence="CC-BY-4.0",
        citation=_MPTRJ_CITATION,
        level_of_theory="DFT, PBE and PBE+U, VASP, PBE pseudopotentials of the Materials Project",
        energy_convention="total energies of VASP, without the MP2020 corrections",
        homepage="https://figshare.com/articles/dataset/22715158",
        facts="matbench-discovery data-files.yml (address, md5; 2024-09-03-mp-trj.extxyz.zip); size: two independent "
        "public repositories; energies: ACEsuit/mace pull request 342",
    ),
    _omat24("omat24", "OMat24 training split, about 100 million frames", "185.8 GB", "train", "241018", OMAT24_SUBSETS),
    _omat24("omat24-val", "OMat24 validation split, 1,025,361 frames", "1.98 GB", "val", "241220", OMAT24_SUBSETS),
    _omat24(
        "omat24-rattled-300-subsampled",
        "the smallest part of the OMat24 training split",
        "6.4 GB",
        "train",
        "241018",
        ("rattled-300-subsampled",),
    ),
    _salex("salex", "train", "sAlex training split, 10,447,765 frames", "7.6 GB"),
    _salex("salex-val", "val", "sAlex validation split, 553,218 frames", "408 MB"),
    _matpes("PBE", "PBE", "434,712"),
    _matpes("R2SCAN", "r2SCAN", "387,897"),
    Corpus(
        name="alexandria",
        title="Alexandria PBE, three-dimensional, 2025.07.02: 5,777,914 relaxed structures",
        volume="about 3.4 GB",
        files=tuple(
            RemoteFile(name=name, url=f"https://alexandria.icams.rub.de/data/pbe/2025.07.02/{name}")
            for name in (f"alexandria_{number:03d}.json.bz2" for number in range(58))
        ),
        source={"alexandria_json": ("{folder}/alexandria_*.json.bz2",)},
        licence="CC-BY-4.0",
        citation=_ALEXANDRIA_CITATION,
        level_of_theory="DFT, PBE(+U), VASP, PBE pseudopotentials",
        energy_convention="total energies of VASP, without corrections",
        homepage="https://alexandria.icams.rub.de",
        facts="licence as atomind/alexandria quotes the site; matbench-discovery data/datasets.yml (citation, code; +U "
        "as it says of sAlex); 58 files and their volume: two independent public repositories; that they are numbered "
        "000 to 057 follows from the names of earlier releases and is not confirmed",
    ),
    Corpus(
        name="omol25",
        title="OMol25, over 100 million frames of molecules",
        volume="volume depends on the split",
        files=(),
        source={"aselmdb": ("{folder}",)},
        licence="CC-BY-4.0",
        citation="D. S. Levine et al., The Open Molecules 2025 (OMol25) Dataset, Evaluations, and Models, "
        "arXiv:2505.08762 (2025)",
        level_of_theory="DFT, ωB97M-V/def2-TZVPD, ORCA 6",
        energy_convention="total energies of ORCA; charge and spin differ between frames; no stress",
        homepage="https://huggingface.co/facebook/OMol25",
        facts="fairchem, docs/molecules/datasets/omol25.md",
        access="Accept its conditions at https://huggingface.co/facebook/OMol25, download a split as the page says, "
        "and name the folder that holds its *.aselmdb files.",
    ),
    Corpus(
        name="mad",
        title="MAD 1.0 (Massive Atomic Diversity), about 95,600 frames of 85 elements",
        volume="290 MiB",
        files=tuple(
            RemoteFile(
                name=f"mad-{split}.xyz",
                url=f"https://archive.materialscloud.org/records/xdsbt-a3r17/files/mad-{split}.xyz?download=1",
            )
            for split in ("train", "val", "test")
        ),
        source={"files": tuple(f"{{folder}}/mad-{split}.xyz" for split in ("train", "val", "test"))},
        licence="CC-BY-4.0",
        citation="A. Mazitov et al., Massive Atomic Diversity: a compact universal dataset for atomistic machine "
        "learning, Sci. Data (2025), doi:10.1038/s41597-025-06109-y",
        level_of_theory="DFT, PBEsol",
        energy_convention="energies less those of isolated atoms; no stress",
        homepage="https://archive.materialscloud.org/records/xdsbt-a3r17",
        facts="download scripts, notes and a sample header of public repositories that train on it (record, licence, "
        "counts, energy baseline); the record itself was not seen",
    ),
)

CORPORA: Mapping[str, Corpus] = {corpus.name: corpus for corpus in _ENTRIES}
"""The corpora, by name."""
