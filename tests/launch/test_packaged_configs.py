"""A configuration of the package is known by its name, from any folder; a local file of that name comes first."""

from pathlib import Path

import pytest

from launch.__main__ import main, parse
from launch.yaml_files import config_file, packaged_configs
from tests.conftest import REPOSITORY


def test_every_configuration_of_the_repository_has_a_name() -> None:
    files = (REPOSITORY / "configs").rglob("*.yaml")
    names = {file.relative_to(REPOSITORY / "configs").with_suffix("").as_posix(): file.read_text() for file in files}
    assert {name: file.read_text() for name, file in packaged_configs().items()} == names
    assert {"quickstart", "pretrain/small"} <= names.keys()


def test_a_local_file_comes_before_one_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--config", "pretrain/small", "--data", "d", "--out", "o"]
    steps = parse(words)[1].fit.steps
    for name in ("pretrain/small", "pretrain/small.yaml", "configs/pretrain/small.yaml"):
        assert config_file(name) == packaged_configs()["pretrain/small"]
    Path("pretrain").mkdir()
    Path("pretrain/small").write_text(f"fit: {{steps: {steps + 1}}}\nmodel: {{irreps: 4x0e}}\n")
    assert parse(words)[1].fit.steps == steps + 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("pretrain/smal", "did you mean pretrain/small?"), ("smal", "did you mean pretrain/small?"), ("x", "there are ")],
)
def test_an_unknown_name_is_answered_by_the_nearest(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", name]) == 2
    assert said in capsys.readouterr().err


def test_the_quickstart_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["quickstart"]) == parse(["quickstart", "--config", str(REPOSITORY / "configs/quickstart.yaml")])
    assert parse(["quickstart", "--num_frames", "60"])[1].build.source.num_frames == 60
