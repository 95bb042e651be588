"""Files of the command line: the configuration of a pretraining, a sweep, and the facts of a model card."""

import random
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from foundation.configuration import resolved
from foundation.reports.card import MissingFact, render_card
from launch.__main__ import parse
from launch.sweep import planned, read_sweep
from launch.yaml_files import to_yaml
from tests.conftest import REPOSITORY
from tests.foundation.reports.test_card import COMPLETE, FACTS
from tests.fuzz.harness import Mutation, Target
from tests.fuzz.mutations import NASTY_WORDS, damaged_bytes, damaged_text

LAUGHS = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12))
INSERTED = (
    *(
        "a: &a [*a]",
        "fit: {steps: 1}",
        "<<: *x",
        "<<: {data: d}",
        "--- 1",
        "%YAML 1.1",
        "a: !!python/name:os.system ''",
    ),
    *("a: " + "{a: " * 20_000, "- " * 20_000, "a0: &a0 [x]\n" + LAUGHS, "model: {class_path: antigravity.X}", "1: 2"),
    *(
        "loss: {energy: {weight: .nan}}",
        "out: null",
        "a: \x1b[2J",
        "? [a]\n: b",
        "\ufeffdata: d",
        "a: " + "9" * 100_000,
    ),
)
WORDS = (*NASTY_WORDS, "no", "on", "1:30", "24:00:00", "2024-01-31", "010", "0x10", ".inf", ".nan", "*a", "&a", "!!int")
WORDS = (*WORDS, "<script>", "|", "[x](y)", "a\x1b[2J", "~", "- - -", "9" * 100_000, "{" * 20_000)
KEPT = {"heading_open": 8, "table_open": 3, "fence": 1}
"""Pieces of Markdown in the card, which no fact may add to."""


def inserted(place: Path, chance: random.Random) -> str:
    """Put a line somewhere into the file."""
    (file,) = place.iterdir()
    lines = file.read_text().splitlines()
    line, at = chance.choice(INSERTED), chance.randrange(len(lines) + 1)
    file.write_text("\n".join([*lines[:at], line, *lines[at:]]) + "\n")
    return f"{line[:60]!r} before line {at + 1}"


def mutations(pattern: str) -> dict[str, Mutation]:
    """Return ways to damage a YAML file."""
    found = damaged_text(pattern, words=WORDS) | damaged_bytes(pattern, expects="any")
    return found | {"line inserted": Mutation(edit=inserted)}


def make_run(folder: Path) -> None:
    """Write the configuration of a pretraining."""
    source = REPOSITORY / "configs" / "pretrain" / "small.yaml"
    (folder / "run.yaml").write_text(source.read_text())


def read_run(folder: Path) -> Any:
    """Read it as the command line does."""
    verb, config = parse(["pretrain", "--config", str(folder / "run.yaml")])
    return verb, resolved(config)


def make_sweep(folder: Path) -> None:
    """Write a sweep."""
    source = REPOSITORY / "configs" / "sweep" / "lpsc-variants.yaml"
    (folder / "sweep.yaml").write_text(source.read_text())


def read_runs(folder: Path) -> Any:
    """Read the sweep and name its runs."""
    return planned(read_sweep(folder / "sweep.yaml"))


def make_card(folder: Path) -> None:
    """Write the facts of a card."""
    facts = {name: getattr(COMPLETE, name) for name in COMPLETE.__dataclass_fields__}
    (folder / "card.yaml").write_text(to_yaml({"run": "r", "out": "o", "card": facts}))


def read_card(folder: Path) -> str:
    """Return the card with these facts."""
    file = folder / "card.yaml"
    _, config = parse(["export", "--config", str(file)])
    if config.card is None:
        return ""
    try:
        return render_card(config.card, FACTS)
    except MissingFact as error:
        raise MissingFact(f"{file}: {error}") from error


def judge_card(text: str) -> str | None:
    """Say what of a fact has become Markdown."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    types = [token.type for token in tokens] + [child.type for token in tokens for child in token.children or ()]
    wrong = {"html_block", "html_inline", "image", "link_open", "s_open"} & set(types)
    if wrong or "\x1b" in text:
        return f"the card has {', '.join(sorted(wrong)) or 'a command to the terminal'}"
    other = {kind: types.count(kind) for kind, number in KEPT.items() if text and types.count(kind) != number}
    return f"the card has {other}, expected {KEPT}" if other else None


TARGETS = [
    Target(
        name="pretrain YAML",
        make=make_run,
        read=read_run,
        mutations=mutations("run.yaml"),
        refusals=(ValueError,),
    ),
    Target(
        name="sweep YAML",
        make=make_sweep,
        read=read_runs,
        mutations=mutations("sweep.yaml"),
        refusals=(ValueError,),
    ),
    Target(
        name="facts of a card",
        make=make_card,
        read=read_card,
        mutations=mutations("card.yaml"),
        refusals=(ValueError,),
        judge=judge_card,
    ),
]
