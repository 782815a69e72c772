"""Run directories → tables, figures and one HTML page. Reads records only; imports no JAX.

    write_report([Path("runs/demo")], Path("runs/demo/report"))

writes index.html, which needs no other file, figures/*.svg, tables/*.csv and tables/*.tex.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from medadv_jax.errors import UserError
from medadv_jax.files import file_name, write_text
from medadv_jax.report import run_page, runs_page
from medadv_jax.report.records import expand, load_run
from medadv_jax.report.run_figures import robustness_curves
from medadv_jax.report.tables import as_csv, as_latex
from medadv_jax.report.transfer import is_transfer, load_transfer


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
      UserError: a directory holds no finished run, or `png` with several runs.
    """
    paths, missing = expand([Path(run) for run in runs])
    records = [load_run(path) for path in paths if not is_transfer(path)]
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
    for folder in ("figures", "tables"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    for picture in page.pictures:
        write_text(out / "figures" / f"{file_name(picture.name)}.svg", picture.svg)
    if png:
        (out / "figures" / "robustness_curves.png").write_bytes(robustness)
    for table in page.tables:
        write_text(out / "tables" / f"{file_name(table.name)}.csv", as_csv(table))
        write_text(out / "tables" / f"{file_name(table.name)}.tex", as_latex(table))
    write_text(out / "index.html", page.html())
    return out / "index.html"
