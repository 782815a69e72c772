"""The page that answers the paper piece by piece, in Markdown, from the records of runs."""

import re
from collections import Counter
from collections.abc import Sequence

from medadv_jax.report.aggregate import Group, make_groups
from medadv_jax.report.paper.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDABLE, claims_table
from medadv_jax.report.paper.sentences import BOTH, TISSUE, XRAYS
from medadv_jax.report.paper.tables import counts_sentence, paper_outcomes
from medadv_jax.report.records import RunRecords, title_of
from medadv_jax.report.run_tables import accuracy
from medadv_jax.report.tables import Cell, Table, cell_text

_TABLES = (
    ("Table I", "split of the X-rays", "`medadv_jax/data/chest_xray/builder.py`, `splits.json`"),
    ("Table II", "split of BreakHis", "`medadv_jax/data/breakhis/builder.py`, `splits.json`"),
    ("Table III", "definitions of the metrics", "`medadv_jax/evaluation/metrics.py`"),
    ("Table IV", "metrics on the X-rays", "`medadv_jax/report/paper/tables.py`"),
    ("Table V", "metrics on BreakHis", "`medadv_jax/report/paper/tables.py`"),
)
_DRAWINGS = "`medadv_jax/report/paper/drawings.py`"
_FIGURES_OF = "`medadv_jax/report/paper/figures.py`"
_PICTURES = "`medadv_jax/report/paper/pictures.py`"
_FIGURES = {
    "1": ("the method", _DRAWINGS),
    "2": ("the two defences; a clean image reconstructed", f"{_DRAWINGS}, {_PICTURES}"),
    "3": ("sample images", _PICTURES),
    "4": ("a convolution", _DRAWINGS),
    "5": ("four metrics on clean images", _FIGURES_OF),
    "6": ("mean accuracy with its deviation; improvements", _FIGURES_OF),
    "7": ("accuracy under attack; success rates", _FIGURES_OF),
    **{str(number): ("attacked images of a network", _PICTURES) for number in range(8, 14)},
    "14": ("accuracy by attack", _FIGURES_OF),
    "15": ("AUC by attack", _FIGURES_OF),
    "16": ("F1 by attack", _FIGURES_OF),
    "17": ("precision by attack", _FIGURES_OF),
    "18": ("recall by attack", _FIGURES_OF),
}
_INTRODUCTION = """# The paper, piece by piece

Every table, figure and sentence of results of the paper, where ours is made, and whether our runs
reproduce it. The page is generated from the committed records of finished runs:

```bash
{command}
```

A sentence is *reproduced* where the whole 95 % interval of every difference that it asserts is on
the paper's side of 0, *not reproduced* where that of one difference is on the other side, else *not
decidable*: not run, or too few images. Limits for words such as "strong" are ours, and stand in the
sentence. Paper's attacker: the mean over its four attacks, the purifier unknown to the attacker.
Adaptive: for each image the worst attack, the purifier known."""


def answers(runs: Sequence[RunRecords], command: str) -> str:
    """Returns the page.

    Args:
      runs: finished runs of the paper's data sets.
      command: that writes the page.
    """
    groups = {name: make_groups([run for run in runs if run.dataset == name]) for name in BOTH}
    sentences = {name: claims_table(name, name, groups[name]) for name in BOTH}
    parts = [
        _INTRODUCTION.format(command=command),
        "## The records",
        "Of each run its `config.json`, `predictions.parquet`, `training_cost.json` and"
        " `inference_cost.json`; no images and no weights.",
        _markdown(_records(runs)),
        "## Tables and figures",
        "Figures are drawn in the report of any run; those of images need its `pictures.npz`, which"
        " holds images and is not committed. Counts: sentences about the figure that are"
        f" {REPRODUCED} / {NOT_REPRODUCED} / {UNDECIDABLE}.",
        _markdown(_pieces(groups, sentences)),
    ]
    for name, table in sentences.items():
        parts += [f"## Sentences on {title_of(name)}", _markdown(table), *table.notes[2:]]
    return "\n\n".join(parts) + "\n"


