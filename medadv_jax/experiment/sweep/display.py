"""What a person sees of a sweep: a live table on a terminal, a line for each change elsewhere."""

import contextlib
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medadv_jax.experiment.sweep.scheduler import BEFORE, DONE, FAILED, RUNNING, WAITING, Status
from medadv_jax.progress import duration, say

_LOOKS = {WAITING: "dim", RUNNING: "bold", DONE: "green", BEFORE: "green", FAILED: "bold red"}


def print_change(console: Console, status: Status) -> None:
    """Prints the new state of a cell, where there is no live table."""
    if not console.is_terminal:
        after = f" after {duration(status.seconds)}" if status.state in (DONE, FAILED) else ""
        reason = f": {status.reason}" if status.reason else ""
        say(console, f"{status.cell.name}: {status.state}{after}{reason}")


def live_table(
    console: Console, statuses: Sequence[Status]
) -> contextlib.AbstractContextManager[object]:
    """Shows the statuses as they change, on a terminal."""
    if not console.is_terminal:
        return contextlib.nullcontext()

    def draw() -> Table:
        done = sum(status.state in (DONE, BEFORE) for status in statuses)
        details = [status.reason or status.progress for status in statuses]
        return _table(f"{done} of {len(statuses)} cells done", statuses, "progress", details)

    return Live(console=console, get_renderable=draw, refresh_per_second=2, transient=True)


def print_plan(console: Console, statuses: Sequence[Status]) -> None:
    """Prints what a dry run shows: the cells, which are done, and what they override."""
    overrides = [set(status.cell.overrides.items()) for status in statuses]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    title = f"in every cell: {_fields(common)}" if common else ""
    details = [_fields(own - common) for own in overrides]
    console.print(_table(title, statuses, "overrides", details))
    missing = sum(status.state != BEFORE for status in statuses)
    total = len(statuses)
    say(console, f"{missing} of {total} cells to do" if missing else f"all {total} cells are done")


def _table(title: str, statuses: Sequence[Status], header: str, details: Sequence[str]) -> Table:
    shown = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("cell", "state", header, "time"):
        shown.add_column(name)
    for status, detail in zip(statuses, details, strict=True):
        time = duration(status.seconds) if status.seconds else ""
        state = Text(status.state, style=_LOOKS[status.state])
        shown.add_row(Text(status.cell.name), state, Text(detail), time)
    return shown


def _fields(overrides: set[tuple[str, str]]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(overrides))
