"""A JSON file through a sliding window: the same values whatever the window, places that are bytes of the file."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources import json_stream
from data_pipeline.sources.json_stream import JsonReader, plain_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def reader(text: str) -> JsonReader:
    return JsonReader(io.BytesIO(text.encode()))


@settings(deadline=None, max_examples=60)
@given(values=st.lists(VALUES, max_size=5), window=st.integers(1, 40), indent=st.none() | st.integers(0, 2))
def test_a_list_is_what_was_written_whatever_the_window(values: list, window: int, indent: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", window)
        stream = reader(json.dumps(values, indent=indent))
        read = [(number, stream.value()) for _, number in stream.members("[")]
        stream.end()
    assert read == [(str(number), value) for number, value in enumerate(values)]


@settings(deadline=None, max_examples=60)
@given(values=st.dictionaries(st.text("abc é"), VALUES, max_size=5), window=st.integers(1, 40))
def test_an_object_is_what_was_written_and_bytes_are_those_of_the_file(values: dict, window: int) -> None:
    text = json.dumps(values, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", window)
        stream = reader(text)
        places = [(byte, plain_text(key), stream.value()) for byte, key in stream.members("{")]
        stream.end()
    assert [key for _, key, _ in places] == list(values)
    for byte, key, _ in places:
        assert text.encode()[byte:].startswith(json.dumps(key, ensure_ascii=False).encode())


def test_nan_is_a_value() -> None:
    assert str(reader("NaN").value()) == "nan"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": ', "at byte 17"),
        ('[{"a": 1} {"a": 2}]', r"\{ at byte 10, where , or \] should be"),
        ('[{"a": 1}', r"the text ends at byte 9, where , or \] should be"),
        ('[{"a": 1}, oops]', "Expecting value at byte 11"),
        ('[{"a": 1}] more', "'m' at byte 11, where the text should have ended"),
        (f"[{'9' * 5000}]", "an integer of thousands of digits after byte 1"),
        ('{"a": 1}', r"\{ at byte 0, where \[ should be"),
        ("", r"the text ends at byte 0, where \[ should be"),
    ],
)
@pytest.mark.parametrize("window", [1, 1 << 20])
def test_what_is_no_json_is_told_with_its_byte(
    text: str, message: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "WINDOW", window)
    stream = reader(text)
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        for _ in stream.members("["):
            stream.value()
        stream.end()


def test_damage_does_not_make_it_read_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "WINDOW", 100)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    (tmp_path / "a.json").write_text('[{"a" 1}' + " " * 100_000 + "]")
    with (tmp_path / "a.json").open("rb") as file:
        stream = JsonReader(file)
        with pytest.raises(ValueError, match="Expecting ':' delimiter at byte 6"):
            next(stream.members("[")), stream.value()
        assert file.tell() < 3000


def test_reading_begins_at_a_key_in_the_middle() -> None:
    text = json.dumps({f"k{number}": number for number in range(9)})
    start = text.index('"k5"') - 1
    for window in (1, 7, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_stream, "WINDOW", window)
            stream = JsonReader(io.BytesIO(text[start:].encode()), start)
            assert stream.enter_object_at(re.compile(r'"k\d":'), stop=len(text))
            read = [(byte, key, stream.value()) for byte, key in stream.members("{")]
    assert read == [(text.index(f'"k{n}"'), f"k{n}", n) for n in range(5, 9)]


def test_there_may_be_no_key_before_the_stop() -> None:
    text = json.dumps({"a": list(range(1000)), "k1": 1})
    stream = JsonReader(io.BytesIO(text[10:].encode()), 10)
    assert not stream.enter_object_at(re.compile(r'"z\d":'), stop=len(text))
