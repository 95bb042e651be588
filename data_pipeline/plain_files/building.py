"""Plain files become a data set: what the files hold is found out, and recorded in the manifest as concrete settings.

The user names files; formats, keys, groups, split and level of theory are found from them, and said. The rest of the
provenance is optional: without it the data are the user's own, and are not passed on.
"""

import glob
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.building.splits import MIN_GROUPS, SPLITS, SplitBy, split_name
from data_pipeline.graphs.molecules import MOLECULE_ARRAYS, MoleculeCutoff, as_json
from data_pipeline.plain_files.finding import DataFile, Found, find_files, kind_of_file
from data_pipeline.plain_files.keys import FREE, VASP, Keys, Survey, choose, survey
from data_pipeline.plain_files.read_config import ReadConfig
from data_pipeline.plain_files.remarks import lines, remarks_on
from data_pipeline.sources import AseFiles, AseLmdb, DeepmdNpy, FileSource, Joined, MaceHdf5
from data_pipeline.sources.vasp_settings import VaspSettings, read_settings
from data_pipeline.store import durable, lock
from data_pipeline.store.manifest import NOT_STATED, SCHEMA_VERSION, Manifest, Provenance
from data_pipeline.structure import InvalidStructure

SAMPLE = 1000
"""Number of frames surveyed of each file; of a larger extxyz file or database, of each 16 MB or 8192 rows."""
FEW = 10
"""Number of frames below which all are for training."""
MAX_VASP = 200
"""Number of VASP files, evenly spaced, that are surveyed; all of them have the same keys."""
FRACTION = 0.1
"""Fraction for validation, and that for the final evaluation."""
NEAR = 1.25
"""Largest factor between a fraction and what a seed makes of it."""
SEEDS = 100
"""Number of seeds tried."""
TRAIN, VAL, TEST = SPLITS


@dataclass(frozen=True, kw_only=True)
class Built:
    """A data set built from plain files."""

    manifest: Manifest
    """The data set."""
    remarks: tuple[str, ...]
    """Contents, choices and suspicions, as lines of up to 80 characters."""


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """A file with what its survey found; without a survey for a file that ASE does not read."""

    file: DataFile
    """The file."""
    keys: Keys
    """Entries to read as labels."""
    survey: Survey | None
    """Contents of the frames surveyed, or None."""


def is_dataset(path: Path | str) -> bool:
    """Return whether a path is a built data set: a folder with a manifest.json, such a file, or a URL."""
    if re.match(r"\w{2,}:/", str(path)):  # pathlib makes one slash of two
        return True
    path = Path(path).expanduser()
    return (path / "manifest.json").is_file() or (path.name.endswith("manifest.json") and path.is_file())


def plain_name(files: Sequence[str], config: ReadConfig) -> str:
    """Return the short name of a data set made of files: the one given, or that of the file or folder.

    Several words, patterns, and files of VASP, whose names are all alike, have the name of the folder that holds them.
    Only the words are read, so that files that are gone keep their name.
    """
    if config.name is not None:
        return config.name
    paths = [Path(os.path.abspath(os.path.expanduser(os.path.expandvars(word)))) for word in files]
    if len(paths) > 1 or glob.has_magic(files[0]) or kind_of_file(paths[0]) in VASP:
        fixed = [itertools.takewhile(lambda part: not glob.has_magic(part), path.parent.parts) for path in paths]
        name = Path(os.path.commonpath([Path(*parts) for parts in fixed])).name
    else:
        name = paths[0].name.split(".")[0]
    return re.sub(r"[^\w.+-]+", "-", name).strip("-") or "data"


