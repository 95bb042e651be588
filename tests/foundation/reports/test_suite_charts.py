"""Charts of suites: texts beside points."""

from foundation.evaluation.suites import Chart, Curve
from foundation.reports.suite_charts import _figure


def test_points_carry_their_texts() -> None:
    points = Curve(x=(1.0, 2.0), y=(3.0, 4.0), points=True, texts=("Sr", "$Ba$"))
    figure = _figure("Map", {"a potential": Chart(x="x", y="y", curves={"": points})})
    texts = [(text.get_text(), tuple(text.xy)) for text in figure.axes[0].texts]
    assert texts == [
        ("Sr", (1.0, 3.0)),
        (r"\$Ba\$", (2.0, 4.0)),
    ]
