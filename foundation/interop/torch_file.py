"""Files of torch.save, read without unpickling: the archive, and the format before torch 1.6.

torch_pickle.py reads the pickles in them.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.quoting import abbreviated
from data_pipeline.store.untrusted import read_bytes
from foundation.interop.torch_pickle import Machine

MAX_BYTES = 2**31
"""Largest file; SevenNet's have ten to a hundred megabytes."""
MAX_ENTRIES = 100_000
"""Largest number of entries of the archive; SevenNet-0 has 227."""
MAX_STREAM = 2**24
"""Largest pickle [bytes]; that of SevenNet-0 has 44 kB."""
MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of the format before torch 1.6, which is not an archive."""


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of torch.save: numbers, text, lists, tuples, dicts, tensors, arrays and devices.

    Raises:
        ValueError: it is damaged, implausibly large or nested, or refers to anything else; nothing in it is run.
    """
    content = read_bytes(path, MAX_BYTES)
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return _read_legacy(content)
    try:
        archive = _Archive(content)
        machine = Machine(archive, len(content))
        stream = io.BytesIO(archive.read("data.pkl"))
        values = machine.run(stream)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, OSError, OverflowError, EOFError) as error:
        raise ValueError(f"damaged archive ({error})") from error
    return machine.plain(values)


class _Archive:
    """The archive that torch.save writes since 1.6: stored entries, one for the pickle and one for each storage."""

    def __init__(self, content: bytes) -> None:
        # read from the bytes, because zipfile would first make an object of each
        if content.count(b"PK\x01\x02") > MAX_ENTRIES:
            raise ValueError(f"an archive of more than {MAX_ENTRIES} entries")
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            raise ValueError("an archive with two entries of the same name")
        if any(entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("an archive with compressed or encrypted entries, which torch does not write")
        if sum(max(entry.file_size, entry.compress_size) for entry in entries) > len(content):
            raise ValueError("an archive whose entries overlap")
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("an archive without data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        if self._entries[pickles[0]].file_size > MAX_STREAM:
            raise ValueError(f"a pickle of more than {MAX_STREAM} bytes")
        if f"{self._folder}byteorder" in self._entries and self.read("byteorder") != b"little":
            raise ValueError("a file of a big-endian machine")
        self._storages: dict[str, Tensor] = {}

    def read(self, name: str) -> bytes:
        """Return the content of an entry, after checking its checksum."""
        if self._folder + name not in self._entries:
            raise ValueError(f"the archive lacks {abbreviated(name)}")
        return self._zip.read(self._entries[self._folder + name])

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage as a flat tensor."""
        if key not in self._storages:
            self._storages[key] = _flat(self.read(f"data/{key}"), dtype)
        found = self._storages[key]
        if (found.dtype, found.numel()) != (dtype, count):
            raise ValueError(f"storage {abbreviated(key)} has another type or size than in the pickle")
        return found


class _Legacy:
    """The format before torch 1.6: pickles, then the storages in the order of the last pickle."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._storages: dict[str, Tensor] = {}

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage as a flat tensor, whose content comes later."""
        if key not in self._storages:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise ValueError("storages larger than the file")
            self._storages[key] = torch.zeros(count, dtype=dtype)
        found = self._storages[key]
        if (found.dtype, found.numel()) != (dtype, count):
            raise ValueError(f"storage {abbreviated(key)} occurs twice")
        return found

    def fill(self, keys: Any, stream: io.BytesIO) -> None:
        """Read the content of the storages."""
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not texts or sorted(keys) != sorted(self._storages):
            raise ValueError("other storages than in the pickle")
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(stream.read(8), "little")
            content = stream.read(storage.numel() * storage.dtype.itemsize)
            if count != storage.numel() or len(content) != storage.numel() * storage.dtype.itemsize:
                raise ValueError(f"storage {abbreviated(key)} ends early")
            storage.copy_(_flat(content, storage.dtype))


def _read_legacy(content: bytes) -> Any:
    stream, storages = io.BytesIO(content), _Legacy(len(content))
    machines = [Machine(storages, len(content)) for _ in range(5)]
    for machine, expected in zip(machines, (MAGIC, LEGACY_PROTOCOL), strict=False):
        found = machine.run(stream)
        if type(found) is not int or found != expected:
            raise ValueError("not a file of torch.save")
    writer = machines[2].plain(machines[2].run(stream))
    if not isinstance(writer, dict) or writer.get("little_endian") is not True:
        raise ValueError("a file of a big-endian machine")
    values = machines[3].run(stream)
    storages.fill(machines[4].plain(machines[4].run(stream)), stream)
    return machines[3].plain(values)


def _flat(content: bytes, dtype: torch.dtype) -> Tensor:
    """Return numbers as a flat tensor."""
    if len(content) % dtype.itemsize:
        raise ValueError("a storage that ends within a number")
    if not content:
        return torch.zeros(0, dtype=dtype)
    if dtype == torch.bool:  # a byte other than 0 or 1 is not a bool
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(content), dtype=dtype)
