"""The figures of one run. A figure that would be empty is omitted, with the reason."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from medadv_jax.errors import UserError
from medadv_jax.evaluation.metrics import confusion_counts, larger_class, reliability
from medadv_jax.report.records import THREATS, Curve, Outcome, RunRecords
from medadv_jax.report.run_tables import accuracy
from medadv_jax.report.style import (
    THREAT_LOOKS,
    WIDTH,
    Graphic,
    Look,
    Omitted,
    bars,
    defense_look,
    draw,
    draw_png,
    legend_below,
    shortened,
)

_DASHED = (
    Look("#D55E00", "", "s", "--"), Look("#009E73", "", "^", "-."), Look("#444444", "", "D", ":"),
)  # fmt: skip


def figures(run: RunRecords) -> list[Graphic]:
    """Returns the figures of a run but for the headline, in the order of the page."""
    return [
        by_attack(run), confusion(run), roc(run), calibration(run),
        curve(run, "epsilon"), curve(run, "num_steps"), training(run),
    ]  # fmt: skip


def robustness_curves(run: RunRecords) -> bytes:
    """Returns a PNG: accuracy against epsilon beside accuracy by threat model.

    Raises:
      UserError: the run has no curves.
    """
    lines = run.curves_along("epsilon")
    if not lines:
        raise UserError(f"{run.path}: no accuracy against ε; run with --config.eval.checks=true")

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[4, 5])
        _accuracy_lines(left, lines, up_to=0.5)
        left.set(
            title=f"adaptive PGD of {lines[0].fixed:g} steps{_also(run)}",
            xlabel="ε (pixels in [0, 1])",
            ylabel="accuracy",
        )
        _accuracy_bars(right, run, run.defenses, _by_threat(run))
        title = f"worst attack on each image, ε = {run.epsilon:g}"
        right.set(title=title, xlabel="defence", ylabel="")
        for axes in (left, right):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, columnspacing=1)

    return draw_png((WIDTH, 3.6), paint)


def headline(run: RunRecords) -> Graphic:
    """Returns accuracy, clean and under the worst attack of each threat model."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _accuracy_bars(axes, run, run.defenses, _by_threat(run))
        legend_below(figure, axes, 5)

    caption = (
        "Figures 5a and 7a of the paper, for this network: accuracy on"
        f" {len(run.label)} test images, clean and under the worst attack (per image) of"
        f" each threat model at ε = {run.epsilon:g}. Lines: 95 % intervals. Dotted: always naming"
        " the larger class. A gap: not run; without a purifier oblivious is adaptive."
    )
    return draw("headline", caption, (WIDTH, 3.3), paint)


Bars = dict[str, tuple[Look, list[Outcome | None]]]  # name -> look, an outcome for each group


def _by_threat(run: RunRecords) -> Bars:
    """Returns the outcomes of all defences, clean and under the worst attack of each threat."""
    outcomes: dict[str, list[Outcome | None]] = {"clean": [run.clean(d) for d in run.defenses]}
    outcomes |= {t: [run.worst(d, (t,)) for d in run.defenses] for t in THREATS}
    return {name: (THREAT_LOOKS[name], found) for name, found in outcomes.items() if any(found)}


def _accuracy_bars(axes: Axes, run: RunRecords, labels: list[str], series: Bars) -> None:
    """Draws accuracies with intervals, and the accuracy of always predicting the larger class."""
    cells = {n: [o and accuracy(run, o) for o in found] for n, (_, found) in series.items()}
    values = {n: (series[n][0], [e and e.value for e in found]) for n, found in cells.items()}
    bars(axes, labels, values, {n: [e and e.interval for e in es] for n, es in cells.items()})
    axes.set_ylabel("accuracy")
    axes.axhline(larger_class(run.label) / len(run.label), color="#555555", lw=1, ls=":", zorder=1)


def by_attack(run: RunRecords) -> Graphic:
    """Returns the accuracy of each defence under each adaptive attack."""
    if not run.attacks:
        return Omitted("Accuracy by attack", "nothing was attacked at this ε")
    names = ["clean", *run.attacks]
    series: Bars = {
        d: (defense_look(d), [run.get(d, "adaptive", a) for a in names]) for d in run.defenses
    }

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _accuracy_bars(axes, run, names, series)
        legend_below(figure, axes, 5)

    caption = (
        "Figure 14 of the paper, for this network: accuracy by attack and defence, adaptive"
        f" attacks, ε = {run.epsilon:g}."
    )
    return draw("accuracy_by_attack", caption, (WIDTH, 3.3), paint)


def _conditions(run: RunRecords) -> list[tuple[str, dict[str, Outcome]]]:
    """Returns (title, defence -> outcome) for clean and for the worst adaptive attack."""
    clean = {d: run.clean(d) for d in run.defenses}
    worst = {d: o for d in run.defenses if (o := run.worst(d)) is not None}
    return [("clean", clean), *([("worst adaptive attack", worst)] if worst else [])]


