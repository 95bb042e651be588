"""Saving and loading a potential: bit for bit, and every damage is named."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.checkpoint import CorruptCheckpoint, load, save
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).eval()


@pytest.fixture
def saved(potential: Potential, tmp_path: Path) -> Path:
    """A folder as save() leaves it."""
    save(potential, tmp_path / "potential", {"made": "by a test"})
    return tmp_path / "potential"


@pytest.fixture
def release(saved: Path) -> Path:
    """A folder with checksums over all of its files."""
    (saved / "README.md").write_text("# A card\n")
    checkpoint.write_checksums(saved)
    return saved


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def change(folder: Path, edit: Callable[[dict], None]) -> None:
    """Change config.json and leave everything else as it is."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def seal(folder: Path) -> None:
    """Make every checksum right again, as somebody with bad intentions would."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change(folder, lambda config: config.update(weights_sha256=digest))
    checkpoint.write_checksums(folder)


def test_a_round_trip_keeps_every_bit(potential: Potential, saved: Path, emt_manifest: Manifest) -> None:
    loaded = load(saved)
    ours, theirs = potential.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert loaded.elements == potential.elements
    assert loaded.network.config == potential.network.config
    batch = collate([Frames(emt_manifest, "train")[0]], 5.0)
    before, after = potential(batch), loaded(batch)
    assert torch.equal(before.energy, after.energy)
    assert torch.equal(before.forces, after.forces)
    assert torch.equal(before.stress, after.stress)


def test_the_group_may_read_what_the_umask_allows(potential: Potential, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(potential, tmp_path / "potential", {"made": "by a test"})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "potential").iterdir()}
    assert modes == dict.fromkeys(modes, 0o640)


def test_a_float64_network_keeps_its_precision(potential: Potential, tmp_path: Path) -> None:
    potential.cast(torch.float64)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter += 1e-12
    save(potential, tmp_path / "double", {})
    ours, theirs = potential.state_dict(), load(tmp_path / "double").cast(torch.float64).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loaded_potential_is_ready_to_predict(saved: Path) -> None:
    assert not load(saved).training


def test_saving_twice_gives_the_same_bytes(potential: Potential, saved: Path, tmp_path: Path) -> None:
    save(potential, tmp_path / "again", {"made": "by a test"})
    for name in ("model.safetensors", "config.json"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_saving_replaces_an_older_potential_and_leaves_nothing_beside_it(potential: Potential, saved: Path) -> None:
    with torch.no_grad():
        potential.network.embedding.weight += 1.0
    save(potential, saved, {})
    assert torch.equal(load(saved).network.embedding.weight, potential.network.embedding.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["potential"]


def test_provenance_is_kept(saved: Path) -> None:
    assert checkpoint.describe(saved).provenance == {"made": "by a test"}


def test_a_run_folder_gives_the_potential_in_it(saved: Path) -> None:
    assert checkpoint.find(saved.parent) == saved
    assert load(str(saved.parent)).elements == load(saved).elements


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_a_potential_says_what_should_be_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no potential there .*config.json and model.safetensors"):
        load(tmp_path / name)


@pytest.mark.parametrize("place", [0, 8, 300, -1], ids=["length", "header", "middle", "last"])
def test_a_flipped_byte_of_the_weights_is_named(saved: Path, place: int) -> None:
    flip(saved / "model.safetensors", place)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors"):
        load(saved)


@pytest.mark.parametrize(
    "text",
    [
        '"cutoff_power": ',
        '"elements": [\n  1',
        '"irreps": "4',
        '"weights_sha256": "',
        '"schema_version": ',
        '"num_blocks": ',
    ],
)
def test_a_flipped_byte_of_the_config_is_named(saved: Path, text: str) -> None:
    content = (saved / "config.json").read_text()
    assert text in content
    flip(saved / "config.json", len(content[: content.index(text)].encode()) + len(text.encode()))
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        load(saved)


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_flipped_byte_of_any_file_of_a_release_is_named(release: Path, name: str) -> None:
    load(release)
    flip(release / name, (release / name).stat().st_size // 2)
    with pytest.raises(CorruptCheckpoint, match=name):
        load(release)


def test_a_missing_file_of_a_release_is_named(release: Path) -> None:
    (release / "README.md").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"README\.md: missing or altered"):
        load(release)


def test_a_file_of_checksums_that_is_none_is_named(release: Path) -> None:
    (release / "SHA256SUMS").write_text("garbage\n")
    with pytest.raises(CorruptCheckpoint, match="SHA256SUMS"):
        load(release)


def listed(release: Path, lines: list[str]) -> None:
    (release / "SHA256SUMS").write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "golden.json"])
def test_a_file_that_is_read_has_to_be_listed(release: Path, name: str) -> None:
    (release / "golden.json").write_text("[]\n")
    checkpoint.write_checksums(release)
    lines = (release / "SHA256SUMS").read_text().splitlines()
    listed(release, [line for line in lines if not line.endswith(name)])
    with pytest.raises(CorruptCheckpoint, match=rf"SHA256SUMS: does not list {name}"):
        load(release)


def test_an_edited_config_is_no_longer_the_release(release: Path) -> None:
    change(release, lambda config: config["model"].update(cutoff=4.6))
    for kept in ([], [line for line in (release / "SHA256SUMS").read_text().splitlines() if "config" not in line]):
        listed(release, kept)
        with pytest.raises(CorruptCheckpoint, match="SHA256SUMS: does not list"):
            load(release)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        f"{DIGEST}  ../config.json",
        f"{DIGEST}  /etc/passwd",
        f"{DIGEST}  ..",
        f"{DIGEST}  a/b",
        f"{DIGEST}  a\\b",
        f"{DIGEST}  SHA256SUMS",
        f"{DIGEST}  a\x1bb",
        f"{DIGEST} config.json",
        f"{DIGEST[1:]}  config.json",
        f"{'Z' * 64}  config.json",
        f"\n{DIGEST}  config.json",
    ],
)
def test_a_line_that_is_no_checksum_of_a_file_of_the_folder_is_refused(release: Path, line: str) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    listed(release, [*lines, line])
    with pytest.raises(CorruptCheckpoint, match=r"SHA256SUMS: line 4 is not a checksum"):
        load(release)


def test_the_list_may_mark_binary_files_and_end_in_empty_lines(release: Path) -> None:
    sums = release / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("  ", " *") + "\n\n")
    load(release)


def test_a_file_is_listed_once(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    listed(release, [*lines, f"{DIGEST}  config.json"])
    with pytest.raises(CorruptCheckpoint, match=r"SHA256SUMS: line 4 lists 'config\.json' again"):
        load(release)


@pytest.mark.parametrize("content", [b"\xff" * 100, b"\0" * (2**20 + 1)], ids=["no text", "large"])
def test_checksums_that_are_no_text_are_refused(release: Path, content: bytes) -> None:
    (release / "SHA256SUMS").write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="SHA256SUMS"):
        load(release)


DEEP = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", True),
        ("schema_version", "2"),
        ("schema_version", -(10**9)),
        ("schema_version", 10**9),
        ("architecture", 5),
        ("architecture", "graph transformer"),
        ("model.irreps", "1000000000x0e"),
        ("model.irreps", "+".join(["4x0e"] * 100_000)),
        ("model.irreps", 4),
        ("model.num_blocks", 10**6),
        ("model.num_blocks", 2.0),
        ("model.num_blocks", True),
        ("model.max_degree", 200),
        ("model.cutoff", float("nan")),
        ("model.cutoff", float("inf")),
        ("model.cutoff", "5"),
        ("model.cutoff_function", "cosine"),
        ("model.radial_sizes", [10**9]),
        ("model.radial_sizes", 8),
        ("model.normalization", None),
        ("model.unit_harmonics", 1),
        ("model.surprise", 1),
        ("model", DEEP),
        ("model", None),
        ("elements", [300]),
        ("elements", [1, 1]),
        ("elements", list(range(1000))),
        ("elements", []),
        ("elements", {}),
        ("theories", []),
        ("theories", ["EMT", "EMT"]),
        ("theories", "EMT"),
        ("dtype", "load"),
        ("dtype", "int64"),
        ("weights_sha256", 5),
        ("provenance", []),
        ("provenance", {"datasets": 5}),
        ("provenance", {"datasets": [{"name": ["x"]}]}),
        ("provenance", {"config": {"card": {"name": 5}}}),
        ("provenance", {"deep": DEEP}),
        ("surprise", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_config_that_cannot_have_been_written_is_refused_with_its_entry(
    release: Path, key: str, value: object
) -> None:
    def edit(config: dict) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    change(release, edit)
    checkpoint.write_checksums(release)
    with pytest.raises(CorruptCheckpoint, match=r"potential(/config\.json)?: ") as caught:
        load(release)
    assert len(str(caught.value)) < 700
    assert any(name in str(caught.value) for name in (*key.split(".")[:1], key.split(".")[-1], "nested", "schema"))


@pytest.mark.parametrize("text", ["[" * 10**5, '{"schema_version": 2, "schema_version": 2}', "5", '"x"', "9" * 10**5])
def test_a_config_of_no_mapping_is_refused(release: Path, text: str) -> None:
    (release / "config.json").write_text(text)
    checkpoint.write_checksums(release)
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        load(release)


def test_a_network_larger_than_the_weights_is_not_built(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EquivariantConfig, "network", None)  # would be called
    change(release, lambda config: config["model"].update(irreps="4096x0e", num_blocks=8))
    checkpoint.write_checksums(release)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors: .*it has \d+ numbers, of at least \d+"):
        load(release)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("network.embedding.weight", lambda t: t * float("nan"), "has a number that is NaN or infinite"),
        ("reference_energies", lambda t: t + float("inf"), "has a number that is NaN or infinite"),
        ("network.embedding.weight", lambda t: t.double(), "is float64 of shape"),
        ("network.embedding.weight", lambda t: t.long(), "is int64 of shape"),
        ("network.embedding.weight", lambda t: t.reshape(2, -1).clone(), "is float32 of shape"),
        ("network.blocks.0.denominator", lambda t: 0 * t, "must be positive"),
        ("scale", lambda t: -t, "must be positive"),
        ("scale", None, "is missing"),
        ("surprise", torch.ones(2), "is unknown"),
    ],
)
def test_weights_that_cannot_have_been_written_are_refused_by_name(
    release: Path, name: str, edit: object, message: str
) -> None:
    state = load_file(release / "model.safetensors")
    if edit is None:
        del state[name]
    else:
        state[name] = edit(state[name]) if callable(edit) else edit
    save_file(state, release / "model.safetensors")
    seal(release)
    with pytest.raises(CorruptCheckpoint, match=rf"model\.safetensors: .*{name}'? {message}"):
        load(release)


def test_a_config_that_is_not_json_is_named(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe not json")
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        load(saved)


@pytest.mark.parametrize("key", ["schema_version", "architecture", "model", "elements", "theories", "weights_sha256"])
def test_a_config_without_a_key_is_named(saved: Path, key: str) -> None:
    change(saved, lambda config: config.pop(key) and None)
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        load(saved)


def test_a_newer_schema_is_refused(release: Path) -> None:
    change(release, lambda config: config.update(schema_version=checkpoint.SCHEMA_VERSION + 1))
    checkpoint.write_checksums(release)
    with pytest.raises(ValueError, match=r"schema 4 is newer than this program's 3; update it"):
        load(release)


def test_an_older_schema_goes_through_its_migration(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(saved, lambda config: config.update(schema_version=0, atoms=config.pop("elements")))
    monkeypatch.setitem(checkpoint.MIGRATIONS, 0, lambda config: config | {"elements": config["atoms"]})
    for version in (1, 2):
        monkeypatch.setitem(checkpoint.MIGRATIONS, version, lambda config: config)
    assert checkpoint.describe(saved).elements == (13, 28, 29, 46, 47, 78, 79)


def assert_same_bits(ours: Potential, theirs: Potential, manifest: Manifest) -> None:
    batch = collate([Frames(manifest, "train")[number] for number in range(2)], 5.0)
    before, after = ours(batch), theirs(batch)
    for name in ("energy", "forces", "stress", "atom_energies"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_the_architecture_is_named_and_an_unknown_one_refused(release: Path) -> None:
    assert checkpoint.describe(release).architecture == "equivariant"
    change(release, lambda config: config.update(architecture="graph transformer"))
    checkpoint.write_checksums(release)
    with pytest.raises(CorruptCheckpoint, match="architecture 'graph transformer' is unknown; known are equivariant"):
        load(release)


def test_a_checkpoint_of_schema_2_is_equivariant(saved: Path, potential: Potential, emt_manifest: Manifest) -> None:
    change(saved, lambda config: config.pop("architecture") and None)
    change(saved, lambda config: config.update(schema_version=2))
    checkpoint.write_checksums(saved)
    loaded = load(saved)
    assert loaded.network.config == potential.network.config
    assert checkpoint.describe(saved).schema_version == 3
    assert_same_bits(potential, loaded, emt_manifest)


def test_a_checkpoint_of_schema_1_has_one_theory_and_one_data_set(
    saved: Path, potential: Potential, emt_manifest: Manifest
) -> None:
    state = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    state["reference_energies"] = state["reference_energies"][0].clone()
    save_file(state, saved / "model.safetensors")
    facts = {"num_frames": 7, "num_atoms": 70, "manifest_fingerprint": "f"}
    old = {"dataset": {"name": "x", "level_of_theory": "PBE"}, **facts, "method": "pretraining"}
    for later in ("theories", "architecture"):
        change(saved, lambda config, later=later: config.pop(later) and None)
    change(saved, lambda config: config.update(schema_version=1, provenance=old))
    seal(saved)
    loaded = load(saved)
    assert loaded.theories == ("PBE",)
    expected = potential.get_buffer("reference_energies")
    assert torch.equal(loaded.get_buffer("reference_energies"), expected)
    assert_same_bits(potential, loaded, emt_manifest)
    provenance = checkpoint.describe(saved).provenance
    dataset = {"name": "x", "level_of_theory": "PBE", **facts, "theory": "PBE", "repeat": 1.0}
    assert provenance == {"datasets": [dataset], "method": "pretraining"}


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_the_weights_is_refused_unopened(release: Path, writer: str) -> None:
    trace, file = release.parent / "trace", release / "model.safetensors"
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Trap(trace)))
    else:
        torch.save({"weight": Trap(trace)}, file)
    seal(release)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors"):
        load(release)
    assert not trace.exists()


def test_weights_of_another_architecture_are_refused_by_name(release: Path) -> None:
    change(release, lambda config: config["model"].update(readout_channels=5))
    seal(release)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors|config\.json"):
        load(release)


def test_checksums_are_those_of_the_sha256sum_command(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["README.md", "config.json", "model.safetensors"]
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_a_copy_loads_anywhere(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(release)
    assert load(tmp_path / "elsewhere" / "copy").cutoff == 5.0
