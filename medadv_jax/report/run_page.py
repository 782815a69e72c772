"""The page of one run."""

from collections.abc import Sequence

from medadv_jax.evaluation.metrics import is_trivial
from medadv_jax.report import comparison, run_figures, run_tables
from medadv_jax.report.aggregate import Group, make_groups
from medadv_jax.report.certificates import certificates_figure, certificates_table
from medadv_jax.report.cost import cost_sections
from medadv_jax.report.elsewhere import elsewhere_table
from medadv_jax.report.example_panels import panels
from medadv_jax.report.interpretability import interpretability_parts
from medadv_jax.report.page import BAD, GOOD, PLAIN, UNSURE, Card, Page, Part, Section
from medadv_jax.report.paper.drawings import drawings
from medadv_jax.report.paper.figures import figures_of_one
from medadv_jax.report.paper.pictures import pictures
from medadv_jax.report.paper.tables import paper_section
from medadv_jax.report.records import DEFENSES, RunRecords, title_of
from medadv_jax.report.run_tables import WORST
from medadv_jax.report.tables import Table, cell_parts
from medadv_jax.report.uncertainty import uncertainty_parts

TRUSTED = "trusted"
TWO_CLASSES = "The paper has two classes: its tables and figures are left out."
NOT_RUN = "The self-checks have not been run."


def build(run: RunRecords) -> Page:
    """Returns the page of a run."""
    comparisons = comparison.compare(run)
    headline, metrics = run_tables.headline_table(run), run_tables.metrics_table(run)
    return Page(
        f"{title_of(run.model)} on {title_of(run.dataset)}",
        summary(run),
        lead(run),
        legend([run]),
        cards(run, comparisons, headline),
        [run_figures.headline(run)],
        _sections(run, comparison.pairwise_table(comparisons), headline, metrics),
        [metrics],
    )


def _sections(
    run: RunRecords, pairwise: Table | None, headline: Table, metrics: Table
) -> list[Section]:
    by_attack, confusion, roc, calibration, epsilon, steps, training = run_figures.figures(run)
    groups = make_groups([run])
    return [
        Section("Warnings", warnings(run)),
        Section("Attacked images", panels(run)),
        Section("Results", [
            headline, run_tables.clinical_table(run, metrics), run_tables.results_table(run),
            by_attack, pairwise,
        ]),
        Section("Self-checks", [run_tables.checks_summary(run), run_tables.checks_table(run)]),
        Section("Accuracy against ε and steps", [epsilon, steps]),
        Section("Errors and scores", [confusion, run_tables.class_table(run), roc]),
        Section("Calibration", [run_tables.calibration_table(run), calibration]),
        Section("Uncertainty", uncertainty_parts(run)),
        Section("Magnifications and subtypes", [
            run_tables.subgroup_table(run, by) for by in run.subgroups
        ]),
        Section("Interpretability", interpretability_parts(run)),
        Section("Certificates", [certificates_table(run), certificates_figure(run)]),
        Section("Measured elsewhere", [elsewhere_table(run.path)]),
        Section("Detector", [run_tables.detection_table(run)]),
        *paper_section(run.dataset, groups, only_ours=True),
        Section("In the figures of the paper", _paper_figures(run, groups[0])),
        Section("Figures 1, 2 and 4, our drawings", drawings()),
        Section("Training", [training]),
        *cost_sections([run]),
        Section("Settings", [*run.splits.get("notes", []), run_tables.settings_table(run)]),
    ]  # fmt: skip


def _paper_figures(run: RunRecords, group: Group) -> Sequence[Part]:
    if len(run.class_names) != 2:
        return [TWO_CLASSES]
    return [*pictures(run, title_of(run.model)), *figures_of_one(group)]


LEGEND = {
    "base": "the network without a defence",
    "adversarial": "trained on attacked images, too",
    "autoencoder": "base behind a purifier, which takes perturbations out of an image",
    "hybrid": "adversarial training and a purifier",
    "joint": "network and purifier trained together on attacked images",
    "purified": "adversarial behind a purifier that was trained for it",
    "ε": "the most by which an attack may change a pixel; pixels are in [0, 1]",
    "adaptive": "an attacker that knows everything, the purifier included; this is what counts",
    "oblivious": "an attacker that does not know of the purifier, as in the paper",
    "transfer": "images that were made to fool base, shown to another classifier",
    "worst": "for each image the attack that does most harm; it may also leave the image as it is",
    "R, W": "how an interval was computed: R by resampling patients, W Wilson's",
}
_IN_WORDS = {
    "adversarial": "adversarial training", "autoencoder": "the autoencoder", "hybrid": "the hybrid",
}  # fmt: skip


def legend(runs: Sequence[RunRecords]) -> list[tuple[str, str]]:
    """Returns the words that pages of these runs use, with their meaning."""
    found = {defense for run in runs for defense in run.defenses}
    return [(w, text) for w, text in LEGEND.items() if w in found or w not in DEFENSES]


def summary(run: RunRecords) -> str:
    """Returns in plain words what attacks do to the network, without and with a defence."""
    accuracy = comparison.attacked_accuracy(run)
    base = run.summary("base", "adaptive", WORST)
    sentences = []
    if base and base.attack_success_rate is not None:
        part = _share(base.attack_success_rate)
        sentences.append(f"Without a defence an attack flips {part} right answer{_plural(part)}.")
    defended = {name: value for name, value in accuracy.items() if name != "base"}
    if defended:
        best = max(defended, key=defended.__getitem__)
        clean = run.clean(best).predicted
        trivial = ", no better than always naming one class" if is_trivial(run.label, clean) else ""
        sentences.append(
            f"With {_IN_WORDS.get(best, best)}, the defence that withstands most,"
            f" {percent(defended[best])} of all images are still classified correctly{trivial};"
            f" without an attack {percent(float((clean == run.label).mean()))}."
        )
    return " ".join(sentences) or "Nothing was attacked: this page says nothing about robustness."


def _share(rate: float) -> str:
    """Returns a share as it stands before "right answer(s)"."""
    return {0.0: "no", 1.0: "every"}.get(rate, f"{percent(rate)} of the")


def _plural(share: str) -> str:
    return "s" if share.endswith("the") else ""


def percent(share: float) -> str:
    """Returns whole percents; one decimal where these would say none or all."""
    rounded = f"{share:.0%}"
    return f"{share:.1%}" if rounded in ("0%", "100%") and 0 < share < 1 else rounded


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
        Card("How good on clean images?", UNSURE if run.generated else PLAIN, _lines(headline, 1),
             caveats([run])),
        Card("How good under attack? (for each image the worst, adaptive)", PLAIN,
             _lines(headline, 2)),
        Card("Which defence is best?", kind, (), comparison.conclusion(run, comparisons)),
        trust(run),
    ]  # fmt: skip


def caveats(runs: Sequence[RunRecords]) -> tuple[str, ...]:
    """Returns what the reader of an accuracy must know first: where images or splits are weak."""
    found = []
    if any(run.generated for run in runs):
        found.append("These images are generated: no number here is about patients.")
    splits = dict.fromkeys(run.split for run in runs if run.patients_unknown)
    return (*found, *(f"Split by {split}: accuracies may flatter." for split in splits))


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
