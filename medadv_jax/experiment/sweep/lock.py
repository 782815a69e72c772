"""One start of a sweep at a time: a lock that its cells hold with it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medadv_jax.errors import UserError

_WAIT_SECONDS = 60.0  # for cells of a start that was killed, which save their state


@contextlib.contextmanager
def held(folder: Path, say: Callable[[str], None], wait: float = _WAIT_SECONDS) -> Iterator[int]:
    """Holds the sweep's lock; yields its file descriptor, for the cells to inherit.

    A lock is released when no process has the descriptor any more: after a start was killed, when
    its cells have ended, too.

    Args:
      folder: of the sweep.
      say: told that it waits.
      wait: seconds, at most.

    Raises:
      UserError: another start is at work.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end, told = time.monotonic() + wait, False
        while not _try(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            if time.monotonic() > end or _is_alive(holder):
                raise UserError(
                    f"{folder}: another start of this sweep (process {holder}) or a cell of it is"
                    " at work; wait for it, or give another --workdir"
                )
            if not told:
                say("waiting for the cells of a start that was killed to save their state")
                told = True
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(process: str) -> bool:
    """Returns whether a process of this machine is there; of another machine nothing is known."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
