"""Downloads against a real server on loopback that breaks off, changes its mind, or sends the wrong thing."""

import hashlib
import http.server
import logging
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.corpora.download import DownloadError, download

BODY = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = "sha256:" + hashlib.sha256(BODY).hexdigest()
FAST = {"tries": 3, "backoff": 0.001, "timeout": 5.0}


class Server(http.server.ThreadingHTTPServer):
    """What the handler serves, how it misbehaves, and what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag: str | None = '"one"'
        self.break_after: list[int] = []
        """Bytes after which each of the next answers breaks off."""
        self.statuses: list[int] = []
        """Status of the next answers, without a body."""
        self.honours_range = True
        self.honours_if_range = True
        self.says_length = True
        self.redirects_to: str | None = None
        self.drips: tuple[int, float] | None = None
        """Bytes at a time, and seconds between them."""
        self.drips_head = False
        self.ranges: list[str | None] = []
        self.bytes_sent = 0

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/frames.json"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file with Range, If-Range and ETag."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        if server.redirects_to:
            self.send_response(302)
            self.send_header("Location", server.redirects_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.drips_head:
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Nothing: y\r\n" * 1000)
            return
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.honours_if_range and self.headers.get("If-Range") not in (None, server.etag):
            wanted = None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.honours_range else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.says_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = start + server.break_after.pop(0) if server.break_after else len(server.body)
        # counted first: a client that has all it wants does not wait for this thread
        server.bytes_sent += len(server.body[start:end])
        if server.drips:
            self.drip(server.body[start:end])
        else:
            self.wfile.write(server.body[start:end])

    def drip(self, content: bytes) -> None:
        """Send a few bytes at a time, until the client hangs up."""
        step, pause = self.server.drips or (1, 0.01)
        for place in range(0, len(content), step):
            self.wfile.write(content[place : place + step])
            time.sleep(pause)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_nothing_else_stays(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path / "new" / "frames.json", size=len(BODY), checksum=CHECKSUM, **FAST)
    assert path.read_bytes() == BODY
    assert leftovers(path.parent) == ["frames.json"]


def test_a_file_that_is_there_is_checked_and_not_asked_for(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "frames.json"
    path.write_bytes(BODY)
    download(server.url, path, checksum="md5:" + hashlib.md5(BODY).hexdigest(), **FAST)
    assert server.ranges == []
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"frames\.json: has .* bytes, expected .*Delete it"):
        download(server.url, path, size=len(BODY), **FAST)
    assert path.exists()


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = [1_000_000, 500_000, 700_000]
    path = download(server.url, tmp_path / "frames.json", size=len(BODY), checksum=CHECKSUM, **FAST)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=2200000-"]
    assert server.bytes_sent == len(BODY)


def test_a_later_run_asks_only_for_the_rest(server: Server, tmp_path: Path) -> None:
    server.break_after = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"frames\.json\.partial \(1,000,000 bytes\); the same command continues"):
        download(server.url, tmp_path / "frames.json", **FAST)
    assert not (tmp_path / "frames.json").exists()
    server.break_after = []
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY
    assert server.bytes_sent == len(BODY)


def test_attempts_that_get_further_are_never_too_many(server: Server, tmp_path: Path) -> None:
    server.break_after = [200_000] * 14
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY
    assert server.bytes_sent == len(BODY)


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changed_is_never_glued_to_its_beginning(
    server: Server, tmp_path: Path, honours_if_range: bool
) -> None:
    server.break_after, server.honours_if_range = [1_000_000, 0, 0, 0], honours_if_range
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "frames.json", **FAST)
    server.body, server.etag, server.break_after = BODY[::-1], '"two"', []
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY[::-1]


def test_a_file_that_became_shorter_is_had_anew(server: Server, tmp_path: Path) -> None:
    server.break_after, server.honours_if_range = [2_000_000, 0, 0, 0], False
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "frames.json", **FAST)
    server.body, server.etag, server.break_after = BODY[:1_000_000], '"two"', []
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY[:1_000_000]


def test_a_server_that_ignores_ranges_makes_it_start_anew(server: Server, tmp_path: Path) -> None:
    server.break_after, server.honours_range = [1_000_000], False
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY
    assert server.bytes_sent == len(BODY) + 1_000_000


def test_starting_anew_forever_is_no_progress(server: Server, tmp_path: Path) -> None:
    server.break_after, server.honours_range = [1_000_000] * 10, False
    with pytest.raises(DownloadError, match="3 attempts without progress"):
        download(server.url, tmp_path / "frames.json", **FAST)
    assert len(server.ranges) == 3


@pytest.mark.parametrize(("checksum", "resumed"), [(None, False), (CHECKSUM, True)])
def test_without_a_version_only_a_checksum_makes_resuming_safe(
    server: Server, tmp_path: Path, checksum: str | None, resumed: bool
) -> None:
    server.break_after, server.etag = [1_000_000], None
    download(server.url, tmp_path / "frames.json", checksum=checksum, **FAST)
    assert server.bytes_sent == len(BODY) + (0 if resumed else 1_000_000)


def test_a_partial_file_that_was_complete_is_taken_as_it_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "frames.json.partial").write_bytes(BODY)
    (tmp_path / "frames.json.partial.version").write_text('"one"')
    assert download(server.url, tmp_path / "frames.json", checksum=CHECKSUM, **FAST).read_bytes() == BODY
    assert server.bytes_sent == 0


def test_a_wrong_checksum_leaves_nothing_under_the_name(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"x"
    with pytest.raises(DownloadError, match=r"frames\.json: its sha256 is .*, expected .*It was not kept; try again"):
        download(server.url, tmp_path / "frames.json", size=len(BODY), checksum=CHECKSUM, **FAST)
    assert leftovers(tmp_path) == []


def test_a_wrong_size_is_refused_before_anything_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server has 3,000,000 bytes, expected 3,000,001"):
        download(server.url, tmp_path / "frames.json", size=len(BODY) + 1, **FAST)
    assert leftovers(tmp_path) == []


def test_an_end_that_nobody_announced_is_found_by_the_size(server: Server, tmp_path: Path) -> None:
    server.says_length, server.break_after = False, [1_000_000]
    with pytest.raises(DownloadError, match="has 1,000,000 bytes, expected 3,000,000"):
        download(server.url, tmp_path / "frames.json", size=len(BODY), **FAST)
    assert leftovers(tmp_path) == []


def test_without_a_checksum_the_one_that_came_is_recorded_and_holds_from_then_on(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "frames.json"
    with caplog.at_level(logging.WARNING):
        download(server.url, path, **FAST)
    assert "cannot be verified" in caplog.text
    assert (tmp_path / "frames.json.sha256").read_text() == f"{CHECKSUM.removeprefix('sha256:')}  frames.json\n"
    path.write_bytes(BODY[::-1])
    with pytest.raises(DownloadError, match="its sha256 is"):
        download(server.url, path, **FAST)


def test_a_missing_file_is_named_with_its_address_and_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match=rf"{server.url}: the server answers 404 \(Not Found\)"):
        download(server.url, tmp_path / "frames.json", **FAST)
    assert len(server.ranges) == 1
    assert leftovers(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY
    server.statuses = [503] * 3
    with pytest.raises(DownloadError, match="the server answers 503"):
        download(server.url, tmp_path / "other.json", **FAST)


def test_no_server_at_all_is_an_error_after_a_few_tries(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DownloadError, match=rf"http://127.0.0.1:{port}/x: the connection failed .*3 attempts"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x", **FAST)
    assert leftovers(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match="the connection failed"):
            download(url, tmp_path / "x", tries=2, backoff=0.001, timeout=0.1)


def test_an_address_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Correct the address"):
        download("frames.json", tmp_path / "x", **FAST)


def test_a_full_disk_keeps_what_came(server: Server, tmp_path: Path) -> None:
    # a limit on the size of files fails a write as a full disk does, and needs no disk
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with pytest.raises(DownloadError, match=r"partial: writing failed .*Free space.*the file is kept"):
            download(server.url, tmp_path / "frames.json", **FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = (tmp_path / "frames.json.partial").stat().st_size
    assert 0 < kept <= 1_500_000
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY
    assert server.ranges[-1] == f"bytes={kept}-"


def test_a_length_that_nobody_says_is_refused_before_anything_is_written(server: Server, tmp_path: Path) -> None:
    server.says_length = False
    with pytest.raises(DownloadError, match=rf"{server.url}: neither the server nor the catalogue gives the size"):
        download(server.url, tmp_path / "frames.json", **FAST)
    assert leftovers(tmp_path) == []


def test_more_than_the_catalogue_says_is_not_written(server: Server, tmp_path: Path) -> None:
    server.says_length = False
    with pytest.raises(DownloadError, match="the server sends more than the file's 1,000,000 bytes"):
        download(server.url, tmp_path / "frames.json", size=1_000_000, **FAST)
    assert leftovers(tmp_path) == []


def test_what_does_not_fit_on_the_disk_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 8, 2_999_999))
    with pytest.raises(DownloadError, match="3,000,000 bytes are missing, 2,999,999 are free"):
        download(server.url, tmp_path / "frames.json", **FAST)


@pytest.mark.parametrize("bytes_at_a_time", [1, 20])
def test_a_server_that_drips_is_given_up_and_what_came_is_kept(
    server: Server, tmp_path: Path, bytes_at_a_time: int
) -> None:
    server.drips = (bytes_at_a_time, 0.05)
    with pytest.raises(DownloadError, match=r"less than 1,000 bytes a second.*2 attempts.*the same command continues"):
        download(server.url, tmp_path / "frames.json", tries=2, backoff=0.001, timeout=0.2)
    assert (tmp_path / "frames.json.partial").stat().st_size > bytes_at_a_time
    server.drips = None
    assert download(server.url, tmp_path / "frames.json", **FAST).read_bytes() == BODY


def test_a_head_that_drips_is_given_up(server: Server, tmp_path: Path) -> None:
    server.drips_head = True
    with pytest.raises(DownloadError, match=r"no answer in 0\.3 s"):
        download(server.url, tmp_path / "frames.json", tries=2, backoff=0.001, timeout=0.1)


def test_attempts_of_a_few_bytes_each_come_to_an_end(server: Server, tmp_path: Path) -> None:
    server.break_after = [1] * 10
    with pytest.raises(DownloadError, match="3 attempts without progress"):
        download(server.url, tmp_path / "frames.json", tries=3, backoff=0.01, timeout=5.0)
    assert len(server.ranges) <= 4


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://127.0.0.1/x"])
def test_a_redirection_out_of_the_web_is_refused(server: Server, tmp_path: Path, address: str) -> None:
    server.redirects_to = address
    with pytest.raises(DownloadError, match=rf"{server.url}: "):
        download(server.url, tmp_path / "frames.json", **FAST)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("record", ["", "\0\xff", "no checksum"])
def test_a_record_that_is_no_checksum_is_a_difference(server: Server, tmp_path: Path, record: str) -> None:
    download(server.url, tmp_path / "frames.json", **FAST)
    (tmp_path / "frames.json.sha256").write_text(record)
    with pytest.raises(DownloadError, match=r"frames\.json: its sha256 is .*, expected unreadable"):
        download(server.url, tmp_path / "frames.json", **FAST)
