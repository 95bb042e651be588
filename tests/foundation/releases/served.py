"""A small release, and a web server on loopback that shows folders, and misbehaves as it is told."""

import http.server
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from data_pipeline.store.shards import sha256
from foundation import checkpoint
from foundation.checkpoint import CHECKSUMS
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.releases.registry import Release

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def released_in(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    potential = Potential(EquivariantNetwork(MODEL, (13, 29), 12.0), (13, 29), ("EMT",))
    checkpoint.save(potential, folder, {"config": {}, "method": "test", "datasets": []})
    return folder


def entry(folder: Path, *addresses: str, version: str = "1", aliases: tuple[str, ...] = ()) -> Release:
    return Release(
        name="small",
        version=version,
        aliases=aliases,
        licence="MIT",
        theories=("EMT",),
        elements=("Al", "Cu"),
        sha256=sha256(folder / CHECKSUMS),
        folder=None,
        addresses=addresses,
    )


def same(folder: Path, release: Path) -> bool:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names == {CHECKSUMS, *checkpoint.checksums_in(release)} and all(
        (folder / name).read_bytes() == (release / name).read_bytes() for name in names
    )


class Shown(http.server.ThreadingHTTPServer):
    """Files and misbehaviour of the handler, and the requests that it got."""

    daemon_threads = True
    handler: type["Handler"]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.files: dict[str, bytes] = {}
        """Content by path."""
        self.statuses: dict[str, list[int]] = defaultdict(list)
        """Status of the next answers to a path, without a body."""
        self.break_after: dict[str, list[int]] = defaultdict(list)
        """Bytes after which the next answers to a path break off."""
        self.stalls: set[str] = set()
        """Paths whose answer stops in the middle, and stays open."""
        self.drips: set[str] = set()
        """Paths whose answer comes in small pieces, fast enough to be alive."""
        self.pages: set[str] = set()
        """Paths in whose place a page without a length comes."""
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.tokens: list[str | None] = []

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def show(self, folder: Path, place: str) -> str:
        """Show the files of a folder, and return its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"/{place}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        return f"{self.url}/{place}"

    def count(self, end: str) -> int:
        return sum(path.endswith(end) for path in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    """Shows files with Range."""

    server: Shown

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, self.path
        server.asked.append(path)
        server.tokens.append(self.headers.get("Authorization"))
        if path in server.pages:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(PAGE)
            return
        status = server.statuses[path].pop(0) if server.statuses[path] else 200 if path in server.files else 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, wanted = server.files[path], self.headers.get("Range")
        if wanted:
            server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.send(path, content[start:])

    def send(self, path: str, content: bytes) -> None:
        server = self.server
        if server.break_after[path]:
            content = content[: server.break_after[path].pop(0)]
        if path in server.stalls:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(1.5)
        elif path in server.drips:
            for place in range(0, len(content), 200):
                self.wfile.write(content[place : place + 200])
                time.sleep(0.02)
        else:
            self.wfile.write(content)


Shown.handler = Handler
Server = TypeVar("Server", bound=Shown)


@contextmanager
def shown(kind: type[Server] = Shown) -> Iterator[Server]:
    """Run a server."""
    with kind() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
