"""Run directories → tables, figures and one HTML page. Reads records only; imports no JAX.

    write_report([Path("runs/demo")], Path("runs/demo/report"))

leaves in `out`: index.html, which needs no other file; figures/*.svg; tables/*.csv and *.tex.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from medadv_jax.errors import UserError
from medadv_jax.files import write_text
from medadv_jax.report import run_page, runs_page
from medadv_jax.report.records import expand, load_run
from medadv_jax.report.tables import as_csv, as_latex
from medadv_jax.report.transfer import is_transfer, load_transfer


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report of one run, or the comparison of several.

    Args:
      runs: run directories, at least one; a folder of sweep.py stands for its finished cells;
        beside them folders that evaluate_runs.py has written.
      out: the folder to write; what an earlier report left in its figures/ and tables/ goes.

    Returns:
      The path of the page.

    Raises:
      UserError: a directory that holds no finished run.
    """
    paths, missing = expand([Path(run) for run in runs])
    records = [load_run(path) for path in paths if not is_transfer(path)]
    transfers = [load_transfer(path, records) for path in paths if is_transfer(path)]
    if not records:
        raise UserError("no run: give at least one run directory, as in report.py runs/x")
    if len(records) == 1 and not transfers and not missing:
        page = run_page.build(records[0])
    else:
        page = runs_page.build(records, transfers, missing)
    for folder in ("figures", "tables"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    for picture in page.pictures:
        write_text(out / "figures" / f"{picture.name}.svg", picture.svg)
    for table in page.tables:
        write_text(out / "tables" / f"{table.name}.csv", as_csv(table))
        write_text(out / "tables" / f"{table.name}.tex", as_latex(table))
    write_text(out / "index.html", page.html())
    return out / "index.html"
