"""The help of a verb says what every option is, in the words of its docstring."""

import pytest

from launch.__main__ import main

SENTENCES = {
    "build": "A group's split is a function of this and of the group's name alone.",
    "pretrain": "Optimizer steps of the whole run.",
    "preflight": "Price of one device for an hour, in any currency.",
    "fisher": "The diagonal Fisher to compute: of which potential, for which loss, over which data.",
    "finetune": "It has `runs` (options by name of the run)",
    "export": "Release folder to write; an older release there is replaced once the new one is verified.",
}


@pytest.mark.parametrize("verb", SENTENCES)
def test_help_describes_the_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert SENTENCES[verb] in " ".join(capsys.readouterr().out.split())
