"""The look of all figures, and bars and legends that several of them share.

The colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart. Series also
differ by hatch or marker, so that they can be told apart in black and white.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from medadv_jax.files import file_name
from medadv_jax.report.records import DEFENSES

WIDTH = 9.4  # inches, the width of the page

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.hashsalt": "medadv_jax",  # a redrawn figure is the same file
    "text.parse_math": False,  # a name with dollar signs is a name
}


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour, hatch and marker of a series."""

    color: str
    hatch: str
    marker: str
    line: str = "-"


_LOOKS = (
    Look("#D55E00", "", "o"), Look("#0072B2", "//", "s", "--"), Look("#E69F00", "..", "^", "-."),
    Look("#009E73", "xx", "D", ":"), Look("#CC79A7", "\\\\", "v"), Look("#56B4E9", "++", "P", "--"),
    Look("#F0E442", "oo", "X", "-."), Look("#444444", "--", "*", ":"),
)  # fmt: skip
THREAT_LOOKS = {
    "clean": Look("#56B4E9", "", "o"),
    "transfer": Look("#F0E442", "..", "^", ":"),
    "oblivious": Look("#CC79A7", "//", "s", "--"),
    "adaptive": Look("#444444", "xx", "D"),
}


def look(index: int) -> Look:
    """Returns the look of series number `index`; looks repeat after eight."""
    return _LOOKS[index % len(_LOOKS)]


def defense_look(defense: str) -> Look:
    """Returns the look of a defence; that of an unknown one depends on its name only."""
    known = defense in DEFENSES
    return look(DEFENSES.index(defense) if known else 4 + sum(map(ord, defense)) % 4)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
      name: of its file, without suffix.
      caption: what it shows, and on how many images.
      svg: the content of the SVG file.
    """

    name: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        """The figure as a URI that needs no other file."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclasses.dataclass(frozen=True)
class Omitted:
    """A figure that would be empty, and the reason."""

    name: str
    reason: str


Graphic = Picture | Omitted


def draw(
    name: str, caption: str, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Picture:
    """Returns a figure of `size` inches; `paint` draws on it."""
    svg = _save(size, paint, "svg", metadata={"Date": None, "Creator": None})
    return Picture(file_name(name), caption, svg.decode())


def draw_png(size: tuple[float, float], paint: Callable[[Figure], None]) -> bytes:
    """Returns a figure as `draw` does, but as a PNG of 150 pixels an inch."""
    return _save(size, paint, "png", metadata={"Software": None}, dpi=150)


def _save(
    size: tuple[float, float], paint: Callable[[Figure], None], kind: str, **options: Any
) -> bytes:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06))
        paint(figure)
        content = io.BytesIO()
        figure.savefig(content, format=kind, **options)
    return content.getvalue()


def shortened(name: str) -> str:
    """Returns the name of a class in at most 16 characters."""
    return name if len(name) <= 16 else f"{name[:15]}…"


def bars(
    axes: Axes,
    labels: Sequence[str],
    series: Mapping[str, tuple[Look, Sequence[float | None]]],
    errors: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
    limit: tuple[float, float] = (0, 1),
) -> None:
    """Draws grouped bars with intervals; None leaves a gap, and 0 a line at the bottom.

    Args:
      axes: to draw on.
      labels: of the groups.
      series: name -> look and a value for each group.
      errors: name -> interval (low, high) for each group.
      limit: range of the y axis.
    """
    width = 0.82 / len(series)
    for i, (name, (style, values)) in enumerate(series.items()):
        x = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * width
        known = [v is not None for v in values]
        heights = [0.0 if v is None else v for v in values]
        edge = "white" if style.hatch else style.color  # the colour of the hatch
        axes.bar(x, heights, width * 0.92, color=style.color, hatch=style.hatch, edgecolor=edge,
                 linewidth=0.4, label=name)  # fmt: skip
        for at, there, height in zip(x, known, heights, strict=True):
            if there and height < 0.004:  # a bar of no height is a result, not a gap
                axes.plot([at - width * 0.4, at + width * 0.4], [0, 0], color=style.color, lw=2.5,
                          clip_on=False, zorder=3)  # fmt: skip
        for at, value, interval in zip(x, values, (errors or {}).get(name, ()), strict=False):
            if value is not None and interval:
                axes.plot([at, at], interval, color="black", lw=1.1, zorder=4)
    axes.set_xticks(np.arange(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(*limit)


def heatmap(figure: Figure, values: np.ndarray, digits: int, size: float) -> Axes:
    """Draws a matrix of shares in [0, 1] with its numbers in font size `size`; NaN is a dash."""
    axes = figure.subplots()
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*values.shape):
        text = "–" if np.isnan(values[i, j]) else f"{values[i, j]:.{digits}f}"
        color = "white" if values[i, j] <= 0.55 else "black"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    axes.grid(False)
    return axes


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Puts one legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))
