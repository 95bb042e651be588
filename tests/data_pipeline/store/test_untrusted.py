"""JSON and safetensors from anywhere: typed, bounded, and what is wrong is said with its dotted name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.store.untrusted import (
    CorruptFile,
    check_layout,
    read_layout,
    read_tensors,
    refusing,
    typed,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int

    def __post_init__(self) -> None:
        if self.size > 9:
            raise ValueError("size is at most 9")


@dataclass(frozen=True, kw_only=True)
class Outer:
    length: float
    kind: Literal["a", "b"]
    inner: Inner
    names: tuple[str, ...]
    flag: bool | None


GOOD: dict[str, Any] = {"length": 2, "kind": "a", "inner": {"size": 1}, "names": ["x"], "flag": None}


def test_values_become_the_types_of_a_dataclass() -> None:
    expected = Outer(length=2.0, kind="a", inner=Inner(size=1), names=("x",), flag=None)
    found = typed(Outer, GOOD, "")
    assert found == expected
    assert type(found.length) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": float("nan")}, "length is nan, not a finite number"),
        ({"length": True}, "length is True, not a finite number"),
        ({"length": "2"}, "length is '2', not a finite number"),
        ({"length": 10**400}, "length is a whole number of .* bits, not a finite number"),
        ({"kind": "c"}, "kind is 'c', not one of 'a', 'b'"),
        ({"inner": {"size": True}}, r"inner\.size is True, not an integer"),
        ({"inner": {"size": 10}}, "inner: size is at most 9"),
        ({"inner": {}}, r"inner\.size is missing"),
        ({"inner": {"size": 1, "other": 2}}, r"inner\.other is unknown"),
        ({"inner": [1]}, "inner is a list of 1, not a mapping"),
        ({"names": "x"}, "names is 'x', not a list"),
        ({"names": ["x", 1]}, r"names\[1\] is 1, not text"),
        ({"flag": 0}, "flag is 0, not true or false"),
        ({"more" * 100_000: 0}, "moremore.* is unknown"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_dotted_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        typed(Outer, GOOD | change, "")
    assert len(str(caught.value)) < 200


def rewrite(path: Path, header: bytes, length: int | None = None) -> None:
    """Write a safetensors file with a header of one's own."""
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + bytes(8))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b'{"a": 1}',
        json.dumps({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F64", "shape": [True], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 8]}}).encode(),
        b'{"__metadata__": {"a": 1}}',
        b'{"a": {"dtype": "F64", "shape": [1]}, "a": {"dtype": "F64", "shape": [1]}}',
    ],
)
def test_an_absurd_header_is_refused_by_the_files_name(tmp_path: Path, header: bytes) -> None:
    rewrite(tmp_path / "x.safetensors", header)
    with pytest.raises(CorruptFile, match=r"x\.safetensors: "), refusing(tmp_path / "x.safetensors", CorruptFile):
        read_layout(tmp_path / "x.safetensors")


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    rewrite(tmp_path / "x.safetensors", b"{}", 2**63)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_layout(tmp_path / "x.safetensors")


def test_tensors_are_those_that_are_expected(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3), "b": torch.ones(1, dtype=torch.int64)}, tmp_path / "x.safetensors")
    layout, _ = read_layout(tmp_path / "x.safetensors")
    expected = {"a": (torch.float32, (2, 3)), "b": (torch.int64, (1,))}
    check_layout(layout, expected)
    for change, message in (
        ({"a": (torch.float64, (2, 3))}, r"a is float32 of shape \(2, 3\), not float64 of shape \(2, 3\)"),
        ({"a": (torch.float32, (3, 2))}, r"a is float32 of shape \(2, 3\), not float32 of shape \(3, 2\)"),
        ({"c": (torch.float32, ())}, "c is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layout(layout, expected | change)
    with pytest.raises(ValueError, match="'b' is unknown"):
        check_layout(layout, {"a": expected["a"]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"a": torch.tensor([1.0, value])}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a has a number that is NaN or infinite"):
        read_tensors(tmp_path / "x.safetensors")
