"""Pickles in pieces: the opcodes of a stream, an archive around another stream, and the opcodes of all protocols."""

import io
import pickletools
import random
import shutil
import struct
import zipfile
from pathlib import Path


def opcodes(stream: bytes) -> list[bytes]:
    """Return the opcodes of a pickle, each with its argument."""
    starts = [position for _, _, position in pickletools.genops(stream) if position is not None]
    return [stream[start:end] for start, end in zip(starts, [*starts[1:], len(stream)], strict=True)]


def stream_of(path: Path) -> bytes:
    """Return the pickle in a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def replace_stream(path: Path, stream: bytes) -> None:
    """Write a file of torch.save anew with another pickle, checksums and sizes right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, stream if name.endswith("/data.pkl") else old.read(name))
    shutil.copyfileobj(io.BytesIO(buffer.getvalue()), path.open("wb"))


NAMES = (
    *(b"os\nsystem", b"builtins\neval", b"numpy\nndarray", b"numpy\ndtype", b"torch\nFloatStorage", b"torch\nSize"),
    *(b"torch._utils\n_rebuild_tensor_v2", b"numpy.core.multiarray\n_reconstruct", b"numpy.core.multiarray\nscalar"),
    *(b"_codecs\nencode", b"collections\nOrderedDict", b"torch\ndevice", b"torch\nLongStorage", b"torch\nBoolStorage"),
)


def any_opcode(chance: random.Random) -> bytes:
    """Return an opcode of any protocol with an argument that may be anything of the right form."""
    code = chance.choice(pickletools.opcodes)
    if code.name in ("GLOBAL", "INST"):
        return code.code.encode("latin1") + chance.choice(NAMES) + b"\n"
    if code.arg is None:
        return code.code.encode("latin1")
    if code.arg.n >= 0:
        return code.code.encode("latin1") + chance.choice([b"\0", b"\1", b"\xff", b"\x7f"]) * code.arg.n
    widths = {pickletools.TAKEN_FROM_ARGUMENT1: "B", pickletools.TAKEN_FROM_ARGUMENT4: "<i"}
    widths |= {pickletools.TAKEN_FROM_ARGUMENT4U: "<I", pickletools.TAKEN_FROM_ARGUMENT8U: "<Q"}
    if code.arg.n in widths:
        content = chance.choice([b"", b"f8", b"O8", b"storage", b"latin1", b"\xff" * 9, bytes(100)])
        return code.code.encode("latin1") + struct.pack(widths[code.arg.n], len(content)) + content
    return code.code.encode("latin1") + chance.choice([b"0", b"-1", b"9" * 5000, b"nan", b"'x'", b"L" * 9]) + b"\n"


def changed(stream: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return a pickle with a few opcodes removed, repeated, exchanged, inserted or with other arguments, and which."""
    pieces, said = opcodes(stream), []
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        place, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        edit = chance.choice(["remove", "repeat", "exchange", "insert", "splice", "argument"])
        said.append(f"{edit} {place}")
        if edit == "remove" and len(pieces) > 1:
            del pieces[place]
        elif edit == "repeat":
            pieces[place:place] = [pieces[place]] * chance.choice([1, 2, 1000])
        elif edit == "exchange":
            pieces[place], pieces[other] = pieces[other], pieces[place]
        elif edit == "insert":
            pieces.insert(place, any_opcode(chance))
        elif edit == "splice":
            pieces[place:place] = pieces[other : other + chance.randrange(40)]
        elif edit == "argument" and len(pieces[place]) > 1:
            argument = bytearray(pieces[place])
            argument[chance.randrange(1, len(argument))] = chance.choice(
                [0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]
            )
            pieces[place] = bytes(argument)
    return b"".join(pieces), ", ".join(said)
