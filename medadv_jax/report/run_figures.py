"""The figures of one run. What would be empty is left out, with the reason."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix, roc_curve

from medadv_jax.evaluation.metrics import larger_class, reliability
from medadv_jax.report.records import THREATS, Outcome, RunRecords
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
    legend_below,
)
from medadv_jax.report.tables import Estimate


def figures(run: RunRecords) -> list[Graphic]:
    """Returns the figures of a run in the order of the page."""
    return [
        headline(run), by_attack(run), confusion(run), roc(run), calibration(run),
        curve(run, "epsilon"), curve(run, "num_steps"), training(run),
    ]  # fmt: skip


def headline(run: RunRecords) -> Graphic:
    """Accuracy clean and under the worst attack of each threat model."""
    columns: dict[str, list[Estimate | None]] = {"clean": []}
    for defense in run.defenses:
        columns["clean"].append(accuracy(run, run.clean(defense)))
        for threat in THREATS:
            outcome = run.worst(defense, (threat,))
            found = None if outcome is None else accuracy(run, outcome)
            columns.setdefault(threat, []).append(found)
    columns = {name: cells for name, cells in columns.items() if any(cells)}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bars(
            axes, run.defenses,
            {n: (THREAT_LOOKS[n], [e and e.value for e in es]) for n, es in columns.items()},
            {n: [e and e.interval for e in es] for n, es in columns.items()},
        )  # fmt: skip
        axes.set_ylabel("accuracy")
        _chance(axes, run)
        legend_below(figure, axes, 5)

    caption = (
        f"Accuracy on {len(run.label)} test images, clean and under the worst attack (per image) of"
        f" each threat model at ε = {run.epsilon:g}. Lines: 95 % intervals. Dotted: always naming"
        " the larger class. A gap: not run; without a purifier oblivious is adaptive."
    )
    return draw("headline", caption, (WIDTH, 3.3), paint)


def by_attack(run: RunRecords) -> Graphic:
    """Accuracy of each defence under each adaptive attack."""
    if not run.attacks:
        return Omitted("Accuracy by attack", "nothing was attacked at this ε")
    names = ["clean", *run.attacks]
    found = {d: [run.get(d, "adaptive", a) for a in names] for d in run.defenses}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        cells = {d: [o and accuracy(run, o) for o in os] for d, os in found.items()}
        bars(
            axes, names,
            {d: (defense_look(d), [e and e.value for e in es]) for d, es in cells.items()},
            {d: [e and e.interval for e in es] for d, es in cells.items()},
        )  # fmt: skip
        axes.set_ylabel("accuracy")
        _chance(axes, run)
        legend_below(figure, axes, 5)

    caption = f"Accuracy by attack and defence, adaptive attacks, ε = {run.epsilon:g}."
    return draw("accuracy_by_attack", caption, (WIDTH, 3.3), paint)


def _chance(axes: Axes, run: RunRecords) -> None:
    axes.axhline(larger_class(run.label) / len(run.label), color="#555555", lw=1, ls=":", zorder=1)


def _conditions(run: RunRecords) -> list[tuple[str, dict[str, Outcome]]]:
    """Returns (title, defence -> outcome) for clean and for the worst adaptive attack."""
    clean = {d: run.clean(d) for d in run.defenses}
    worst = {d: o for d in run.defenses if (o := run.worst(d)) is not None}
    return [("clean", clean), *([("worst adaptive attack", worst)] if worst else [])]


def confusion(run: RunRecords) -> Graphic:
    """Confusion matrices, clean and attacked."""
    conditions = _conditions(run)

    def paint(figure: Figure) -> None:
        columns = len(run.defenses)
        grid = figure.subplots(len(conditions), columns, squeeze=False)
        for row, (title, outcomes) in zip(grid, conditions, strict=True):
            for axes, defense in zip(row, run.defenses, strict=True):
                if defense not in outcomes:
                    axes.set_axis_off()
                    continue
                _matrix(axes, run, outcomes[defense])
                axes.set_title(f"{defense}, {title.split()[0]}")
            row[0].set_ylabel("truth")

    caption = (
        "Confusion matrices: rows are the truth, columns the prediction. Clean above, the worst"
        " adaptive attack below."
    )
    width = min(WIDTH, 2.6 + 2.3 * len(run.defenses))
    return draw("confusion", caption, (width, 2.5 * len(conditions) + 0.2), paint)


def _matrix(axes: Axes, run: RunRecords, outcome: Outcome) -> None:
    counts = confusion_matrix(run.label, outcome.predicted, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(2):
        for j in range(2):
            text = f"{counts[i, j]}\n{shares[i, j]:.0%}"
            axes.text(j, i, text, ha="center", va="center",
                      color="white" if shares[i, j] > 0.55 else "black")  # fmt: skip
    axes.set_xticks([0, 1], run.class_names)
    axes.set_yticks([0, 1], run.class_names, rotation=90, va="center")
    axes.grid(False)


def roc(run: RunRecords) -> Graphic:
    """ROC curves, clean and attacked."""
    if len(np.unique(run.label)) < 2:
        return Omitted("ROC curves", "the test images are of one class")
    conditions = _conditions(run)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axes, (title, outcomes) in zip(panels, conditions, strict=True):
            axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
            for defense, outcome in outcomes.items():
                if np.isfinite(outcome.score).all():
                    x, y, _ = roc_curve(run.label, outcome.score)
                    _line(axes, x, y, defense_look(defense), defense, marks=8)
            axes.set(title=title, xlabel="false positive rate", xlim=(-0.02, 1.02), aspect="equal")
            axes.set_ylim(-0.02, 1.02)
        panels[0].set_ylabel("true positive rate")
        legend_below(figure, panels[0], 5)

    caption = "ROC curves; dotted: guessing. Attacked: the most harmful score of each image."
    return draw("roc", caption, (min(WIDTH, 4.6 * len(conditions)), 4.6), paint)


def _line(
    axes: Axes, x: np.ndarray, y: np.ndarray, style: Look, label: str, marks: int = 1
) -> None:
    every = max(1, len(x) // marks) if marks > 1 else 1
    axes.plot(x, y, color=style.color, ls=style.line, marker=style.marker, markevery=every,
              ms=5, lw=1.6, label=label, clip_on=False)  # fmt: skip


def calibration(run: RunRecords) -> Graphic:
    """Reliability curves, clean and attacked."""
    conditions = _conditions(run)
    curves = [
        {d: reliability(run.label, o.score, o.predicted) for d, o in outcomes.items()}
        for _, outcomes in conditions
    ]
    if not any(c.error is not None for of in curves for c in of.values()):
        return Omitted("Reliability curves", "the scores are no probabilities")

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axes, (title, _), found in zip(panels, conditions, curves, strict=True):
            axes.plot([0.5, 1], [0.5, 1], color="#999999", lw=1, ls=":")
            for defense, c in found.items():
                if c.error is not None:
                    style, sizes = defense_look(defense), 12 + 90 * c.count / c.count.sum()
                    axes.plot(c.confidence, c.accuracy, color=style.color, ls=style.line, lw=1.2)
                    axes.scatter(
                        c.confidence, c.accuracy, sizes, color=style.color, marker=style.marker,
                        label=defense, clip_on=False, zorder=3,
                    )  # fmt: skip
            axes.set(title=title, xlabel="probability of the predicted class", xlim=(0.48, 1.02))
            axes.set_ylim(-0.03, 1.03)
        panels[0].set_ylabel("share right")
        legend_below(figure, panels[0], 5)

    caption = (
        "Reliability: how often a classifier is right when it is so sure. Dotted: perfectly"
        " calibrated. Larger marks stand for more images."
    )
    return draw("reliability", caption, (min(WIDTH, 4.8 * len(conditions)), 3.9), paint)


def curve(run: RunRecords, axis: str) -> Graphic:
    """Accuracy against epsilon or steps of adaptive PGD."""
    title = {"epsilon": "Accuracy against ε", "num_steps": "Accuracy against steps"}[axis]
    lines = run.curves_along(axis)
    if not lines:
        return Omitted(title, "curves.parquet holds no two points of it")
    clip = axis == "epsilon" and max(line.x.max() for line in lines) > 0.5

    def paint(figure: Figure) -> None:
        panels = figure.subplots(
            1, 1 + clip, sharey=True, squeeze=False, width_ratios=[7, 1][: 1 + clip]
        )[0]
        for line in lines:
            style = defense_look(line.defense)
            for axes, inside in zip(panels, (line.x <= 0.5, line.x > 0.5), strict=False):
                at = inside if clip else np.full(len(line.x), True)
                _line(axes, line.x[at], line.accuracy[at], style, line.defense)
                axes.fill_between(
                    line.x[at], line.low[at], line.high[at], color=style.color, alpha=0.13, lw=0
                )
        panels[0].set(ylabel="accuracy", ylim=(-0.03, 1.03))
        panels[0].set_xlabel("ε (pixels in [0, 1])" if axis == "epsilon" else "steps of PGD")
        if axis == "num_steps":
            panels[0].set_xticks(lines[0].x, [f"{x:g}" for x in lines[0].x])
        if clip:
            panels[1].set(xlabel="clip value", xticks=[1], xlim=(0.8, 1.2))
        legend_below(figure, panels[0], 5)

    other = f"{lines[0].fixed:g} steps" if axis == "epsilon" else f"ε = {lines[0].fixed:g}"
    caption = (
        f"{title} under adaptive PGD ({other}), on {lines[0].n} test images. Bands: 95 % intervals."
    )
    return draw(f"accuracy_{axis}", caption, (WIDTH, 3.4), paint)


def training(run: RunRecords) -> Graphic:
    """Loss and accuracy over the epochs, a column for each trained classifier."""
    names = list(dict.fromkeys(line["defense"] for line in run.training))
    epochs = {d: _by_epoch(run, d) for d in names}
    epochs = {d: values for d, values in epochs.items() if values}
    if not epochs:
        return Omitted("Training curves", "metrics.jsonl holds no epoch")

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, len(epochs), squeeze=False, sharex="col")
        for column, (defense, values) in zip(grid.T, epochs.items(), strict=True):
            for axes, kind in zip(column, ("accuracy", "loss"), strict=True):
                chosen = [name for name in values if kind in name]
                for i, name in enumerate(chosen):
                    style = (THREAT_LOOKS["clean"], *DASHED)[min(i, len(DASHED))]
                    x, y = values[name]
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


DASHED = (
    Look("#D55E00", "", "s", "--"), Look("#009E73", "", "^", "-."), Look("#444444", "", "D", ":"),
)  # fmt: skip


def _by_epoch(run: RunRecords, defense: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns metric -> (epochs, values at their ends), of accuracies and losses."""
    last: dict[tuple[str, int], float] = {}
    for line in run.training:
        if line["defense"] == defense and "epoch" in line:
            for name, value in line.items():
                if isinstance(value, float) and ("accuracy" in name or "loss" in name):
                    last[name, line["epoch"]] = value
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for (name, epoch), value in last.items():
        x, y = curves.setdefault(name, ([], []))
        x.append(epoch)
        y.append(value)
    return curves
