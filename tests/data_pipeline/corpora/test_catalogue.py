"""Public corpora: what the table says, how it is fetched and unpacked, and how it becomes a source."""

import dataclasses
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import ase
import ase.io
import pytest

from data_pipeline.corpora.archives import unpack
from data_pipeline.corpora.catalogue import CORPORA, Corpus, RemoteFile, corpus_build, fetch, find_corpus, make_source
from data_pipeline.corpora.download import DownloadError
from data_pipeline.sources import AseFiles, DeepmdNpy, SourceConfig

SOURCES = {dataclasses.fields(member)[0].name: member for member in get_args(SourceConfig)}


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which its files are served."""
    folder = tmp_path / "remote"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def corpus_of(*files: RemoteFile) -> Corpus:
    return dataclasses.replace(CORPORA["mad"], name="test", files=files)


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_every_entry_is_complete(corpus: Corpus) -> None:
    for field in dataclasses.fields(corpus):
        if field.name not in ("files", "access"):
            assert getattr(corpus, field.name), field.name
    assert bool(corpus.files) != bool(corpus.access)
    assert len({file.name for file in corpus.files}) == len(corpus.files)
    for file in corpus.files:
        assert file.url.startswith("https://")
        assert not Path(file.name).is_absolute()
        algorithm, _, digest = (file.checksum or "md5:" + 32 * "0").partition(":")
        assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[algorithm]
    source_class = SOURCES[next(iter(corpus.source))]
    assert set(corpus.source) <= {field.name for field in dataclasses.fields(source_class)}


def test_an_unknown_corpus_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown corpus 'mptraj'; choose one of mptrj, mptrj-extxyz, omat24"):
        find_corpus("mptraj")


def test_a_source_is_told_by_its_own_field() -> None:
    assert isinstance(make_source({"deepmd_npy": ("a",)}), DeepmdNpy)
    with pytest.raises(ValueError, match="no source begins with the field 'format'"):
        make_source({"format": "extxyz"})


def test_a_corpus_becomes_a_source_and_its_provenance(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mad-train\.xyz: not found\. Download it with --corpus mad"):
        corpus_build("mad", tmp_path)
    for split in ("train", "val", "test"):
        (tmp_path / f"mad-{split}.xyz").touch()
    source, provenance = corpus_build("mad", tmp_path)
    assert source == AseFiles(files=tuple(str(tmp_path / f"mad-{split}.xyz") for split in ("train", "val", "test")))
    assert provenance.licence == "CC-BY-4.0"
    assert provenance.source == CORPORA["mad"].homepage


def test_patterns_find_unpacked_files_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "data [1]"
    (folder / "mp-trj").mkdir(parents=True)
    for name in ("mp-2.extxyz", "mp-1.extxyz", "notes.txt"):
        (folder / "mp-trj" / name).touch()
    source, _ = corpus_build("mptrj-extxyz", folder)
    assert isinstance(source, AseFiles)
    assert source.files == tuple(str(folder / "mp-trj" / name) for name in ("mp-1.extxyz", "mp-2.extxyz"))


def test_what_is_not_given_out_to_programs_says_where_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"omol25 must be downloaded by hand\. Accept its conditions"):
        fetch(CORPORA["omol25"], tmp_path)


def test_files_are_fetched_and_archives_unpacked_once(remote: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = remote
    ase.io.write(folder / "a.xyz", ase.Atoms("H"), format="extxyz")
    make_tar(folder / "b.tar.gz", {"train/b/data.0000.aselmdb": b"0", "train/b/metadata.npz": b"1"})
    with zipfile.ZipFile(folder / "c.zip", "w") as file:
        file.writestr("x/mp-1.extxyz", "1")
        file.writestr("y/mp-2.extxyz", "2")
    corpus = corpus_of(
        RemoteFile(name="a.xyz", url=f"{url}/a.xyz", size=(folder / "a.xyz").stat().st_size),
        RemoteFile(name="train/b.tar.gz", url=f"{url}/b.tar.gz"),
        RemoteFile(name="c.zip", url=f"{url}/c.zip"),
    )
    out = tmp_path / "out"
    paths = fetch(corpus, out)
    assert paths == [out / "a.xyz", out / "train" / "b", out / "c"]
    assert sorted(path.name for path in paths[1].iterdir()) == ["data.0000.aselmdb", "metadata.npz"]
    assert (paths[2] / "y" / "mp-2.extxyz").read_text() == "2"
    # what is unpacked is not asked for again, even where the archive is gone on both sides
    for archive in (out / "train" / "b.tar.gz", out / "c.zip", folder / "b.tar.gz", folder / "c.zip"):
        archive.unlink()
    assert fetch(corpus, out) == paths


def test_a_damaged_archive_leaves_no_folder(tmp_path: Path) -> None:
    make_tar(tmp_path / "b.tar.gz", {f"b/{number}": bytes(range(256)) * number for number in range(40)})
    whole = (tmp_path / "b.tar.gz").read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DownloadError, match=r"b\.tar\.gz: cannot be unpacked .*Delete it"):
        unpack(tmp_path / "b.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.gz"]


def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in" / "b.tar.gz", {"../../escaped": b"x"})
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack(tmp_path / "in" / "b.tar.gz")
    assert not (tmp_path / "escaped").exists()
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["b.tar.gz"]
