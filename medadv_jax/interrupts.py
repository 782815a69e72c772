"""SIGTERM and Ctrl-C: the first signal saves and ends the process, a second one ends it at once.

    interrupts.install()          # once, in the main thread
    interrupts.defer()            # from here on a stop waits for the next check
    interrupts.check()            # raises Stopped if a stop was requested
    interrupts.heed()             # from here on a stop does not wait

Python runs signal handlers between two of its instructions; a compilation or a step may delay them
for minutes. So a thread gets the signals too: it answers at once, and ends the process where
nothing would be lost. Files are written atomically, so that ending is always safe for them.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 4.0  # seconds for Python to clean up after a stop that is not deferred


class Stopped(KeyboardInterrupt):
    """The process was asked to stop; `number` is that of the signal."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.number = number


class _Stop:
    """The state of a request to stop."""

    requested = 0  # number of the first signal, 0: none
    deferred = False


_stop = _Stop()


def install() -> None:
    """Handles SIGINT and SIGTERM from now on; call in the main thread.

    Call again after a library has taken them, as JAX does when it joins other processes.
    """
    if not _watched:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        _watched.append(writer)
        threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _handle)
    signal.set_wakeup_fd(_watched[0], warn_on_full_buffer=False)


def defer() -> None:
    """Makes a stop wait for the next `check`."""
    _stop.deferred = True


def heed() -> None:
    """Makes a stop interrupt at once again, as before `defer`."""
    _stop.deferred = False


def requested() -> bool:
    """Returns whether a stop was requested."""
    return bool(_stop.requested)


def request() -> None:
    """Asks this process to stop, because another one was asked."""
    _stop.requested = _stop.requested or signal.SIGTERM


def check(where: str = "") -> None:
    """Raises Stopped if a stop was requested; `where` becomes its message."""
    if _stop.requested:
        raise Stopped(_stop.requested, where)


def leave(code: int) -> None:
    """Ends the process with an exit code at once, without clean-up."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    """Handles a signal in the main thread, possibly late."""
    del frame
    _stop.requested = _stop.requested or number
    if not _stop.deferred:
        raise Stopped(number)


def _watch(reader: int) -> None:
    """Waits for signals; runs in its own thread."""
    deadline = None
    while True:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reader], [], [], seconds)
        if not ready:
            _say("stopped; the same command goes on from what was saved")
            leave(128 + _stop.requested)
        number = os.read(reader, 1)[0]
        if number not in SIGNALS:
            continue
        if deadline is not None or _told:
            leave(128 + number)
        _stop.requested = _stop.requested or number
        if _stop.deferred:
            _told.append(number)
            _say("stopping after this step; a second signal leaves at once")
        else:
            deadline = time.monotonic() + _GRACE


_told: list[int] = []
_watched: list[int] = []  # the pipe that the thread reads


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
