"""Level of theory that the description of data means: by name, by whole words, or the only one of the potential."""

import pytest

from foundation.surgery.theories import matched_theory, theories_of_data
from tests.foundation.surgery.test_references import make


@pytest.mark.parametrize(
    ("described", "known", "expected"),
    [
        ("PBE", ("PBE", "r2SCAN"), "PBE"),
        ("PBE, VASP, 520 eV", ("PBE",), "PBE"),
        ("VASP PBE", ("r2SCAN", "PBE"), "PBE"),
        ("pbe (VASP)", ("PBE",), "PBE"),
        ("PBE+U, VASP", ("PBE", "PBE+U"), "PBE+U"),
        ("PBE+U, VASP", ("PBE",), None),
        ("PBE-D3", ("PBE",), None),
        ("PBEsol, VASP", ("PBE",), None),
        ("SCAN", ("r2SCAN",), None),
        ("r2SCAN and PBE (mixed)", ("PBE + U",), None),
        ("Materials Project PBE, VASP", ("PBE", "Materials Project PBE"), "Materials Project PBE"),
        ("not stated", ("PBE",), "PBE"),
        ("Not stated", ("PBE",), "PBE"),
        ("", ("omol",), "omol"),
        ("LDA", ("PBE", "SCAN"), None),
        ("PBE", (), None),
    ],
)
def test_the_meant_level_is_found_by_whole_words(described: str, known: tuple[str, ...], expected: str | None) -> None:
    assert matched_theory(described, known) == expected


def test_the_order_of_the_known_levels_does_not_matter() -> None:
    for known in (("PBE", "VASP PBE"), ("VASP PBE", "PBE")):
        assert matched_theory("vasp pbe, 520 eV", known) == "VASP PBE"


def test_two_possible_levels_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"'PBE and SCAN', which may be PBE or SCAN: set --theory"):
        matched_theory("PBE and SCAN", ("PBE", "SCAN"))
    with pytest.raises(ValueError, match=r"do not state their level of theory, .* PBE, SCAN: set --theory"):
        matched_theory("not stated", ("PBE", "SCAN"))


def test_what_was_understood_and_what_is_new_is_said() -> None:
    potential = make(("PBE", "SCAN"))
    found, reasons = theories_of_data(potential, ("PBE", "PBE, VASP", "B3LYP"))
    assert found == ("PBE", "PBE", "B3LYP")
    assert reasons[0] == "level of theory: 'PBE, VASP' is taken as 'PBE'"
    assert "'B3LYP' is none of the start's (PBE, SCAN) and is added" in reasons[1]
    assert theories_of_data(potential, ("PBE, VASP",), {"PBE, VASP"}) == (("PBE, VASP",), ())
