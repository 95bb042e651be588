"""A public corpus by its name: what it stands for on the command line, from download to shards."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import pytest

from data_pipeline.corpora import catalogue as corpora
from data_pipeline.sources import MptrjJson
from data_pipeline.store.manifest import open_manifest
from launch.__main__ import main, parse
from launch.corpus import expand_corpus

FULL = "MPtrj_2022.9_full.json"


def mptrj(frames: list[ase.Atoms]) -> str:
    """Frames in the layout of MPtrj, one material each."""
    values = {}
    for number, atoms in enumerate(frames):
        sites = [
            {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist()}
            for symbol, abc in zip(atoms.symbols, atoms.get_scaled_positions(wrap=False), strict=True)
        ]
        energy = atoms.get_potential_energy()
        values[f"mp-{number}"] = {
            f"mp-{number}-0-0": {
                "structure": {"lattice": {"matrix": atoms.cell.tolist()}, "sites": sites},
                "uncorrected_total_energy": energy,
                "corrected_total_energy": energy - 1.0,
                "force": atoms.get_forces().tolist(),
                "stress": (atoms.get_stress(voigt=False) * -1602.1766208).tolist(),
            }
        }
    return json.dumps(values)


@pytest.fixture
def remote(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Thirty real frames as MPtrj on a server of this machine."""
    served = tmp_path / "served"
    served.mkdir()
    frames = ase.io.read(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":30")
    (served / FULL).write_text(mptrj(frames))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{FULL}"
        (file,) = corpora.CORPORA["mptrj"].files
        small = replace(file, url=address, size=(served / FULL).stat().st_size, checksum=None)
        corpus = replace(corpora.CORPORA["mptrj"], files=(small,))
        monkeypatch.setattr(corpora, "CORPORA", {**corpora.CORPORA, "mptrj": corpus})
        yield address
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("remote")
def test_a_corpus_is_downloaded_and_built_by_its_name(tmp_path: Path) -> None:
    folder, out = tmp_path / "raw", tmp_path / "data"
    command = ["build", "--corpus", "mptrj", "--download", "--folder", str(folder), "--out", str(out)]
    assert main([*command, "--provenance.name", "mine"]) == 0
    manifest = open_manifest(out)
    assert sum(split.statistics.num_frames for split in manifest.splits.values()) == 30
    assert manifest.provenance.name == "mine"
    assert "MPtrj" not in manifest.provenance.name
    assert manifest.provenance.licence == "MIT"
    assert (folder / FULL).is_file()


def test_a_corpus_that_is_not_there_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--corpus", "mptrj", "--folder", str(tmp_path), "--out", str(tmp_path / "data")]) == 2
    assert "not found. Download it with --corpus mptrj --download" in capsys.readouterr().err


def test_a_corpus_stands_for_its_source_and_its_provenance(tmp_path: Path) -> None:
    (tmp_path / FULL).write_text("{}")
    verb, config = parse(["build", "--corpus", "mptrj", "--folder", str(tmp_path), "--out", "data"])
    assert verb == "build"
    assert config.source == MptrjJson(mptrj_json=(str(tmp_path / FULL),))
    assert config.provenance.name == "mptrj"


def test_one_process_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    with pytest.raises(ValueError, match="only one process may download"):
        expand_corpus(["build", "--corpus", "mptrj", "--download", "--folder", str(tmp_path)])


def test_other_arguments_pass_untouched() -> None:
    arguments = ["build", "--config", "a.yaml", "--out", "x"]
    assert expand_corpus(arguments) == arguments
