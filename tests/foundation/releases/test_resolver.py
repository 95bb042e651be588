"""Names and addresses lead to the right bytes or to a sentence, whatever servers, disks and other processes do."""

import logging
import multiprocessing
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import foundation
from data_pipeline.store import durable
from data_pipeline.store.shards import sha256
from foundation import checkpoint, naming, released
from foundation.checkpoint import CHECKSUMS, CONFIG, WEIGHTS, CorruptCheckpoint
from foundation.naming import SavedPotential, resolve
from foundation.released import DownloadConfig, VerifyConfig, download, verify
from foundation.releases import cache
from foundation.releases.cache import Limits, NotDownloaded, Offline
from foundation.releases.registry import NoSuchRelease, Registry, Release, Removed
from launch.__main__ import main
from tests.foundation.releases.served import PAGE, Shown, entry, released_in, same, shown

FAST = Limits(tries=2, backoff=0.001, timeout=0.3, total=10.0)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released_in(tmp_path_factory.mktemp("release") / "small")


@pytest.fixture
def server() -> Iterator[Shown]:
    with shown() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("FOUNDATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LIMITS", FAST)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make releases the only ones of the registry."""

    def know(*releases: Release, removed: tuple[Removed, ...] = ()) -> None:
        for module in (naming, released):
            monkeypatch.setattr(module, "registry", lambda: Registry(releases=releases, removed=removed))

    return know


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Connections that were tried; none succeeds."""
    tried: list[object] = []

    def connect(self: socket.socket, address: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


def folder_of(word: str) -> Path:
    found = resolve(word)
    assert isinstance(found, SavedPotential)
    return found.folder


def test_a_name_is_downloaded_once_and_then_needs_no_socket(
    server: Shown, release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(entry(release, server.show(release, "a"), aliases=("tiny",)))
    first = foundation.load("small")
    assert sorted(server.asked) == ["/a/SHA256SUMS", "/a/config.json", "/a/model.safetensors"]
    made: list[object] = []
    monkeypatch.setattr(socket, "socket", lambda *options, **more: made.append(options))
    for word in ("small", "small@1", "tiny", "Small"):
        assert checkpoint.weights_sha256(foundation.load(word)) == checkpoint.weights_sha256(first)
    assert made == []
    assert same(folder_of("small"), release)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CHECKSUMS])
def test_another_file_than_that_of_the_registry_is_refused_before_it_is_read(
    name: str, server: Shown, release: Path, known: Callable[..., None], tmp_path: Path
) -> None:
    known(entry(release, server.show(release, "a")))
    server.files[f"/a/{name}"] = bytes(reversed(server.files[f"/a/{name}"]))
    with pytest.raises(NotDownloaded, match=rf"small@1: no address gave it\. .*{name}: its sha256 is \w+, expected"):
        resolve("small")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if not path.name.endswith(".partial")] == []


def test_an_altered_list_of_checksums_cannot_bring_in_other_files(
    server: Shown, release: Path, known: Callable[..., None], tmp_path: Path
) -> None:
    known(entry(release, server.show(released_in(tmp_path / "other", seed=1), "a")))
    with pytest.raises(NotDownloaded, match=r"SHA256SUMS: its sha256 is"):
        resolve("small")
    assert server.count(WEIGHTS) == 0


def test_half_a_file_is_taken_up_where_it_broke(server: Shown, release: Path, known: Callable[..., None]) -> None:
    known(entry(release, server.show(release, "a")))
    server.break_after[f"/a/{WEIGHTS}"] = [500]
    assert same(folder_of("small"), release)
    assert server.ranges == ["bytes=500-"]


def test_a_later_call_continues_what_an_earlier_one_left(
    server: Shown, release: Path, known: Callable[..., None]
) -> None:
    known(entry(release, server.show(release, "a")))
    server.break_after[f"/a/{WEIGHTS}"] = [700, 0, 0, 0]
    with pytest.raises(NotDownloaded, match=r"model\.safetensors\.partial \(700 bytes\); the same command continues"):
        resolve("small")
    server.break_after.clear()
    server.ranges.clear()
    assert same(folder_of("small"), release)
    assert server.ranges == ["bytes=700-"]
    assert server.count(CHECKSUMS) == 1


