"""Starts cells when there is room for them, watches them, and goes on when one fails."""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import submitit

from medadv_jax.experiment.sweep.cells import command, donors, is_finished, last_lines, progress
from medadv_jax.experiment.sweep.grids import Cell
from medadv_jax.experiment.sweep.journal import Journal
from medadv_jax.experiment.sweep.launchers import Launcher, outcome

WAITING, RUNNING, DONE, BEFORE, FAILED = "waiting", "running", "done", "done before", "failed"
_POLL_SECONDS = 0.5
_MOST = 200  # characters of a reason


@dataclasses.dataclass
class Status:
    """The state of a cell.

    Attributes:
      cell: the cell.
      state: WAITING, RUNNING, DONE, BEFORE (this start) or FAILED.
      seconds: it has run in this start.
      progress: the last line of its log that names a stage.
      reason: of a failure, one line.
      since: its start on the monotonic clock.
      offset: where its log of this start begins, in bytes.
    """

    cell: Cell
    state: str = WAITING
    seconds: float = 0.0
    progress: str = ""
    reason: str = ""
    since: float = 0.0
    offset: int = 0


def initial_statuses(cells: Sequence[Cell]) -> list[Status]:
    """Returns which cells are done before a start, and which are waiting."""
    return [Status(cell, BEFORE if is_finished(cell) else WAITING) for cell in cells]


class Scheduler:
    """One start of a sweep; `statuses` are those of its cells, in their order."""

    def __init__(
        self, cells: Sequence[Cell], launcher: Launcher, folder: Path, main: Path,
        changed: Callable[[Status], None] = lambda status: None,
        tick: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        """Args: cells; where they run; folder of the sweep; main.py; called with each cell whose
        state changes; called twice a second."""
        self.statuses = initial_statuses(cells)
        self._launcher, self._journal = launcher, Journal(folder, cells)
        self._logs, self._main = folder / "logs", main
        self._changed, self._tick = changed, tick
        self._running: dict[int, tuple[Status, submitit.Job[int]]] = {}  # by slot

    def run(self) -> None:
        """Runs the cells that wait. When it is interrupted, it lets those that run save first."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for status in self.statuses:
            if status.state == BEFORE:
                self._changed(status)
        try:
            while self._fill() or self._running:
                time.sleep(_POLL_SECONDS)
                for slot in list(self._running):
                    self._look(slot)
                self._tick()
        finally:
            self._launcher.stop([job for _, job in self._running.values()])

    def _fill(self) -> bool:
        """Starts cells in the free slots; returns whether any is waiting."""
        for slot in sorted(set(range(self._launcher.slots)) - self._running.keys()):
            ready = next(filter(self._is_ready, range(len(self.statuses))), None)
            if ready is not None:
                self._start(ready, slot)
        return any(status.state == WAITING for status in self.statuses)

    def _is_ready(self, place: int) -> bool:
        """Returns whether a cell waits, and for no earlier cell that may train a stage for it."""
        status = self.statuses[place]
        unfinished = [s.cell for s in self.statuses[:place] if s.state in (WAITING, RUNNING)]
        return status.state == WAITING and (
            (status.cell.folder / "config.json").exists() or not donors(status.cell, unfinished)
        )

    def _start(self, place: int, slot: int) -> None:
        status, earlier = self.statuses[place], [s.cell for s in self.statuses[:place]]
        arguments, log = command(status.cell, self._main, earlier), self._log(status)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(arguments)}\n")
        status.offset, status.since = log.stat().st_size, time.monotonic()
        self._journal.started(status.cell)
        self._running[slot] = status, self._launcher.start(arguments, log, slot)
        self._enter(status, RUNNING)

    def _log(self, status: Status) -> Path:
        return self._logs / f"{status.cell.name}.log"

    def _look(self, slot: int) -> None:
        """Updates a running cell, and records the end of its job."""
        status, job = self._running[slot]
        ended, lines = outcome(job), last_lines(self._log(status), status.offset)
        status.seconds = time.monotonic() - status.since
        status.progress = progress(lines) if ended is None else ""
        if ended is None:
            return
        del self._running[slot]
        if ended == 0 and is_finished(status.cell):
            self._journal.update(status.cell, seconds=round(status.seconds, 1))
            self._enter(status, DONE)
        else:
            status.reason = explain(ended, lines)
            self._journal.update(status.cell, failure=status.reason)
            self._enter(status, FAILED)

    def _enter(self, status: Status, state: str) -> None:
        status.state = state
        self._changed(status)


def explain(ended: int | str, lines: Sequence[str]) -> str:
    """Returns in one line why a cell failed.

    Args:
      ended: the exit code, negative for a signal, or what the launcher says.
      lines: the end of its log.
    """
    if isinstance(ended, str):
        return ended[:_MOST]
    number = -ended if ended < 0 else ended - 128
    if ended < 0 or number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        name = signal.Signals(number).name
        hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    for beginning in ("error: ", ""):
        said = [line.strip() for line in lines if line.startswith(beginning)]
        errors = [line for line in said if beginning or "Error" in line or "RESOURCE_" in line]
        if errors:
            return errors[-1].removeprefix("error: ")[:_MOST]
    if ended == 0:
        return "it ended without a report"
    return f"exit code {ended}: {lines[-1].strip() if lines else 'it said nothing'}"[:_MOST]