def plain_fingerprint(
    files: Sequence[str],
    config: ReadConfig,
    *,
    val: Sequence[str] = (),
    test: Sequence[str] = (),
    cutoffs: Sequence[float] = (5.0,),
) -> str:
    """Return a short hash of the names, sizes and times of files and of the options, without reading the frames.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a word is not one of files.
    """
    found = _found(files, val, test)
    stamps = [
        [section, os.path.abspath(file.path), file.kind, file.slice, *_stamp(file.path)]
        for section, each in found.items()
        for file in each.files
    ]
    text = json.dumps(
        [
            SCHEMA_VERSION,
            stamps,
            asdict(config),
            list(map(as_json, cutoffs)),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _stamp(path: Path) -> list[int]:
    """Return size [bytes] and time of modification [ns] of a file, or of the newest file in a folder."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    status = [each.stat() for each in files]
    return [sum(each.st_size for each in status), max((each.st_mtime_ns for each in status), default=0)]


def build_plain(
    files: Sequence[str],
    out: Path,
    config: ReadConfig,
    *,
    val: Sequence[str] = (),
    test: Sequence[str] = (),
    cutoffs: tuple[float, ...] = (5.0,),
    overwrite: bool = False,
) -> Built:
    """Build a data set from files of labelled frames, and say what was found and chosen.

    `val` and `test` name files for these splits. Then `files` give frames to the split that has no files of its own, if
    there is one, and train on the rest; a file that is in `val` or `test` is not read for training.

    Args:
        files: Paths of files and folders, globs, and SevenNet's structure_lists, as typed.
        out: Folder to write.
        config: Options of reading; None is found from the files.
        val: Files for validation.
        test: Files for the final evaluation.
        cutoffs: Cutoffs at which edges are counted [Å].
        overwrite: Replace an existing data set.

    Raises:
        FileNotFoundError: a file is missing, a glob matches nothing, or a folder holds no files that are recognised.
        FileExistsError: the target exists and overwrite is False, or is not a data set.
        InvalidStructure: the files cannot be read, hold no energies, leave a choice to the user, or are at different
            levels of theory.
        ValueError: options contradict each other.
    """
    found = _found(files, val, test)
    surveyed = {section: _surveyed(each.files, config) for section, each in found.items()}
    everything = [each for section in SPLITS for each in surveyed.get(section, [])]
    _check_keys_used(everything, config)
    theory, theory_remarks = _level_of_theory(everything, config)
    source = _source(surveyed, config)
    settings = BuildConfig(
        source=source,
        provenance=_provenance(plain_name(files, config), everything, config, theory),
        out=out,
        cutoffs=tuple(each for each in cutoffs if not isinstance(each, MoleculeCutoff)) or (5.0,),
        molecule_cutoffs=tuple(float(each) for each in cutoffs if isinstance(each, MoleculeCutoff)),
        **_split(surveyed, config),
        # of a plain file, a frame that cannot be used is left out and said
        filters=FilterConfig(invalid="reject", stress_check=config.stress_unit is None),
        overwrite=overwrite,
    )
    manifest = _built(settings)
    notes = [*_about_energies(everything), *_about_unread(everything), *theory_remarks]
    return Built(manifest=manifest, remarks=tuple(lines([*_about_files(found), *remarks_on(manifest), *notes])))


def _built(settings: BuildConfig) -> Manifest:
    """Build; of a build that is refused nothing stays, since the same command would be refused again."""
    try:
        return build(settings)
    except InvalidStructure as error:
        durable.remove(durable.partial_of(lock.real(settings.out)))
        reason = str(error).partition(" Partial results stay in ")[0]
        raise InvalidStructure(_with_options_of_read(reason)) from error


def _with_options_of_read(message: str) -> str:
    """Return a message of a source with the options by which plain files are read."""
    names = "|".join(each.name for each in fields(ReadConfig))
    message = message.replace("--filters.stress_check false", "--read.stress_unit eV/A^3")
    return re.sub(rf"--source\.(?=(?:{names})\b)", "--read.", message)


def _found(files: Sequence[str], val: Sequence[str], test: Sequence[str]) -> dict[str, Found]:
    """Return the files of each section; a file for validation or evaluation is not one for training."""
    words = {TRAIN: files, VAL: val, TEST: test}
    found = {name: find_files(each, "data" if name == TRAIN else name) for name, each in words.items() if each}
    held_out: dict[Path, str] = {}
    for name in (VAL, TEST):
        for file in found[name].files if name in found else ():
            if held_out.setdefault(file.path.resolve(), name) != name:
                raise ValueError(f"{file.path} is in --val and in --test; name it in one of them")
    train = found[TRAIN]
    taken = [file for file in train.files if file.path.resolve() in held_out]
    train.unread += [(file.path, f"it is in --{held_out[file.path.resolve()]}") for file in taken]
    train.files = [file for file in train.files if file not in taken]
    if not train.files:
        raise ValueError("no file is left to train on: --data names none that is not in --val or --test")
    return found


def _surveyed(files: Sequence[DataFile], config: ReadConfig) -> list[Surveyed]:
    """Return what each file holds; of many VASP files a sample is read."""
    vasp = [file for file in files if file.kind in VASP]
    sample = set(vasp[:: max(1, -(-len(vasp) // MAX_VASP))])
    most = {True: max(1, -(-FEW // max(1, len(sample)))), False: SAMPLE}
    result = []
    for file in files:
        if file.kind in ("aselmdb", "mace", "deepmd"):
            result.append(Surveyed(file=file, keys=Keys(energy_key=config.energy_key), survey=None))
        elif file.kind in VASP and file not in sample:
            result.append(Surveyed(file=file, keys=next(e.keys for e in result if e.file.kind in VASP), survey=None))
        else:
            file = file if config.format is None else file._replace(kind=config.format)
            seen = _survey(file, config, most[file.kind in VASP])
            result.append(Surveyed(file=file, keys=choose(file, seen, config), survey=seen))
    return result


def _survey(file: DataFile, config: ReadConfig, most: int) -> Survey:
    try:
        return survey(file, most=most, group_key=config.group_key, charged=config.charged == "keep")
    except InvalidStructure as error:
        raise InvalidStructure(_with_options_of_read(str(error))) from error


def _check_keys_used(everything: Sequence[Surveyed], config: ReadConfig) -> None:
    """Refuse the name of an entry that no file has: a misspelt one would train without its labels."""
    surveys = [each.survey for each in everything if each.survey is not None]
    if len(surveys) < len([each for each in everything if each.file.kind not in VASP]):
        return  # files of other sources were not surveyed
    for option in ("forces_key", "stress_key", "virials_key", "group_key"):
        name = getattr(config, option)
        if name is not None and not any(each.counts[name] for each in surveys):
            entries = sorted(set().union(*(each.counts for each in surveys)))
            raise InvalidStructure(
                f"no frame has an entry {name!r} (--read.{option}); the frames have {', '.join(entries)[:400]}"
            )


def _source(surveyed: Mapping[str, Sequence[Surveyed]], config: ReadConfig) -> FileSource | Joined:
    """Return the source with the settings found: one if all files have the same, else several joined."""
    sections = {name: _sources(each, config) for name, each in surveyed.items()}
    if len(sections) == 1 and len(sections[TRAIN]) == 1:
        return sections[TRAIN][0]
    return Joined(**{name: tuple(each) for name, each in sections.items()})


def _sources(files: Sequence[Surveyed], config: ReadConfig) -> list[FileSource]:
    """Return one source for the files of each format and keys, in the order of the first file of each."""
    together: dict[tuple[str, Keys], list[DataFile]] = {}
    for each in files:
        together.setdefault((each.file.kind, each.keys), []).append(each.file)
    result: list[FileSource] = []
    for (kind, keys), group in together.items():
        paths = tuple(str(file.path) for file in group)
        if kind == "aselmdb":
            options = {"energy_key": config.energy_key, "group_key": config.group_key, "charged": config.charged}
            result.append(AseLmdb(aselmdb=paths, ignored_entries=config.ignored_entries, **options))
        elif kind == "mace":
            result.append(MaceHdf5(mace_hdf5=paths))
        elif kind == "deepmd":
            result.append(DeepmdNpy(deepmd_npy=paths))
        else:
            slices = tuple(file.slice for file in group)
            result.append(
                AseFiles(
                    files=paths,
                    format=None if kind == "other" else kind,
                    slices=slices if any(each != ":" for each in slices) else (),
                    stress_positive_in=config.stress_positive_in,
                    group_key=config.group_key,
                    ignored_entries=config.ignored_entries,
                    charged=config.charged,
                    **asdict(keys),
                )
            )
    return result


def _split(surveyed: Mapping[str, Sequence[Surveyed]], config: ReadConfig) -> dict[str, Any]:
    """Return the options of the split; those that the user did not give follow from the frames surveyed."""
    fractions = {}
    seen = [each.survey for each in surveyed[TRAIN] if each.survey is not None]
    whole = len(seen) == len(surveyed[TRAIN])
    groups = sum((each.groups for each in seen), Counter[str]())
    few = whole and groups.total() < FEW
    for name in (VAL, TEST):
        asked = getattr(config, f"{name}_fraction")
        if asked is not None and name in surveyed:
            raise ValueError(f"--{name} names files and --read.{name}_fraction a part of --data; give one of the two")
        fractions[name] = 0.0 if name in surveyed else asked if asked is not None else FRACTION * (not few)
    by = config.split_by
    if by is None:
        many = len(groups) >= MIN_GROUPS or config.group_key is not None or not seen
        by = "group" if many else "blocks"
    return {
        "val_fraction": fractions[VAL],
        "test_fraction": fractions[TEST],
        "split_by": by,
        "split_seed": _seed(groups, by, fractions[VAL], fractions[TEST], config.split_seed),
    }


def _seed(groups: Mapping[str, int], by: SplitBy, val: float, test: float, asked: int | None) -> int:
    """Return the first seed that comes near the fractions, or of the first SEEDS the one that comes nearest."""
    total = sum(groups.values())
    if asked is not None or by != "group" or not total or val + test == 0:
        return asked or 0
    best, least = 0, float("inf")
    for seed in range(SEEDS):
        counts = Counter[str]()
        for group, number in groups.items():
            counts[split_name(group, seed, val, test)] += number
        pairs = [(counts[name] / total, part) for name, part in ((VAL, val), (TEST, test)) if part]
        far = max(max(actual / part, part / max(actual, 1e-9)) for actual, part in pairs)
        if far < least:
            best, least = seed, far
        if far <= NEAR:
            break
    return best


def _provenance(name: str, everything: Sequence[Surveyed], config: ReadConfig, theory: str) -> Provenance:
    names = {FREE if each.file.kind in VASP and each.keys.energy_key == FREE else "" for each in everything}
    others = dict.fromkeys(each.keys.energy_key or "energy" for each in everything if each.file.kind not in VASP)
    meanings = ["free energies (TOTEN) of VASP"] * (FREE in names)
    meanings += [f"total energies as in the files (entry {', '.join(others)})"] * bool(others)
    meanings = meanings or ["energies of VASP extrapolated to zero smearing"]
    return Provenance(
        name=name,
        licence=config.licence or NOT_STATED,
        level_of_theory=theory,
        energy_convention="; ".join(meanings),
        citation=NOT_STATED,
        source=NOT_STATED,
    )


def _level_of_theory(everything: Sequence[Surveyed], config: ReadConfig) -> tuple[str, list[str]]:
    """Return the level of theory that the user or VASP's files state, and remarks on it.

    Raises:
        InvalidStructure: files state different functionals.
    """
    files = [each.file for each in everything if each.file.kind in VASP]
    step = max(1, -(-len(files) // MAX_VASP))
    settings = {file.path: read_settings(file.path) for file in files[::step]}
    stated: dict[str, list[Path]] = {}
    for path, each in settings.items():
        if each.functional is not None:
            stated.setdefault(each.functional, []).append(path)
    if config.level_of_theory is not None:
        return config.level_of_theory, []
    if len(stated) > 1:
        listed = "; ".join(f"{name} in {len(paths):,} files such as {paths[0]}" for name, paths in stated.items())
        raise InvalidStructure(
            f"the files state different levels of theory ({listed}), whose energies do not belong together; build a "
            "data set of each, or name the one they share with --read.level_of_theory"
        )
    if not settings:
        return NOT_STATED, []
    remarks = []
    cutoffs = sorted({each.cutoff for each in settings.values() if each.cutoff is not None})
    if len(cutoffs) > 1:
        listed = ", ".join(f"{each:g}" for each in cutoffs)
        remarks.append(
            f"check: the VASP files have different cutoffs ENCUT ({listed} eV), so their energies are shifted"
        )
    if len(files) < len(everything):
        remarks.append("check: the level of theory is that of the VASP files; the other files state none")
    functional = next(iter(stated), None)
    if functional is None:
        return NOT_STATED, remarks
    return VaspSettings(functional=functional, cutoff=cutoffs[0] if len(cutoffs) == 1 else None).text, remarks


def _about_files(found: Mapping[str, Found]) -> list[str]:
    """Return the number of files read, and those that lie beside them and are not."""
    remarks = []
    for name, each in found.items():
        option = "data" if name == TRAIN else name
        files = f"{len(each.files):,} files" if len(each.files) > 1 else str(each.files[0].path)
        remarks.append(f"read for {name}: {files}" if len(found) > 1 else f"read: {files}")
        reasons: dict[str, list[str]] = {}
        for path, reason in each.unread:
            reasons.setdefault(reason, []).append(str(path))
        for reason, paths in reasons.items():
            shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")
            remarks.append(f"not read of --{option}: {_bounded(shown)} ({reason})")
    return remarks


def _bounded(text: str) -> str:
    """Return a list of names of bounded length."""
    return text if len(text) <= 300 else f"{text[:300]}..."


def _about_energies(everything: Sequence[Surveyed]) -> list[str]:
    """Return the difference between VASP's two energies, where one was chosen for the user."""
    for each in everything:
        difference = each.survey and each.survey.differences.get(frozenset(("energy", FREE)))
        if difference and each.file.kind in VASP:
            read = each.keys.energy_key or "energy"
            other = "energy" if read == FREE else FREE
            return [
                f"VASP's {' and '.join(difference.names)} differ ({difference.values} in {each.file.path}, frame "
                f"{difference.frame}): {read} is read"
                + (f", not {other}" * (read != FREE))
                + ", whose derivative the forces are"
            ]
    return []


def _about_unread(everything: Sequence[Surveyed]) -> list[str]:
    """Return the entries of the frames that are not read, those that look like labels first."""
    counts: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for each in everything:
        if each.survey is None:
            continue
        read = {"energy", "forces", "stress"} if each.file.kind in VASP else set()
        read |= {each.keys.energy_key or "energy", each.keys.forces_key or "forces"}
        read |= {each.keys.virials_key or each.keys.stress_key or "stress", "numbers", "positions", *MOLECULE_ARRAYS}
        counts += Counter({name: number for name, number in each.survey.counts.items() if name not in read})
        for names in each.survey.labels.values():
            labels += Counter({name: number for name, number in names.items() if name not in read})
    if not counts:
        return []
    order = sorted(counts, key=lambda name: (name not in labels and name != FREE, name))
    return [f"there too, and not read: {_bounded(', '.join(order))}"]
