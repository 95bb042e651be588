"""Model cards: complete or refused."""

from dataclasses import fields, replace

import pytest

from data_pipeline.structure import SYMBOLS
from foundation.reports.card import CardFacts, MissingFact, check_facts, render_card

COMPLETE = CardFacts(
    name="A test potential",
    description="Trained for three steps.",
    authors="Nobody",
    licence="CC0-1.0",
    intended_use="Tests.",
    limitations="Everything else.",
    citation="None.",
)
ERRORS = {
    "num_frames": 12.0, "num_atoms": 60.0, "num_skipped": 0.0,
    "energy_mae": 0.0123, "energy_rmse": 0.02, "composition_energy_mae": 0.0615,
    "force_mae": 0.05, "force_rmse": 0.07, "zero_force_mae": 0.2, "softening": 0.912,
    "stress_mae": 0.001, "zero_stress_mae": 0.004,
}  # fmt: skip
FACTS = {
    "datasets": [{
        "name": "test-set", "licence": "CC-BY-4.0", "level_of_theory": "PBE", "energy_convention": "total",
        "citation": "Someone 2020", "source": "a place",
        "manifest_fingerprint": "f" * 64, "num_frames": 1234, "num_atoms": 56789, "theory": "PBE", "repeat": 1.0,
    }],
    "theories": ("PBE",),
    "num_parameters": 842440,
    "versions": {"torch": "2", "e3nn": "0.6"},
    "method": "pretraining",
    "hardware": "2 CPU cores",
    "wall_time_s": 600.0,
    "steps": 3,
    "architecture": "equivariant network",
    "cutoff": 5.0,
    "elements": ["Al", "Cu"],
    "weights_sha256": "a" * 64,
    "created": "2026-01-01",
    "evaluation": {"split": "test", "dataset": "test-set"},
    "errors": ERRORS,
    "num_golden": 3,
    "golden_of": {"name": "golden-set", "licence": "CC0-1.0", "citation": "Nobody 1999"},
}  # fmt: skip
"""Everything the template asks for."""


def test_a_complete_card_is_rendered() -> None:
    text = render_card(COMPLETE, FACTS)
    for expected in (
        "# A test potential",
        "842,440",
        "56,789",
        "PBE",
        "CC-BY-4.0",
        "Al Cu",
        "10.0 min",
        "\n| force MAE [meV/Å] | 50.00 | 200.0 (zero) | 0.250 |\n",
        "12.3",
        "61.5",
    ):
        assert expected in text
    assert "| 0.200 |" in text  # the ratio of 12.3 to 61.5
    assert "0.1602 | 0.6409 (zero)" in text  # GPa
    for leftover in ("{{", "{%", "Undefined", "None ", "nan"):
        assert leftover not in text


def test_the_template_covers_every_fact_of_the_author() -> None:
    text = render_card(COMPLETE, FACTS)
    for item in fields(COMPLETE):
        assert getattr(COMPLETE, item.name) in text


@pytest.mark.parametrize("name", [item.name for item in fields(CardFacts)])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_a_missing_fact_of_the_author_is_named(name: str, empty: str) -> None:
    with pytest.raises(MissingFact, match=rf"lacks card\.{name};.*--card\.{name}"):
        render_card(replace(COMPLETE, **{name: empty}), FACTS)


def test_all_missing_facts_are_named_at_once() -> None:
    with pytest.raises(MissingFact, match=r"lacks card\.name, card\.description, card\.authors, .*card\.citation;"):
        check_facts(CardFacts())


@pytest.mark.parametrize("name", FACTS)
def test_a_missing_fact_of_the_run_is_named(name: str) -> None:
    with pytest.raises(MissingFact, match=name):
        render_card(COMPLETE, {key: value for key, value in FACTS.items() if key != name})


@pytest.mark.parametrize("name", FACTS["datasets"][0])
def test_a_missing_fact_of_the_data_set_is_named(name: str) -> None:
    dataset = {key: value for key, value in FACTS["datasets"][0].items() if key != name}
    with pytest.raises(MissingFact, match=name):
        render_card(COMPLETE, FACTS | {"datasets": [dataset]})


@pytest.mark.parametrize("name", FACTS["datasets"][0])
def test_an_empty_fact_of_the_data_set_is_named(name: str) -> None:
    with pytest.raises(MissingFact, match=name):
        render_card(COMPLETE, FACTS | {"datasets": [FACTS["datasets"][0] | {name: ""}]})


def test_several_data_sets_are_all_described() -> None:
    second = FACTS["datasets"][0] | {"name": "other-set", "theory": "r2SCAN", "repeat": 8.0, "num_frames": 4321}
    text = render_card(COMPLETE, FACTS | {"datasets": [*FACTS["datasets"], second], "theories": ("PBE", "r2SCAN")})
    for expected in ("test-set", "other-set (each frame 8 times a pass)", "4,321", "here called r2SCAN"):
        assert expected in text
    assert 'Calculator(potential, theory="PBE")' in text
    assert "Levels of theory: PBE, r2SCAN." in text


def test_without_force_and_stress_labels_their_rows_are_left_out() -> None:
    energies = {key: value for key, value in ERRORS.items() if "force" not in key and "stress" not in key}
    energies.pop("softening")
    text = render_card(COMPLETE, FACTS | {"errors": energies})
    assert "| energy MAE [meV/atom] | 12.30 |" in text
    assert not any(name in text for name in ("force MAE", "stress MAE", "oftening"))


def test_frames_left_out_are_owned_up_to() -> None:
    assert "more were left out" not in render_card(COMPLETE, FACTS)
    assert "; 5 more were left out" in render_card(COMPLETE, FACTS | {"errors": ERRORS | {"num_skipped": 5.0}})


@pytest.mark.parametrize("name", ["composition_energy_mae", "zero_force_mae", "zero_stress_mae"])
def test_a_trivial_predictor_without_error_has_no_ratio(name: str) -> None:
    assert "# A test potential" in render_card(COMPLETE, FACTS | {"errors": ERRORS | {name: 0.0}})


def test_symbols_are_indexed_by_atomic_number() -> None:
    assert [SYMBOLS[z] for z in (1, 8, 29, 57, 71, 92, 118)] == ["H", "O", "Cu", "La", "Lu", "U", "Og"]
    assert len(SYMBOLS) == 119
