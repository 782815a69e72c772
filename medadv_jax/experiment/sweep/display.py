"""What a person sees of a sweep: a live table on a terminal, a line for each change elsewhere."""

from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medadv_jax.experiment.sweep.journal import Journal
from medadv_jax.experiment.sweep.scheduler import BEFORE, DONE, FAILED, RUNNING, WAITING, Status

_LOOKS = {WAITING: "dim", RUNNING: "bold", DONE: "green", BEFORE: "green", FAILED: "bold red"}
NOTHING = "–"


class Display:
    """Shows the statuses of a sweep. Use as a context manager."""

    def __init__(self, console: Console, journal: Journal, slots: int):
        self._console, self._journal, self._slots = console, journal, slots
        self.statuses: Sequence[Status] = ()
        self._live = Live(
            console=console, get_renderable=self._table, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "Display":
        """Shows the table, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Takes it away."""
        if self._console.is_terminal:
            self._live.stop()

    def changed(self, status: Status) -> None:
        """Prints a line, where nothing is live."""
        if self._console.is_terminal:
            return
        after = f" after {duration(status.seconds)}" if status.state in (DONE, FAILED) else ""
        reason = f": {status.reason}" if status.reason else ""
        self.say(f"{status.cell.name}: {status.state}{after}{reason}")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        left = remaining(self.statuses, self._journal, self._slots)
        done = sum(status.state in (DONE, BEFORE) for status in self.statuses)
        shown = Table(
            title=f"{done} of {len(self.statuses)} cells done, left: {duration(left)}",
            title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        )  # fmt: skip
        for header in ("cell", "state", "progress", "time", "left"):
            shown.add_column(header, justify="right" if header in ("time", "left") else "left")
        for status in self.statuses:
            running = status.state == RUNNING
            shown.add_row(
                Text(status.cell.name), Text(status.state, style=_LOOKS[status.state]),
                Text(status.reason or status.progress),
                duration(status.seconds) if status.seconds else "",
                duration(left_of(status, self._journal)) if running else "",
            )  # fmt: skip
        return shown


def left_of(status: Status, journal: Journal) -> float | None:
    """Returns the seconds that a cell still needs, by the cells that are done; None: unknown."""
    if status.state in (DONE, BEFORE, FAILED):
        return 0.0
    whole = journal.estimate(status.cell, "seconds")
    return None if whole is None else max(whole - status.seconds, 0.0)


def remaining(statuses: Sequence[Status], journal: Journal, slots: int) -> float | None:
    """Returns the seconds that all cells together still need; None: unknown."""
    parts = [left_of(status, journal) for status in statuses]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part]
    return max([sum(known) / max(slots, 1), *known]) if known else 0.0


def plan_table(statuses: Sequence[Status], journal: Journal) -> Table:
    """Returns what a dry run shows: the cells, what they override, and what they would cost."""
    overrides = [set(status.cell.overrides.items()) for status in statuses]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    shown = Table(
        title=f"in every cell: {_fields(common)}" if common else None,
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for header in ("cell", "state", "overrides", "time", "disk"):
        shown.add_column(header, justify="right" if header in ("time", "disk") else "left")
    for status, own in zip(statuses, overrides, strict=True):
        size = journal.estimate(status.cell, "bytes")
        shown.add_row(
            Text(status.cell.name), Text(status.state, style=_LOOKS[status.state]),
            Text(_fields(own - common)), duration(left_of(status, journal)),
            megabytes(0 if status.state == BEFORE else size),
        )  # fmt: skip
    return shown


def _fields(overrides: set[tuple[str, str]]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(overrides))


def plan_sentence(statuses: Sequence[Status], journal: Journal, slots: int) -> str:
    """Returns the sums of a dry run, and where they come from."""
    missing = [status for status in statuses if status.state != BEFORE]
    if not missing:
        return f"all {len(statuses)} cells are done"
    seconds = remaining(missing, journal, slots)
    sizes = [journal.estimate(status.cell, "bytes") for status in missing]
    size = None if None in sizes else sum(size or 0 for size in sizes)
    source = (
        "unknown until a cell of this sweep is done" if seconds is None
        else "by the cells of this sweep that are done: the median of the same config file's, else"
        " of all"
    )  # fmt: skip
    return (
        f"{len(missing)} of {len(statuses)} cells to do, {slots} at a time: time"
        f" {duration(seconds)}, disk {megabytes(size)} ({source})"
    )


def duration(seconds: float | None) -> str:
    """Returns a time in words: "45 s", "12 min", "3 h 05 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def megabytes(size: float | None) -> str:
    """Returns a size in words."""
    return NOTHING if size is None else f"{size / 1e6:.0f} MB"