def confusion(run: RunRecords) -> Graphic:
    """Returns confusion matrices, clean and attacked; of two classes smaller ones in a row."""
    conditions, many = _conditions(run), len(run.class_names) > 2
    shape = (len(conditions), len(run.defenses))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(*(shape[::-1] if many else shape), squeeze=False)
        first, last, grid = grid[:, 0], grid[-1], grid.T if many else grid
        for row, (title, outcomes) in zip(grid, conditions, strict=True):
            for axes, defense in zip(row, run.defenses, strict=True):
                if defense not in outcomes:
                    axes.set_axis_off()
                    continue
                _matrix(axes, run, outcomes[defense])
                axes.set_title(f"{defense}, {title.split()[0]}")
        for axes in first:
            axes.set_ylabel("truth")
        for axes in last:
            axes.set_xlabel("prediction")

    where = ("on the left", "on the right") if many else ("above", "below")
    caption = (
        "Confusion matrices: rows are the truth, columns the prediction. Clean"
        f" {where[0]}, the worst adaptive attack {where[1]}."
    )
    size = (min(WIDTH, 2.6 + 2.3 * shape[1]), 2.5 * shape[0] + 0.2)
    if many:
        side = min(4.4, 2.2 + 0.3 * len(run.class_names))
        size = (min(WIDTH, (side + 0.3) * shape[0]), side * shape[1])
    return draw("confusion", caption, size, paint)


def _matrix(axes: Axes, run: RunRecords, outcome: Outcome) -> None:
    names = [shortened(name) for name in run.class_names]
    many = len(names)
    counts = confusion_counts(run.label, outcome.predicted, many)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = None if many == 2 else max(4.5, 11 - many / 2)  # points
    for i, j in np.ndindex(many, many):
        text = f"{counts[i, j]}\n{shares[i, j]:.0%}" if many <= 10 else f"{counts[i, j]}"
        color = "white" if shares[i, j] > 0.55 else "black"
        axes.text(j, i, text, ha="center", va="center", color=color, size=size)
    if many == 2:
        axes.set_xticks([0, 1], names)
        axes.set_yticks([0, 1], names, rotation=90, va="center")
    else:
        axes.set_xticks(range(many), names, rotation=45, ha="right", size=size)
        axes.set_yticks(range(many), names, size=size)
    axes.grid(False)


def roc(run: RunRecords) -> Graphic:
    """Returns ROC curves, clean and attacked; of more than two classes their mean."""
    many = len(run.class_names)
    if len(np.unique(run.label)) < many:
        reason = "of one class" if many == 2 else "not of every class"
        return Omitted("ROC curves", f"the test images are {reason}")
    conditions = _conditions(run)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axes, (title, outcomes) in zip(panels, conditions, strict=True):
            axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
            for defense, outcome in outcomes.items():
                if np.isfinite(outcome.score).all():
                    x, y = _roc_points(run.label, outcome.score)
                    _line(axes, x, y, defense_look(defense), defense, marks=8)
            axes.set(title=title, xlabel="false positive rate", xlim=(-0.02, 1.02), aspect="equal")
            axes.set_ylim(-0.02, 1.02)
        panels[0].set_ylabel("true positive rate")
        legend_below(figure, panels[0], 5)

    caption = "ROC curves; dotted: guessing. Attacked: the most harmful score of each image."
    if many > 2:
        caption += " The mean over the classes, one against the rest, at each false positive rate."
    return draw("roc", caption, (min(WIDTH, 4.6 * len(conditions)), 4.6), paint)


