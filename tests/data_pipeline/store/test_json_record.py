"""Strict JSON: what Python's reader lets pass is refused, and what is refused is named with file and entry."""

import time

import pytest

from data_pipeline.store.json_record import MAX_DEPTH, InvalidRecord, Record, parse_json


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "'1e999' is too large"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits|limit"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "levels deep"),
        ("[" * 200_000, "levels deep"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("{'a': 1}", "Expecting property name"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_text_that_is_no_plain_json_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(text.encode())


def test_infinities_are_read_where_an_option_may_be_one() -> None:
    assert parse_json(b'{"a": -Infinity, "b": 1e999}', finite=False) == {"a": float("-inf"), "b": float("inf")}


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'{"a": "\xff"}')


def test_a_key_twice_among_very_many_is_found_in_no_time() -> None:
    text = "{" + ",".join(f'"{n}":0' for n in range(200_000)) + ',"7":1}'
    start = time.process_time()
    with pytest.raises(ValueError, match="the key '7' occurs twice"):
        parse_json(text.encode())
    assert time.process_time() - start < 5


def test_plain_json_comes_through() -> None:
    assert parse_json(b'{"a": [1, 2.5, true, null, "\\u00e9"]}') == {"a": [1, 2.5, True, None, "é"]}


@pytest.fixture
def record() -> Record:
    value = {
        "truth": True,
        "negative": -1,
        "half": 0.5,
        "huge": 2**60,
        "text": "x" * 10**6,
        "inner": {"list": [1, True], "rows": [[1.0, 2.0], [3.0]]},
    }
    return Record(value, "data/manifest.json: not a manifest")


@pytest.mark.parametrize("name", ["truth", "negative", "half", "huge", "text", "inner", "absent"])
def test_a_count_is_a_whole_number_and_no_truth_value(record: Record, name: str) -> None:
    with pytest.raises(InvalidRecord, match=rf"^data/manifest\.json: not a manifest \({name} is ") as caught:
        record.count(name)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["truth", "negative", "text"])
def test_a_number_is_no_truth_value_and_not_negative(record: Record, name: str) -> None:
    with pytest.raises(InvalidRecord, match=rf"\({name} is "):
        record.number(name)


def test_entries_of_lists_are_named_by_their_place(record: Record) -> None:
    inner = record.record("inner")
    with pytest.raises(InvalidRecord, match=r"\(inner\.list\[1\] is True, not a count"):
        inner.counts("list")
    with pytest.raises(InvalidRecord, match=r"\(inner\.rows\[1\] has 1 entries, expected 2\)"):
        inner.rows("rows", 2)
    with pytest.raises(InvalidRecord, match=r"\(inner\.list\[0\] is 1, not an object\)"):
        inner.records("list")


def test_an_entry_that_nobody_reads_is_refused(record: Record) -> None:
    with pytest.raises(InvalidRecord, match=r"\(inner\.rows is not an entry that this version knows\)"):
        record.record("inner").only("list")