def _records(runs: Sequence[RunRecords]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        model, start = run.config["model"], run.config["model"].get("weights", "none")
        setting = (
            f"{run.config['data']['image_size']} px, width {model.get('width', 1):g},"
            f" {'fresh' if start == 'none' else start} weights"
        )
        for defense in run.defenses:
            worst = run.worst(defense)
            rows.append(
                (
                    run.name, title_of(run.model), setting, title_of(run.dataset), len(run.label),
                    run.count_patients(), defense, accuracy(run, run.clean(defense)),
                    worst and accuracy(run, worst),
                )
            )  # fmt: skip
    columns = (
        "run", "network", "setting", "data", "test images", "patients", "defence", "clean",
        "worst adaptive",
    )  # fmt: skip
    return Table("records", "", columns, rows)


def _pieces(groups: dict[str, list[Group]], sentences: dict[str, Table]) -> Table:
    """Returns a row for each table and figure of the paper."""
    rows: list[tuple[Cell, ...]] = []
    for name, what, where in _TABLES:
        rows.append((name, what, where, _of_table(name.removeprefix("Table "), groups), "–"))
    for number, (what, where) in _FIGURES.items():
        counts = _of_figure(int(number), sentences)
        rows.append((f"Figure {number}", what, where, *counts))
    columns = ("the paper's", "shows", "ours", "paper's attacker", "adaptive")
    return Table("pieces", "", columns, rows)


_DATA_OF = {"I": XRAYS, "II": TISSUE, "IV": XRAYS, "V": TISSUE}
_PRINTED_SIZES = (1000, 300)  # images of a class, and test images: Tables I and II


def _of_table(number: str, groups: dict[str, list[Group]]) -> str:
    """Returns the answer to a table of the paper."""
    if number == "III":
        return "the usual definitions; three formulas are printed upside down"
    inside = groups[_DATA_OF[number]]
    if number in ("I", "II"):
        return _of_split([run for group in inside for run in group.runs])
    return f"{_of_accuracies(number, inside)} {counts_sentence(number)}"


def _of_split(runs: Sequence[RunRecords]) -> str:
    sizes = {(run.config["data"].get("per_class"), len(run.label)): run for run in runs}
    if not sizes:
        return f"{UNDECIDABLE}: not run"
    (per_class, tested), run = next(iter(sizes.items()))
    verdict = REPRODUCED if {*sizes} == {_PRINTED_SIZES} else NOT_REPRODUCED
    return (
        f"{verdict}: up to {per_class} images of a class, {tested} test images; split by"
        f" {run.split}, the paper's by image"
    )


def _of_accuracies(number: str, groups: Sequence[Group]) -> str:
    """Returns how many of the paper's accuracies lie in our intervals."""
    outcomes, inside = paper_outcomes(number, groups), 0
    if not outcomes:
        return f"{UNDECIDABLE}: no run of these networks."
    for row, run, outcome in outcomes:
        interval = accuracy(run, outcome).interval
        inside += interval is not None and interval[0] <= row.value("accuracy") <= interval[1]
    verdict = NOT_REPRODUCED if inside < len(outcomes) else REPRODUCED
    return f"{verdict}: {inside} of {len(outcomes)} accuracies that we have lie in our interval."


def _of_figure(number: int, sentences: dict[str, Table]) -> tuple[str, str]:
    """Returns how many sentences about a figure are reproduced, under both attackers."""
    about = [
        row for table in sentences.values() for row in table.rows
        if number in figures_named(str(row[0]))
    ]  # fmt: skip
    if not about:
        return "drawn; no sentence compares anything", "–"
    verdicts = (REPRODUCED, NOT_REPRODUCED, UNDECIDABLE)
    counts = [Counter(row[column] for row in about) for column in (2, 4)]
    paper, adaptive = (" / ".join(str(count[verdict]) for verdict in verdicts) for count in counts)
    return paper, adaptive


def figures_named(where: str) -> set[int]:
    """Returns the figures in a text such as "IV-A, Figs. 8 to 11" or "Figs. 16a, 17b"."""
    _, _, names = where.partition("Fig")
    numbers = [int(number) for number in re.findall(r"\d+", names)]
    if " to " in names:
        return set(range(numbers[0], numbers[1] + 1))
    return set(numbers)


def _markdown(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *(map(cell_text, r) for r in table.rows)]
    lines = ("".join(f"| {_escaped(cell)} " for cell in row) + "|" for row in rows)
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
