"""What classifiers cost, in training and for each prediction, beside their robust accuracy."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medadv_jax.config import flatten
from medadv_jax.report.page import Section
from medadv_jax.report.records import RunRecords, title_of
from medadv_jax.report.run_tables import accuracy
from medadv_jax.report.style import WIDTH, Graphic, draw, look
from medadv_jax.report.tables import Cell, Estimate, Table

_NOTE = (
    "Training: of the stage alone, on the device of its run (see Settings): seconds of the steps,"
    " without compilation and validation; gradient passes of the network, summed over its images. A"
    " stage that another run trained has none. Prediction: parameters and FLOPs of what is"
    " deployed, a multiplication and an addition counted as two; latency of one image, a number of"
    " that machine{machine}. Accuracy with 95 % intervals."
)
_FIELDS = (
    "objective", "method", "weight_perturbation", "dual_norm", "label_smoothing", "ema", "sampling",
)  # fmt: skip


class _Point(NamedTuple):
    """A classifier: of which run, how accurate, and at what cost; None: not measured."""

    run: RunRecords
    defense: str
    clean: Estimate
    worst: Estimate
    seconds: float | None
    passes: float | None
    parameters: float | None
    flops: float | None
    milliseconds: float | None


_AXES = {
    "minutes of training": lambda point: point.seconds and point.seconds / 60,
    "GFLOPs of a prediction": lambda point: point.flops and point.flops / 1e9,
    "ms for one image": lambda point: point.milliseconds,
}


def cost_sections(runs: Sequence[RunRecords]) -> list[Section]:
    """Returns a section with table and figure; none if no attacked classifier has a cost."""
    points = [point for run in runs for point in _points(run)]
    if not points:
        return []
    return [Section("Cost", [_table(points), _plot(points)])]


def _points(run: RunRecords) -> list[_Point]:
    found = []
    for defense in run.defenses:
        training, prediction = run.cost.get(defense, {}), run.prediction_cost.get(defense, {})
        worst = run.worst(defense)
        if worst is not None and (training or prediction):
            costs = [training.get(name) for name in ("seconds", "gradient_passes")]
            costs += [prediction.get(name) for name in ("parameters", "flops", "milliseconds")]
            clean = accuracy(run, run.clean(defense))
            found.append(_Point(run, defense, clean, accuracy(run, worst), *costs))
    return found


def _note(points: Sequence[_Point]) -> str:
    devices = dict.fromkeys(p.run.inference_cost.get("device") for p in points)
    named = ", ".join(str(device) for device in devices if device)
    return _NOTE.format(machine=f" ({named})" if named else "")


def _table(points: Sequence[_Point]) -> Table:
    settings = [flatten(point.run.config["train"]) for point in points]
    differing = [f for f in _FIELDS if len({str(each.get(f, "–")) for each in settings}) > 1]
    rows: list[tuple[Cell, ...]] = []
    for point, train in zip(points, settings, strict=True):
        rows.append(
            (
                point.run.name, title_of(point.run.model), point.defense,
                *(str(train.get(name, "–")) for name in differing), point.clean, point.worst,
                _rounded(point.seconds, 1), _rounded(point.passes), _rounded(point.parameters),
                _rounded(point.flops and point.flops / 1e9, 3), _rounded(point.milliseconds, 1),
            )
        )  # fmt: skip
    columns = (
        "run", "network", "defence", *(name.replace("_", " ") for name in differing), "clean",
        "worst adaptive", "seconds of training", "gradient passes", "parameters", "GFLOPs",
        "ms for one image",
    )  # fmt: skip
    return Table("cost", "Accuracy and cost", columns, rows, (_note(points),))


def _rounded(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _plot(points: Sequence[_Point]) -> Graphic:
    known = {x: of for x, of in _AXES.items() if any(of(point) is not None for point in points)}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, (name, of) in zip(panels, known.items(), strict=True):
            _scatter(axes, points, [of(point) for point in points])
            axes.set_xlabel(name)
            axes.set_xlim(0, 1.12 * max(of(point) or 0 for point in points) or 1)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        panels[0].set_ylabel("worst adaptive accuracy")
        handles = [panels[0].get_legend_handles_labels(), panels[-1].get_legend_handles_labels()]
        figure.legend(*max(handles, key=lambda h: len(h[1])), loc="outside lower center", ncols=3)

    height = 4 + 0.25 * -(-len(points) // 3)
    caption = "Accuracy under the worst adaptive attack against what the table above lists."
    return draw("cost", caption, (WIDTH, height), paint)


def _scatter(axes: Axes, points: Sequence[_Point], cost: Sequence[float | None]) -> None:
    names = [point.run.name for point in points]
    shared = len(os.path.commonprefix(names))  # noqa: RUF071  # of letters, as is meant
    for number, (point, x) in enumerate(zip(points, cost, strict=True)):
        style, (value, interval, _) = look(number), point.worst
        if x is None or value is None:
            continue
        low, high = interval or (value, value)
        before = f"{point.run.name[shared:] or point.run.name}: " if len({*names}) > 1 else ""
        axes.errorbar(
            x, value, [[value - low], [high - value]], color=style.color, marker=style.marker,
            fillstyle="full" if number < 8 else "none", ls="", capsize=2,
            label=f"{before}{point.defense}",
        )  # fmt: skip
