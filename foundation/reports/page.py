"""Pages: self-contained HTML files with figures and style inside."""

import base64
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from data_pipeline.store import durable


def render_page(template: str, *, figures: Mapping[str, Path], **values: Any) -> str:
    """Return a page.

    Args:
        template: File of its jinja template, with {{ style | safe }} before its own style.
        figures: PNG files to embed, by their names in the template.
        values: Other values of the template.

    Raises:
        jinja2.UndefinedError: the template uses a missing value.
    """
    encoded = {name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()}
    style = importlib.resources.files("foundation.reports").joinpath("page.css").read_text()
    source = importlib.resources.files("foundation.reports").joinpath(template).read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    return environment.from_string(source).render(style=style, figures=encoded, **values)


def write_figure(figure: Figure, path: Path, dpi: int, **options: Any) -> None:
    """Write a figure as PNG, the same bytes whenever it is drawn."""
    with durable.whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi, metadata={"Software": None}, **options)
