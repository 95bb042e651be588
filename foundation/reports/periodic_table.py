"""Figure of the periodic table, coloured by a number per element."""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_pipeline.inspection import PERIODIC_TABLE
from foundation.reports.page import write_figure


def draw_periodic_table(
    values: Mapping[str, float | int],
    path: Path,
    *,
    norm: Normalize,
    colors: str,
    written: Callable[[float], str],
    depths: tuple[float, float] = (0.12, 0.95),
) -> None:
    """Draw the periodic table; elements without a number stay grey.

    Args:
        values: Number of each element, by symbol.
        path: File to write.
        norm: Map from a number to the depth of its colour, between 0 and 1.
        colors: matplotlib's name of the colour map.
        written: Format of the number under its symbol.
        depths: Range of the colour map to use.
    """
    figure = Figure(figsize=(9.2, 4.9))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for row, line in enumerate(PERIODIC_TABLE):
        # the two rows of the f elements stand apart
        top = row + (0.35 if row > 6 else 0.0)
        for start in range(0, len(line), 3):
            symbol = line[start : start + 3].strip()
            if symbol in values:
                face = colormaps[colors](depths[0] + (depths[1] - depths[0]) * float(norm(values[symbol])))
                luminance = 0.21 * face[0] + 0.72 * face[1] + 0.07 * face[2]
                ink = "white" if luminance < 0.6 else "#16324f"
                _draw_element(axes, start // 3, top, symbol, face, ink, written(values[symbol]))
            elif symbol:
                _draw_element(axes, start // 3, top, symbol, "#f6f6f6", "#c4c4c4", "")
    axes.set_xlim(-0.05, 18.05)
    axes.set_ylim(9.4, -0.05)
    axes.set_axis_off()
    write_figure(figure, path, 200)


def _draw_element(axes: Axes, column: int, top: float, symbol: str, face: object, ink: str, number: str) -> None:
    axes.add_patch(Rectangle((column + 0.03, top + 0.03), 0.94, 0.94, facecolor=face, linewidth=0))
    center = column + 0.5
    axes.text(center, top + 0.42, symbol, color=ink, fontsize=15.5, fontweight="bold", ha="center", va="center")
    axes.text(center, top + 0.82, number, color=ink, fontsize=6.5, ha="center", va="center")
