"""YAML that may come from anywhere is read as it is meant, or refused at once with the file and the line."""

import math
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.__main__ import main, parse
from launch.sweep import SweepConfig, planned, read_sweep
from launch.yaml_files import InvalidYaml, parse_yaml, read_mapping, to_yaml

RUN = {"data": "d", "out": "o", "fit": {"steps": 1}, "model": {"irreps": "4x0e"}}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
DEEP = 20_000
HOSTILE = {
    "laughs": (LAUGHS, "line 5: more than 100,000 values"),
    "merged laughs": (LAUGHS + "k: {<<: [{x: *j}]}\n", "line 5: more than 100,000 values"),
    "chain": ("a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(DEEP)), "line 40: .*40 deep"),
    "deep list": ("[" * DEEP, "line 1: .*40 deep"),
    "deep block": ("- " * DEEP, "line 1: .*40 deep"),
    "deep mapping": ("{a: " * DEEP + "1" + "}" * DEEP, "line 1: .*40 deep"),
    "deep keys": ("? " * DEEP, "line 1: .*40 deep"),
    "long": ("- 1\n" * 200_000, "line 100000: more than 100,000 values"),
    "large": ("a: " + "x" * 5_000_000, "larger than 4,194,304 bytes"),
    "itself": ("a: &a {b: *a}", "line 1: .a refers to nothing complete"),
    "no anchor": ("a: 1\nb: *a", "line 2: .a refers to nothing"),
    "twice": ("data: d\nfit:\n  steps: 1\n  lanes: 2\n  steps: 2\n", "line 5: 'steps' occurs twice"),
    "twice in flow": ("a: {b: 1, 'b': 2}", "line 1: 'b' occurs twice"),
    "python": ("a: !!python/object/apply:os.system [touch marker]", "line 1: could not determine a constructor"),
    "own tag": ("a: !x 1", "line 1: could not determine a constructor"),
    "bytes": ("a: !!binary aGk=", "line 1: could not determine a constructor"),
    "set": ("a: !!set {b}", "line 1: could not determine a constructor"),
    "no int": ("a: !!int abc", "line 1: 'abc' is not of type int"),
    "no bool": ("a: !!bool no", "line 1: 'no' is not of type bool"),
    "huge int": ("a:\n  b: " + "9" * 100_000, "line 2: '9{60}'... is too large for a number"),
    "beyond 64 bits": ("a: 99999999999999999999", "line 1: .* is too large for a number"),
    "huge float": ("a: 1e400", "line 1: '1e400' is too large for a number"),
    "list as key": ("? [a]\n: b", "line 1: a key must be text"),
    "two": ("a: 1\n---\na: 2\n", "line 2: but found another document"),
    "control": ("a: \x01", "control characters are not allowed"),
    "unfinished": ("a: [1, 2\n", "line 2: did not find"),
    "list": ("- 1", "it must be a mapping of options to values, not a list of 1"),
    "text": ("hello", "it must be a mapping of options to values, not 'hello'"),
    "empty": ("# nothing\n", "it must be a mapping of options to values, not None"),
    "long tag": ("a: !<" + "x" * 100_000 + "> 1", "line 1: could not determine a constructor"),
    "long key": ("a: 1\n? " + "x" * 2000 + "\n: 1\n? " + "x" * 2000 + "\n: 2", "line 4: 'x{60}'... occurs twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_once_with_its_line(name: str, tmp_path: Path) -> None:
    text, message = HOSTILE[name]
    (tmp_path / "run.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(InvalidYaml, match=rf"run\.yaml(: |, ){message}|run\.yaml: .*{message}") as refused:
        read_mapping(tmp_path / "run.yaml")
    assert time.process_time() - began < 1.5
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("content", ["a: é".encode("latin-1"), "a: 1".encode("utf-16"), bytes(range(256))])
def test_what_is_not_utf_8_is_no_yaml(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"# first line\n" + content)
    with pytest.raises(InvalidYaml, match=r"run\.yaml(, line [23]: not in UTF-8|: no YAML)"):
        read_mapping(tmp_path / "run.yaml")


def test_a_mark_of_byte_order_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_mapping(tmp_path / "run.yaml") == {"a": 1}


def test_words_are_what_yaml_1_2_says() -> None:
    words = (
        "[No, no, on, y, off, 24:00:00, 1:30, 010, 0o7, 0x1F, 2024-01-31, 1_000, 1e-5, .5, 1., -3, ~, null, true, '1']"
    )
    kept = ["No", "no", "on", "y", "off", "24:00:00", "1:30", "010", "0o7", "0x1F", "2024-01-31"]
    assert parse_yaml(words) == [*kept, 1000, 1e-5, 0.5, 1.0, -3, None, None, True, "1"]
    assert parse_yaml("{no: 1, 1: 2, null: 3, 1e-5: 4}") == {"no": 1, "1": 2, "null": 3, "1e-5": 4}


def test_aliases_and_merged_mappings_are_read() -> None:
    text = "base: &base {a: 1, b: [2]}\nown: {<<: *base, a: 3}\nsame: *base\n"
    base = {"a": 1, "b": [2]}
    assert parse_yaml(text) == {"base": base, "own": {"a": 3, "b": [2]}, "same": base}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(values=st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_what_is_written_is_read_back_here_and_elsewhere(values: dict) -> None:
    text = to_yaml(values)
    assert parse_yaml(text) == values
    assert yaml.safe_load(text) == values


@pytest.mark.parametrize("text", ["no", "1e5", "1:30", "010", "2024-01-31", "~", "null", "0x1F", "<<", "=", "1_000"])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert parse_yaml(to_yaml({text: text})) == {text: text}
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence in which the command line refuses."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("foundation: ")
    assert said.count("\n") == 1
    assert len(said) < 1500
    return said


def write(path: Path, **options: object) -> str:
    path.write_text(to_yaml({**RUN, **options}))
    return str(path)


def test_a_file_of_options_is_refused_with_its_name_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    for name in ("laughs", "deep mapping", "twice", "python", "huge int", "text"):
        file.write_text(HOSTILE[name][0])
        assert f"foundation: {file}" in told(["pretrain", "--config", str(file)], capsys)
        assert f"foundation: {file}" in told(["pretrain", f"--config={file}"], capsys)


def test_wrong_values_in_a_file_are_refused_by_their_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    for options, message in (
        ({"loss": {"energy": {"weight": math.nan}}}, "loss.energy.weight must be a finite number, not nan"),
        ({"fit": {"steps": "x" * 10**6}}, "fit.steps: a whole number is needed"),
        ({"card": {"name": 5}}, "card.name: text, in quotation marks where it looks like a number, is needed"),
        ({"card": {"name": None}}, "card.name: a value is needed, not null"),
        ({"model": {"irreps": "4x0e", "num_blocks": None}}, "model.num_blocks: a value is needed, not null"),
        ({"model": None}, "model: a value is needed, not null"),
        ({"fit": {"steps": 1, "precision": None}}, "fit.precision: a value is needed, not null"),
        ({"data": [{"path": None}]}, "data.path: a value is needed, not null"),
        ({"1": 2}, "unknown option '1'"),
        ({"model": "evil.Network"}, "model: "),
    ):
        said = told(["pretrain", "--config", write(file, **options)], capsys)
        assert message in said
        assert str(file) in said
    assert "card.name: a value is needed, not null" in told(
        ["export", "--run", "r", "--out", "o", "--card.name", "null"], capsys
    )
    assert "must be a finite" in told(["pretrain", "--config", write(file), "--loss.energy.weight", ".nan"], capsys)
    for value in ("9" * 5000, "1:30", "0x10", "0b11", "010e", "yes"):
        said = told(["pretrain", "--config", write(file), "--fit.steps", value], capsys)
        assert "fit.steps: a whole number is needed" in said
        assert len(said) < 2000
    for value in ("1:30", "0x10", "on"):
        assert "cutoff: a number is needed" in told(
            ["pretrain", "--config", write(file), "--model.cutoff", value], capsys
        )
    for value in ("yes", "on", "1", "y"):
        said = told(["pretrain", "--config", write(file), "--overwrite", value], capsys)
        assert "overwrite: true or false is needed" in said


def test_text_in_a_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "{data: d, out: no, model: {irreps: 4x0e}, fit: {steps: 1, wandb: off}, card: {name: no, licence: 1:30}}"
    )
    _, config = parse(["pretrain", "--config", str(tmp_path / "run.yaml")])
    assert (config.out, config.fit.wandb, config.card.name, config.card.licence) == (Path("no"), "off", "no", "1:30")
    (tmp_path / "job.yaml").write_text("time: 24:00:00\nname: on\n")
    _, config = parse(["launch", "slurm", "--config", str(tmp_path / "job.yaml"), "--", "pretrain"])
    assert (config.time, config.name) == ("24:00:00", "on")


def test_no_file_can_name_code_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('marker').touch()\nclass Source: pass\n")
    (tmp_path / "data.yaml").write_text("out: o\nsource: {class_path: evil.Source}\n")
    said = told(["build", "--config", "data.yaml"], capsys)
    assert "a class of this program is needed, not 'evil.Source'" in said
    told(["build", "--out", "o", "--source", "evil.Source"], capsys)
    assert not (tmp_path / "marker").exists()
    assert "evil" not in sys.modules


def test_a_file_in_place_of_options_is_refused_if_it_is_no_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(b"\xff\xfe\x00")
    run = ["pretrain", "--data", "d", "--out", "o", "--fit.steps", "1"]
    assert "foundation: model" in told([*run, "--model", "model"], capsys)
    (tmp_path / "model.yaml").write_text(LAUGHS)
    assert "foundation: model" in told([*run, "--model", "model.yaml"], capsys)


@pytest.mark.parametrize("name", ["laughs", "deep mapping", "twice", "python", "huge int", "text", "bytes", "empty"])
def test_the_file_of_a_sweep_is_read_by_the_same_reader(name: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(HOSTILE[name][0])
    with pytest.raises(InvalidYaml, match=r"sweep\.yaml"):
        read_sweep(tmp_path / "sweep.yaml")


def test_a_sweep_of_more_runs_than_any_machine_can_do_is_refused_at_once() -> None:
    grid = {f"option{number}": list(range(100)) for number in range(10)}
    with pytest.raises(ValueError, match="100,000,000,000,000,000,000 runs; a sweep has at most"):
        planned(SweepConfig(grid=grid))
    with pytest.raises(ValueError, match=r"a run cannot be named 'x{60}'\.\.\.: use letters"):
        planned(SweepConfig(runs={"x" * 10_000: {}}))


def test_a_file_cannot_name_another_file_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").write_text("root:x:0:0")
    for option in ("config", "print_config"):
        file = write(tmp_path / "run.yaml", **{option: str(tmp_path / "secret")})
        said = told(["build", "--config", file], capsys)
        assert f"run.yaml: {option} is only an option of the command line" in said
        assert "root:x" not in said
