"""Atomic writing: a file under its own name is complete, and is on disk."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medadv_jax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; after the block it is renamed to `path`.

    When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed processes; no other process may write to the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`, none if it is missing, by today's names.

    Earlier versions called validation under attack just `validation_accuracy` and `_loss`.

    Raises:
      UserError: a line is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [_renamed(json.loads(line)) for line in lines if line.strip()]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); take the broken line out") from error


_CHOSEN_UNDER_ATTACK = ("adversarial", "autoencoder", "hybrid")  # in those versions


def _renamed(line: dict[str, Any]) -> dict[str, Any]:
    if line.get("defense") not in _CHOSEN_UNDER_ATTACK or "validation_adversarial_loss" in line:
        return line
    return {re.sub("^validation_", "validation_adversarial_", k): v for k, v in line.items()}


@contextlib.contextmanager
def file_lock(
    path: Path, owner: str, *, shared: bool = False, remedy: str = "wait for it"
) -> Iterator[None]:
    """Holds an advisory lock on a file; the file names the process that holds it exclusively.

    The lock ends with its process, so a killed one leaves no obstacle. A file system without locks
    locks nothing.

    Args:
      path: of the file, which need not exist for an exclusive lock.
      owner: what the lock protects, for the error.
      shared: other shared holders are welcome; the file is not written.
      remedy: what to do when it is held, for the error.

    Raises:
      UserError: another process holds it.
    """
    with path.open("r" if shared else "a+", encoding="utf-8") as file:
        if not _lock(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{owner}: {holder} is at work in it; {remedy}")
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
        if not shared:
            file.truncate(0)


def _lock(descriptor: int, kind: int) -> bool:
    """Returns whether the lock could be had; on a file system without locks it is."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
    return True
