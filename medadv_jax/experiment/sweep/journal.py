"""The journal of a sweep, `sweep.json`: starts, time and failure of every cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medadv_jax.experiment.sweep.grids import Cell
from medadv_jax.files import write_json
from medadv_jax.report.read_runs import JOURNAL, read_sweep


class Journal:
    """What happened to the cells; the file is written after each change.

    Of a cell: `config` and `fields` of its grid; `starts`; `seconds` that the start which finished
    it took, None before; `failure`, one line, "" if there is none.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]):
        self._path = folder / JOURNAL
        self._rows: dict[str, dict[str, Any]] = read_sweep(folder)  # those of other grids stay
        for cell in cells:
            kept = self._rows.get(cell.name, {})
            self._rows[cell.name] = {
                "starts": 0, "seconds": None, "failure": "", **kept,
                "config": cell.config_file.stem, "fields": dict(cell.overrides),
            }  # fmt: skip

    def started(self, cell: Cell) -> None:
        """Counts a start."""
        self.update(cell, starts=self._rows[cell.name]["starts"] + 1, failure="")

    def update(self, cell: Cell, **changes: Any) -> None:
        """Changes the row of a cell."""
        self._rows[cell.name] |= changes
        write_json(self._path, {"cells": self._rows})
