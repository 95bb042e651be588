"""Charts of suites: texts beside points, heat maps with their groups."""

from pathlib import Path

from foundation.evaluation.suites import Chart, Curve, Findings, HeatMap
from foundation.reports.suite_charts import _figure, _heat_map, draw_charts


def test_points_carry_their_texts() -> None:
    points = Curve(x=(1.0, 2.0), y=(3.0, 4.0), points=True, texts=("Sr", "$Ba$"))
    figure = _figure("Map", {"a potential": Chart(x="x", y="y", curves={"": points})})
    texts = [(text.get_text(), tuple(text.xy)) for text in figure.axes[0].texts]
    assert texts == [
        ("Sr", (1.0, 3.0)),
        (r"\$Ba\$", (2.0, 4.0)),
    ]


HEAT = HeatMap(
    values=((1.0, 0.5, 0.0), (0.5, 1.0, -1.0), (0.0, -1.0, 1.0)),
    labels=("Na", "K", "Cl"),
    groups=("1", "1", "17"),
    quantity="cosine",
    limits=(-1.0, 1.0),
)


def test_a_heat_map_names_its_groups_over_their_middles() -> None:
    axes, bar = _heat_map("Similarity", HEAT).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Na", "K", "Cl"]
    assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("1", 0.5), ("17", 2.0)]
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    assert bar.get_ylabel() == "cosine"


def test_every_subject_has_its_own_heat_map(tmp_path: Path) -> None:
    found = {"composition": Findings(quantities={}, maps={"Similarity": HEAT})}
    assert list(draw_charts({"one": found}, tmp_path)) == ["composition: Similarity"]
    both = draw_charts({"one": found, "two": found}, tmp_path)
    assert list(both) == ["composition: Similarity, one", "composition: Similarity, two"]
    assert all(file.stat().st_size > 1000 for file in both.values())


def test_no_two_curves_look_alike() -> None:
    curves = {f"curve {number}": Curve(x=(1.0, 2.0), y=(0.0, 1.0)) for number in range(14)}
    law = Curve(x=(1.0, 2.0), y=(1.0, 1.0), reference=True)
    figure = _figure("Many", {"ours": Chart(x="d [Å]", y="force", curves={"law": law, **curves})})
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(looks)) == len(looks) == 15


def test_a_band_that_reaches_zero_ends_before_it_on_a_logarithmic_axis() -> None:
    force = Curve(x=(1.0, 2.0, 3.0), y=(1.0, 0.5, 0.1), low=(0.9, 0.4, -0.1), high=(1.1, 0.6, 0.3))
    figure = _figure("Force", {"ours": Chart(x="d [Å]", y="force", log_y=True, curves={"": force})})
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 0].max() == 2.0
    assert corners[:, 1].min() > 0
