"""Starts cells when there is room for them, watches them, and goes on when one fails."""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medadv_jax.experiment.sweep.cells import (
    command,
    donors,
    is_finished,
    last_lines,
    progress,
    reuse_of,
)
from medadv_jax.experiment.sweep.grids import Cell
from medadv_jax.experiment.sweep.journal import Journal
from medadv_jax.experiment.sweep.launchers import CellJob, Launcher

WAITING, RUNNING, DONE, BEFORE, FAILED = "waiting", "running", "done", "done before", "failed"
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between looks into the folders of running cells
_MOST = 200  # characters of a reason


@dataclasses.dataclass
class Status:
    """What a person sees of a cell.

    Attributes:
      cell: the cell.
      state: WAITING, RUNNING, DONE, BEFORE (this start) or FAILED.
      seconds: it has run in this start.
      progress: in words.
      reason: of a failure, one line.
    """

    cell: Cell
    state: str = WAITING
    seconds: float = 0.0
    progress: str = ""
    reason: str = ""


@dataclasses.dataclass
class _Running:
    job: CellJob
    log: Path
    offset: int
    since: float
    looked: float = -_LOOK_SECONDS


class Scheduler:
    """One start of a sweep.

    Attributes:
      statuses: of the cells, in their order.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        launcher: Launcher,
        journal: Journal,
        logs: Path,
        main: Path,
        changed: Callable[[Status], None] = lambda status: None,
        tick: Callable[[], None] = lambda: None,
    ):
        """Args: cells; where they run; what is remembered; the folder of the logs; main.py; told
        of each cell whose state changes; called twice a second."""
        self.statuses = [Status(cell) for cell in cells]
        self._launcher, self._journal = launcher, journal
        self._logs, self._main = logs, main
        self._changed, self._tick = changed, tick
        self._running: dict[int, tuple[Status, _Running]] = {}

    def run(self) -> list[Status]:
        """Brings every cell to its end that can be; returns the statuses.

        Whatever interrupts it stops the running cells first: they save their state.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        for status in self.statuses:
            if is_finished(status.cell):
                self._enter(status, BEFORE)
        try:
            while self._fill() or self._running:
                time.sleep(_POLL_SECONDS)
                for slot in list(self._running):
                    self._look(slot)
                self._tick()
        finally:
            jobs = [running.job for _, running in self._running.values()]
            for job in jobs:
                job.stop()
            for job in jobs:
                job.wait()
        return self.statuses

    def _fill(self) -> bool:
        """Starts what can be; returns whether anything waits."""
        for slot in range(self._launcher.slots):
            if slot not in self._running:
                status = self._next()
                if status is not None:
                    self._start(status, slot)
        return any(status.state == WAITING for status in self.statuses)

    def _next(self) -> Status | None:
        """Returns the first cell that waits for no other, None if there is none now."""
        for place, status in enumerate(self.statuses):
            if status.state == WAITING and not self._waits(place):
                return status
        return None

    def _waits(self, place: int) -> bool:
        """Returns whether an earlier cell may yet train what this one could take from it."""
        status = self.statuses[place]
        unfinished = [
            other.cell for other in self.statuses[:place] if other.state in (WAITING, RUNNING)
        ]
        return not (status.cell.folder / "config.json").exists() and bool(
            donors(status.cell, unfinished)
        )

    def _start(self, status: Status, slot: int) -> None:
        cell = status.cell
        earlier = [other.cell for other in self.statuses[: self.statuses.index(status)]]
        arguments = command(cell, self._main, reuse_of(cell, donors(cell, earlier)))
        log = self._logs / f"{cell.name}.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(arguments)}\n")
        offset = log.stat().st_size
        self._journal.started(cell)
        job = self._launcher.start(arguments, log, slot)
        self._running[slot] = status, _Running(job, log, offset, time.monotonic())
        self._enter(status, RUNNING)

    def _look(self, slot: int) -> None:
        """Updates a running cell, and ends it when its process has ended."""
        status, running = self._running[slot]
        now = time.monotonic()
        status.seconds = now - running.since
        ended = running.job.poll()
        if ended is None:
            if now - running.looked >= _LOOK_SECONDS:
                running.looked = now
                status.progress = progress(status.cell, running.log, running.offset)
            return
        del self._running[slot]
        status.progress = ""
        if ended == 0 and is_finished(status.cell):
            self._journal.finished(status.cell, status.seconds)
            self._enter(status, DONE)
            return
        status.reason = explain(ended, last_lines(running.log, running.offset))
        self._journal.failed(status.cell, status.reason)
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
