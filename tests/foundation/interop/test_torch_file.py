"""Files of torch.save are read as torch reads them, and anything but plain data is refused at once."""

import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation.checkpoint import CorruptCheckpoint
from foundation.interop import torch_pickle
from foundation.interop.published import PUBLISHED, find_published
from foundation.interop.sevennet import from_sevennet, to_sevennet
from foundation.interop.torch_file import read_torch_file
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential

SMALL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(4,), readout_channels=2)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two trees are of the same values, types and bits."""
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=theirs.dtype.kind == "f")
    return type(ours) is type(theirs) and ours == theirs


def contents() -> dict:
    shared = torch.arange(12.0)
    return {
        "numbers": [1, -1, 2**40, 1.5, True, None, "é", (), (1, (2, 3))],
        "types": [torch.zeros(2, dtype=getattr(torch, name)) for name in "float64 float16 bfloat16 int8 bool".split()],
        "views": [shared[2:7], shared.view(3, 4).t(), shared[:0], torch.zeros(0, 3), torch.tensor(2.5)],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state": OrderedDict(weight=torch.ones(3)),
        "module": torch.nn.Linear(2, 2).state_dict(),
        "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, dtype=np.float32)), np.arange(3) > 1],
        "empty": np.zeros((0, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "device": torch.device("cuda", 1),
        3: "key",
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before 1.6"])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path, zipped: bool) -> None:
    values, path = contents(), tmp_path / "x.pth"
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    values["parameter"] = values["parameter"].detach()
    values["big-endian"] = values["big-endian"].astype("i4")
    assert same(found, values)


def test_a_number_of_numpys_becomes_one_of_pythons(tmp_path: Path) -> None:
    torch.save([np.float64(0.1), np.int32(-3), np.bool_(True)], tmp_path / "x.pth")
    found = read_torch_file(tmp_path / "x.pth")
    assert [(type(value), value) for value in found] == [(float, 0.1), (int, -3), (bool, True)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_read_bit_for_bit(name: str) -> None:
    path = find_published(name)
    trusted = torch.load(path, map_location="cpu", weights_only=False)  # of the installed sevenn package
    assert same(read_torch_file(path), trusted)


def test_every_case_is_refused_at_once(real_data: Path) -> None:
    cases = sorted((real_data.parent / "cases" / "pth").glob("*.pth"))
    assert len(cases) >= 2
    for path in cases:
        start = time.process_time()
        with pytest.raises(CorruptCheckpoint, match=path.name) as caught:
            from_sevennet(path)
        assert time.process_time() - start < 1
        assert len(str(caught.value)) < 700


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


UNWANTED = [
    np.array([{}]),
    np.zeros(2, dtype=complex),
    np.zeros(2, dtype="S3"),
    np.zeros(2, dtype="M8[s]"),
    np.zeros(2, dtype=[("a", float)]),
    np.ma.masked_array([1.0]),
    np.longdouble(1),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(2).to_sparse(),
    torch.nn.Linear(2, 2),
    Calls(np.ndarray, (1,), "O", b"x" * 8),
    Calls(np.frombuffer, b"x" * 8, "O"),
    Calls(eval, "1"),
    Calls(torch.device, "meta"),
    {1.5: 0},
    {(1, 2): 0},
    {2**61 - 1: 0},
    {1, 2},
    1j,
    2**100,
    Path("/tmp"),
    torch.Size([2]),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("value", UNWANTED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_no_plain_data_is_refused(tmp_path: Path, value: object, protocol: int) -> None:
    torch.save({"config": value}, tmp_path / "x.pth", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"\w+"):
        read_torch_file(tmp_path / "x.pth")


def stored(path: Path, stream: bytes, **entries: bytes) -> Path:
    """Write an archive around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(offset: bytes = b"K\0", sizes: bytes = b"K\x02\x85", strides: bytes = b"K\x01\x85", count: int = 2) -> bytes:
    """Return the opcodes of a tensor over a storage of two floats."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("s") + text("cpu") + b"K" + bytes([count])
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + offset + sizes + strides + (
        b"\x89ccollections\nOrderedDict\n)RtR."
    )  # fmt: skip


HUGE = b"\x8a\x06\xff\xff\xff\xff\xff\x7f"


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (tensor(), ""),
        (tensor(offset=b"K\x01"), "larger than its storage"),
        (tensor(offset=b"J\xff\xff\xff\xff"), "without storage, size or strides"),
        (tensor(sizes=b"K\x03\x85"), "larger than its storage"),
        (tensor(strides=b"K\x02\x85"), "larger than its storage"),
        (tensor(strides=b"J\xff\xff\xff\xff\x85"), "without storage, size or strides"),
        (tensor(strides=b"K\0\x85", sizes=b"K\x03\x85"), "larger than its storage"),
        (tensor(sizes=HUGE + b"\x85"), "more elements than the file has bytes"),
        (tensor(sizes=HUGE + b"K\0\x86", strides=b"K\x01K\x01\x86"), "more elements than the file has bytes"),
        (tensor(sizes=b"K\x01K\x02\x86"), "other strides than dimensions"),
        (tensor(sizes=b"\x88\x85"), "without storage, size or strides"),
        (tensor(count=3), "another type or size"),
    ],
)
def test_a_tensor_lies_inside_its_storage(tmp_path: Path, stream: bytes, message: str) -> None:
    path = stored(tmp_path / "x.pth", stream, s=struct.pack("<2f", 1, 2))
    if not message:
        assert read_torch_file(path).tolist() == [1.0, 2.0]
        return
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b")" + b"\x85" * 20_000, "nested more than 32 deep"),
        (b"]" * 20_000 + b"a" * 19_999, "nested more than 32 deep"),
        (b"]q\0h\0a", "nested more than 32 deep"),
        (b"]" + b"".join(b"q" + bytes([n]) + b"0](" + (b"h" + bytes([n])) * 9 + b"e" for n in range(9)), "POP"),
        (b"]q\0q\0", "two values under one number"),
        (b"}(K\1NK\1Nu", "the key 1 twice"),
        (b"}(" + b"]Nu", "neither text nor a small integer"),
        (b"}(K\1u", "sets items of something other than a dict"),
        (b"NN\x86h\7", "takes what it has not put"),
        (b"R", "takes what it has not put"),
        (b"NN", "more or less than one value"),
        (b"(N", "more or less than one value"),
        (b"}}b", "changes what cannot be changed"),
        (b"\x82\1", "opcode EXT1"),
        (b"I12\n", "opcode INT"),
        (b"cos\nsystem\n", r"wants to run os\.system"),
        (b"(X\2\0\0\0lsios\nsystem\n", r"wants to run os\.system"),
        (b"c" + b"x" * 10**6 + b"\nsystem\n", r"wants to run x{100}$"),
        (b"cnumpy\nndarray\n)R", r"wants to run numpy\.ndarray"),
        (b"cnumpy\nndarray\n", "name in the place of a value"),
        (b"cnumpy\ndtype\n(X\2\0\0\0f8K\0K\1tR", "dtype in the place of a value"),
        (b"X\3\0\0\0\xed\xa0\x80", "surrogates"),
    ],
    ids=range(22),
)
def test_a_stream_that_torch_does_not_write_is_refused_at_once(tmp_path: Path, stream: bytes, message: str) -> None:
    path = stored(tmp_path / "x.pth", b"\x80\x02" + stream + b".")
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)
    assert time.process_time() - start < 5


def test_opcodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(ValueError, match="more than 1000 opcodes"):
        read_torch_file(stored(tmp_path / "x.pth", b"\x80\x02" + b"]" * 2000 + b"."))


def test_bytes_of_the_file_are_not_multiplied_by_sharing(tmp_path: Path) -> None:
    long = text("a" * 100_000) + b"q\1" + text("latin1") + b"q\2"
    calls = b"c_codecs\nencode\nq\0" + long + (b"h\0h\1h\2\x86R") * 3
    with pytest.raises(ValueError, match="more elements than the file has bytes"):
        read_torch_file(stored(tmp_path / "x.pth", b"\x80\x02(" + calls + b"t."))
    views = tensor()[2:-1] + (b"q\0" + b"h\0" * 3)
    assert len(read_torch_file(stored(tmp_path / "y.pth", b"\x80\x02(" + views + b"t.", s=bytes(8)))) == 4


@pytest.mark.parametrize(
    "change", ["compressed", "encrypted", "twice", "entries", "no pickle", "overlap", "big-endian"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_torch_does_not_write_is_refused(tmp_path: Path, change: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
    ) as archive:
        archive.writestr("archive/data.pkl" if change != "no pickle" else "other", pickle.dumps({}, 2) + bytes(1000))
        if change == "twice":
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        if change == "big-endian":
            archive.writestr("archive/byteorder", "big")
        if change == "overlap":
            (entry,) = archive.infolist()
            for number in range(50):
                copy = zipfile.ZipInfo(f"archive/data/{number}")
                copy.file_size, copy.compress_size, copy.header_offset, copy.CRC = 1018, 1018, 0, entry.CRC
                archive.filelist.append(copy)
                archive.NameToInfo[copy.filename] = copy
    content = bytearray(buffer.getvalue())
    if change == "encrypted":
        content[content.index(b"PK\x01\x02") + 8] |= 1
    if change == "entries":
        content = b"PK\x01\x02" * 100_001 + content
    (tmp_path / "x.pth").write_bytes(content)
    said = {"twice": "two entries of the same name", "entries": "entries", "no pickle": "without data.pkl"}
    said |= {"overlap": "overlap", "big-endian": "big-endian", "encrypted": "encrypted", "compressed": "compressed"}
    with pytest.raises(ValueError, match=said[change]):
        read_torch_file(tmp_path / "x.pth")


def test_no_pickle_crashes_the_reader(tmp_path: Path) -> None:
    to_sevennet(Potential(EquivariantNetwork(SMALL, (1, 29), 4.0), (1, 29), ("PBE",)).eval(), tmp_path / "x.pth")
    command = [sys.executable, "-m", "tests.foundation.interop.pickle_fuzz", str(tmp_path / "x.pth"), "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr[-3000:]}"
