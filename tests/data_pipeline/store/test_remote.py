"""Remote data sets over a real HTTP server: byte ranges, retries, the local copies and their limit."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.stream import Stream
from data_pipeline.store import remote
from data_pipeline.store.block import CorruptShard
from data_pipeline.store.manifest import Manifest, open_manifest


class Server(ThreadingHTTPServer):
    """Serves a folder with byte ranges, counts what is asked for, and misbehaves when told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, int]] = []  # file and bytes sent
        self.ignores_ranges = False
        self.failures: list[int | str] = []  # what the next answers are instead: a status, "cut", "drop" or an address
        self.mode = ""  # how all answers are: "endless", "drip" or "drip the head"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the output of the tests clean."""

    def do_GET(self) -> None:
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure == "drop":
            self.close_connection = True
            return
        if isinstance(failure, str) and ":" in failure:
            self.send_response(302)
            self.send_header("Location", failure)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.mode:
            self.misbehave(self.server.mode)
            return
        file = self.server.folder / self.path.removeprefix("/data/")
        if isinstance(failure, int) or not file.is_file():
            self.send_error(failure if isinstance(failure, int) else 404)
            return
        content, status, asked = file.read_bytes(), 200, self.headers.get("Range")
        if asked and not self.server.ignores_ranges:
            first, last = (int(bound) for bound in asked.removeprefix("bytes=").split("-"))
            content, status = content[first : last + 1], 206
            if not content:
                self.send_error(416)
                return
        self.server.requests.append((file.name, len(content)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if failure == "cut" else content)
        self.close_connection = failure == "cut"

    def misbehave(self, mode: str) -> None:
        """Send without end until the client hangs up."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            head = b"HTTP/1.1 206 Partial Content\r\n" + b"X-Nothing: y\r\n" * 50 + b"\r\n"
            self.wfile.write(head[:-2] + b"X-More: " if mode == "drip the head" else head)
            for _ in range(10**6):
                self.wfile.write(b"x" * 65536 if mode == "endless" else b"X")
                if mode != "endless":
                    time.sleep(0.01)


@pytest.fixture
def server(emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    shutil.copytree(emt_manifest.root, tmp_path / "served")
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def reopen(server: Server, tmp_path: Path) -> Callable[..., Manifest]:
    return lambda **options: open_manifest(server.url, cache=tmp_path / "cache", **options)


def ids(manifest: Manifest, **options: object) -> list[list[tuple[str, ...]]]:
    stream = Stream([Dataset(manifest=manifest)], cutoff=5.0, lanes=2, edge_budget=1500, **options)
    return [[batch.ids for batch in step] for step in stream.from_step(0, stream.plan.steps_of_pass(0))]


def copies(tmp_path: Path, pattern: str = "*.block") -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob(pattern) if path.is_file())


def test_a_remote_data_set_is_the_data_set(emt_manifest: Manifest, server: Server, tmp_path: Path) -> None:
    for path in (server.url, f"{server.url}/", f"{server.url}/manifest.json", Path(server.url)):
        manifest = open_manifest(path, cache=tmp_path / "cache")
        assert manifest.fingerprint == emt_manifest.fingerprint
    for one, other in zip(Frames(manifest, "val"), Frames(emt_manifest, "val"), strict=True):
        assert (one.id, one.energy) == (other.id, other.energy)
        assert (one.positions == other.positions).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_remote_stream_is_the_local_one_and_its_second_pass_asks_for_nothing(
    emt_manifest: Manifest, server: Server, reopen: Callable[..., Manifest], num_workers: int
) -> None:
    assert ids(reopen(), num_workers=num_workers) == ids(emt_manifest)
    blocks = emt_manifest.index("train").blocks
    fetched = [size for name, size in server.requests if name.endswith(".tar")]
    assert set(fetched) == set(blocks.size.tolist())
    if num_workers == 0:
        assert len(fetched) == len(blocks.size)
    server.requests.clear()
    assert ids(reopen(), num_workers=num_workers) == ids(emt_manifest)
    assert {name for name, _ in server.requests} == {"manifest.json"}


@pytest.mark.parametrize("failure", [503, 429, "drop", "cut"])
def test_passing_trouble_passes(server: Server, reopen: Callable[..., Manifest], failure: int | str) -> None:
    frames = Frames(reopen(), "train")
    server.failures += [failure] * 3
    assert frames[0].id
    assert not server.failures


def test_trouble_that_stays_is_an_error_that_names_the_address(server: Server, reopen: Callable[..., Manifest]) -> None:
    frames = Frames(reopen(), "train")
    server.failures += ["cut"] * 5
    with pytest.raises(ConnectionError, match=rf"{server.url}/train-000000\.tar, bytes from \d+: .* tried 5 times"):
        frames[0]


def test_a_refusal_is_not_tried_again(server: Server, reopen: Callable[..., Manifest]) -> None:
    server.failures += [403, 500]
    with pytest.raises(ValueError, match=rf"{server.url}/manifest\.json.*cannot be read .*403"):
        reopen()
    assert server.failures == [500]


def test_what_is_not_there_is_named(server: Server, reopen: Callable[..., Manifest], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{server.url}/other/manifest\.json.*: not found"):
        open_manifest(f"{server.url}/other", cache=tmp_path / "cache")
    frames = Frames(reopen(), "train")
    (server.folder / "train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{server.url}/train-000000\.tar, bytes from \d+: not found"):
        frames[0]


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/x/manifest\.json.* tried 5 times"):
        open_manifest("http://127.0.0.1:9/x", cache=tmp_path)


def test_a_server_without_byte_ranges_is_refused_at_once(server: Server, reopen: Callable[..., Manifest]) -> None:
    server.ignores_ranges = True
    with pytest.raises(ValueError, match=rf"{server.url}/manifest\.json.*ignores byte ranges"):
        reopen()


def test_a_protocol_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gopher://host/data/manifest\.json.*cannot be read"):
        open_manifest("gopher://host/data", cache=tmp_path)


def test_a_corrupt_or_truncated_shard_is_named_by_address(server: Server, reopen: Callable[..., Manifest]) -> None:
    manifest = reopen()
    shard = server.folder / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    last = int(manifest.index("train").blocks.offset[-1])
    content[int(manifest.index("train").blocks.offset[0]) + 900] ^= 1
    shard.write_bytes(content[:last])
    with pytest.raises(CorruptShard, match=rf"{server.url}/train-000000\.tar, block at byte \d+: the checksum"):
        Frames(manifest, "train")[0]
    with pytest.raises(CorruptShard, match=rf"{server.url}/train-000000\.tar, block at byte {last}: the file ends"):
        Frames(manifest, "train")[len(Frames(manifest, "train")) - 1]


def test_an_index_that_differs_from_the_manifest_is_refused(server: Server, reopen: Callable[..., Manifest]) -> None:
    manifest = reopen()
    shutil.copy(server.folder / "val.index.safetensors", server.folder / "train.index.safetensors")
    with pytest.raises(CorruptShard, match=rf"{server.url}/train\.index\.safetensors: the checksum differs"):
        manifest.index("train")


def test_a_spoilt_copy_is_fetched_again(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ids(reopen())
    copy = copies(tmp_path)[0]
    sound = copy.read_bytes()
    copy.write_bytes(sound[:50] + b"?" + sound[51:])
    server.requests.clear()
    assert ids(reopen()) == expected
    assert [size for name, size in server.requests if name.endswith(".tar")] == [len(sound)]
    assert "the checksum does not match" in caplog.text
    assert copy.read_bytes() == sound


def test_the_limit_is_kept_and_the_least_used_make_room(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path
) -> None:
    whole = Frames(reopen(), "train")
    sizes = whole.index.blocks.size
    limit = int(sizes.sum() * 0.6)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.txt").write_text("not of the cache")
    for manifest in (reopen(cache_bytes=limit), reopen(cache_bytes=limit)):
        for _ in Frames(manifest, "train"):
            assert sum(path.stat().st_size for path in copies(tmp_path, "*.*")) <= limit
    last = int(whole.index.blocks.offset[-1])
    kept = {path.name for path in copies(tmp_path)}
    assert f"{last}.block" in kept
    assert 0 < len(kept) < len(sizes)
    assert (tmp_path / "cache" / "mine.txt").exists()
    assert not copies(tmp_path, "*.partial")


def test_a_cache_that_cannot_be_written_makes_reading_slow_not_wrong(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = reopen()
    frames = Frames(manifest, "train")
    (manifest.root / "train-000000.tar").write_text("a file where the folder of the copies should be")
    assert frames[0].id
    assert "cannot keep a copy" in caplog.text


def test_another_version_at_the_same_address_has_its_own_copies(
    server: Server, reopen: Callable[..., Manifest]
) -> None:
    first = reopen()
    text = (server.folder / "manifest.json").read_text()
    (server.folder / "manifest.json").write_text(text.replace("emt-test", "emt-test-2"))
    assert reopen().root != first.root


def test_a_remote_data_set_is_not_verified_as_a_whole(server: Server, reopen: Callable[..., Manifest]) -> None:
    with pytest.raises(ValueError, match=f"{server.url}: blocks are checked as they are read"):
        reopen().verify()


def test_a_cache_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size limit of the cache must be positive"):
        remote.DiskCache(tmp_path, 0)


@pytest.mark.parametrize("mode", ["drip", "drip the head"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(
    server: Server, reopen: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    frames = Frames(reopen(), "train")
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    server.mode = mode
    with pytest.raises(ConnectionError, match=rf"{server.url}/train-000000\.tar, bytes from \d+: .* tried 5 times"):
        frames[0]


def test_an_answer_without_end_is_cut_at_what_was_asked_for(server: Server, reopen: Callable[..., Manifest]) -> None:
    frames = Frames(reopen(), "train")
    server.mode = "endless"
    with pytest.raises(ValueError, match=rf"{server.url}/train-000000\.tar, bytes from \d+: .*it sent more"):
        frames[0]
    with pytest.raises(ValueError, match=rf"{server.url}/manifest\.json, bytes from 0: .*it sent more"):
        reopen()


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirection_out_of_the_web_is_refused(server: Server, reopen: Callable[..., Manifest], address: str) -> None:
    server.failures += [address] * 5
    with pytest.raises(ValueError, match=rf"{server.url}/manifest\.json, bytes from 0: cannot be read"):
        reopen()


@pytest.mark.parametrize("name", ["/tmp/x.tar", "../../../x.tar", "..\\x.tar", "C:x.tar", "%2e%2e%2fx.tar", "a/b.tar"])
def test_a_shard_with_a_path_for_a_name_is_refused_and_nothing_is_written(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path, name: str
) -> None:
    file = server.folder / "manifest.json"
    values = json.loads(file.read_text())
    values["splits"]["train"]["shards"][0]["name"] = name
    # the paths of a merged data set lead to other folders of one's own disk, not of another's
    for changed in (values, {**values, "build_config": {"merged": []}}):
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rf"{server.url}/manifest\.json: "):
            reopen()
    assert not copies(tmp_path, "*")


def test_a_copy_is_never_written_through_a_link(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, outside = reopen(), tmp_path / "outside"
    outside.mkdir()
    frames = Frames(manifest, "train")
    (manifest.root / "train-000000.tar").symlink_to(outside)
    assert frames[0].id
    assert "leads out of the cache" in caplog.text
    assert not list(outside.iterdir())


def test_a_spoilt_copy_of_an_index_is_fetched_again(
    server: Server, reopen: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def counts() -> list[list[int]]:
        return [array.tolist() for array in reopen().index("train").counts(0, 50)]

    expected = counts()
    for name in ("train.index.safetensors", "train-000000.index.safetensors"):
        (copy,) = copies(tmp_path, name)
        content = copy.read_bytes()
        copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert counts() == expected
    assert caplog.text.count("fetching it again") == 2