def test_what_a_killed_process_left_does_no_harm(
    server: Shown, release: Path, known: Callable[..., None], tmp_path: Path
) -> None:
    known(entry(release, server.show(release, "a")))
    partial = durable.partial_of(tmp_path / "cache" / "models" / sha256(release / CHECKSUMS))
    (partial / "rehearsal").mkdir(parents=True)
    for name in (CHECKSUMS, CONFIG, "stranger", "rehearsal/stranger"):
        (partial / name).write_text("of another release")
    (partial.parent / f".{partial.stem}.lock").write_text("{}")
    found = folder_of("small")
    assert same(found, release)
    assert [path.name for path in found.parent.iterdir()] == [found.name]


@pytest.mark.parametrize("name", [CHECKSUMS, WEIGHTS])
@pytest.mark.parametrize("long", [True, False])
def test_a_web_page_is_no_potential(
    name: str, long: bool, server: Shown, release: Path, known: Callable[..., None]
) -> None:
    known(entry(release, server.show(release, "a")))
    if long:
        server.pages.add(f"/a/{name}")
    else:
        server.files[f"/a/{name}"] = PAGE
    with pytest.raises(NotDownloaded, match=rf"{name}: a web page came in place of the file, as from a login"):
        resolve("small")
    with pytest.raises(NotDownloaded, match="a web page came"):
        resolve(f"{server.url}/a" if name == CHECKSUMS else f"{server.url}/a/")


def test_a_server_that_falls_silent_is_left_for_the_next(
    server: Shown, release: Path, known: Callable[..., None]
) -> None:
    known(entry(release, server.show(release, "a"), server.show(release, "b")))
    server.stalls.add(f"/a/{WEIGHTS}")
    assert same(folder_of("small"), release)
    assert server.count(f"a/{WEIGHTS}") > 1
    assert server.count(f"b/{WEIGHTS}") == 1


