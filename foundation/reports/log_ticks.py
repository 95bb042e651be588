"""Labels of logarithmic axes."""

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


def set_log_ticks(axis: Axis) -> None:
    """Give a logarithmic axis as many labels as its range needs, as numbers without powers."""
    low, high = axis.get_view_interval()
    digits = (1, 1.5, 2, 3, 5, 7) if high < 8 * low else (1, 2, 5) if high < 300 * low else (1,)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
