"""What a person sees of a run: a bar on a terminal, plain lines anywhere else."""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SILENCE = 20.0  # seconds without a line after which a stage says how far it is
_POLL = 1.0  # seconds between looks at the clock


def default_console() -> Console:
    """Returns a console on standard output; a file or pipe gets lines wide enough for tables."""
    # Bound to the stream of now: libraries that print are silenced by redirecting `sys.stdout`.
    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=130)


def say(console: Console, text: str) -> None:
    """Prints a line as it is: no markup, no colours, no wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class StageProgress:
    """Progress through one stage. Use as a context manager.

    On a terminal: a bar with stage, detail, units/s and time left. Elsewhere a plain line with the
    share done and the time left, whenever nothing was printed for `silence` seconds; a thread
    prints it, so that a single long unit does not keep the stage silent. Both say "compiling" while
    XLA compiles. In both cases a line with the seconds that the stage took, at its end, if it did
    anything.

    Args of the constructor:
      console: where to print.
      stage: name of the stage, first word of its lines.
      total: units of the whole stage.
      done: units that an earlier process has done.
      unit: what is counted, in the plural.
      silence: seconds; see above.
      clock: returns seconds; for tests.
    """

    def __init__(
        self,
        console: Console,
        stage: str,
        total: int,
        done: int = 0,
        unit: str = "images",
        silence: float = SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console, self._stage, self._total, self._unit = console, stage, total, unit
        self._silence, self._clock = silence, clock
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
        self._before, self._done, self._detail = done, 0, ""  # `done` by others, and here
        self._start = self._spoke = clock()
        self._task = self._bar.add_task(stage, total=total, completed=done, rate="")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "StageProgress":
        """Shows the bar, or starts the thread that prints."""
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Takes the bar away, and prints how long the stage took."""
        self._ended.set()
        self._bar.stop()
        if self._thread.ident is not None:
            self._thread.join()
        if error is None and self._done:
            self.line(f"{self._done} {self._unit} in {duration(self._clock() - self._start)}")

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Counts units that are done."""
        self._done, self._detail = self._done + units, detail
        rate = self._done / max(self._clock() - self._start, 1e-9)
        self._bar.update(
            self._task,
            advance=units,
            description=f"{self._stage} {detail}".strip(),
            rate=f"{rate:.0f} {self._unit}/s",
        )

    def skip(self, units: int) -> None:
        """Counts units that were done before."""
        self._before += units
        self._bar.update(self._task, advance=units)

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._spoke = self._clock()
        say(self._console, f"{self._stage}: {text}")

    def break_silence(self) -> None:
        """Prints how far the stage is, if nothing was printed for `silence` seconds."""
        now = self._clock()
        if now - self._spoke < self._silence:
            return
        done, passed = self._before + self._done, now - self._start
        share = f"{done} of {self._total} {self._unit} ({done / max(self._total, 1):.0%})"
        left = "time left unknown" if done < self._total else "finishing"
        if self._done and done < self._total:
            left = f"about {duration((self._total - done) * passed / self._done)} left"
        parts = [self._detail, "compiling" if is_compiling() else ""]
        detail = "".join(f"{part}, " for part in parts if part)
        self.line(f"{detail}{share} after {duration(passed)}, {left}")

    def _watch(self) -> None:
        while not self._ended.wait(min(_POLL, self._silence)):
            if not self._console.is_terminal:
                self.break_silence()
            elif is_compiling():
                self._bar.update(
                    self._task,
                    description=f"{self._stage} {self._detail} compiling".replace("  ", " "),
                )


def is_compiling() -> bool:
    """Returns whether the main thread waits for XLA to compile a program."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.replace(os.sep, "/").endswith("jax/_src/compiler.py"):
            return True
        frame = frame.f_back
    return False


def duration(seconds: float) -> str:
    """Returns a time in words: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