def test_a_slow_server_is_given_up_after_the_total_time(
    server: Shown, release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIMITS", replace(FAST, total=0.15))
    known(entry(release, server.show(release, "a")))
    server.drips.add(f"/a/{WEIGHTS}")
    with pytest.raises(NotDownloaded, match=r"not complete after [\d.e-]+ s\. The partial file is kept"):
        resolve("small")


@pytest.mark.parametrize("fault", ["closed", "missing", "refused", "altered"])
def test_mirrors_are_tried_in_order(
    fault: str, server: Shown, release: Path, known: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    first = server.show(release, "a")
    if fault == "closed":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            first = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
    elif fault == "missing":
        del server.files[f"/a/{WEIGHTS}"]
    elif fault == "refused":
        server.statuses[f"/a/{CONFIG}"] = [403]
    else:
        server.files[f"/a/{WEIGHTS}"] = b"x" * len(server.files[f"/a/{WEIGHTS}"])
    known(entry(release, first, server.show(release, "b")))
    if fault == "altered":
        server.files[f"/a/{WEIGHTS}"] = b"x" * 100
    elif fault == "missing":
        server.files.pop(f"/a/{WEIGHTS}", None)
    assert same(folder_of("small"), release)
    assert f"{first}/" in caplog.text
    assert server.count("b/SHA256SUMS") == (fault == "closed")  # those that came are not fetched again


def test_a_busy_server_is_asked_again(server: Shown, release: Path, known: Callable[..., None]) -> None:
    known(entry(release, server.show(release, "a")))
    server.statuses[f"/a/{CONFIG}"] = [503]
    assert same(folder_of("small"), release)


def test_the_reason_of_every_address_is_told(server: Shown, release: Path, known: Callable[..., None]) -> None:
    known(entry(release, f"{server.url}/nowhere", f"{server.url}/elsewhere"))
    with pytest.raises(NotDownloaded, match=r"nowhere/SHA256SUMS: the server answers 404.*elsewhere/SHA256SUMS: the"):
        resolve("small")


def test_without_a_network_the_error_says_so(
    release: Path, known: Callable[..., None], no_network: list[object]
) -> None:
    known(entry(release, "http://127.0.0.1:9/a"))
    with pytest.raises(NotDownloaded, match=r"127\.0\.0\.1:9.*the connection failed"):
        resolve("small")
    assert no_network


@pytest.mark.parametrize("how", ["variable", "option"])
def test_offline_nothing_is_asked_for(
    how: str,
    release: Path,
    known: Callable[..., None],
    no_network: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    known(entry(release, "http://127.0.0.1:9/a"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes" if how == "variable" else "0")
    if how == "option":
        assert main(["models", "path", "small", "--offline"]) == 2
        assert "small@1: not in the cache" in capsys.readouterr().err
    for word in ("small", "hf:org/small@main", "https://example.org/small"):
        with pytest.raises(Offline, match=rf"{word}.*: not in the cache .*`foundation models download {word}"):
            resolve(word)
    assert no_network == []


def test_offline_the_cache_still_serves(
    server: Shown, release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(entry(release, server.show(release, "a")))
    folder = folder_of("small")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder_of("small") == folder


@pytest.mark.parametrize("fault", ["bit", "gone", "list"])
def test_a_damaged_copy_is_not_used_but_replaced(
    fault: str,
    server: Shown,
    release: Path,
    known: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known(entry(release, server.show(release, "a")))
    folder = folder_of("small")
    if fault == "bit":
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
    elif fault == "gone":
        (folder / CONFIG).unlink()
    else:
        (folder / CHECKSUMS).write_text("")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Offline):
        resolve("small")
    assert "this copy is not used" in caplog.text
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert same(folder_of("small"), release)


def fetch_in_process(answers: multiprocessing.Queue) -> None:
    answers.put(str(folder_of("small")))


def test_of_several_processes_one_downloads(server: Shown, release: Path, known: Callable[..., None]) -> None:
    known(entry(release, server.show(release, "a")))
    server.drips.add(f"/a/{WEIGHTS}")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=fetch_in_process, args=(answers,)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert same(Path(found.pop()), release)
    assert server.count(WEIGHTS) == 1


def test_of_several_threads_one_downloads(server: Shown, release: Path, known: Callable[..., None]) -> None:
    known(entry(release, server.show(release, "a")))
    server.drips.add(f"/a/{CONFIG}")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(folder_of("small"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert server.count(WEIGHTS) == 1


def test_a_moved_alias_is_the_other_version(
    server: Shown, release: Path, known: Callable[..., None], tmp_path: Path
) -> None:
    newer = released_in(tmp_path / "newer", seed=1)
    old, new = server.show(release, "a"), server.show(newer, "b")
    known(entry(release, old, aliases=("latest",)))
    assert same(folder_of("latest"), release)
    known(entry(newer, new, version="2", aliases=("latest",)), entry(release, old))
    for word, expected in (("latest", newer), ("small", newer), ("small@2", newer), ("small@1", release)):
        assert same(folder_of(word), expected), word
    assert server.count(WEIGHTS) == 2


def test_a_removed_name_and_a_missing_version_say_what_there_is(known: Callable[..., None], release: Path) -> None:
    gone = Removed(name="smaller", successor="small", reason="it was wrong")
    known(entry(release, "https://example.org/a"), removed=(gone,))
    with pytest.raises(NoSuchRelease, match=r"smaller was removed: it was wrong\. Its successor is small"):
        resolve("smaller")
    with pytest.raises(NoSuchRelease, match=r"small@3: there is no version '3' of small, but small@1"):
        resolve("small@3")
    with pytest.raises(FileNotFoundError, match=r"did you mean small\?"):
        resolve("smal")


def test_a_shared_cache_is_used_and_not_written_to(
    server: Shown,
    release: Path,
    known: Callable[..., None],
    no_network: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    known(entry(release, f"{server.url}/a"))
    shared = tmp_path / "shared" / "models" / sha256(release / CHECKSUMS)
    shutil.copytree(release, shared)
    before = sorted((tmp_path / "shared").rglob("*"))
    monkeypatch.setenv("FOUNDATION_CACHE", f"{tmp_path / 'mine'}:{tmp_path / 'shared'}")
    assert folder_of("small") == shared
    assert (no_network, (tmp_path / "mine").exists()) == ([], False)
    assert sorted((tmp_path / "shared").rglob("*")) == before


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(
    server: Shown, release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known(entry(release, server.show(release, "a")))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOUNDATION_CACHE", str(tmp_path / "file" / "cache"))
    for word in ("small", f"{server.url}/a"):
        with pytest.raises(NotDownloaded, match=r"the cache cannot be written .*set FOUNDATION_CACHE"):
            resolve(word)


def test_without_a_variable_the_cache_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FOUNDATION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.caches() == (tmp_path / "foundation",)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.caches() == (Path.home() / ".cache" / "foundation",)


def test_an_address_is_asked_once_and_a_branch_followed_when_told(
    server: Shown, release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    newer = released_in(tmp_path / "newer", seed=1)
    server.show(release, "org/small/resolve/main")
    assert same(folder_of("hf:org/small"), release)
    assert set(server.tokens) == {"Bearer secret"}
    asked = len(server.asked)
    server.show(newer, "org/small/resolve/main")
    assert same(folder_of("hf:org/small@main"), release)
    assert len(server.asked) == asked
    (folder,) = download(DownloadConfig(name=("hf:org/small",), anew=True))
    assert same(folder, newer)
    assert same(folder_of("hf:org/small"), newer)
    server.tokens.clear()
    server.show(release, "plain")
    assert same(folder_of(f"{server.url}/plain"), release)
    assert same(folder_of(str(Path(f"{server.url}/plain/"))), release)  # a path has lost a slash
    assert set(server.tokens) <= {None}


def test_an_address_may_be_pinned(server: Shown, release: Path, tmp_path: Path) -> None:
    pin = sha256(release / CHECKSUMS)
    server.show(released_in(tmp_path / "other", seed=1), "a")
    with pytest.raises(NotDownloaded, match=rf"expected {pin}"):
        resolve(f"{server.url}/a#sha256={pin}")
    server.show(release, "a")
    assert same(folder_of(f"{server.url}/a#sha256={pin}"), release)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{'0' * 64}  ../../{WEIGHTS}\n", "not a checksum of a file of this folder"),
        (f"{'0' * 64}  notes.txt\n", f"it lists no {WEIGHTS} or {CONFIG}"),
        ("hello", "not a checksum of a file of this folder"),
        ("0" * (2**20 + 1), "bytes, at most 1,048,576 are expected"),
    ],
)
def test_a_list_that_is_none_is_refused(content: str, message: str, server: Shown) -> None:
    server.files["/a/SHA256SUMS"] = content.encode()
    with pytest.raises(NotDownloaded, match=message):
        resolve(f"{server.url}/a")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("http://example.org/a", "use https, or add #sha256="),
        ("https://example.org/a?b=c", "not an address"),
        ("hf:small", "not an address: hf:org/name@revision"),
        ("hf:../../etc@main", "not an address"),
        ("hf:org/small@main#sha256=12", "behind # belongs sha256="),
    ],
)
def test_what_is_no_address_is_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(word)


def test_a_full_disk_says_so(
    server: Shown, release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known(entry(release, server.show(release, "a")))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(NotDownloaded, match=r"bytes are missing, 0 are free\. Free space"):
        resolve("small")


def test_a_damaged_copy_of_the_package_is_refused(
    release: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(release, tmp_path / "releases" / "small")
    monkeypatch.setattr("foundation.releases.registry.PACKAGE", tmp_path)
    known(replace(entry(release, "https://example.org/a"), folder="small"))
    assert folder_of("small") == tmp_path / "releases" / "small"
    assert verify(VerifyConfig())[0][2] == "ok"
    (tmp_path / "releases" / "small" / CONFIG).write_text("{}")
    with pytest.raises(CorruptCheckpoint, match=r"config\.json: missing or altered"):
        resolve("small")
    assert "missing or altered" in verify(VerifyConfig())[0][2]


def test_a_copy_to_work_with_is_the_release(
    server: Shown, release: Path, known: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    known(entry(release, server.show(release, "a")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FileExistsError, match="is not a release"):
        download(DownloadConfig(name=("small",), out=tmp_path / "mine"))
    assert download(DownloadConfig(name=("small",), out=tmp_path / "copy")) == [tmp_path / "copy"]
    assert same(tmp_path / "copy", release)
    assert f"small@1: downloading from {server.url}/a" in caplog.text
    with pytest.raises(ValueError, match="a copy of a single potential"):
        download(DownloadConfig(name=("small", "small"), out=tmp_path / "other"))