def _roc_points(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false and true positive rates (k,); of (n, K) scores the mean over K classes."""
    if score.ndim == 1:
        return roc_curve(label, score)[:2]
    curves = [roc_curve(label == k, of_class)[:2] for k, of_class in enumerate(score.T)]
    x = np.unique(np.concatenate([false for false, _ in curves]))
    y = np.mean([np.interp(x, *each) for each in curves], axis=0)
    return np.concatenate([[0.0], x]), np.concatenate([[0.0], y])


def _line(
    axes: Axes, x: np.ndarray, y: np.ndarray, style: Look, label: str, marks: int = 1
) -> None:
    every = max(1, len(x) // marks) if marks > 1 else 1
    axes.plot(x, y, color=style.color, ls=style.line, marker=style.marker, markevery=every,
              ms=5, lw=1.6, label=label, clip_on=False)  # fmt: skip


def calibration(run: RunRecords) -> Graphic:
    """Returns reliability curves, clean and attacked."""
    conditions, low = _conditions(run), 1 / len(run.class_names)
    curves = [
        {d: reliability(run.label, o.score, o.predicted) for d, o in outcomes.items()}
        for _, outcomes in conditions
    ]
    if not any(c.error is not None for of in curves for c in of.values()):
        return Omitted("Reliability curves", "the scores are no probabilities")

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axes, (title, _), found in zip(panels, conditions, curves, strict=True):
            axes.plot([low, 1], [low, 1], color="#999999", lw=1, ls=":")
            for defense, c in found.items():
                if c.error is not None:
                    style, sizes = defense_look(defense), 12 + 90 * c.count / c.count.sum()
                    axes.plot(c.confidence, c.accuracy, color=style.color, ls=style.line, lw=1.2)
                    axes.scatter(
                        c.confidence, c.accuracy, sizes, color=style.color, marker=style.marker,
                        label=defense, clip_on=False, zorder=3,
                    )  # fmt: skip
            axes.set(title=title, xlabel="probability of the predicted class")
            axes.set_xlim(low - 0.02, 1.02)
            axes.set_ylim(-0.03, 1.03)
        panels[0].set_ylabel("share correct")
        legend_below(figure, panels[0], 5)

    caption = (
        "Reliability: how often a classifier is correct when it is so sure. Dotted: perfectly"
        " calibrated. Larger marks stand for more images."
    )
    return draw("reliability", caption, (min(WIDTH, 4.8 * len(conditions)), 3.9), paint)


def curve(run: RunRecords, axis: str) -> Graphic:
    """Returns accuracy against `axis`, "epsilon" or "num_steps", under adaptive PGD."""
    title = {"epsilon": "Accuracy against ε", "num_steps": "Accuracy against steps"}[axis]
    lines = run.curves_along(axis)
    if not lines:
        return Omitted(title, "curves.parquet holds no two points of it")
    clip = axis == "epsilon" and max(line.x.max() for line in lines) > 0.5

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            1, 1 + clip, sharey=True, squeeze=False, width_ratios=[7, 1][: 1 + clip]
        )[0]
        _accuracy_lines(panels[0], lines, up_to=0.5 if clip else np.inf)
        panels[0].set(ylabel="accuracy", ylim=(-0.03, 1.03))
        panels[0].set_xlabel("ε (pixels in [0, 1])" if axis == "epsilon" else "steps of PGD")
        if axis == "num_steps":
            panels[0].set_xticks(lines[0].x, [f"{x:g}" for x in lines[0].x])
        if clip:
            _accuracy_lines(panels[1], lines, above=0.5)
            panels[1].set_xticks([1], ["ε = 1"])
            panels[1].set_xlim(0.8, 1.2)
        legend_below(figure, panels[0], 5)

    other = f"{lines[0].fixed:g} steps" if axis == "epsilon" else f"ε = {lines[0].fixed:g}"
    also = _also(run) if axis == "epsilon" else ""
    under = f"{title} under adaptive PGD ({other}){also}"
    caption = f"{under}, on {lines[0].n} test images. Bands: 95 % intervals."
    return draw(f"accuracy_{axis}", caption, (WIDTH, 3.4), paint)


def _also(run: RunRecords) -> str:
    """Returns the attacks beside PGD under which the radii were tried, in words."""
    names = set() if run.curves is None else {*run.curves["evaluation"].tolist()} - {"pgd"}
    return "".join(f" and {name.upper()}" for name in sorted(names))


def _accuracy_lines(
    axes: Axes, lines: list[Curve], above: float = -np.inf, up_to: float = np.inf
) -> None:
    """Draws the points of curves with above < x <= up_to, and their intervals."""
    for line in lines:
        at, style = (line.x > above) & (line.x <= up_to), defense_look(line.defense)
        _line(axes, line.x[at], line.accuracy[at], style, line.defense)
        low, high = line.low[at], line.high[at]
        axes.fill_between(line.x[at], low, high, color=style.color, alpha=0.13, lw=0)


def training(run: RunRecords) -> Graphic:
    """Returns loss and accuracy by epoch, a column for each trained classifier."""
    names = dict.fromkeys(line["defense"] for line in run.training)
    epochs = {d: values for d in names if (values := _by_epoch(run, d))}
    if not epochs:
        return Omitted("Training curves", "metrics.jsonl holds no epoch")

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, len(epochs), squeeze=False, sharex="col")
        for column, (defense, values) in zip(grid.T, epochs.items(), strict=True):
            for axes, kind in zip(column, ("accuracy", "loss"), strict=True):
                chosen = [name for name in values if kind in name]
                for i, name in enumerate(chosen):
                    style = (THREAT_LOOKS["clean"], *_DASHED)[min(i, len(_DASHED))]
                    x, y = zip(*values[name].items(), strict=True)
                    axes.plot(x, y, color=style.color, ls=style.line, marker=style.marker, ms=3.5,
                              lw=1.4, label=name.replace("_", " "))  # fmt: skip
                if chosen:
                    axes.legend(loc="best", fontsize=8)
                else:
                    axes.set_axis_off()
            column[0].set_title(defense)
            column[1].set_xlabel("epoch")
            column[1].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        grid[0, 0].set_ylabel("accuracy")
        grid[1, 0].set_ylabel("loss")

    caption = "Accuracy and loss at the end of each epoch of training, from metrics.jsonl."
    return draw("training", caption, (min(WIDTH, 3 + 3.2 * len(epochs)), 5), paint)


def _by_epoch(run: RunRecords, defense: str) -> dict[str, dict[int, float]]:
    """Returns metric -> {epoch: last value in it}, for accuracies and losses."""
    curves: dict[str, dict[int, float]] = {}
    for line in run.training:
        if line["defense"] == defense and "epoch" in line:
            for name, value in line.items():
                if isinstance(value, float) and ("accuracy" in name or "loss" in name):
                    curves.setdefault(name, {})[line["epoch"]] = value
    return curves
