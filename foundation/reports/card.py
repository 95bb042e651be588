"""Model cards, rendered from facts and refused if one is missing.

All values in the template are escaped, so that a name or a citation cannot become a heading, a link or raw HTML.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jinja2

from foundation.configuration import MAY_CHANGE
from foundation.evaluation.quantities import Row, notes, rows
from foundation.reports.escape import Markdown, code, markdown

TEMPLATE, PRIVATE = (
    Path(__file__).resolve().parents[2] / "model_cards" / name for name in ("TEMPLATE.md", "PRIVATE.md")
)


class MissingFact(ValueError):
    """A model card lacks facts; the message names them and the place to write them."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts for a card that a program cannot find out; all are required for a release, none for training."""

    name: str = field(default="", metadata=MAY_CHANGE)
    """Name of the released potential."""
    description: str = field(default="", metadata=MAY_CHANGE)
    """Description, in a sentence or two."""
    authors: str = field(default="", metadata=MAY_CHANGE)
    """Authors responsible for it."""
    licence: str = field(default="", metadata=MAY_CHANGE)
    """Licence of the weights (SPDX identifier)."""
    intended_use: str = field(default="", metadata=MAY_CHANGE)
    """Intended purposes."""
    limitations: str = field(default="", metadata=MAY_CHANGE)
    """Unsuitable purposes and known failures."""
    citation: str = field(default="", metadata=MAY_CHANGE)
    """Citation for users."""


def check_facts(card: CardFacts) -> None:
    """Check that no fact of a card is empty.

    Raises:
        MissingFact: a fact is empty; the message names all of them.
    """
    missing = [f"card.{item.name}" for item in fields(card) if not getattr(card, item.name).strip()]
    if missing:
        raise MissingFact(
            f"the model card lacks {', '.join(missing)}; write them into the run's configuration, or give them to "
            f"export (--{missing[0]} ...); for your own use, export with --private true, which needs none of them"
        )


def render_card(card: CardFacts, facts: dict, *, private: bool = False) -> str:
    """Return the card as Markdown.

    Args:
        card: Facts of the configuration; of a private release, only the name is required.
        facts: Facts that the program found out.
        private: True for the minimal card of a private release.

    Raises:
        MissingFact: a fact is empty, or the template uses a missing one.
    """
    if not private:
        check_facts(card)
        _check_datasets(facts)
    source = (PRIVATE if private else TEMPLATE).read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_escaped)
    environment.filters |= {"code": code, "python": _python}
    try:
        facts = facts | _errors(facts["errors"]) if "errors" in facts else facts
        return environment.from_string(source).render(card=card, thousands=_thousands, **facts)
    except (jinja2.UndefinedError, KeyError) as error:
        raise MissingFact(f"the model card lacks a fact: {error}") from error


def _check_datasets(facts: dict) -> None:
    """Check that no fact of a data set is empty."""
    provenances = [dataset.items() for dataset in facts.get("datasets", ())]
    missing = [f"dataset.{name}" for items in provenances for name, fact in items if not str(fact).strip()]
    if missing:
        raise MissingFact(f"the model card lacks {', '.join(missing)}; write it into the provenance and build again")


def _escaped(value: Any) -> Any:
    return value if isinstance(value, jinja2.Undefined) else markdown(value)


def _python(text: str) -> Markdown:
    """Return a text as a Python literal, for a block of code."""
    return Markdown(json.dumps(text))


def _errors(errors: Mapping[str, float]) -> dict[str, list]:
    """Return the table of held-out errors and its notes, which are the program's own words."""
    if "energy_mae" not in errors:
        raise KeyError("energy_mae")
    return {
        "rows": [Row(*map(Markdown, row)) for row in rows(errors)],
        "notes": [Markdown(note) for note in notes(errors)],
    }


def _thousands(number: Any) -> str:
    return number if isinstance(number, str) else f"{int(number):,}"
