"""Interpreter of the pickles of torch.save, which builds only plain data.

A pickle is a program. torch's restricted unpickler runs it with a list of harmless names, but some harmless names
build objects out of bytes of the file (numpy.ndarray of object type), and sharing makes 20 kB cost minutes. Here the
names stand for our own constructors: tensors and arrays of plain numbers, checked against the available bytes. Work and
memory are bounded by the size of the file; the price is that a file with anything else is refused as a whole.
"""

import io
import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from data_pipeline.quoting import abbreviated

MAX_OPCODES = 200_000
"""Largest number of opcodes, which take half a second; SevenNet-0 has 8,000."""
MAX_VALUES, MAX_DEPTH = 100_000, 32
"""Largest number of values (shared ones counted each time) and nesting depth; SevenNet-0 has 3,000 and 4."""
MAX_DIMENSIONS = 8
"""Largest number of dimensions of a tensor or an array."""
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
"""Names of the types of a storage."""
NUMBERS = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
"""NumPy's codes of plain numbers."""


@dataclass(frozen=True)
class _Name:
    """A name in the pickle."""

    text: str


@dataclass
class _Dtype:
    """Type of an array under construction."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array under construction."""

    values: np.ndarray | None = None


@runtime_checkable
class Storages(Protocol):
    """Source of the numbers of tensors."""

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage as a flat tensor.

        Args:
            key: Its name.
            dtype: Type of its elements.
            count: Number of its elements.
        """
        ...


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value))


class Machine:
    """Interpreter of the opcodes of torch's pickler, on a stack of plain values."""

    def __init__(self, storages: Storages, num_bytes: int) -> None:
        self._storages, self._left = storages, num_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._num_values = 0

    def run(self, stream: io.BytesIO) -> Any:
        """Return the value of a pickle."""
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            step = STEPS.get(opcode.name)
            if step is None:
                raise ValueError(f"the opcode {opcode.name}, which torch does not write")
            if number > MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            step(self, argument)
        if len(self._stack) != 1 or self._marks:
            raise ValueError("a pickle of more or less than one value")
        return self._stack[0]

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return a built value without sharing, with arrays in place of their placeholders."""
        self._num_values += 1
        if self._num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: self.plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.plain(each, depth + 1) for each in value)
        if isinstance(value, _Array) and value.values is not None:
            return value.values
        if value is None or isinstance(value, bool | int | float | str | bytes | Tensor | torch.device):
            return value
        raise ValueError(f"{type(value).__name__.strip('_').lower()} in the place of a value")

    def charge(self, count: int) -> None:
        """Count elements built: at most the number of bytes of the file."""
        self._left -= count
        if self._left < 0:
            raise ValueError("more elements than the file has bytes")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("a pickle that takes what it has not put")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("a pickle that takes what it has not put")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def push(self, value: Any) -> None:
        """Put a value."""
        if isinstance(value, str) and not value.isascii():
            value.encode()  # refuses half of a surrogate pair, which could not be printed
        if type(value) is int and value.bit_length() > 80:
            raise ValueError("an integer of more than 80 bits")
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        """Mark the end of the stack."""
        self._marks.append(len(self._stack))

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the last values."""
        self._stack.append(tuple(reversed([self._pop() for _ in range(count)])))

    def tuple_to_mark(self, _: Any) -> None:
        """Make a tuple of the values since the mark."""
        self._stack.append(tuple(self._pop_mark()))

    def put(self, number: int | None) -> None:
        """Store the last value under a number."""
        number = len(self._memo) if number is None else number
        if number in self._memo:
            raise ValueError("a pickle that stores two values under one number")
        self._memo[number] = self._top()

    def get(self, number: int) -> None:
        """Push a stored value."""
        if number not in self._memo:
            raise ValueError("a pickle that takes what it has not put")
        self._stack.append(self._memo[number])

    def append(self, values: list[Any]) -> None:
        """Add values to the list below them."""
        target = self._top()
        if type(target) is not list:
            raise ValueError("a pickle that appends to something other than a list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values to the dict below them."""
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("a pickle that sets items of something other than a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # integers of more bits can be chosen so that all of them collide
            if type(key) is not str and not (type(key) is int and key.bit_length() < 32):
                raise ValueError("a key that is neither text nor a small integer")
            if key in target:
                raise ValueError(f"the key {abbreviated(key)} twice")
            target[key] = value

    def name(self, text: Any) -> None:
        """Push a name, if it is known."""
        if text not in CONSTRUCTORS and text not in STORAGES and text not in NAMES:
            raise UnwantedName(text)
        self._stack.append(_Name(text))

    def name_from_stack(self, _: Any) -> None:
        """Push a name whose parts are on the stack."""
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not text")
        self.name(f"{module} {name}")

    def call(self, _: Any) -> None:
        """Build the value of a known name."""
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a pickle that calls what cannot be called")
        if name.text not in CONSTRUCTORS:
            raise UnwantedName(name.text)
        self._stack.append(CONSTRUCTORS[name.text](self, arguments))

    def build(self, _: Any) -> None:
        """Complete an array or its type; attributes of an OrderedDict are ignored."""
        state, target = self._pop(), self._top()
        if isinstance(target, _Array):
            target.values = self._array(target, state)
        elif isinstance(target, _Dtype):
            order, *fields = state[1:5] if isinstance(state, tuple) and len(state) >= 5 else ("",)
            if len(fields) != 3 or order not in ORDERS or any(each is not None for each in fields):
                raise ValueError("an array of other than plain numbers")
            target.order = order
        elif not isinstance(target, OrderedDict) or not isinstance(state, dict):
            raise ValueError("a pickle that changes what cannot be changed")

    def put_storage(self, _: Any) -> None:
        """Put a storage."""
        reference = self._pop()
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("a reference that is not a storage")
        _, kind, key, _, count, *view = reference
        if not isinstance(kind, _Name) or kind.text not in STORAGES or any(each is not None for each in view):
            raise ValueError("a storage of other than plain numbers")
        if not isinstance(key, str) or not _is_count(count):
            raise ValueError("a storage without key or size")
        self._stack.append(_Storage(self._storages.storage(key, STORAGES[kind.text], count)))

    def _array(self, target: _Array, state: Any) -> np.ndarray:
        if target.values is not None or not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array that is not of plain numbers")
        _, shape, dtype, by_columns, content = state
        if not _is_shape(shape) or not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise ValueError("an array that is not of plain numbers")
        self.charge(math.prod(max(size, 1) for size in shape))
        values = _numbers(content, dtype)
        if values.size != math.prod(shape):
            raise ValueError("an array of another size than its bytes")
        return values.reshape(shape, order="F" if by_columns is True else "C")


@dataclass(frozen=True)
class _Storage:
    """A storage of the file."""

    values: Tensor


class UnwantedName(ValueError):
    """A pickle that refers to something other than plain data."""

    def __init__(self, text: Any) -> None:
        super().__init__(f"it wants to run {str(text)[:100].replace(' ', '.', 1)}")


def _numbers(content: bytes, dtype: _Dtype) -> np.ndarray:
    """Return bytes as a flat array of numbers of this machine's byte order."""
    kind = dtype.numpy()
    if len(content) % kind.itemsize:
        raise ValueError("an array that ends within a number")
    if not content:
        return np.zeros(0, kind)
    if kind == np.bool_:  # a byte other than 0 or 1 is not a bool
        return np.frombuffer(content, np.uint8) != 0
    return np.frombuffer(content, kind).astype(kind.newbyteorder("="))


def _dtype(machine: Machine, arguments: tuple) -> _Dtype:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or code not in NUMBERS:
        raise ValueError(f"an array of the type {abbreviated(code)}, which is not a plain number")
    return _Dtype(code)


def _empty_array(machine: Machine, arguments: tuple) -> _Array:
    if len(arguments) != 3 or arguments[0] != _Name("numpy ndarray"):
        raise ValueError("an array that is not a numpy.ndarray")
    return _Array()


def _scalar(machine: Machine, arguments: tuple) -> bool | int | float:
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype) or not isinstance(arguments[1], bytes):
        raise ValueError("a number of another type than plain")
    machine.charge(len(arguments[1]))
    (value,) = _numbers(arguments[1], arguments[0])
    return value.item()


def _encoded(machine: Machine, arguments: tuple) -> bytes:
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise ValueError("bytes that are not in latin1")
    machine.charge(len(arguments[0]))
    return arguments[0].encode("latin1")


def _no_bytes(machine: Machine, arguments: tuple) -> bytes:
    if arguments:
        raise ValueError("bytes that are not in latin1")
    return b""


def _device(machine: Machine, arguments: tuple) -> torch.device:
    text = ":".join(str(each) for each in arguments if type(each) in (str, int))
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:[0-9]{1,2})?", text):
        raise ValueError("an unknown device")
    return torch.device(text)


