"""Archives made to harm: what they hold stays below their folder and within bounds, or the member is named."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.corpora import archives
from data_pipeline.corpora.archives import unpack
from data_pipeline.corpora.download import DownloadError

UNSAFE = [
    "/etc/x",
    "../x",
    "a/../../x",
    "..",
    "a\\..\\x",
    "C:x",
    "c:/x",
    "a\nb",
    "\x1b[31mx",
    "y" * 300,
    "a/" * 200 + "x",
]


def make_tar(path: Path, *members: tarfile.TarInfo | str) -> Path:
    """Write members: a name of a small file, or a header, filled up with zeros."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = info.size or (4 if info.isreg() else 0)
            archive.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return path


def make_zip(path: Path, *members: zipfile.ZipInfo | str, content: bytes = b"text") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def refused(archive: Path, problem: str) -> None:
    with pytest.raises(DownloadError, match=rf"{archive.name}: cannot be unpacked \(.*{problem}") as caught:
        unpack(archive)
    assert len(str(caught.value)) < 700
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_may_lead_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    refused(make_tar(folder / "b.tar.gz", "fine", name), "member .* has a name that may lead out")
    (folder / "b.tar.gz").unlink()
    refused(make_zip(folder / "c.zip", "fine", name), "member .* has a name that may lead out")


def test_a_name_that_ends_at_a_nul_for_some_readers_is_refused(folder: Path) -> None:
    content = make_zip(folder / "c.zip", "fineXname").read_bytes().replace(b"fineX", b"fine\0")
    (folder / "c.zip").write_bytes(content)
    refused(folder / "c.zip", r"member 'fine\\x00name' has a name")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(folder: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = kind, "fine"
    refused(make_tar(folder / "b.tar.gz", "fine", info), "member 'odd' is a link or device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(folder: Path, kind: int) -> None:
    info = zipfile.ZipInfo("odd")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    refused(make_zip(folder / "c.zip", "fine", info), "member 'odd' is a link or device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a/b", "./a/b"), ("a/b", "a//b")])
def test_a_member_that_is_there_twice_is_refused(folder: Path, names: tuple[str, str]) -> None:
    refused(make_tar(folder / "b.tar.gz", *names), "member .* occurs twice")
    (folder / "b.tar.gz").unlink()
    refused(make_zip(folder / "c.zip", *names), "member .* occurs twice")


def test_a_member_that_is_a_file_and_a_folder_is_refused(folder: Path) -> None:
    refused(make_tar(folder / "b.tar.gz", "a", "a/b"), "member 'a/b' is a file and a folder")


def test_an_encrypted_member_is_named(folder: Path) -> None:
    content = bytearray(make_zip(folder / "c.zip", "secret").read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + place] |= 1
    (folder / "c.zip").write_bytes(content)
    refused(folder / "c.zip", "member 'secret' is encrypted")


def test_a_compression_that_nobody_knows_is_refused(folder: Path) -> None:
    content = bytearray(make_zip(folder / "c.zip", "odd").read_bytes())
    for signature, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        content[content.index(signature) + place] = 77
    (folder / "c.zip").write_bytes(content)
    refused(folder / "c.zip", "compression")


def test_a_zip_that_unpacks_to_far_more_than_itself_is_refused(folder: Path) -> None:
    archive = make_zip(folder / "c.zip", "zeros", content=bytes(50_000_000))
    refused(archive, "member 'zeros' brings it above 16,777,216 bytes")


def test_a_tar_that_unpacks_to_far_more_than_itself_is_refused(folder: Path) -> None:
    zeros = tarfile.TarInfo("zeros")
    zeros.size = 50_000_000
    refused(make_tar(folder / "b.tar.gz", "fine", zeros), "more than 16,777,216 bytes")


def test_very_many_empty_members_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALLEST_BOUND", 2**16)
    monkeypatch.setattr(archives, "LARGEST_RATIO", 1)
    folders = [tarfile.TarInfo(f"{number}") for number in range(200)]
    for info in folders:
        info.type = tarfile.DIRTYPE
    refused(make_tar(folder / "b.tar.gz", *folders), "more than 65,536 bytes")


def raw_tar(path: Path, *blocks: bytes) -> Path:
    with gzip.open(path, "wb") as file:
        file.write(b"".join(blocks) + bytes(1024))
    return path


def test_a_header_that_is_larger_than_memory_is_refused(folder: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    refused(raw_tar(folder / "b.tar.gz", info.tobuf()), "a header .* is larger than 16,777,216 bytes")


def test_headers_of_headers_are_refused(folder: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    refused(raw_tar(folder / "b.tar.gz", *[info.tobuf()] * 5000), "")


def test_a_damaged_header_is_not_taken_for_the_end(folder: Path) -> None:
    blocks = [tarfile.TarInfo(name).tobuf() for name in "abc"]
    blocks[1] = blocks[1].replace(b"0000644", b"0000645", 1)
    refused(raw_tar(folder / "b.tar.gz", *blocks), "the data after member 1 are not a member")


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:-8] + struct.pack("<I", 7) + data[-4:]])
def test_an_end_that_is_cut_off_or_does_not_sum_up_is_found(folder: Path, change: Callable[[bytes], bytes]) -> None:
    archive = make_tar(folder / "b.tar.gz", "a", "b")
    archive.write_bytes(change(archive.read_bytes()))
    refused(archive, "")


@pytest.mark.parametrize("name", ["b.tar.gz", "c.zip"])
@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b", b"PK\5\6", b"PK\3\4" + bytes(100)])
def test_what_is_no_archive_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder / name, "")


def test_plain_files_and_folders_come_out_as_they_are(folder: Path) -> None:
    made = tarfile.TarInfo("./top")
    made.type = tarfile.DIRTYPE
    unpack(make_tar(folder / "b.tar.gz", made, made, "./top/é one", "./top/two", "./top/deep/three"))
    assert sorted(path.relative_to(folder / "b").as_posix() for path in (folder / "b").rglob("*")) == [
        "deep",
        "deep/three",
        "two",
        "é one",
    ]
    unpack(make_zip(folder / "c.zip", "x/", "x/one", "y/two"))
    assert (folder / "c" / "x" / "one").read_text() == "text"
