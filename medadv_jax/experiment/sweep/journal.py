"""What a sweep remembers of its cells: `sweep.json`. Times and sizes of estimates come from it."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medadv_jax.errors import UserError
from medadv_jax.experiment.sweep.grids import Cell
from medadv_jax.files import write_json

FILE = "sweep.json"


class Journal:
    """Starts, times and failures of cells, written after each change.

    Of a cell: `starts`; `seconds`, of a run that needed one start only, else None; `bytes` of its
    folder; `failure`, one line, "" if none.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]):
        self._path = folder / FILE
        kept = self._read()
        self._rows: dict[str, dict[str, Any]] = {
            cell.name: {
                "config": str(cell.config_file.stem), "fields": dict(cell.overrides),
                "starts": 0, "seconds": None, "bytes": None, "failure": "",
                **{k: v for k, v in kept.get(cell.name, {}).items() if k in _KEPT},
            }
            for cell in cells
        }  # fmt: skip
        self._others = {name: row for name, row in kept.items() if name not in self._rows}

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.is_file():
            return {}
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{self._path}: not a journal ({error!r}); remove it") from error

    def write(self) -> None:
        """Writes the file; cells of an earlier grid in this folder stay in it."""
        write_json(self._path, {"cells": {**self._rows, **self._others}})

    def started(self, cell: Cell) -> None:
        """Counts a start."""
        row = self._rows[cell.name]
        row |= {"starts": row["starts"] + 1, "failure": ""}
        self.write()

    def finished(self, cell: Cell, seconds: float) -> None:
        """Keeps time and size of a cell that has come to its end."""
        row = self._rows[cell.name]
        row["seconds"] = round(seconds, 1) if row["starts"] == 1 else None
        row["bytes"] = folder_bytes(cell.folder)
        self.write()

    def failed(self, cell: Cell, reason: str) -> None:
        """Keeps why a cell failed."""
        self._rows[cell.name]["failure"] = reason
        self.write()

    def estimate(self, cell: Cell, what: str) -> float | None:
        """Returns the median of "seconds" or "bytes" over finished cells: those of the same config
        file, else of all; None before there is one."""
        mine, all_ = [], []
        for row in self._rows.values():
            if row[what] is not None:
                all_.append(row[what])
                mine += [row[what]] if row["config"] == cell.family else []
        return statistics.median(mine or all_) if all_ else None


_KEPT = ("starts", "seconds", "bytes", "failure")


def folder_bytes(folder: Path) -> int:
    """Returns the size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
