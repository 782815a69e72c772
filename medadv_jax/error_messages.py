"""What goes wrong outside of the program, in one line that names it and the remedy."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from medadv_jax.config import Config
from medadv_jax.errors import UserError

_FULL = "no room on disk: make room"
_DISK = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EFBIG: "the file may not grow: raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "a read-only file system: give another --workdir",
    errno.EACCES: "no permission: give another --workdir, or change it",
    errno.EPERM: "no permission: give another --workdir, or change it",
    errno.EIO: "the disk fails to read or write",
    errno.ESTALE: "the network folder is gone: bring it back",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.EEXIST: "is a file: give another path",
    errno.ENOTDIR: "a part of the path is a file: give another path",
}
# Libraries hand errors of the disk on as text.
_TEXTS = {
    "No space left on device": _FULL,
    "Disk quota exceeded": _DISK[errno.EDQUOT],
    "File too large": _DISK[errno.EFBIG],
    "Read-only file system": _DISK[errno.EROFS],
    "Permission denied": _DISK[errno.EACCES],
}


@contextlib.contextmanager
def explained(config: Config, folder: Path) -> Iterator[None]:
    """Raises UserError in place of what `explain` knows."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = explain(error, config, folder)
        if not line:
            raise
        raise UserError(line) from error


def explain(error: BaseException, config: Config | None, folder: Path | None) -> str:
    """Returns one line that says what is wrong and what helps, "" for an error of the program.

    Args:
      error: what was raised; what caused it is looked at too.
      config: of the run, whose sizes are named when memory runs out.
      folder: the run directory, named when no file is.
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):  # raised in a thread, and wrapped
            return str(cause)
        line = _disk(cause, folder)
        if line:
            return line
    for cause in _causes(error):
        text = str(cause)
        if isinstance(cause, MemoryError | pa.ArrowMemoryError) or "RESOURCE_EXHAUSTED" in text:
            return _memory(cause, config)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, what is in it if it is a group, and what caused it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        inner = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        waiting += [e for e in (found.__cause__, found.__context__, *inner) if e is not None]


def _disk(error: BaseException, folder: Path | None) -> str:
    number = error.errno if isinstance(error, OSError) else None
    name = getattr(error, "filename", None) or folder or "a file"
    if number in _DISK:
        return f"{name}: {_DISK[number]}; what was finished is kept, and the same command goes on"
    text = str(error)
    for known, reason in _TEXTS.items():
        if known in text:
            where = folder or "a file"
            return f"{where}: {reason}; what was finished is kept, and the same command goes on"
    if isinstance(error, FileNotFoundError) and folder is not None:
        return f"{name}: is gone; bring it back, and the same command goes on"
    return ""


def _memory(error: BaseException, config: Config | None) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    if config is None:
        return f"out of memory ({reason}); take a smaller batch or smaller images"
    train, size = config.train.batch_size, config.data.image_size
    step = len(config.train.attacks.split(",")) if config.train.assignment == "one" else 1
    smaller = max(train // 2 // step * step, step)
    half = max(config.eval.batch_size // 2, 1)
    return (
        f"out of memory ({reason}) with train.batch_size={train} and"
        f" eval.batch_size={config.eval.batch_size} images of {size} × {size} pixels; try"
        f" --config.train.batch_size={smaller} --config.eval.batch_size={half} in another"
        " --workdir, or a smaller data.image_size"
    )
