"""The help of the command and of its verbs: short, from the docstrings of the options, and quick."""

import importlib.metadata
import subprocess
import sys

import pytest

from launch.__main__ import main
from launch.verbs import VERBS

SENTENCES = {
    "build": "Seed of the split; that of a group, or of a frame under random, depends only on this and on its name.",
    "pretrain": "Number of optimizer steps of the whole run.",
    "preflight finetune": "Price of one device for an hour, in any currency.",
    "fisher": "The diagonal Fisher to compute: its potential, loss and data.",
    "finetune": "It has `runs` (options by name of the run)",
    "export": "Release folder to write; an older release there is replaced once the new one is verified.",
}


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", SENTENCES)
def test_all_help_describes_the_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert SENTENCES[verb] in " ".join(printed([verb, "--help", "all"], capsys).split())


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_page_and_has_every_key_that_it_promises(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed([*verb.split(), "--help"], capsys)
    assert len(text.splitlines()) <= 60
    assert not [key for key in VERBS[verb].keys if f"  --{key} " not in text]
    assert ("--help all" in text) == bool(VERBS[verb].keys)


def test_the_list_of_verbs_has_all_and_waits_for_no_library() -> None:
    code = "import sys; from launch.__main__ import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert not [verb for verb in VERBS if f"\n  {verb} " not in text]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")][:3] == [
        *("finetune", "evaluate", "export"),
    ]
    assert not {"torch", "numpy", "lightning", "e3nn", "matplotlib"} & set(modules.split())


def test_an_unknown_verb_is_answered_by_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetun", "--data", "d"]) == 2
    assert capsys.readouterr().err == (
        "foundation: unknown verb 'finetun'; did you mean finetune? All verbs: foundation --help\n"
    )
    assert main(["launch", "slrum"]) == 2
    assert "did you mean launch slurm?" in capsys.readouterr().err
    assert main(["preflight", "--config", "x.yaml"]) == 2
    assert "preflight needs another word: preflight pretrain or preflight finetune." in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "choose from finetune, evaluate, export" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["launch"], ["launch", "--help"]])
def test_a_word_with_several_verbs_lists_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == (0 if words[1:] else 2)
    listed = capsys.readouterr().out
    assert "launch slurm" in listed
    assert "launch local" in listed
    assert "finetune" not in listed


@pytest.mark.parametrize("words", ["--help", "-h", "help"])
def test_help_is_shown_by_any_of_its_words(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: foundation VERB" in printed([words], capsys)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["--version"], capsys) == f"foundation {importlib.metadata.version('foundation')}\n"


def test_no_arguments_show_the_verbs_and_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "  quickstart " in capsys.readouterr().out
