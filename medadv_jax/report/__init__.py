"""Run directories → tables, figures and one HTML page. Reads records only; imports no JAX.

    write_report([Path("runs/demo")], Path("runs/demo/report"))

writes index.html, which needs no other file, figures/*.svg, tables/*.csv and tables/*.tex.
"""

from collections.abc import Sequence
from pathlib import Path

from medadv_jax.errors import UserError
from medadv_jax.files import write_text
from medadv_jax.report import run_page, runs_page
from medadv_jax.report.aggregate import without_copies
from medadv_jax.report.paper.answers import answers
from medadv_jax.report.read_runs import expand, load_run
from medadv_jax.report.run_figures import robustness_curves
from medadv_jax.report.tables import as_csv, as_latex
from medadv_jax.report.transfer import is_transfer, load_transfer

_MARK = '<div class="cards">'  # in every page that was written here


def write_report(runs: Sequence[Path], out: Path, png: bool = False) -> Path:
    """Writes the report of one run, or the comparison of several.

    Args:
      runs: run directories; a sweep stands for its finished cells. Folders written by
        evaluate_runs.py may be among them.
      out: the folder to write; its figures/ and tables/ are replaced.
      png: also writes figures/robustness_curves.png, for a single run.

    Returns:
      The path of the page.

    Raises:
      UserError: a directory holds no finished run, `png` with several runs, or `out` holds other
        files where the report would write.
    """
    paths, missing = expand([Path(run) for run in runs])
    records, copies = without_copies([load_run(p) for p in paths if not is_transfer(p)])
    missing += copies
    transfers = [load_transfer(path, records) for path in paths if is_transfer(path)]
    if not records:
        raise UserError("no run: give at least one run directory, as in report.py runs/x")
    if png and len(records) > 1:
        raise UserError("the PNG is of one run: give one run directory")
    robustness = robustness_curves(records[0]) if png else b""
    if len(records) == 1 and not transfers and not missing:
        page = run_page.build(records[0])
    else:
        page = runs_page.build(records, transfers, missing)
    _clear(out)
    for picture in page.pictures:
        write_text(out / "figures" / f"{picture.name}.svg", picture.svg)
    if png:
        (out / "figures" / "robustness_curves.png").write_bytes(robustness)
    for table in page.tables:
        write_text(out / "tables" / f"{table.name}.csv", as_csv(table))
        write_text(out / "tables" / f"{table.name}.tex", as_latex(table))
    write_text(out / "index.html", page.html())
    return out / "index.html"


def write_answers(runs: Sequence[Path], path: Path) -> Path:
    """Writes the Markdown page that answers the paper piece by piece; returns its path.

    Args:
      runs: run directories, or folders with the records of one; a sweep stands for its finished
        cells.
      path: of the page.

    Raises:
      UserError: a folder holds no finished run.
    """
    paths, _ = expand([Path(run) for run in runs])
    records, _ = without_copies([load_run(folder) for folder in paths])
    command = f"python scripts/report.py --paper={path} {' '.join(map(str, runs))}"
    write_text(path, answers(records, command))
    return path


def _clear(out: Path) -> None:
    """Removes the files of an earlier report; UserError where others would be overwritten."""
    kinds = {"figures": (".svg", ".png"), "tables": (".csv", ".tex")}
    index = out / "index.html"
    ours = (out.parent / "config.json").is_file()  # a run's own
    if index.is_file():
        ours = _MARK in index.read_text(encoding="utf-8", errors="replace")
    for folder, suffixes in kinds.items():
        found = [path for path in (out / folder).glob("*") if path.suffix in suffixes]
        if not ours and (found or index.exists()):
            other = (found or [index])[0]
            raise UserError(f"{other}: is of no report; give another --output than {out}")
        for path in found:
            path.unlink()
        (out / folder).mkdir(parents=True, exist_ok=True)
