"""A folder that scripts/sweep.py has filled: its finished cells are runs of the report."""

import json
from collections.abc import Sequence
from pathlib import Path

from medadv_jax.errors import UserError

_FILE = "sweep.json"


def expand(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Returns the paths with every sweep replaced by its finished cells, and what is missing.

    Raises:
      UserError: a sweep without a finished cell.
    """
    expanded: list[Path] = []
    missing: list[str] = []
    for path in paths:
        if not (path / _FILE).is_file():
            expanded.append(path)
            continue
        cells = _cells(path)
        # results.csv is written after every stage but the report.
        finished = [name for name in cells if (path / name / "results.csv").is_file()]
        if not finished:
            raise UserError(f"{path}: no cell of this sweep is finished; run scripts/sweep.py on")
        expanded += [path / name for name in finished]
        missing += [
            f"Cell {name} is missing from these tables: {failure or 'it has not been finished'}."
            for name, failure in cells.items()
            if name not in finished
        ]
    return expanded, missing


def _cells(path: Path) -> dict[str, str]:
    """Returns the cells of a sweep, and the last failure of each."""
    try:
        rows = json.loads((path / _FILE).read_text(encoding="utf-8"))["cells"]
        return {name: str(row["failure"]) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / _FILE}: not a journal ({error!r}); remove it") from error
