"""Builds that are killed, shared by several processes or out of disk space: the same bytes in the end, or an error."""

import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from unittest import mock

import ase
import ase.io
import numpy as np
import pytest

from data_pipeline.building import build as build_module
from data_pipeline.building.build import BuildConfig, DiskFull, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.building.source_files import SourceChanged
from data_pipeline.sources import AseFiles, EmtAlloys, Part
from data_pipeline.store import lock
from data_pipeline.store.lock import InUse
from data_pipeline.store.manifest import Provenance
from data_pipeline.store.shards import sha256
from data_pipeline.structure import InvalidStructure, Structure

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_FILES, FRAMES_PER_FILE = 12, 10
RUN = """import pickle, sys
from data_pipeline.building.build import build
build(pickle.loads(bytes.fromhex(sys.argv[1])))"""
"""A program that builds from a configuration in its argument."""


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Extxyz files of EMT frames, one frame in them a duplicate, one with a large force."""
    folder = tmp_path_factory.mktemp("files")
    frames = []
    for structure in EmtAlloys(num_frames=NUM_FILES * FRAMES_PER_FILE):
        atoms = ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
        atoms.info.update(REF_energy=structure.energy, name=structure.id, group=structure.group)
        atoms.arrays["REF_forces"] = structure.forces.astype(float)
        frames.append(atoms)
    frames[57].arrays["REF_forces"][0] = 1000.0
    frames[101] = frames[100].copy()
    frames[101].info["name"] = "again"
    for number in range(NUM_FILES):
        part = frames[number * FRAMES_PER_FILE : (number + 1) * FRAMES_PER_FILE]
        ase.io.write(folder / f"{number:02d}.extxyz", part)
    return tuple(str(path) for path in sorted(folder.iterdir()))


def settings(folder: Path, provenance: Provenance, files: tuple[str, ...]) -> dict[str, object]:
    return {
        "source": AseFiles(
            files=files, energy_key="REF_energy", forces_key="REF_forces", group_key="group", id_key="name"
        ),
        "provenance": provenance,
        "out": folder / "data",
        "block_frames": 3,
        "shard_frames": 6,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
        "filters": FilterConfig(duplicates="reject", max_force=100.0, max_energy_residual=50.0),
    }


@pytest.fixture
def configure(tmp_path: Path, provenance: Provenance, many_files: tuple[str, ...]) -> Callable[..., BuildConfig]:
    """A build of the files in small blocks and shards, with filters."""

    return lambda **changes: BuildConfig(**{**settings(tmp_path, provenance, many_files), **changes})


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, provenance: Provenance, many_files: tuple[str, ...]
) -> tuple[Path, dict[str, str]]:
    """What a build leaves that was killed before it wrote the manifest, and what it writes when it is not."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = settings(folder, provenance, many_files)
    with pytest.MonkeyPatch.context() as patch:
        # as Ctrl-C does, whose signal another thread may get a moment too late
        patch.setattr(build_module, "_finish", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(BuildConfig(**config))
    shutil.copytree(folder / "data.partial", folder / "left")
    return folder / "left", checksums(build(BuildConfig(**config)).root)


def steps_done(partial: Path) -> int:
    """How many parts are read and shards written."""
    staged, receipts = ("staged/part-*[0-9]", "receipts/*.json")
    return len(list(partial.glob(staged))) + len(list(partial.glob(receipts)))


def killed_at(config: BuildConfig, steps: int, delay: float) -> bool:
    """Build in a child, kill it when so many steps are done and a delay has passed; return whether it was at work."""
    child = os.fork()
    if child == 0:
        try:
            build(config)
        finally:
            os._exit(0)
    partial = config.out.with_name(config.out.name + ".partial")
    status = (0, 0)
    while steps_done(partial) < steps and status == (0, 0):
        time.sleep(0.0005)
        status = os.waitpid(child, os.WNOHANG)
    if status == (0, 0):
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status[1]) == -signal.SIGKILL


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(
    kills: int, configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    undisturbed = build(configure(out=tmp_path / "undisturbed"))
    expected = checksums(undisturbed.root)
    assert undisturbed.rejected == {"duplicate": 1, "max_force": 1}
    num_steps = NUM_FILES + sum(len(split.shards) for split in undisturbed.splits.values())
    rng = np.random.default_rng(0)
    moments = sorted(rng.permutation(num_steps + 1)[:kills].tolist())
    killed = 0
    for number, steps in enumerate(moments):
        config = configure(out=tmp_path / f"killed-{number}")
        killed += killed_at(config, steps, float(rng.uniform(0.0, 0.01)))
        if not config.out.exists():
            build(config)
        assert checksums(config.out) == expected, f"killed after {steps} of {num_steps} steps"
    assert killed >= kills // 2


def test_a_build_killed_again_and_again_keeps_what_was_done(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    expected = checksums(build(configure(out=tmp_path / "undisturbed")).root)
    config, partial = configure(), tmp_path / "data.partial"
    for steps in range(3, 24, 4):
        killed_at(config, steps, 0.0)
        assert not config.out.exists()
        assert steps_done(partial) >= steps
    read = {path: path.stat().st_mtime_ns for path in partial.glob("staged/part-*/*.tar")}
    assert len(read) == NUM_FILES
    killed_at(config, 25, 0.0)
    assert {path: path.stat().st_mtime_ns for path in partial.glob("staged/part-*/*.tar")} == read
    assert checksums(build(config).root) == expected
    assert not partial.exists()


def test_a_build_killed_while_it_replaces_old_data_never_loses_them(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    old = checksums(build(configure()).root)
    config = configure(split_seed=7, overwrite=True)
    for steps in (0, 9, 20):
        killed_at(config, steps, 0.0)
        assert checksums(tmp_path / "data") == old
    # as if killed between the two renames at the end
    os.rename(tmp_path / "data", tmp_path / ".data.replaced")
    with pytest.raises(FileExistsError):
        build(replace(config, overwrite=False))
    assert checksums(tmp_path / "data") == old
    build(config)
    assert checksums(tmp_path / "data") == checksums(build(replace(config, out=tmp_path / "fresh")).root)


def test_other_files_start_over(
    configure: Callable[..., BuildConfig], tmp_path: Path, many_files: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    copies = []
    for name in many_files[:3]:
        copies.append(tmp_path / Path(name).name)
        copies[-1].write_bytes(Path(name).read_bytes())
    source = replace(configure().source, files=tuple(map(str, copies)))
    config = configure(source=source)
    killed_at(config, 2, 0.0)
    copies[0].write_text(copies[0].read_text().replace("REF_energy=", "REF_energy=-"))  # same frames, other labels
    build(config)
    assert "starting over" in caplog.text
    assert checksums(config.out) == checksums(build(replace(config, out=tmp_path / "fresh")).root)


PENDING: list[Callable[[Path], object]] = []
"""What happens to the first file once all are read."""


@dataclass(frozen=True, kw_only=True)
class Overwritten(AseFiles):
    """Files of which the first is changed when the last is read."""

    def parts(self) -> list[Part]:
        *first, last = super().parts()
        return [*first, replace(last, read=partial(self._disturbed, last))]

    def _disturbed(self, part: Part) -> Iterator[Structure | InvalidStructure]:
        yield from part.read()
        if PENDING:
            PENDING.pop()(Path(self.files[0]))


def rewritten_in_place(path: Path) -> None:
    """Same size and same time of modification, other energies."""
    status, text = path.stat(), path.read_text()
    path.write_text(re.sub(r"(REF_energy=-?\d+\.)\d", r"\g<1>0", text))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_by_another(path: Path) -> None:
    shutil.copy(path.with_name("01.extxyz"), path.with_name("new"))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize(
    ("happens", "late"),
    [(rewritten_in_place, False), (replaced_by_another, False), (os.unlink, False), (os.utime, True)],
)
def test_a_source_that_is_written_to_meanwhile_is_refused_by_name_and_the_next_call_starts_over(
    configure: Callable[..., BuildConfig],
    tmp_path: Path,
    many_files: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], object],
    late: bool,
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(Path(many_files[0]).parent, folder)
    files = tuple(str(path) for path in sorted(folder.iterdir()))[:4]
    settings = {field.name: getattr(configure().source, field.name) for field in fields(AseFiles)}
    source = (AseFiles if late else Overwritten)(**{**settings, "files": files})
    if late:
        decide = build_module._decide
        monkeypatch.setattr(build_module, "_decide", lambda *given: (decide(*given), happens(Path(files[0])))[0])
    else:
        monkeypatch.setattr(sys.modules[__name__], "PENDING", [happens])
    word = "is gone" if happens is os.unlink else "was written to"
    with pytest.raises(
        SourceChanged, match=rf"files/00\.extxyz {word} while it was read.*The same command starts over"
    ):
        build(configure(source=source))
    assert not (tmp_path / "data").exists()
    monkeypatch.undo()
    if happens is os.unlink:
        shutil.copy(files[1], files[0])
    if happens in (os.unlink, replaced_by_another):
        text = Path(files[0]).read_text()
        Path(files[0]).write_text(re.sub(r"name=", "name=other-", text))
    resumed = build(configure(source=source))
    fresh = build(configure(source=source, out=tmp_path / "fresh"))
    assert checksums(resumed.root) == checksums(fresh.root)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: None])
@pytest.mark.parametrize(
    "what",
    [
        "staged/part-000003/*.tar",
        "staged/part-000003/*.index.safetensors",
        "staged/part-000003/sums.json",
        "receipts/train-000001.tar.json",
        "data/train-000001.*",
        "state.json",
    ],
)
def test_what_was_left_is_gone_on_with_only_as_it_was_written(
    interrupted: tuple[Path, dict[str, str]],
    configure: Callable[..., BuildConfig],
    tmp_path: Path,
    what: str,
    damage: Callable[[bytes], bytes | None],
) -> None:
    left, expected = interrupted
    shutil.copytree(left, tmp_path / "data.partial")
    for path in (tmp_path / "data.partial").glob(what):
        content = damage(path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    assert checksums(build(configure()).root) == expected


def test_one_bit_of_what_was_left_is_enough(
    interrupted: tuple[Path, dict[str, str]], configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    left, expected = interrupted
    shutil.copytree(left, tmp_path / "data.partial")
    for pattern in ("staged/*/*.columns.safetensors", "staged/*/*.tar", "receipts/*.json", "data/*.index.safetensors"):
        path = sorted((tmp_path / "data.partial").glob(pattern))[1]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert checksums(build(configure()).root) == expected


def test_other_limits_need_no_reading_again(
    configure: Callable[..., BuildConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    killed_at(configure(), NUM_FILES + 2, 0.0)
    config = configure(filters=FilterConfig(duplicates="reject"), shard_frames=9, split_by="order")
    build(config)
    assert f"{NUM_FILES} of {NUM_FILES} parts are read" in caplog.text
    assert checksums(config.out) == checksums(build(replace(config, out=tmp_path / "fresh")).root)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(
    configure: Callable[..., BuildConfig], tmp_path: Path, workers: int
) -> None:
    alone = build(configure(out=tmp_path / "alone"))
    assert checksums(build(configure(workers=workers)).root) == checksums(alone.root)


def test_an_error_in_a_worker_reaches_the_caller_and_the_build_goes_on_after_it(
    configure: Callable[..., BuildConfig], tmp_path: Path, many_files: tuple[str, ...]
) -> None:
    bad = tmp_path / "bad.extxyz"
    bad.write_text(Path(many_files[0]).read_text().replace("REF_energy=", "REF_energy=nan x=", 1))
    source = replace(configure().source, files=(*many_files[1:], str(bad)))
    with pytest.raises(InvalidStructure, match=r"bad\.extxyz, frame 0.*energy.*--filters.invalid reject"):
        build(configure(source=source, workers=2))
    config = configure(source=source, workers=2, filters=FilterConfig(invalid="reject"))
    assert build(config).rejected == {"invalid": 1}


def test_a_killed_worker_is_an_error_and_not_a_hang(configure: Callable[..., BuildConfig]) -> None:
    config = configure(source=Deadly(num_frames=4096), workers=2)
    with pytest.raises(
        ChildProcessError, match=r"worker process was killed: process \d+ died of SIGKILL.*; the memory .* --workers"
    ):
        build(config)


class Slow(EmtAlloys):
    """A source that takes its time."""

    def _make(self, start: int, stop: int):
        time.sleep(1.0)
        yield from super()._make(start, stop)


def test_a_second_build_of_the_same_folder_is_refused_and_the_first_comes_to_its_end(
    configure: Callable[..., BuildConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_HERE", 0.1)
    monkeypatch.chdir(tmp_path)
    config = configure(source=Slow(num_frames=60), filters=FilterConfig(), out=tmp_path / "data")
    child = os.fork()
    if child == 0:
        try:
            build(config)
        finally:
            os._exit(0)
    (tmp_path / ".other.lock").write_text("of another build from the same folder, which comes and goes")
    while not (tmp_path / "data.partial" / "staged").exists():
        time.sleep(0.01)
    for changes in ({}, {"overwrite": True}, {"split_seed": 1}, {"out": Path("nowhere/../data")}):
        with pytest.raises(InUse, match=rf"data is in use by process {child} on .* since"):
            build(replace(config, **changes))
    assert os.waitpid(child, 0)[1] == 0
    assert checksums(config.out) == checksums(build(replace(config, out=tmp_path / "alone")).root)
    assert {path.name for path in tmp_path.iterdir()} >= {"data", "alone"}
    assert [path.name for path in tmp_path.glob(".*.lock")] == [".other.lock"]


@pytest.mark.parametrize(("out", "error"), [(".", FileExistsError), ("..", FileExistsError), ("/", ValueError)])
def test_a_target_without_a_name_is_refused_with_a_sentence(
    out: str,
    error: type[Exception],
    configure: Callable[..., BuildConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        error, match=r"already exists; choose another --out|not a data set|lies in|root of the file system"
    ):
        build(configure(out=Path(out)))


class Deadly(EmtAlloys):
    """Its process dies as if memory had run out."""

    def _make(self, start: int, stop: int):
        os.kill(os.getpid(), signal.SIGKILL)
        yield from super()._make(start, stop)


def started(config: BuildConfig, *launcher: str) -> subprocess.Popen[str]:
    """A build in an interpreter of its own."""
    command = [*launcher, sys.executable, "-c", RUN, pickle.dumps(config).hex()]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)


def test_workers_end_with_a_killed_build_and_leave_nothing_half_written(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    expected = checksums(build(configure(out=tmp_path / "alone")).root)
    config = configure(workers=2)
    with started(config) as process:
        while steps_done(tmp_path / "data.partial") < 5 and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    assert checksums(build(configure()).root) == expected


MPIRUN = Path(sys.executable).with_name("mpirun")
needs_mpi = pytest.mark.skipif(
    not MPIRUN.exists() and not os.environ.get("CI"), reason="no mpirun: pip install mpi4py mpich"
)


@needs_mpi
@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), pytest.param(3, 1, marks=pytest.mark.long)])
def test_any_number_of_mpi_ranks_makes_the_same_bytes(
    configure: Callable[..., BuildConfig], tmp_path: Path, ranks: int, workers: int
) -> None:
    alone = build(configure(out=tmp_path / "alone"))
    with started(configure(workers=workers), str(MPIRUN), "-n", str(ranks)) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert checksums(tmp_path / "data") == checksums(alone.root)


@needs_mpi
def test_a_failing_rank_ends_all_ranks_with_one_message(
    configure: Callable[..., BuildConfig], tmp_path: Path, many_files: tuple[str, ...]
) -> None:
    bad = tmp_path / "bad.extxyz"
    bad.write_text(Path(many_files[0]).read_text().replace("REF_energy=", "REF_energy=nan x="))
    # largest first, so the second rank has the bad file
    source = replace(configure().source, files=(*many_files[1:4], str(bad), str(bad)))
    with started(configure(source=source), str(MPIRUN), "-n", "3") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("energy is nan") == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "data").exists()


def test_a_file_size_limit_or_a_full_disk_is_an_error_that_says_how_much_is_needed_and_the_build_goes_on(
    configure: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    expected = checksums(build(configure(out=tmp_path / "undisturbed")).root)
    config = configure(shard_frames=200)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (tmp_path / "undisturbed").glob("*.tar"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * largest, hard))
    try:
        with pytest.raises(DiskFull, match=r"data\.partial: no space.*MB more are needed.*continues from there"):
            build(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not config.out.exists()
    assert len(list((tmp_path / "data.partial" / "staged").glob("part-*"))) == NUM_FILES
    assert checksums(build(configure()).root) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of half a megabyte; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=500k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_names_folder_and_space_and_the_build_goes_on_when_there_is_some(
    configure: Callable[..., BuildConfig], tmp_path: Path, small_disk: Path
) -> None:
    config = configure(out=small_disk / "data")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    with pytest.raises(DiskFull, match=r"disk/data\.partial: no space.*No space left.*MB more are needed") as caught:
        build(config)
    assert not config.out.exists()
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert "continues from there" in str(caught.value)
    assert checksums(build(config).root) == checksums(build(configure()).root)
