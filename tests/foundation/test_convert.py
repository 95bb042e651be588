"""Conversion from and to SevenNet's checkpoints, and loading by name."""

import hashlib
from pathlib import Path

import pytest
import torch

import foundation
from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.convert import ConvertConfig, convert
from foundation.interop.published import NOT_STATED, find_published
from foundation.interop.sevennet import from_sevennet, to_sevennet
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=2)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint that is nobody's published one."""
    potential = Potential(EquivariantNetwork(CONFIG, (13, 29), 12.0), (13, 29), ("EMT",))
    to_sevennet(potential, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def test_a_published_model_becomes_a_folder_with_its_provenance(tmp_path: Path) -> None:
    file = find_published("sevennet-mf-0")
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=file, out=tmp_path / "converted"))
    loaded, expected = foundation.load(folder), from_sevennet(file)
    assert loaded.theories == ("R2SCAN", "PBE")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.state_dict().items())
    provenance = checkpoint.describe(folder).provenance
    assert provenance["method"] == "converted from SevenNet"
    assert provenance["converted_from"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert provenance["converted_from"]["sevenn"] == "0.9.4"
    assert {dataset["theory"] for dataset in provenance["datasets"]} == set(loaded.theories)
    assert provenance["datasets"][0]["name"] == "MPtrj"
    assert provenance["datasets"][0]["num_frames"] == NOT_STATED
    assert provenance["num_parameters"] == sum(p.numel() for p in loaded.parameters())


def test_nothing_is_invented_of_a_file_that_is_not_known(own: Path, tmp_path: Path) -> None:
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "converted", theory="EMT"))
    config = checkpoint.describe(folder)
    assert config.theories == ("EMT",)
    (dataset,) = config.provenance["datasets"]
    stated = {name: fact for name, fact in dataset.items() if fact != NOT_STATED}
    assert stated == {"theory": "EMT", "repeat": 1.0}


def test_there_and_back_gives_the_same_predictions(own: Path, tmp_path: Path, emt_manifest: Manifest) -> None:
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "converted"))
    file = convert(ConvertConfig(to="sevennet", model=folder, out=tmp_path / "new" / "again.pth"))
    frames = [f for f in Frames(emt_manifest, "train") if set(f.numbers.tolist()) <= {13, 29}][:2]
    batch = collate(frames, 5.0)
    predictions = [foundation.load(source)(batch) for source in (own, folder, file)]
    assert all(torch.equal(predictions[0].forces, prediction.forces) for prediction in predictions[1:])


def test_a_folder_is_no_checkpoint_of_sevennet(own: Path, tmp_path: Path) -> None:
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "converted"))
    with pytest.raises(IsADirectoryError, match="converted is a folder, not a file of SevenNet"):
        convert(ConvertConfig(from_="sevennet", checkpoint=folder, out=tmp_path / "again"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --from or --to"),
        ({"from_": "sevennet", "to": "sevennet"}, "either --from or --to"),
        ({"from_": "sevennet"}, "reads a --checkpoint"),
        ({"to": "sevennet"}, "reads a --model"),
        ({"from_": "sevennet", "checkpoint": Path("x.pth"), "model": Path("x")}, "it has no --model"),
        ({"to": "sevennet", "model": Path("x"), "checkpoint": Path("x.pth")}, "it has no --checkpoint"),
        ({"to": "sevennet", "model": Path("x"), "theory": "PBE"}, "no --theory"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ConvertConfig(out=tmp_path / "x", **options)


def test_what_is_in_the_way_stays(own: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(
        FileExistsError, match=r"mine has no config\.json, so it is not a potential and is not replaced"
    ):
        convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "mine"))
    with pytest.raises(FileExistsError, match=r"mine is a folder; --out is the file"):
        convert(ConvertConfig(to="sevennet", model=tmp_path, out=tmp_path / "mine"))
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"mine holds other files .*notes\.txt"):
        convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_a_file_that_is_there_stays_as_it_is(own: Path, tmp_path: Path) -> None:
    folder = convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "converted"))
    (tmp_path / "frames.xyz").write_text("mine")
    with pytest.raises(FileExistsError, match=r"frames.xyz exists and is not replaced; remove it or choose another"):
        convert(ConvertConfig(to="sevennet", model=folder, out=tmp_path / "frames.xyz"))
    assert (tmp_path / "frames.xyz").read_text() == "mine"


def test_converting_again_replaces_the_folder(own: Path, tmp_path: Path) -> None:
    for theory in ("first", "second"):
        folder = convert(ConvertConfig(from_="sevennet", checkpoint=own, out=tmp_path / "out", theory=theory))
    assert checkpoint.load(folder).theories == ("second",)
