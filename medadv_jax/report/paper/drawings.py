"""The paper's Figures 1, 2 and 4: our own schematic drawings of what this project does."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from medadv_jax.report.style import WIDTH, Picture, draw

_DATA, _NETWORK, _ATTACK, _DEFENSE = "#dbeaf7", "#e6e6e6", "#f8d9c8", "#d3eee0"

Box = tuple[float, float, str, str]  # x and y of the centre, text, colour


def drawings() -> list[Picture]:
    """Returns Figures 1, 2a, 2b and 4."""
    return [pipeline(), adversarial_training(), autoencoder(), convolution()]


def pipeline() -> Picture:
    """Returns Figure 1: from images to a defended classifier and its evaluation."""
    boxes = {
        "images": (1.15, 3.4, "images\nchest X-ray, BreakHis", _DATA),
        "splits": (3.3, 3.4, "size, splits\nby patient", _DATA),
        "base": (5.6, 3.4, "base\ntrained on clean images", _NETWORK),
        "attack": (5.6, 2.4, "attacks, ε = 0.03\nFGSM PGD BIM MI-FGSM", _ATTACK),
        "wrong": (8.3, 3.4, "wrong answers\nof base", _ATTACK),
        "adversarial": (3.5, 1.4, "adversarial training\nclean and attacked images", _DEFENSE),
        "autoencoder": (7.5, 1.4, "autoencoder\nattacked → clean image", _DEFENSE),
        "hybrid": (5.5, 0.4, "hybrid\nboth together", _DEFENSE),
        "checks": (8.1, 0.4, "attacks on what is deployed\nrecords, checks, report", _NETWORK),
    }
    arrows = [
        ("images", "splits"), ("splits", "base"), ("base", "attack"), ("base", "wrong"),
        ("attack", "wrong"), ("attack", "adversarial"), ("attack", "autoencoder"),
        ("adversarial", "hybrid"), ("autoencoder", "hybrid"), ("hybrid", "checks"),
    ]  # fmt: skip
    caption = (
        "Figure 1, our drawing: images, the undefended network, the attacks that mislead it, the"
        " two defences and their combination. Here the attacks are made anew on every defended"
        " classifier, with its purifier; attacked test images are never reused."
    )
    return _flow("figure_01", caption, (9.4, 4.0), boxes, arrows)


def adversarial_training() -> Picture:
    """Returns Figure 2a: the step of adversarial training."""
    boxes = {
        "clean": (0.9, 1.5, "clean images x\nlabels y", _DATA),
        "attack": (3.3, 0.6, "attack\nmax over |δ| ≤ ε", _ATTACK),
        "network": (5.9, 1.5, "network\n(weights θ)", _NETWORK),
        "loss": (8.2, 1.5, "loss of x and x + δ\nto the true labels", _DEFENSE),
    }
    arrows = [("clean", "network"), ("clean", "attack"), ("attack", "network"), ("network", "loss")]
    caption = (
        "Figure 2a, our drawing: a step of adversarial training. The attack is made on the weights"
        " of this step; the loss of clean and attacked images, half each, then changes the weights."
    )
    return _flow("figure_02a", caption, (9.4, 2.3), boxes, arrows)


def autoencoder() -> Picture:
    """Returns Figure 2b's drawing: the autoencoder in front of the network."""
    boxes = {
        "x": (0.7, 0.6, "image x", _DATA),
        "encoder": (2.4, 0.6, "encoder g", _DEFENSE),
        "code": (4.1, 0.6, "code z\n128 numbers", _DEFENSE),
        "decoder": (5.8, 0.6, "decoder f", _DEFENSE),
        "again": (7.3, 0.6, "image x′", _DATA),
        "network": (8.8, 0.6, "network", _NETWORK),
    }
    names = list(boxes)
    caption = (
        "Figure 2b, our drawing: an autoencoder with a bottleneck in front of the network. An"
        " adaptive attacker has the gradient of the whole row, an oblivious one the network's only."
    )
    arrows = list(itertools.pairwise(names))
    return _flow("figure_02b", caption, (9.4, 1.3), boxes, arrows)


def _flow(
    name: str, caption: str, size: tuple[float, float], boxes: dict[str, Box],
    arrows: Sequence[tuple[str, str]],
) -> Picture:  # fmt: skip
    """Returns boxes joined by arrows, on a field of `size` inches."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _blank(axes, (0, size[0]), (0, size[1]))
        patches = {}
        for key, (x, y, text, color) in boxes.items():
            width = 0.25 + 0.082 * max(map(len, text.split("\n")))
            height = 0.34 + 0.17 * text.count("\n")
            patches[key] = axes.add_patch(
                FancyBboxPatch(
                    (x - width / 2, y - height / 2), width, height, facecolor=color,
                    edgecolor="#444444", lw=0.9, boxstyle="round,pad=0.06",
                )
            )  # fmt: skip
            axes.text(x, y, text, ha="center", va="center", fontsize=9)
        for start, end in arrows:
            ends = boxes[start][:2], boxes[end][:2]
            axes.add_patch(
                FancyArrowPatch(
                    *ends, patchA=patches[start], patchB=patches[end], arrowstyle="-|>",
                    mutation_scale=12, color="#444444", lw=1.1, shrinkA=1, shrinkB=1,
                )
            )  # fmt: skip

    return draw(name, caption, (WIDTH, size[1]), paint)


def convolution() -> Picture:
    """Returns Figure 4: a 3×3 convolution of 6×6 pixels, computed."""
    rows, columns = np.indices((6, 6))
    pixels = (rows * columns + 2 * rows) % 7
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3))
    result = (windows * kernel).sum(axis=(2, 3))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 3, width_ratios=[6, 3.4, 4.2])
        for axes, values, title, marked in zip(
            panels, (pixels, kernel, result), ("source pixels", "filter", "destination pixels"),
            ((1, 1, 3), None, (1, 1, 1)), strict=True,
        ):  # fmt: skip
            _numbers(axes, values, title, marked)

    i, j = 1, 1
    pairs = zip(windows[i, j].ravel(), kernel.ravel(), strict=True)
    products = " + ".join(f"{p} × {_text(k) if k > 0 else f'({_text(k)})'}" for p, k in pairs if k)
    caption = (
        "Figure 4, our drawing: a convolution. Each destination pixel is the sum of the products of"
        f" the filter and the source pixels below it; the marked one is {products} ="
        f" {_text(result[i, j])}."
    )
    return draw("figure_04", caption, (WIDTH, 2.9), paint)


def _numbers(
    axes: Axes, values: np.ndarray, title: str, marked: tuple[int, int, int] | None
) -> None:
    """Draws a grid of numbers; `marked`: column, row and side of a square to mark."""
    height, width = values.shape
    _blank(axes, (0, width), (height, 0))
    for (i, j), value in np.ndenumerate(values):
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor="white", edgecolor="#999999", lw=0.7))
        axes.text(j + 0.5, i + 0.5, _text(value), ha="center", va="center")
    if marked:
        column, row, side = marked
        axes.add_patch(
            Rectangle((column, row), side, side, facecolor="#E69F0055", edgecolor="#D55E00", lw=2)
        )
    axes.set_title(title)
    axes.set_aspect("equal")


def _text(number: int) -> str:
    return str(number).replace("-", "−")


def _blank(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xlim(x)
    axes.set_ylim(y)
    axes.set_axis_off()
