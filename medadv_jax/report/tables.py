"""A table, written as CSV with all digits and as LaTeX with three decimals."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import NamedTuple

from medadv_jax.evaluation.statistics import Interval
from medadv_jax.files import file_name

NOTHING = "–"


class Estimate(NamedTuple):
    """A number and its 95 % interval, None where there is none, and the interval's method."""

    value: float | None
    interval: Interval | None = None
    method: str = ""


class Spread(NamedTuple):
    """Mean and standard deviation over runs; the latter is None for a single run."""

    mean: float
    sd: float | None


Cell = str | int | float | Estimate | Spread | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
      name: of the files, without suffix.
      title: what it shows.
      columns: headers.
      rows: cells, one for each column.
      notes: paragraphs below the table.
      rules: indices of the rows with a line above them.
      folded: whether the page shows it only when it is asked for.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()
    folded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", file_name(self.name))  # may hold texts of a run

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether all its texts are numbers; such columns are right-aligned."""
        return [
            all(_is_number(row[c]) for row in self.rows if isinstance(row[c], str))
            for c in range(len(self.columns))
        ]


def _is_number(text: Cell) -> bool:
    return str(text).replace(".", "", 1).isdigit()


def group_starts(rows: list[tuple[Cell, ...]], columns: int = 1) -> frozenset[int]:
    """Returns the rows whose first `columns` cells differ from those of the row before."""
    return frozenset(i for i in range(1, len(rows)) if rows[i][:columns] != rows[i - 1][:columns])


def cell_text(cell: Cell) -> str:
    """Returns a cell as text: three decimals, then its interval in brackets or ± its SD."""
    return " ".join(filter(None, cell_parts(cell)))


def cell_parts(cell: Cell) -> tuple[str, str]:
    """Returns the text of a cell's value, and of its interval or SD ("" without one)."""
    if cell is None:
        return NOTHING, ""
    if isinstance(cell, Estimate):
        return cell_text(cell.value), _brackets(cell.interval, cell.method)
    if isinstance(cell, Spread):
        return number_text(cell.mean), "" if cell.sd is None else f"± {number_text(cell.sd)}"
    return number_text(cell) if isinstance(cell, float) else str(cell), ""


def _brackets(interval: Interval | None, method: str) -> str:
    if interval is None:
        return ""
    between = " to " if interval[0] < 0 else "–"
    bounds = f"{number_text(interval[0])}{between}{number_text(interval[1])}"
    return f"({bounds} {method})" if method else f"({bounds})"


def number_text(value: float, sign: str = "") -> str:
    """Returns a number with three decimals and the sign "−"; sign="+" writes "+", too."""
    return f"{round(value, 3) + 0.0:{sign}.3f}".replace("-", "−")  # + 0.0: no minus zero


def as_csv(table: Table) -> str:
    """Returns a table as CSV with all digits; intervals and SDs get columns of their own."""
    kinds = [_kind(table, c) for c in range(len(table.columns))]
    header: list[str] = []
    for name, kind in zip(table.columns, kinds, strict=True):
        header += [name, *(f"{name} {suffix}" for suffix in _SUFFIXES.get(kind, ()))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        values: list[Cell] = []
        for cell, kind in zip(row, kinds, strict=True):
            values += _values(cell, kind)
        writer.writerow(["" if v is None else v for v in values])
    return text.getvalue()


_SUFFIXES: dict[type, tuple[str, ...]] = {Estimate: ("low", "high"), Spread: ("SD",)}


def _kind(table: Table, column: int) -> type:
    kinds = {type(row[column]) for row in table.rows}
    return next((kind for kind in _SUFFIXES if kind in kinds), str)


def _values(cell: Cell, kind: type) -> Sequence[Cell]:
    if isinstance(cell, Estimate):
        return [cell.value, *(cell.interval or (None, None))]
    if isinstance(cell, Spread):
        return [cell.mean, cell.sd]
    return [cell] + [None] * len(_SUFFIXES.get(kind, ()))


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "ε": r"$\varepsilon$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$",
    "†": r"$\dagger$", "−": "$-$", "∞": r"$\infty$", "…": r"\ldots{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Returns text with all special characters of LaTeX escaped."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def as_latex(table: Table) -> str:
    r"""Returns a table environment; needs \usepackage{booktabs}."""
    align = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{align}}}", r"\toprule", _latex_row(table.columns), r"\midrule",
    ]  # fmt: skip
    for i, row in enumerate(table.rows):
        if i in table.rules:
            lines.append(r"\addlinespace")
        lines.append(_latex_row(tuple(map(cell_text, row))))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
