"""The page of one run."""

from collections.abc import Sequence

from medadv_jax.report import comparison, run_figures, run_tables
from medadv_jax.report.aggregate import Group, make_groups
from medadv_jax.report.certificates import certificates_figure, certificates_table
from medadv_jax.report.example_panels import panels
from medadv_jax.report.interpretability import interpretability_parts
from medadv_jax.report.page import BAD, GOOD, PLAIN, UNSURE, Card, Page, Part, Section
from medadv_jax.report.paper.figures import figures_of_one
from medadv_jax.report.paper.tables import paper_section
from medadv_jax.report.records import RunRecords
from medadv_jax.report.tables import Table, cell_parts
from medadv_jax.report.uncertainty import uncertainty_parts

TRUSTED = "trusted"
TWO_CLASSES = "The paper has two classes: its tables and figures are left out."
NOT_RUN = "The self-checks have not been run."


def build(run: RunRecords) -> Page:
    """Returns the page of a run."""
    comparisons = comparison.compare(run)
    headline = run_tables.headline_table(run)
    return Page(
        f"{run.model} on {run.dataset}",
        lead(run),
        cards(run, comparisons, headline),
        [run_figures.headline(run)],
        _sections(run, comparison.pairwise_table(comparisons), headline),
        [run_tables.metrics_table(run)],
    )


def _sections(run: RunRecords, pairwise: Table | None, headline: Table) -> list[Section]:
    by_attack, confusion, roc, calibration, epsilon, steps, training = run_figures.figures(run)
    groups = make_groups([run])
    return [
        Section("Warnings", warnings(run)),
        Section("Self-checks", [run_tables.checks_summary(run)]),
        Section("Results", [headline, run_tables.results_table(run), by_attack, pairwise]),
        Section("Accuracy against ε and steps", [epsilon, steps]),
        Section("Errors and scores", [confusion, run_tables.class_table(run), roc]),
        Section("Calibration", [run_tables.calibration_table(run), calibration]),
        Section("Uncertainty", uncertainty_parts(run)),
        Section("Magnifications and subtypes", [
            run_tables.subgroup_table(run, by) for by in run.subgroups
        ]),
        Section("Attacked images", panels(run)),
        Section("Interpretability", interpretability_parts(run)),
        Section("Certificates", [certificates_table(run), certificates_figure(run)]),
        Section("Detector", [run_tables.detection_table(run)]),
        Section("Self-checks in full", [run_tables.checks_table(run)]),
        *paper_section(run.dataset, groups, only_ours=True),
        Section("In the figures of the paper", _paper_figures(run, groups[0])),
        Section("Training", [training]),
        Section("Settings", [run_tables.settings_table(run), *run.splits.get("notes", [])]),
    ]  # fmt: skip


def _paper_figures(run: RunRecords, group: Group) -> Sequence[Part]:
    return figures_of_one(group) if len(run.class_names) == 2 else [TWO_CLASSES]


def lead(run: RunRecords) -> str:
    """Returns the line below the title: test images, split and attacks."""
    attacks = f"{', '.join(run.attacks)} at ε = {run.epsilon:g}" if run.attacks else "no attack"
    images = f"Run {run.name}: {len(run.label)} test images"
    if run.patients_unknown:
        return f"{images}, split by {run.split}; {attacks}."
    return (
        f"{images} of {run.count_patients()} patients (groups), {run.split}-level split; {attacks}."
    )


def cards(run: RunRecords, comparisons: list[comparison.Comparison], headline: Table) -> list[Card]:
    """Returns the four answers at the top of the page."""
    kind = GOOD if comparison.is_best_significant(run, comparisons) else UNSURE
    return [
        Card("How good on clean images?", PLAIN, _lines(headline, 1), _leaks(run)),
        Card("How good under attack? (for each image the worst, adaptive)", PLAIN,
             _lines(headline, 2)),
        Card("Which defence is best?", kind, (), comparison.conclusion(run, comparisons)),
        trust(run),
    ]  # fmt: skip


def _leaks(run: RunRecords) -> tuple[str, ...]:
    """Returns the sentence that a split without known patients needs, if it is one."""
    if not run.patients_unknown:
        return ()
    return (f"Split by {run.split}: accuracies may flatter.",)


def _lines(headline: Table, column: int) -> tuple[tuple[str, str, str], ...]:
    """Returns (defence, accuracy, interval) of each defence."""
    cells = {str(row[0]): row[column] for row in headline.rows}
    return tuple(
        (name, "–", "not attacked") if cell is None else (name, *cell_parts(cell))
        for name, cell in cells.items()
    )


def trust(run: RunRecords) -> Card:
    """Returns whether self-checks and numbers of images and patients allow trust."""
    question = "May I trust this?"
    doubts = [_sentence(doubt) for doubt in run.doubts()]
    if run.checks is None:
        first = "No: too little data." if doubts else NOT_RUN
        rest = [NOT_RUN, *doubts] if doubts else ["No number below has been verified."]
        return Card(question, BAD if doubts else UNSURE, (), (first, *rest))
    headline = str(run.checks.get("headline") or "no headline in self_checks.json")
    counts = _check_counts(run)
    if headline != TRUSTED:
        return Card(question, BAD, (), (_sentence(headline), *doubts, counts))
    if doubts:
        return Card(question, BAD, (), ("No: too little data.", *doubts, counts))
    kind = UNSURE if any(c.get("verdict") == "warn" for c in run.checks.get("checks", [])) else GOOD
    first = "Yes, as far as the self-checks see." if kind == GOOD else "Yes, with warnings."
    return Card(question, kind, (), (first, counts))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _check_counts(run: RunRecords) -> str:
    """Returns how many self-checks pass, warn and fail, and which do not pass."""
    found = (run.checks or {}).get("checks", [])
    counts = {v: sum(c.get("verdict") == v for c in found) for v in ("pass", "warn", "fail")}
    numbers = sorted({int(c["number"]) for c in found if c.get("verdict") != "pass"})
    which = f" (see check {', '.join(map(str, numbers))})" if numbers else ""
    return (
        f"Self-checks: {counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail{which}."
    )


def warnings(run: RunRecords) -> list[str]:
    """Returns the warnings to read before any number."""
    found = [f"{d[0].upper()}{d[1:]}: these accuracies mean little." for d in run.doubts()]
    if run.checks is None:
        found.append(NOT_RUN)
    if run.config["data"].get("split") == "image":
        found.append("Split by image: patients may be in training and in test; accuracies flatter.")
    elif run.patients_unknown:
        found.append(
            f"Split by {run.split}: a patient may be in training and in test; accuracies may"
            " flatter."
        )
    attack = run.config["attack"]
    if attack.get("mask", "none") != "none" or attack.get("grey"):
        found.append(
            "Attackers were restricted by attack.mask and attack.grey: so is every robust number."
        )
    if run.generated:
        found.append("Generated images: no number here says anything about patients.")
    found += [f"{name}: withheld, its adaptive partner is missing." for name in run.withheld()]
    return found
