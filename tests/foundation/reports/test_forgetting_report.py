"""The report of a fine-tuning: its files, its numbers, and no number on the page that is none."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store.untrusted import CorruptFile
from data_pipeline.structure import SYMBOLS
from foundation.evaluation.comparison import Estimate
from foundation.evaluation.held_out import Measurement, SetErrors, read
from foundation.reports.forgetting_record import Forgetting, compare
from foundation.reports.forgetting_report import percent, remarks, table, write_forgetting
from tests.foundation.evaluation.test_comparison import bare, found_in, make_set, with_sums


def measured(sha: str, *, target: float, retained: float) -> Measurement:
    """Return errors on a target, a retained set and a transfer set that has no forces and no stress."""
    other = bare(make_set(error=target, seed=2, name="other | set", role="transfer"), "force", "stress")
    sets = [
        make_set(error=target, seed=0, name="a <target>", role="target"),
        make_set(error=retained, seed=1, name="old", role="retained"),
        replace(other, num_skipped=3),
    ]
    return Measurement(weights_sha256=sha * 64, sets={errors.name: errors for errors in sets})


BEFORE, AFTER = measured("a", target=1.0, retained=1.0), measured("b", target=0.5, retained=1.2)
CURVE = {0.5: measured("c", target=0.7, retained=1.05)}
FACTS = {"run": "reewc & more", "steps": 200, "settings": {"not": "shown"}}


def page_of(folder: Path) -> str:
    return re.sub(r'src="data:[^"]*"', "", (folder / "index.html").read_text())


def test_everything_is_written_and_the_numbers_returned(tmp_path: Path) -> None:
    found = write_forgetting(tmp_path / "deep" / "forgetting", BEFORE, AFTER, CURVE, FACTS)
    folder = tmp_path / "deep" / "forgetting"
    assert Forgetting.from_json(folder / "forgetting.json") == found
    assert found.facts == FACTS
    assert found.sets["a <target>"].change["force_mae"].value == pytest.approx(-0.5)
    assert found.sets["old"].change["energy_median"].high == pytest.approx(0.2)
    assert found.sets["old"].by_element["Al"].change.value == pytest.approx(0.2)
    assert found.curve[0].alpha == 0.5
    assert found.curve[0].sets["old"].change["stress_mae"].value == pytest.approx(0.05)
    for name in ("errors.png", "elements.png", "curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert read(folder / "before.safetensors").weights_sha256 == "a" * 64
    assert read(folder / "after.safetensors").weights_sha256 == "b" * 64
    assert read(folder / "curve" / "alpha-0.5.safetensors").weights_sha256 == "c" * 64


def test_a_report_that_cannot_have_been_written_is_refused_with_its_entry(tmp_path: Path) -> None:
    write_forgetting(tmp_path, BEFORE, AFTER, CURVE, FACTS)
    file = tmp_path / "forgetting.json"
    values = json.loads(file.read_text())
    values["sets"]["old"]["after"]["force_mae"]["value"] = "small"
    file.write_text(json.dumps(values))
    with pytest.raises(CorruptFile, match=r"forgetting\.json: .*sets\.old\.after\.force_mae\.value is 'small'"):
        Forgetting.from_json(file)


def test_the_page_has_the_numbers_and_nothing_undefined(tmp_path: Path) -> None:
    found = write_forgetting(tmp_path, BEFORE, AFTER, CURVE, FACTS)
    page = page_of(tmp_path)
    for leftover in ("{{", "{%", "Undefined", "None", "nan", "inf<"):
        assert leftover not in page
    assert "<h1>reewc &amp; more: learned and forgotten</h1>" in page
    assert "<br>steps: 200" in page
    assert "not shown" not in page
    assert "a &lt;target&gt;" in page
    force = found_in(BEFORE.sets["old"])["force_mae"].value
    assert f"<td>{1000 * force:.1f}</td><td>{1200 * force:.1f}</td>" in page
    assert '<td class="worse">+20 %</td><td>[+20, +20]</td>' in page
    assert '<td class="better">−50 %</td><td>[−50, −50]</td>' in page
    assert (tmp_path / "index.html").read_text().count('src="data:image/png;base64,') == 3
    assert all(remark[1:].replace("<", "&lt;").replace(">", "&gt;") in page for remark in remarks(found))


def test_the_page_without_a_curve_and_a_retained_set_says_so(tmp_path: Path) -> None:
    only = {"a <target>": BEFORE.sets["a <target>"]}
    found = write_forgetting(tmp_path, replace(BEFORE, sets=only), replace(BEFORE, sets=only), {}, {})
    said = remarks(found)
    assert "no retained set was measured, so forgetting is unknown" in said
    assert any("is not significantly better than before" in remark for remark in said)
    assert "Between start and result" not in page_of(tmp_path)


def test_remarks_are_of_what_grew_and_of_frames_left_out() -> None:
    found = compare(BEFORE, AFTER, {}, FACTS)
    grown = {"force_mae": Estimate(value=0.3, low=0.2, high=0.4)}
    uncertain = {"force_mae": Estimate(value=0.2, low=0.0, high=0.4)}
    sets = {
        "old": replace(found.sets["old"], change=grown),
        "fine": replace(found.sets["old"], num_skipped=7, change=uncertain),
    }
    assert remarks(replace(found, sets=sets)) == [
        "no held-out frames of the target were measured, so learning is unknown",
        "old (retained) became worse: force MAE +30 % [+20, +40]",
        "fine: 7 frames left out, with elements unknown to the potential",
    ]


def test_many_elements_are_drawn_as_a_periodic_table(tmp_path: Path) -> None:
    def spread(errors: SetErrors) -> SetErrors:
        shares = np.full((1, 20), 1 / 20)
        of_elements = {name: errors.errors.sums[name][:, np.newaxis] * shares for name in ("force_sum", "force_count")}
        spread = replace(errors.errors, elements=tuple(SYMBOLS[1:21]), of_elements=of_elements)
        return replace(errors, errors=spread)

    ends = [replace(each, sets={"old": spread(each.sets["old"])}) for each in (BEFORE, AFTER)]
    found = write_forgetting(tmp_path, *ends, {}, FACTS)
    assert (tmp_path / "elements-1.png").is_file()
    assert not (tmp_path / "elements.png").exists()
    assert found.sets["old"].by_element["Ca"].change.value == pytest.approx(0.2)
    assert page_of(tmp_path).count("Periodic table") == 1


def test_the_table_of_a_card_is_markdown_with_one_row_for_each_set(tmp_path: Path) -> None:
    found = write_forgetting(tmp_path, BEFORE, AFTER, {}, FACTS)
    lines = table(found).splitlines()
    assert [line.replace(r"\|", "").count("|") for line in lines[:5]] == [8] * 5
    force = found.sets["old"].before["force_mae"].value
    assert force is not None
    assert f"{1000 * force:.1f} → {1200 * force:.1f} (+20 % [+20, +20])" in lines[3]
    assert lines[4].startswith(r"| other \| set, transfer | 40 |")
    assert lines[4].count("–") == 3
    assert "2,000 resamples" in lines[6]


def test_the_same_measurements_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_forgetting(tmp_path / name, BEFORE, AFTER, CURVE, FACTS)
    for file in ("forgetting.json", "errors.png", "curve.png", "index.html"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_what_is_written_again_keeps_no_interpolation_of_before(tmp_path: Path) -> None:
    write_forgetting(tmp_path, BEFORE, AFTER, CURVE, FACTS)
    write_forgetting(tmp_path, BEFORE, AFTER, {}, FACTS)
    assert not (tmp_path / "curve").exists()


def test_measurements_of_other_frames_are_refused(tmp_path: Path) -> None:
    other = replace(BEFORE, sets={**BEFORE.sets, "old": make_set(39, seed=1, name="old")})
    with pytest.raises(ValueError, match="the result cannot be compared"):
        write_forgetting(tmp_path, BEFORE, other, {}, FACTS)
    with pytest.raises(ValueError, match=r"the interpolation at 0\.5 cannot be compared"):
        write_forgetting(tmp_path, BEFORE, AFTER, {0.5: other}, FACTS)


def test_a_diverged_result_is_shown_without_numbers(tmp_path: Path) -> None:
    nan = np.full(40, np.nan)
    broken = {name: with_sums(errors, energy_sum=nan, force_sum=nan) for name, errors in AFTER.sets.items()}
    del broken["other | set"]
    start = {name: BEFORE.sets[name] for name in broken}
    found = write_forgetting(tmp_path, replace(BEFORE, sets=start), replace(AFTER, sets=broken), {}, FACTS)
    assert found.sets["old"].after["energy_mae"] == Estimate(value=None, low=None, high=None)
    assert "nan" not in page_of(tmp_path)


def test_changes_have_a_sign() -> None:
    assert percent(Estimate(value=0.0123, low=-0.0001, high=0.15)) == "+1.2 % [+0.0, +15]"
    assert percent(Estimate(value=-0.5, low=None, high=None)) == "−50 %"
    assert percent(Estimate(value=None, low=None, high=None)) == "–"