def _ordered_dict(machine: Machine, arguments: tuple) -> OrderedDict:
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return OrderedDict()


def _parameter(machine: Machine, arguments: tuple) -> Tensor:
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter that is not a tensor")
    return arguments[0]


def _tensor(machine: Machine, arguments: tuple) -> Tensor:
    """Return a view of a storage that lies inside it."""
    if len(arguments) not in (6, 7):
        raise ValueError("a tensor of unknown kind")
    storage, offset, sizes, strides, *_ = arguments
    if not isinstance(storage, _Storage) or not _is_count(offset) or not _is_shape(sizes) or not _is_shape(strides):
        raise ValueError("a tensor without storage, size or strides")
    if len(sizes) != len(strides):
        raise ValueError("a tensor of other strides than dimensions")
    machine.charge(math.prod(max(size, 1) for size in sizes))
    if not math.prod(sizes):
        return storage.values.new_zeros(sizes)
    end = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if end > storage.values.numel() or math.prod(sizes) > storage.values.numel():
        raise ValueError("a tensor larger than its storage")
    return torch.as_strided(storage.values, sizes, strides, offset)


ORDERS = ("<", ">", "=", "|")
"""NumPy's marks of a byte order."""
NAMES = ("numpy ndarray",)
"""Known names that cannot be called."""
CONSTRUCTORS: Mapping[str, Callable[[Machine, tuple], Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch device": _device,
    "collections OrderedDict": _ordered_dict,
    "_codecs encode": _encoded,
    "__builtin__ bytes": _no_bytes,
    "numpy dtype": _dtype,
    "numpy.core.multiarray _reconstruct": _empty_array,
    "numpy._core.multiarray _reconstruct": _empty_array,
    "numpy.core.multiarray scalar": _scalar,
    "numpy._core.multiarray scalar": _scalar,
}
"""Names that can be called, with their constructors."""


def _pushes(value: Any) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _refuse_name(_: Machine, text: Any) -> None:
    raise UnwantedName(text)


STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), Machine.push),
    "NONE": _pushes(None),
    "NEWTRUE": _pushes(True),
    "NEWFALSE": _pushes(False),
    "EMPTY_TUPLE": _pushes(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "MARK": Machine.mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": Machine.tuple_to_mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Machine.get),
    "APPEND": lambda machine, _: machine.append([machine._pop()]),
    "APPENDS": lambda machine, _: machine.append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine._pop_mark()),
    "GLOBAL": Machine.name,
    "INST": _refuse_name,
    "STACK_GLOBAL": Machine.name_from_stack,
    "REDUCE": Machine.call,
    "BUILD": Machine.build,
    "BINPERSID": Machine.put_storage,
}
"""Opcodes of torch's pickler, and INST, to name what it wants to run."""
