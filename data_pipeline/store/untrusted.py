"""Reading of untrusted files: bounded and typed, with every entry known and one error class per kind of file.

A published folder or file states the size of a network and the number of tensors. Nothing is used before its size, type
and name are checked; errors name file and entry.
"""

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_pipeline.quoting import abbreviated, one_line
from data_pipeline.store.json_record import parse_json

MAX_JSON = 4 * 2**20
"""Largest JSON [bytes]; a release's config takes kilobytes, golden predictions of 5,000 atoms a megabyte."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
"""Types of tensors that the project writes, by their names in safetensors."""
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of tensors by name."""


class CorruptFile(ValueError):
    """A file that was changed, or was not written by this program; the message names it."""


@contextmanager
def refusing(
    path: Path,
    kind: type[CorruptFile],
    said: str = "{}; copy or download it again",
    let_through: type[ValueError] = CorruptFile,
) -> Iterator[None]:
    """Turn every error about the content of a file into one error class that names the file.

    Args:
        path: The file.
        kind: The error class.
        said: Message, with braces for the error.
        let_through: Another error class that passes unchanged.

    Raises:
        CorruptFile: of the given kind.
    """
    try:
        yield
    except (kind, let_through):
        raise
    except KeyError as error:
        raise kind(f"{path}: {said.format(f'{abbreviated(error.args[0])} is missing')}") from error
    except (ValueError, SafetensorError, RuntimeError, TypeError, IndexError, EOFError) as error:
        raise kind(f"{path}: {said.format(one_line(str(error)))}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        ValueError: it is larger than the limit.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{size} bytes; at most {limit}")
        # memory is allocated for the requested size
        return file.read(size)


def read_json(path: Path) -> Any:
    """Return the values of a JSON file.

    Raises:
        ValueError: it is not JSON, too large or too deep, or an entry occurs twice.
    """
    return parse_json(read_bytes(path, MAX_JSON), finite=False)


class OpenRecord:
    """Marker of a dataclass read from JSON of any version: other entries are ignored, defaults fill gaps."""


def typed(kind: Any, value: Any, name: str) -> Any:
    """Return JSON values as a type: a dataclass, Literal, union, tuple, list, dict or scalar.

    Lists become tuples if the type is a tuple. A dataclass needs every field and no others unless it is an OpenRecord,
    a bool is not a number, and a float is finite.

    Args:
        kind: The type.
        value: The values.
        name: Dotted name of the entry, for messages.

    Raises:
        ValueError: they are not of the type, or the dataclass refuses them; the message has the dotted name.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _typed_dataclass(kind, value, name)
    if typing.get_origin(kind) is not None:
        return _typed_generic(kind, value, name)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind or kind is float:
        raise ValueError(f"{name} is {abbreviated(value)}, not {WORDS.get(kind, kind.__name__)}")
    return value


WORDS = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", dict: "a mapping"}
"""Descriptions of the scalar types."""


def _typed_generic(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in arguments):
            raise ValueError(f"{name} is {abbreviated(value)}, not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed_union(arguments, value, name)
    if origin in (tuple, list):
        return _typed_sequence(origin, arguments, value, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {abbreviated(value)}, not a mapping")
    return {key: typed(arguments[1], each, f"{name}.{one_line(str(key))[:60]}") for key, each in value.items()}


def _typed_union(arguments: tuple, value: Any, name: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    refusals = []
    for kind in (each for each in arguments if each is not types.NoneType):
        try:
            return typed(kind, value, name)
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]


def _typed_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {abbreviated(value)}, not a mapping")
    annotations = typing.get_type_hints(kind)
    hints = {each.name: annotations[each.name] for each in dataclasses.fields(kind)}
    prefix = name and f"{name}."
    is_open, missing = issubclass(kind, OpenRecord), dataclasses.MISSING
    needed = [
        each.name
        for each in dataclasses.fields(kind)
        if not is_open or (each.default is missing and each.default_factory is missing)
    ]
    surplus = [key for key in value if key not in hints]
    if surplus and not is_open:
        raise ValueError(f"{prefix}{one_line(surplus[0])[:60]} is unknown")
    require(value, needed, prefix)
    values = {key: typed(hint, value[key], prefix + key) for key, hint in hints.items() if key in value}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{name or 'content'}: {error}") from error


def _typed_sequence(origin: type, arguments: tuple, value: Any, name: str) -> Sequence:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {abbreviated(value)}, not a list")
    if origin is tuple and arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise ValueError(f"{name} has {len(value)} entries, not {len(arguments)}")
    if {*arguments} - {Ellipsis} in ({int}, {str}, {bool}) and all(type(item) is arguments[0] for item in value):
        return origin(value)  # long lists have such entries
    each = arguments if origin is tuple and arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
    return origin(typed(kind, item, f"{name}[{n}]") for n, (kind, item) in enumerate(zip(each, value, strict=True)))


def require(values: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> None:
    """Check that a mapping has all entries.

    Args:
        values: The mapping.
        names: Names of the entries.
        prefix: Prefix of their dotted names, for messages.

    Raises:
        ValueError: one is missing; the message names the first.
    """
    for name in names:
        if name not in values:
            raise ValueError(f"{prefix}{name} is missing")


def read_layout(path: Path) -> tuple[Layout, dict[str, str]]:
    """Return type and shape of the tensors of a safetensors file, and its metadata, from its header alone.

    Raises:
        ValueError: it is not a safetensors file, or has a tensor of a type that the project does not write.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_JSON, path.stat().st_size - 8):
            raise ValueError("not a safetensors file")
        header = typed(dict[str, dict[str, Any]], parse_json(file.read(length)), "header")
    metadata = typed(dict[str, str], header.pop("__metadata__", {}), "__metadata__")
    layout = {}
    for name, entry in header.items():
        kind = typed(str, entry.get("dtype"), f"the type of {abbreviated(name)}")
        if kind not in DTYPES:
            raise ValueError(f"{abbreviated(name)} has the type {abbreviated(kind)}, which is never written")
        shape = typed(tuple[int, ...], entry.get("shape"), f"the shape of {abbreviated(name)}")
        layout[name] = (DTYPES[kind], shape)
    return layout, metadata


def check_layout(found: Layout, expected: Layout) -> None:
    """Compare the tensors of a file with the expected ones.

    Raises:
        ValueError: one is missing, surplus, or of another type or shape; the message names the first.
    """
    require(found, expected)
    for name, (dtype, shape) in found.items():
        if name not in expected:
            raise ValueError(f"{abbreviated(name)} is unknown")
        if (dtype, shape) != expected[name]:
            wanted, dims = expected[name]
            raise ValueError(f"{name} is {_described(dtype, shape)}, not {_described(wanted, dims)}")


def _described(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {one_line(str(shape[:8]))}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, all of them finite.

    Raises:
        ValueError: a number is NaN or infinite.
        SafetensorError: it is not a safetensors file.
    """
    tensors = safetensors.torch.load_file(path)
    check_finite(tensors)
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors have no infinities or NaN.

    Raises:
        ValueError: one has; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has a number that is NaN or infinite")
