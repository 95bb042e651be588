"""Compiled code that somebody else could have written is refused before a line of it runs."""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.kernels import trusted
from foundation.kernels.cpu import compiler
from foundation.kernels.trusted import UntrustedCode, load_library, refuse_untrusted_extensions

PLANTED = """
#include <stdlib.h>
__attribute__((constructor)) static void run(void) { system("touch '%s'"); }
int number(void) { return 666; }
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, in which nothing is yet; return where the kernels go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler.writable_folder.cache_clear()
    yield tmp_path / "cache" / "foundation" / "kernels"
    compiler.writable_folder.cache_clear()


def load(number: int) -> int:
    return compiler.load(f"int number(void) {{ return {number}; }}", ()).number()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def planted(cache: Path, tmp_path: Path) -> Path:
    """A library under the right name and with the right checksum, whose code leaves a file `marker` behind."""
    assert load(1) == 1
    (entry,) = cache.iterdir()
    code = tmp_path / "planted.c"
    code.write_text(PLANTED % (tmp_path / "marker"))
    entry.unlink()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "planted.so", code], check=True)
    content = (tmp_path / "planted.so").read_bytes()
    entry = cache / f"{entry.name.split('-')[0]}-{hashlib.sha256(content).hexdigest()[:32]}.so"
    entry.write_bytes(content)
    entry.chmod(0o600)
    return entry


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_the_cache_is_the_users_alone_whatever_the_umask(umask: int, cache: Path) -> None:
    before = os.umask(umask)
    try:
        assert load(2) == 2
    finally:
        os.umask(before)
    (entry,) = cache.iterdir()
    assert [mode(path) for path in (cache.parents[1], cache.parent, cache, entry)] == [0o700, 0o700, 0o700, 0o600]
    assert load(2) == 2


@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_what_others_can_write_is_not_run(which: str, bits: int, planted: Path, tmp_path: Path) -> None:
    place = planted if which == "file" else planted.parent
    place.chmod(mode(place) | bits)
    with pytest.raises(
        UntrustedCode, match=rf"^{place} can be written by others \(mode .*chmod go-w {place}.*XDG_CACHE"
    ):
        load(1)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_belongs_to_somebody_else_is_not_run(
    which: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = planted if which == "file" else planted.parent
    if os.geteuid() == 0:
        os.chown(place, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(
        UntrustedCode, match=r"belongs to user .*, not to you .*set XDG_CACHE_HOME to a folder of your own"
    ):
        load(1)
    assert not (tmp_path / "marker").exists()


def test_a_link_is_not_followed_to_a_library(planted: Path, tmp_path: Path) -> None:
    planted.rename(tmp_path / "elsewhere.so")
    planted.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(UntrustedCode, match="is a link"):
        load(1)
    assert not (tmp_path / "marker").exists()


def test_a_link_to_a_folder_is_as_good_as_the_folder(cache: Path, tmp_path: Path) -> None:
    own, open_to_all = tmp_path / "own", tmp_path / "open"
    own.mkdir(mode=0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    cache.parent.mkdir(parents=True)
    cache.symlink_to(own)
    assert load(3) == 3
    cache.unlink()
    cache.symlink_to(open_to_all)
    with pytest.raises(UntrustedCode, match="can be written by others"):
        load(3)


def test_a_folder_above_that_everybody_can_write_must_be_sticky(cache: Path) -> None:
    assert load(4) == 4
    cache.parents[1].chmod(0o777)
    with pytest.raises(UntrustedCode, match=rf"^{cache.parents[1]}, in which .* lies, can be written by everybody"):
        load(4)
    cache.parents[1].chmod(0o1777)
    assert load(4) == 4


def test_what_was_checked_is_what_is_loaded(cache: Path, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.rename(planted.with_suffix(".planted"))
    assert load(1) == 1
    (entry,) = cache.glob("*.so")
    whole = hashlib.file_digest

    def exchanging(content: object, name: str) -> object:
        found = whole(content, name)  # pyright: ignore[reportArgumentType]
        planted.with_suffix(".planted").rename(entry)
        return found

    monkeypatch.setattr(trusted.hashlib, "file_digest", exchanging)
    library = load_library(entry, entry.stem.split("-")[1], "XDG_CACHE_HOME")
    assert library is not None
    assert library.number() == 1


def test_libraries_are_told_apart_although_their_files_are_closed(cache: Path) -> None:
    assert [load(number) for number in (5, 6, 7)] == [5, 6, 7]
    for entry in cache.iterdir():
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.unlink()  # not in place: this process has its code from that file
        entry.write_bytes(content)
        entry.chmod(0o600)
    assert [load(number) for number in (5, 6, 7)] == [5, 6, 7]


def test_a_pipe_under_the_name_of_a_library_is_a_damaged_one(planted: Path) -> None:
    planted.unlink()
    os.mkfifo(planted, 0o600)
    assert load(1) == 1
    assert not planted.exists()


def test_a_name_without_a_checksum_is_a_damaged_entry(planted: Path, tmp_path: Path) -> None:
    planted.rename(planted.with_name(planted.name.split("-")[0] + "-.so"))
    assert load(1) == 1
    assert not (tmp_path / "marker").exists()


def test_the_extensions_of_torch_are_treated_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    refuse_untrusted_extensions()
    assert mode(folder) == 0o700
    (folder / "oeq").mkdir()
    (folder / "oeq" / "lib.so").touch()
    (folder / "oeq" / "lib.so").chmod(0o664)
    refuse_untrusted_extensions()  # nobody else gets there
    folder.chmod(0o755)
    with pytest.raises(UntrustedCode, match=r"lib\.so can be written by others .*TORCH_EXTENSIONS_DIR"):
        refuse_untrusted_extensions()
    folder.chmod(0o775)
    with pytest.raises(UntrustedCode, match=f"^{folder} can be written by others"):
        refuse_untrusted_extensions()


def test_openmp_is_shared_only_if_it_is_loaded() -> None:
    with pytest.raises(OSError, match="libgomp-that-is-not"):
        ctypes.CDLL("/nowhere/libgomp-that-is-not.so", mode=os.RTLD_NOLOAD)
