"""A release goes to a hub, a folder or a bucket and comes back byte for byte, with a card that the hub can read."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
import torch
import yaml

from data_pipeline.store.shards import sha256
from foundation import checkpoint, publish
from foundation.checkpoint import CARD, CHECKSUMS
from foundation.convert import ConvertConfig, convert
from foundation.evaluation.quantities import QUANTITIES
from foundation.interop.sevennet import to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.naming import SavedPotential, resolve
from foundation.potential import Potential
from foundation.provenance import Provenance, StartFacts
from foundation.publish import PublishConfig
from foundation.releases.registry import Registry, read_registry
from foundation.reports.card import CardFacts
from foundation.reports.front_matter import front_matter
from launch.__main__ import main
from tests.foundation.releases.served import Handler, Shown, shown

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)
CARD_FACTS = CardFacts(
    name="Small one",
    description="A test.",
    authors="nobody",
    licence="CC-BY-4.0",
    intended_use="tests",
    limitations="all",
    citation="none",
)


class HubHandler(Handler):
    """The parts of the hub's interface that an upload uses."""

    def do_POST(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        assert isinstance(server, Hub)
        body = self.body()
        server.posted.append(path)
        if path in server.refused:
            return self.answer({"error": "You don't have the rights"}, status=403)
        if path == "/api/repos/create":
            return self.answer({"url": f"{server.url}/org/small"})
        if path == "/api/validate-yaml":
            server.cards.append(json.loads(body)["content"])
            return self.answer({})
        if "/preupload/" in path:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return self.answer({"files": [each | {"shouldIgnore": False, "oid": None} for each in files]})
        if "/commit/" in path:
            return self.answer(server.commit([json.loads(line) for line in body.splitlines()]))
        return self.answer({})

    def do_GET(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        assert isinstance(server, Hub)
        if path.startswith("/api/models/org/small/tree/"):
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in server.repository])
        else:
            super().do_GET()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, values: object, status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Hub(Shown):
    """A hub with one repository."""

    handler = HubHandler

    def __init__(self) -> None:
        super().__init__()
        self.repository: dict[str, bytes] = {}
        self.posted: list[str] = []
        self.cards: list[str] = []
        self.refused: set[str] = set()
        self.alters: str | None = None
        """File that is kept otherwise than it was sent."""

    def commit(self, lines: list[dict]) -> dict[str, object]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repository[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.repository[value["path"]]
        oid = hashlib.sha1(repr(sorted(self.repository.items())).encode()).hexdigest()
        for name, content in self.repository.items():
            self.files[f"/org/small/resolve/{oid}/{name}"] = content + b" " * (name == self.alters)
        return {"success": True, "commitUrl": f"{self.url}/org/small/commit/{oid}", "commitOid": oid}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    to_sevennet(Potential(EquivariantNetwork(MODEL, (13, 29), 12.0), (13, 29), ("EMT",)), folder / "small.pth")
    options = {"checkpoint": folder / "small.pth", "theory": "EMT", "card": CARD_FACTS}
    return convert(ConvertConfig(from_="sevennet", out=folder / "small", **options))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with shown(Hub) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.setenv("FOUNDATION_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_published_on_the_hub_and_pulled_back(
    hub: Hub, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository = {".gitattributes": b"x", "old.safetensors": b"y"}
    assert main(["publish", "--release", str(release), "--to", "hf:org/small"]) == 0
    said = capsys.readouterr().out
    assert hub.repository == contents(release) | {".gitattributes": b"x"}
    (word,) = [line.split('"')[1] for line in said.splitlines() if "foundation.load" in line]
    assert word.startswith("hf:org/small@")
    monkeypatch.setenv("FOUNDATION_CACHE", str(tmp_path / "elsewhere"))
    found = resolve(word)
    assert isinstance(found, SavedPotential)
    assert contents(found.folder) == contents(release)
    entry = tmp_path / "registry.yaml"
    entry.write_text(f"removed: []\nreleases:\n{said.partition('registry:')[2].lstrip()}")
    registry = read_registry(entry)
    assert isinstance(registry, Registry)
    (named,) = registry.releases
    assert (named.name, named.licence, named.addresses) == ("small-one", "CC-BY-4.0", (word,))
    assert named.sha256 == sha256(release / CHECKSUMS)


def test_what_the_hub_altered_is_noticed(hub: Hub, release: Path) -> None:
    hub.alters = "config.json"
    with pytest.raises(OSError, match=r"config\.json: its sha256 is \w+, expected"):
        publish.publish(PublishConfig(release=release, to="hf:org/small"))


def test_a_refusal_of_the_hub_says_how_to_log_in(hub: Hub, release: Path) -> None:
    hub.refused.add("/api/repos/create")
    with pytest.raises(PermissionError, match=r"hf:org/small: the hub refuses .*hf auth login"):
        publish.publish(PublishConfig(release=release, to="hf:org/small"))
    with pytest.raises(ValueError, match="published as a whole repository"):
        publish.publish(PublishConfig(release=release, to="hf:org/small/folder"))


def test_offline_nothing_is_uploaded(hub: Hub, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for place in ("hf:org/small", "memory://bucket/small"):
        with pytest.raises(PermissionError, match="nothing may be uploaded"):
            publish.publish(PublishConfig(release=release, to=place))
    assert hub.posted == []


def test_a_folder_and_a_bucket_get_the_same_bytes(release: Path, tmp_path: Path) -> None:
    publish.publish(PublishConfig(release=release, to=str(tmp_path / "www" / "small")))
    assert contents(tmp_path / "www" / "small") == contents(release)
    publish.publish(PublishConfig(release=release, to="memory://bucket/small"))
    memory = fsspec.filesystem("memory")
    assert {name: memory.cat_file(f"/bucket/small/{name}") for name in contents(release)} == contents(release)
    with pytest.raises(ValueError, match="s3fs"):
        publish.publish(PublishConfig(release=release, to="s3://bucket/small"))


@pytest.mark.parametrize("fault", ["private", "card", "golden", "matter"])
def test_only_a_whole_release_is_published(fault: str, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in contents(release).items():
        (folder / name).write_bytes(content)
    if fault == "private":
        config = json.loads((folder / "config.json").read_text())
        config["provenance"]["private"] = True
        (folder / "config.json").write_text(json.dumps(config))
    elif fault == "golden":
        golden = json.loads((folder / "golden.json").read_text())
        golden[0]["energy"] += 1.0
        (folder / "golden.json").write_text(json.dumps(golden))
    elif fault == "card":
        (folder / CARD).unlink()
    else:
        (folder / CARD).write_text("# Small\n")
    checkpoint.write_checksums(folder)
    words = {"private": "a private release", "card": "lacks README.md", "golden": "differs by", "matter": "its licence"}
    with pytest.raises(ValueError, match=words[fault]):
        publish.publish(PublishConfig(release=folder, to=str(tmp_path / "www")))
    assert not (tmp_path / "www").exists()


def test_the_card_says_what_the_hub_reads(release: Path) -> None:
    before, matter, _ = (release / CARD).read_text().split("---\n", 2)
    assert before == ""
    values = yaml.safe_load(matter)
    assert values["license"] == "cc-by-4.0"
    assert values["library_name"] == "foundation"
    assert "EMT" in values["tags"]
    assert "base_model" not in values


def test_a_fine_tuning_names_its_base_and_its_errors() -> None:
    origin = Provenance(
        start=StartFacts(folder="hf:org/base/part@main", datasets=({"name": "old"},)), datasets=({"name": "new"},)
    )
    card = CardFacts(name="x", licence="Academic")
    errors = {("new", "test"): {"energy_mae": 0.0123456789, "force_mae": None, "num_frames": 3.0}}
    values = yaml.safe_load(front_matter(card, origin, ("PBE", "no"), errors).strip("-\n"))
    assert (values["license"], values["license_name"]) == ("other", "Academic")
    assert (values["base_model"], values["base_model_relation"]) == ("org/base", "finetune")
    assert values["datasets"] == ["new", "old"]
    assert values["tags"][-2:] == ["PBE", "no"]
    (model,) = values["model-index"]
    ((result,),) = (model["results"],)
    assert result["dataset"] == {"name": "new", "type": "new", "split": "test"}
    title = QUANTITIES["energy_mae"].title
    assert result["metrics"] == [{"type": "energy_mae", "name": title, "value": 12.346}]
