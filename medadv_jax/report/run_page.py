"""The page of one run: what stands on it, and in which order."""

import numpy as np

from medadv_jax.report import run_figures, run_tables
from medadv_jax.report.aggregate import make_groups
from medadv_jax.report.comparison import (
    ATTACKED,
    Comparison,
    attacked_accuracy,
    best_defense,
    compare,
    find,
    pairwise_table,
    verdict,
)
from medadv_jax.report.example_panels import panels
from medadv_jax.report.page import BAD, GOOD, PLAIN, UNSURE, Card, Page, Section
from medadv_jax.report.paper.figures import figures_of_one
from medadv_jax.report.paper.tables import paper_section
from medadv_jax.report.records import RunRecords
from medadv_jax.report.style import Graphic
from medadv_jax.report.tables import Cell, Estimate, Table, cell_parts

TRUSTED = "trusted"
NOT_RUN = "The self-checks have not been run."


def build(run: RunRecords) -> Page:
    """Returns the page of a run."""
    comparisons = compare(run)
    headline = run_tables.headline_table(run)
    first, *figures = run_figures.figures(run)
    sections = _sections(run, comparisons, headline, figures)
    title = f"{run.model} on {run.dataset}"
    answers = cards(run, comparisons, headline)
    return Page(title, lead(run), answers, [first], sections, [run_tables.metrics_table(run)])


def _sections(
    run: RunRecords, comparisons: list[Comparison], headline: Table, figures: list[Graphic]
) -> list[Section]:
    by_attack, confusion, roc, calibration, epsilon, steps, training = figures
    detection = run_tables.detection_table(run)
    groups = make_groups([run])
    return [
        Section("Warnings", warnings(run)),
        Section("Self-checks", [run_tables.checks_summary(run)]),
        Section("Results", [headline, run_tables.results_table(run), by_attack,
                            pairwise_table(comparisons) if comparisons else None]),
        Section("Accuracy against ε and steps", [epsilon, steps]),
        Section("Errors and scores", [confusion, roc]),
        Section("Calibration", [run_tables.calibration_table(run), calibration]),
        Section("Magnifications and subtypes", [
            run_tables.subgroup_table(run, by) for by in ("magnification", "subtype")
        ]),
        Section("Attacked images", panels(run)),
        Section("Detector", [detection]),
        Section("Self-checks in full", [run_tables.checks_table(run)]),
        *paper_section(run.dataset, groups, only_ours=True),
        Section("In the figures of the paper", figures_of_one(groups[0])),
        Section("Training", [training]),
        Section("Settings", [run_tables.settings_table(run), *run.splits.get("notes", [])]),
    ]  # fmt: skip


def lead(run: RunRecords) -> str:
    """Returns what was tested, on one line."""
    attacks = f"{', '.join(run.attacks)} at ε = {run.epsilon:g}" if run.attacks else "no attack"
    return (
        f"Run {run.name}: {len(run.label)} test images of {len(np.unique(run.group))} patients"
        f" (groups), {run.config['data'].get('split', '?')}-level split; {attacks}."
    )


def cards(run: RunRecords, comparisons: list[Comparison], headline: Table) -> list[Card]:
    """Returns the four answers of the first screen."""
    good = bool(attacked_accuracy(run)) and is_best_significant(run, comparisons)
    return [
        Card("How good on clean images?", PLAIN, _lines(headline, 1)),
        Card("How good under attack? (for each image the worst, adaptive)", PLAIN,
             _lines(headline, 2)),
        Card("Which defence is best?", GOOD if good else UNSURE, (), verdict(run, comparisons)),
        trust(run),
    ]  # fmt: skip


def _lines(headline: Table, column: int) -> tuple[tuple[str, str, str], ...]:
    """Returns a line for each defence."""
    return tuple(_line(str(row[0]), row[column]) for row in headline.rows)


def _line(name: str, cell: Cell) -> tuple[str, str, str]:
    return (name, *cell_parts(cell)) if isinstance(cell, Estimate) else (name, "–", "not attacked")


def is_best_significant(run: RunRecords, comparisons: list[Comparison]) -> bool:
    """Returns whether the leading defence is significantly better than every other one."""
    best = best_defense(run)
    others = [d for d in attacked_accuracy(run) if d != best]
    return bool(others) and all(
        find(comparisons, ATTACKED, str(best), other).significant for other in others
    )


def trust(run: RunRecords) -> Card:
    """Returns what the self-checks say, and whether there are enough images and patients."""
    question = "May I trust this?"
    doubts = [f"{doubt[0].upper()}{doubt[1:]}." for doubt in run.doubts()]
    if run.checks is None:
        first = "No: too little data." if doubts else NOT_RUN
        rest = [NOT_RUN, *doubts] if doubts else ["No number below has been verified."]
        return Card(question, BAD if doubts else UNSURE, (), (first, *rest))
    headline = str(run.checks.get("headline", ""))
    counts = _verdicts(run)
    if headline != TRUSTED:
        return Card(question, BAD, (), (_sentence(headline), *doubts, counts))
    if doubts:
        return Card(question, BAD, (), ("No: too little data.", *doubts, counts))
    kind = UNSURE if any(c.get("verdict") == "warn" for c in run.checks.get("checks", [])) else GOOD
    first = "Yes, as far as the self-checks see." if kind == GOOD else "Yes, with warnings."
    return Card(question, kind, (), (first, counts))


def _sentence(text: str) -> str:
    text = text or "no headline in self_checks.json"
    return f"{text[0].upper()}{text[1:]}."


def _verdicts(run: RunRecords) -> str:
    """Returns how many self-checks passed, warn and fail, and which do not pass."""
    found = (run.checks or {}).get("checks", [])
    counts = {v: sum(c.get("verdict") == v for c in found) for v in ("pass", "warn", "fail")}
    numbers = sorted({int(c["number"]) for c in found if c.get("verdict") != "pass"})
    which = f" (see check {', '.join(map(str, numbers))})" if numbers else ""
    return (
        f"Self-checks: {counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail{which}."
    )


def warnings(run: RunRecords) -> list[str]:
    """Returns what a reader must know before any number."""
    found = [f"{d[0].upper()}{d[1:]}: these accuracies mean little." for d in run.doubts()]
    if run.checks is None:
        found.append(NOT_RUN)
    if run.config["data"].get("split") == "image":
        found.append("Split by image: patients may be in training and in test; accuracies flatter.")
    if run.generated:
        found.append("Generated images: no number here says anything about patients.")
    found += [f"{name}: withheld, its adaptive partner is missing." for name in run.withheld()]
    return found
