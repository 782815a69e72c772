"""What a run's classifiers are worth if they may say nothing: curves of risk, prediction sets."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.evaluation.predictions import Columns, read_scores
from medadv_jax.evaluation.uncertainty import (
    ALPHA,
    KEPT,
    answer_threshold,
    answers_above,
    conformal_probability,
    describe_sets,
    prediction_sets,
    risk_coverage,
)
from medadv_jax.report.page import Part
from medadv_jax.report.records import Outcome, RunRecords
from medadv_jax.report.style import WIDTH, Picture, defense_look, draw, legend_below
from medadv_jax.report.tables import Cell, Table, group_starts

_NOTES = (
    f"Abstention: images are answered whose largest probability is at least a threshold, at which"
    f" {KEPT:.0%} of the clean validation images are answered. Risk: mean share of errors among the"
    " answers, over all shares of answered images (AURC); lower is better.",
    f"Sets: all classes of at least a probability, chosen on clean validation images so that"
    f" {1 - ALPHA:.0%} of the sets hold the right class. That promise is for clean images like"
    " these; the rows under attack show what is left of it. Checkpoints were chosen on the same"
    " validation images, and images of one patient are alike, so that it holds roughly.",
    "Attacked: for each image the adaptive attack that harms most; no attacker aimed at the"
    " threshold or at the sets.",
)


def uncertainty_parts(run: RunRecords) -> Sequence[Part | None]:
    """Returns the table and the figure; nothing where no validation scores were kept."""
    return [uncertainty_table(run), risk_figure(run)] if run.calibration else []


def _conditions(run: RunRecords, defense: str) -> dict[str, Outcome]:
    """Returns the clean predictions, and the worst of the adaptive attacker if there is one."""
    worst = run.worst(defense)
    found = {"clean": run.clean(defense)}
    return found if worst is None else {**found, "attacked": worst}


def uncertainty_table(run: RunRecords) -> Table:
    """Returns a row for each calibrated defence, clean and attacked."""
    calibration = run.calibration
    assert calibration is not None
    rows: list[tuple[Cell, ...]] = []
    for defense in run.defenses:
        own = calibration["defense"] == defense
        for name, outcome in _conditions(run, defense).items() if own.any() else ():
            rows.append((defense, name, *_cells(run, outcome, calibration, own)))
    return Table(
        "uncertainty",
        "Abstention and prediction sets",
        ("defense", "images", "risk", "answered", "accuracy of answers", "sets that hold the class",
         "classes in a set"),
        rows, _NOTES, group_starts(rows),
    )  # fmt: skip


def _cells(
    run: RunRecords, outcome: Outcome, calibration: Columns, own: np.ndarray
) -> tuple[Cell, ...]:
    clean, correct = read_scores(calibration)[own], outcome.predicted == run.label
    answers = answers_above(outcome.score, correct, answer_threshold(clean))
    probability = conformal_probability(clean, calibration["label"][own])
    sets = describe_sets(prediction_sets(outcome.score, probability), run.label)
    return risk_coverage(outcome.score, correct).area, *answers, sets.coverage, sets.size


def risk_figure(run: RunRecords) -> Picture:
    """Returns the risk-coverage curves, clean and attacked."""
    kinds = [name for name in ("clean", "attacked") if name in _conditions(run, run.defenses[0])]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for defense in run.defenses:
                outcome = _conditions(run, defense).get(kind)
                if outcome is not None:
                    curve = risk_coverage(outcome.score, outcome.predicted == run.label)
                    style = defense_look(defense)
                    axes.plot(curve.coverage, curve.risk, color=style.color, ls=style.line, lw=1.8,
                              label=defense)  # fmt: skip
            axes.set(title=kind, xlabel="share of images that are answered", xlim=(0, 1.02))
            axes.set_ylim(-0.02, 1.02)
        panels[0].set_ylabel("share of errors among the answers")
        legend_below(figure, panels[0], 4)

    caption = (
        f"Risk and coverage: {len(run.label)} test images, answered from the surest on; attacked:"
        " for each image the adaptive attack that harms most."
    )
    return draw("risk_coverage", caption, (WIDTH, 3.8), paint)
