"""Figures of reports: one style, and what the figures of several domains have in common.

Matplotlib is imported when a figure is drawn, without pyplot, which is slow to import and keeps
every figure alive.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.report.blocks import FigureBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DARK",
    "GREY",
    "HOLLOW",
    "MARKERS",
    "PALETTE",
    "PULL_RANGE",
    "WIDTH_IN",
    "curve_panels",
    "draw_figure",
    "grid_of_panels",
    "legend_above",
    "mark_zero",
    "plot_points",
    "plot_pulls",
    "show_image",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008), strongest first."""

DARK, GREY = "#333333", "#777777"
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": GREY}
MARKERS = "os^DPvX"
WIDTH_IN = 10.5
"""Width of figures, in inches: that of the page."""

PULL_RANGE = 5.0
"""Pulls beyond are not in histograms, and are counted."""


def draw_figure(
    paint: Callable[[Figure], None],
    *,
    size_in: tuple[float, float],
    margins_in: tuple[float, float, float, float] = (0.8, 0.15, 0.55, 0.65),
    alt: str,
    caption: str,
) -> FigureBlock:
    """Return a figure as SVG that depends on nothing but what is painted: no date, no random ids.

    Parameters
    ----------
    paint : callable
        Takes an empty `matplotlib.figure.Figure` and draws on it.
    size_in : tuple of float
        Width and height in inches.
    margins_in : tuple of float
        Room around the axes in inches: left, right, below and above. It must hold the labels, the
        titles and a legend of the figure.
    alt, caption : str
        As in `FigureBlock`.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the page
        mpl.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.edgecolor": "#666666",
                "axes.grid": True,
                "axes.linewidth": 0.8,
                "axes.prop_cycle": cycler(color=PALETTE),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlelocation": "left",
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "font.size": 9,
                "grid.color": "#e4e4e4",
                "grid.linewidth": 0.6,
                "legend.fontsize": 8,
                "legend.frameon": False,
                "svg.hashsalt": "calibdask",
            }
        )
        # Stated margins: a layout engine draws every figure several times to find them.
        (width, height), (left, right, below, above) = size_in, margins_in
        figure = Figure(figsize=size_in, facecolor="white")
        figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=below / height,
            top=1 - above / height,
        )
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return FigureBlock(image=buffer.getvalue(), alt=alt, caption=caption)


def plot_points(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    error: ArrayLike | None = None,
    *,
    group: int = 0,
    **style: Any,
) -> None:
    """Plot points with error bars; each group has its colour and marker."""
    look: dict[str, Any] = {
        "fmt": MARKERS[group % len(MARKERS)],
        "color": PALETTE[group % len(PALETTE)],
        "markersize": 4,
        "elinewidth": 1,
        "capsize": 1.5,
    }
    axes.errorbar(x, y, error, **(look | style))


def mark_zero(axes: Axes, at: float = 0.0) -> None:
    """Draw the line that values are compared with."""
    axes.axhline(at, color=DARK, linewidth=0.9, zorder=1)


def legend_above(figure: Figure, axes: Axes | None = None, handles: Any = None) -> None:
    """Put one legend above all panels: of what is plotted in `axes`, or of given handles."""
    if axes is not None:
        handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles=handles, loc="upper right", ncols=min(len(handles), 7))


def grid_of_panels(
    figure: Figure, n_panels: int, *, columns: int = 2, **options: Any
) -> NDArray[np.object_]:
    """Make a grid of panels.

    Returns
    -------
    ndarray of Axes, shape (n_panels,)
        Row by row; panels that are not needed are not visible.
    """
    columns = max(1, min(n_panels, columns))
    rows = max(1, math.ceil(n_panels / columns))
    panels: NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for panel in panels[n_panels:]:
        panel.set_visible(False)
    return panels[:n_panels]


def curve_panels(figure: Figure, x_label: str, y_label: str) -> tuple[Axes, Axes]:
    """Make a panel for a curve with its points, and one below for their differences in percent."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    top.set_ylabel(y_label)
    mark_zero(bottom)
    bottom.set_ylabel("difference (%)")
    bottom.set_xlabel(x_label)
    return top, bottom


def plot_pulls(axes: Axes, pull: NDArray[np.float64], what: str) -> None:
    """Plot a histogram of pulls under a unit normal distribution."""
    n, n_beyond = len(pull), int((np.abs(pull) > PULL_RANGE).sum())
    edges = np.linspace(-PULL_RANGE, PULL_RANGE, 21 if n < 300 else 41)
    axes.hist(pull, bins=edges.tolist(), color=PALETTE[5], edgecolor="white", label=what)
    grid = np.linspace(-PULL_RANGE, PULL_RANGE, 201)
    expected = n * (edges[1] - edges[0]) * np.exp(-0.5 * grid**2) / math.sqrt(math.tau)
    axes.plot(grid, expected, color=DARK, label="unit normal")
    axes.set_title(f"Pulls: {n_beyond:,} of {n:,} beyond ±{PULL_RANGE:g}")
    axes.set_xlabel("pull: residual over its error")
    axes.set_ylabel(what)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper left")


def show_image(
    axes: Axes,
    image: NDArray[np.floating],
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    extent: tuple[float, float, float, float] | None = None,
    cmap: str = "viridis",
    **colourbar: Any,
) -> None:
    """Show an image with its colour bar; one per cent at either end is out of range by default."""
    axes.grid(visible=False)
    finite = image[np.isfinite(image)]
    low, high = limits or (np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0))
    drawn = axes.imshow(
        image,
        cmap=cmap,
        vmin=low,
        vmax=high if high > low else low + 1.0,
        extent=extent,
        interpolation="nearest",
    )
    axes.figure.colorbar(drawn, ax=axes, label=label, **colourbar)
