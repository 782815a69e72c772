"""The paper's Tables IV and V with our numbers; rows that cannot be correct are marked."""

from collections import Counter
from collections.abc import Sequence

from medadv_jax.report.aggregate import Group, Series, all_series
from medadv_jax.report.page import Section
from medadv_jax.report.paper.consistency import MARKS, MOST_IMAGES, RULE, judge
from medadv_jax.report.paper.printed import METRICS, ROWS, TABLE_OF, PaperRow
from medadv_jax.report.records import DEFENSES, Outcome, RunRecords, title_of
from medadv_jax.report.run_tables import LABELS
from medadv_jax.report.tables import Cell, Table, group_starts

PAPER_EVALUATIONS = ("clean", "fgsm", "pgd", "mifgsm", "bim")
NETWORKS = ("inception_v3", "resnet50", "vgg16", "vgg19")  # the order of the paper's tables


def paper_section(dataset: str, groups: Sequence[Group], only_ours: bool) -> list[Section]:
    """Returns the section with the paper's table of a data set, [] if the paper has none."""
    number = TABLE_OF.get(dataset)
    if number is None:
        return []
    tables = [paper_table(number, groups, only_ours), verdict_table(number, groups, only_ours)]
    return [Section(f"Table {number} of the paper: {title_of(dataset)}", [RULE, *tables])]


def paper_table(number: str, groups: Sequence[Group], only_ours: bool = False) -> Table:
    """Returns Table IV or V: every row of the paper, and our numbers beside it.

    Args:
      number: "IV" or "V".
      groups: of that table's data set.
      only_ours: without the paper's networks that no group has.
    """
    printed = {(r.model, r.defense, r.evaluation): r for r in ROWS[number]}
    models = [g.model for g in groups] if only_ours else [*NETWORKS, *(g.model for g in groups)]
    rows: list[tuple[Cell, ...]] = []
    for model in dict.fromkeys(models):
        for group in [g for g in groups if g.model == model] or [None]:
            rows += _network_rows(model, group, printed)
    columns: list[str] = ["network", "defence", "attack", "attacker"]
    for metric in METRICS:
        columns += [LABELS[metric], "paper"]
    repeats = any(len(g.runs) > 1 for g in groups)
    ours = "mean ± SD over seeds or folds; an" if repeats else "an"
    notes = (
        f"Ours: {ours} empty place (–) was not run. The paper attacks its autoencoder without"
        " knowing it (oblivious) and has no adaptive attack on it, nor numbers for the hybrid.",
        counts_sentence(number),
    )
    title = f"The layout of the paper's Table {number}: ours, and the paper's beside it"
    # The last column marks the paper's rows.
    return Table(f"table_{number.lower()}", title, (*columns, "paper's row"), rows, notes,
                 group_starts(rows, 2))  # fmt: skip


def _network_rows(
    model: str, group: Group | None, printed: dict[tuple[str, str, str], PaperRow]
) -> list[tuple[Cell, ...]]:
    """Returns the rows of one network: those of the paper and of our runs."""
    series = all_series(group.runs) if group else []
    missing = {d for m, d, _ in printed if m == model} - {s.defense for s in series}
    of_paper = [Series(d, t) for d, t in _PAPER_SERIES if d in missing]
    evaluations = [*PAPER_EVALUATIONS, *(group.attacks if group else ())]
    rows: list[tuple[Cell, ...]] = []
    for s in sorted([*series, *of_paper], key=_order):
        for evaluation in dict.fromkeys(evaluations):
            theirs = printed.get((model, s.defense, evaluation)) if _is_in_paper(s) else None
            ours = [group.spread(s, evaluation, m) if group else None for m in METRICS]
            clean = evaluation == "clean"
            if (clean and s.threat == "adaptive" and s.label != s.defense) or not (
                theirs or any(ours)
            ):
                continue  # clean images have no attacker: one row is enough
            cells: list[Cell] = []
            for metric, own in zip(METRICS, ours, strict=True):
                cells += [own, getattr(theirs, metric) if theirs else None]
            row = group.label if group else model, s.defense, evaluation, "–" if clean else s.threat
            rows.append((*row, *cells, _mark(theirs)))
    return rows


def paper_outcomes(
    number: str, groups: Sequence[Group]
) -> list[tuple[PaperRow, RunRecords, Outcome]]:
    """Returns each row of a table of the paper that a run has, too, with the run's predictions."""
    found = []
    for row in ROWS[number]:
        threats = dict(_PAPER_SERIES)
        for run in (run for group in groups if group.model == row.model for run in group.runs):
            if row.defense in run.defenses:
                outcome = run.get(row.defense, threats[row.defense], row.evaluation)
                found += [(row, run, outcome)] if outcome else []
    return found


_PAPER_SERIES = (("base", "adaptive"), ("adversarial", "adaptive"), ("autoencoder", "oblivious"))


def _is_in_paper(series: Series) -> bool:
    """Whether the paper attacks this defence with this attacker."""
    return (series.defense, series.threat) in _PAPER_SERIES


def _order(series: Series) -> tuple[int, int]:
    place = DEFENSES.index(series.defense) if series.defense in DEFENSES else len(DEFENSES)
    return place, int(series.threat == "adaptive")


def _mark(row: PaperRow | None) -> str:
    kind = judge(row).kind if row else ""
    return kind + MARKS.get(kind, "")


def counts_sentence(number: str) -> str:
    """Returns a sentence: how many rows of a table of the paper are impossible."""
    verdicts = [judge(row) for row in ROWS[number]]
    kinds = Counter(v.kind for v in verdicts)
    possible, unbalanced, impossible = (kinds[kind] for kind in MARKS)
    lenient = sum(judge(row, fewest_digits=3).counts is None for row in ROWS[number])
    sentence = (
        f"Table {number}, {len(verdicts)} rows: {impossible} impossible (*), {unbalanced} possible"
        f" only on unbalanced classes (†), {possible} possible."
    )
    if impossible:
        sentence += f" Reading 0.5 as rounded to three decimals leaves {lenient} impossible."
    if number == "IV":
        sentence += " All of it fits 100 images, 53 of them pneumonia."
    return sentence


def verdict_table(number: str, groups: Sequence[Group], only_ours: bool) -> Table:
    """Returns the paper's rows as printed, each with a verdict and a reason."""
    rows: list[tuple[Cell, ...]] = []
    ours = {group.model for group in groups}
    for row in (r for r in ROWS[number] if not only_ours or r.model in ours):
        verdict = judge(row)
        printed = (getattr(row, metric) for metric in METRICS)
        rows.append(
            (row.model, row.defense, row.evaluation, *printed, verdict.kind, verdict.reason)
        )
    columns = (
        "network", "defence", "attack", *(LABELS[m] for m in METRICS), "verdict", "reason",
    )  # fmt: skip
    title = f"Can one confusion matrix of up to {MOST_IMAGES} images give Table {number}'s rows?"
    return Table(f"paper_table_{number.lower()}", title, columns, rows, (),
                 group_starts(rows, 2))  # fmt: skip
