"""The page that compares several runs, in the paper's layout."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from medadv_jax.evaluation.metrics import is_trivial
from medadv_jax.report import comparison
from medadv_jax.report.aggregate import Group, Pooled, Series, make_groups, pool
from medadv_jax.report.cost import cost_sections
from medadv_jax.report.page import BAD, GOOD, PLAIN, UNSURE, Card, Page, Section
from medadv_jax.report.paper.claims import claims_section
from medadv_jax.report.paper.drawings import drawings
from medadv_jax.report.paper.figures import paper_figures
from medadv_jax.report.paper.pictures import pictures
from medadv_jax.report.paper.tables import paper_section
from medadv_jax.report.records import RunRecords, title_of
from medadv_jax.report.run_page import TWO_CLASSES, caveats, legend, percent, trust
from medadv_jax.report.run_tables import WORST, accuracy, headline_table, results_table
from medadv_jax.report.tables import Cell, Table, cell_text
from medadv_jax.report.transfer import TransferRecords, transfer_section, transfer_table

MOST_LINES = 6  # on a card
Comparisons = list[list[comparison.Comparison]]  # of each run


def build(
    runs: Sequence[RunRecords], transfers: Sequence[TransferRecords], missing: Sequence[str]
) -> Page:
    """Returns the page that compares runs.

    Args:
      runs: at least one.
      transfers: runs attacked with each other's adversarial examples.
      missing: a sentence about each cell of a sweep that is not among the runs.
    """
    comparisons = [comparison.compare(run) for run in runs]
    groups = {name: make_groups([r for r in runs if r.dataset == name]) for name in _datasets(runs)}
    sections = [Section("Warnings", [*missing, *warnings(runs)])]
    for dataset, inside in groups.items():
        sections += _dataset_sections(dataset, inside)
    sections += cost_sections(runs)
    sections.append(Section("Figures 1, 2 and 4, our drawings", drawings()))
    sections += [transfer_section(one) for one in transfers]
    sections.append(Section("Settings", [settings_table(runs)]))
    title = f"{_count(len(runs), 'run', 'runs')} on {' and '.join(map(title_of, groups))}"
    every = [group for inside in groups.values() for group in inside]
    answers = cards(runs, comparisons, every)
    first = [overview_table(runs, comparisons)]
    matrices = [transfer_table(one) for one in transfers]
    return Page(
        title, summary(runs), _lead(runs, every), legend(runs), answers, first, sections, matrices
    )


def _datasets(runs: Sequence[RunRecords]) -> list[str]:
    return list(dict.fromkeys(run.dataset for run in runs))


def _dataset_sections(dataset: str, groups: list[Group]) -> list[Section]:
    if len(groups[0].runs[0].class_names) != 2:
        left_out = Section(f"The paper's tables and figures: {title_of(dataset)}", [TWO_CLASSES])
        return [*_folds_sections(dataset, groups), left_out]
    title = title_of(dataset)
    shown = [
        part
        for number, group in enumerate(groups)
        for part in pictures(group.runs[0], group.label, with_samples=number == 0)
    ]
    return [
        claims_section(dataset, groups),
        *_folds_sections(dataset, groups),
        *paper_section(dataset, groups, only_ours=False),
        Section(f"Figures 5 to 7 and 14 to 18: {title}", paper_figures(dataset, groups)),
        Section(f"Figures 2b, 3 and 8 to 13, images: {title}", shown),
    ]


_FOLDS_NOTE = (
    "The folds' predictions on their own test images, put together: each image once, by the network"
    " of the fold that tests it. Intervals resample patients over all folds, and take the networks"
    " as they are. An AUC of several networks takes their scores for comparable."
)


def _folds_sections(dataset: str, groups: Sequence[Group]) -> list[Section]:
    """Returns a section for each group with folds."""
    sections = []
    for number, group in enumerate(groups):
        parts = [
            part
            for pooled in pool(group)
            for part in _folds_parts(pooled, f"folds_{dataset}_{number}_seed{pooled.seed}")
        ]
        if parts:
            sections.append(
                Section(f"All folds together: {group.label} on {title_of(dataset)}", parts)
            )
    return sections


def _folds_parts(pooled: Pooled, suffix: str) -> list[Table | str]:
    """Returns headline, results and comparisons of pooled folds, or why they are not pooled."""
    run, seed = pooled.run, pooled.seed
    if run is None:
        return [f"Seed {seed}: not put together: {pooled.reason}."]
    tables = [
        headline_table(run),
        results_table(run),
        comparison.pairwise_table(comparison.compare(run)),
    ]
    return [
        dataclasses.replace(
            table, name=f"{table.name}_{suffix}", title=f"{table.title} (seed {seed})",
            notes=(*table.notes, _FOLDS_NOTE),
        )
        for table in tables if table
    ]  # fmt: skip


def summary(runs: Sequence[RunRecords]) -> str:
    """Returns in plain words what attacks do to the networks, without and with a defence."""
    bases = [run.summary("base", "adaptive", WORST) for run in runs]
    flipped = [one.attack_success_rate for one in bases if one]
    kept = [
        max(values)
        for run in runs
        if (values := [v for d, v in comparison.attacked_accuracy(run).items() if d != "base"])
    ]
    sentences = []
    if known := [rate for rate in flipped if rate is not None]:
        sentences.append(f"Without a defence attacks flip {_range(known)} of the right answers.")
    if kept:
        sentences.append(
            f"With the defence that withstands most, {_range(kept)} of all images are still"
            " classified correctly."
        )
    return " ".join(sentences) or "Nothing was attacked: this page says nothing about robustness."


def _range(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def _lead(runs: Sequence[RunRecords], groups: list[Group]) -> str:
    sizes = [len(run.label) for run in runs]
    many = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else str(sizes[0])
    epsilons = ", ".join(f"{e:g}" for e in sorted({run.epsilon for run in runs}))
    return (
        f"{_count(len(groups), 'network or setting', 'networks or settings')}, {many} test images a"
        f" run, ε = {epsilons}. Numbers with ± are mean and standard deviation over seeds or folds."
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def overview_table(runs: Sequence[RunRecords], comparisons: Comparisons) -> Table:
    """Returns the four answers of each run as a table."""
    rows: list[tuple[Cell, ...]] = []
    for run, pairs in zip(runs, comparisons, strict=True):
        best = comparison.best_defense(run)
        outcomes = (run.clean(best), run.worst(best)) if best else (None, None)
        rows.append(
            (run.name, run.model, title_of(run.dataset), len(run.label), run.count_patients(),
             _leader(best, [run]) if best else "–", *(o and accuracy(run, o) for o in outcomes),
             "yes" if comparison.is_best_significant(run, pairs) else "no", trust(run).text[0])
        )  # fmt: skip
    columns = (
        "run", "network", "data", "images", "patients", "leading defence", "its clean accuracy",
        "worst adaptive attack", "significantly best", "may I trust it?",
    )  # fmt: skip
    note = (
        "Leading: the highest accuracy against the worst adaptive attack. Significantly best:"
        " better than every other defence of its run (McNemar exact, Holm; interval by patient)."
        " Brackets: 95 % intervals, by patient where patients repeat."
    )
    return Table("overview", "The answers, run by run", columns, rows, (note,))


def _leader(best: str, runs: Sequence[RunRecords]) -> str:
    """Returns a defence, and in how many runs it is no better than predicting one class."""
    trivial = sum(is_trivial(run.label, run.clean(best).predicted) for run in runs)
    where = f"in {trivial} of {len(runs)} runs " if len(runs) > 1 else ""
    return f"{best} ({where}no better than always predicting one class)" if trivial else best


def cards(runs: Sequence[RunRecords], comparisons: Comparisons, groups: list[Group]) -> list[Card]:
    """Returns the four answers at the top of the page."""
    clean, attacked = [], []
    several = len(_datasets(runs)) > 1
    for group in groups:
        best = _best_of(group)
        if best is None:
            continue
        place = f" on {title_of(group.runs[0].dataset)}" if several else ""
        leader = _leader(best, [run for run in group.runs if best in run.defenses])
        count = f"{len(group.runs)} runs" if len(group.runs) > 1 else ""
        for lines, evaluation in ((clean, "clean"), (attacked, "worst")):
            spread = group.spread(Series(best, "adaptive"), evaluation, "accuracy")
            lines.append((f"{group.label}{place}: {leader}", cell_text(spread), count))
    questions = {
        "How good on clean images? (each network's leading defence)": clean,
        "How good under attack? (for each image the worst, adaptive)": attacked,
    }
    numbers = [
        Card(question, PLAIN, tuple(lines[:MOST_LINES]), _more(lines))
        for question, lines in questions.items()
    ]
    first = caveats(runs)
    if first:
        numbers[0] = dataclasses.replace(numbers[0], kind=UNSURE, text=(*numbers[0].text, *first))
    return [*numbers, _best_card(runs, comparisons), _trust_card(runs)]


def _more(lines: Sequence) -> tuple[str, ...]:
    hidden = len(lines) - MOST_LINES
    return (f"… and {hidden} more in the table below.",) if hidden > 0 else ()


def _best_of(group: Group) -> str | None:
    """Returns the defence with the highest mean attacked accuracy."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        for defense, value in comparison.attacked_accuracy(run).items():
            found.setdefault(defense, []).append(value)
    return max(found, key=lambda d: float(np.mean(found[d]))) if found else None


