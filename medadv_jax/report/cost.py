"""Robust accuracy against what training cost, over several runs."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medadv_jax.config import flatten
from medadv_jax.report.page import Section
from medadv_jax.report.records import RunRecords
from medadv_jax.report.run_tables import accuracy
from medadv_jax.report.style import WIDTH, Graphic, draw, look
from medadv_jax.report.tables import Cell, Estimate, Table

_NOTE = (
    "Cost of the stage alone, on the device of its run (see Settings): seconds of the steps,"
    " without compilation and validation; gradient passes of the network, summed over its images."
    " A stage that another run trained has no row. Accuracy with 95 % intervals."
)
_FIELDS = (
    "objective", "method", "weight_perturbation", "dual_norm", "label_smoothing", "ema", "sampling",
)  # fmt: skip


class _Point(NamedTuple):
    """A classifier: of which run, how accurate, and at what cost."""

    run: RunRecords
    defense: str
    clean: Estimate
    worst: Estimate
    seconds: float
    passes: float


def cost_sections(runs: Sequence[RunRecords]) -> list[Section]:
    """Returns a section with table and figure; none if there are not two classifiers with costs."""
    points = [point for run in runs for point in _points(run)]
    if len(points) < 2:
        return []
    return [
        Section("Robust accuracy against the cost of training", [_table(points), _plot(points)])
    ]


def _points(run: RunRecords) -> list[_Point]:
    found = []
    for defense, cost in run.cost.items():
        worst = run.worst(defense) if defense in run.defenses and defense != "base" else None
        if worst is not None:
            clean = accuracy(run, run.clean(defense))
            cells = clean, accuracy(run, worst), cost["seconds"], cost["gradient_passes"]
            found.append(_Point(run, defense, *cells))
    return found


def _table(points: Sequence[_Point]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for point in points:
        train = flatten(point.run.config["train"])
        settings = (str(train.get(name, "–")) for name in _FIELDS)
        cost = (round(point.seconds, 1), round(point.passes))
        rows.append((point.run.name, point.defense, *settings, point.clean, point.worst, *cost))
    names = (name.replace("_", " ") for name in _FIELDS)
    columns = ("run", "defence", *names, "clean", "worst adaptive", "seconds", "gradient passes")
    return Table("training_cost", "Accuracy and cost of training", columns, rows, (_NOTE,))


def _plot(points: Sequence[_Point]) -> Graphic:
    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        _scatter(left, points, [point.seconds / 60 for point in points])
        _scatter(right, points, [point.passes / 1e6 for point in points])
        left.set(xlabel="minutes of training", ylabel="worst adaptive accuracy")
        right.set(xlabel="million gradient passes of training")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    height = 4 + 0.25 * -(-len(points) // 3)
    return draw("training_cost", f"Robust accuracy against cost. {_NOTE}", (WIDTH, height), paint)


def _scatter(axes: Axes, points: Sequence[_Point], cost: Sequence[float]) -> None:
    names = [point.run.name for point in points]
    shared = len(os.path.commonprefix(names))  # noqa: RUF071  # of letters, as is meant
    for number, (point, x) in enumerate(zip(points, cost, strict=True)):
        style, (value, interval) = look(number), point.worst
        assert value is not None
        low, high = interval or (value, value)
        axes.errorbar(
            x, value, [[value - low], [high - value]], color=style.color, marker=style.marker,
            fillstyle="full" if number < 8 else "none", ls="", capsize=2,
            label=f"{point.run.name[shared:] or point.run.name}: {point.defense}",
        )  # fmt: skip
