"""SIGTERM and Ctrl-C: the first saves and leaves, a second one leaves at once.

    stopping.install()            # once, in the main thread
    stopping.defer()              # from here on a stop waits for the next check
    stopping.check()              # raises Stopped if one is asked for
    stopping.heed()               # from here on it does not wait

Python runs its own signal handlers between two lines of Python, and a compilation or a step can
keep it from that for minutes. So a thread is told of signals too: it answers at once, and ends the
process where nothing would be lost by that. All files are written beside and renamed.
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
    """Someone asked the process to end; `number` is the signal's."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.number = number


class _Stop:
    """What has been asked for."""

    requested = 0  # number of the first signal, 0: none
    deferred = False


_stop = _Stop()


def install() -> None:
    """Handles SIGINT and SIGTERM from now on; call in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        signal.signal(number, _handle)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def defer() -> None:
    """Lets a stop wait for the next `check`."""
    _stop.deferred = True


def heed() -> None:
    """Lets a stop interrupt again, as before `defer`."""
    _stop.deferred = False


def requested() -> bool:
    """Tells whether a stop was asked for."""
    return bool(_stop.requested)


def check(where: str = "") -> None:
    """Raises Stopped if a stop was asked for; `where` is for people."""
    if _stop.requested:
        raise Stopped(_stop.requested, where)


def leave(code: int) -> None:
    """Ends the process with an exit code, without another line of Python."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    """The handler in the main thread, which may come late."""
    del frame
    _stop.requested = _stop.requested or number
    if not _stop.deferred:
        raise Stopped(number)


def _watch(reader: int) -> None:
    """Waits for signals in a thread of its own."""
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


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
