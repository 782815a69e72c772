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


DEFENSE_LOOKS = {
    "base": Look("#D55E00", "", "o"),
    "adversarial": Look("#0072B2", "//", "s", "--"),
    "autoencoder": Look("#E69F00", "..", "^", "-."),
    "hybrid": Look("#009E73", "xx", "D", ":"),
}
THREAT_LOOKS = {
    "clean": Look("#56B4E9", "", "o"),
    "transfer": Look("#F0E442", "..", "^", ":"),
    "oblivious": Look("#CC79A7", "//", "s", "--"),
    "adaptive": Look("#444444", "xx", "D"),
}
_OTHERS = (
    Look("#D55E00", "", "o"), Look("#0072B2", "//", "s", "--"), Look("#E69F00", "..", "^", "-."),
    Look("#009E73", "xx", "D", ":"), Look("#CC79A7", "\\\\", "v"), Look("#56B4E9", "++", "P", "--"),
    Look("#F0E442", "oo", "X", "-."), Look("#444444", "--", "*", ":"),
)  # fmt: skip


def look(index: int) -> Look:
    """Returns the look of series number `index`; looks repeat after eight."""
    return _OTHERS[index % len(_OTHERS)]


def defense_look(defense: str) -> Look:
    """Returns the look of a defence; that of an unknown one depends on its name only."""
    return DEFENSE_LOOKS.get(defense) or look(4 + sum(map(ord, defense)) % 4)


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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06))
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, caption, text.getvalue())


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


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Puts one legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))