def _best_card(runs: Sequence[RunRecords], comparisons: Comparisons) -> Card:
    leading: dict[str, list[bool]] = {}
    for run, pairs in zip(runs, comparisons, strict=True):
        best = comparison.best_defense(run)
        if best:
            leading.setdefault(best, []).append(comparison.is_best_significant(run, pairs))
    ordered = sorted(leading.items(), key=lambda item: -len(item[1]))
    sentences = [
        f"{d} leads in {len(wins)} of {len(runs)} runs, significantly in {sum(wins) or 'none'}."
        for d, wins in ordered
    ]
    won = len(ordered) == 1 and all(ordered[0][1])
    text = sentences or ["Nothing was attacked, so no defence can be called best."]
    return Card("Which defence is best?", GOOD if won else UNSURE, (), tuple(text))


def _trust_card(runs: Sequence[RunRecords]) -> Card:
    answers = [(run, trust(run)) for run in runs]
    doubtful = [(run, card) for run, card in answers if card.kind == BAD or run.checks is None]
    kinds = {card.kind for _, card in answers}
    kind = BAD if BAD in kinds else UNSURE if UNSURE in kinds else GOOD
    first = f"{len(runs) - len(doubtful)} of {len(runs)} runs may be trusted."
    rest = [f"{run.name}: {card.text[0]}" for run, card in doubtful]
    return Card("May I trust this?", kind, (), (first, *rest[:MOST_LINES], *_more(rest)))


def warnings(runs: Sequence[RunRecords]) -> list[str]:
    """Returns the warnings to read before comparing the runs."""
    found = [f"{run.name}: {doubt}." for run in runs for doubt in run.doubts()]
    for dataset in _datasets(runs):
        inside = [run for run in runs if run.dataset == dataset]
        if len({tuple(run.example) for run in inside}) > 1:
            found.append(
                f"{title_of(dataset)}: the runs have different test images; differences between"
                " them are also differences of images."
            )
        if len({run.epsilon for run in inside}) > 1:
            found.append(f"{title_of(dataset)}: the runs have different ε.")
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [*found, *(f"{name}: several runs have this name." for name in repeated)]


def settings_table(runs: Sequence[RunRecords]) -> Table:
    """Returns device and git commit of each run."""
    rows: list[tuple[Cell, ...]] = [
        (run.name, str(run.about.get("device", "–")), str(run.about.get("git_commit") or "–"))
        for run in runs
    ]
    note = "Every setting of a run stands in the report of that run alone."
    return Table("runs", "Where the runs come from", ("run", "device", "git commit"), rows, (note,))
