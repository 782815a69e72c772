"""What a person sees of a run: a bar on a terminal, plain lines anywhere else."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def default_console() -> Console:
    """Returns a console on standard output; a file or pipe gets lines wide enough for tables."""
    console = Console()
    return console if console.is_terminal else Console(width=130)


class StageProgress:
    """Progress through one stage, in images. Use as a context manager.

    On a terminal: a bar with stage, detail, images/s and time left. Elsewhere `line` prints.
    """

    def __init__(self, console: Console, stage: str, total: int, done: int = 0):
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._stage, self._done, self._start = stage, 0, time.monotonic()
        self._task = self._bar.add_task(stage, total=total, completed=done, rate="")

    def __enter__(self) -> "StageProgress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def advance(self, images: int, detail: str = "") -> None:
        """Counts images that are done."""
        self._done += images
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(
            self._task,
            advance=images,
            description=f"{self._stage} {detail}".strip(),
            rate=f"{rate:.0f} images/s",
        )

    def skip(self, images: int) -> None:
        """Counts images that were done before."""
        self._bar.update(self._task, advance=images)

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(f"{self._stage}: {text}", highlight=False, markup=False, soft_wrap=True)
