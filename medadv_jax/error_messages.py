"""Errors of disk, memory and environment, explained in one line with the remedy."""

import contextlib
import errno
import os
import traceback
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
    errno.ESTALE: "the network folder is gone: mount it again",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.EEXIST: "is a file: give another path",
    errno.ENOTDIR: "a part of the path is a file: give another path",
}
# Libraries pass errors of the disk on as text.
_TEXTS = {
    "No space left on device": _FULL,
    "Disk quota exceeded": _DISK[errno.EDQUOT],
    "File too large": _DISK[errno.EFBIG],
    "Read-only file system": _DISK[errno.EROFS],
    "Permission denied": _DISK[errno.EACCES],
}


@contextlib.contextmanager
def explained(config: Config, folder: Path) -> Iterator[None]:
    """Raises a UserError instead of any error that `explain` knows."""
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
    """Returns one line with what is wrong and the remedy; "" for an error of the program.

    Args:
      error: the exception; its causes are searched too.
      config: of the run; its batch and image sizes are named when memory runs out.
      folder: the run directory, named where the error names no file.
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):  # raised in a thread, and wrapped
            return str(cause)
        line = _environment(cause) or _disk(cause, folder)
        if line:
            return line
    for cause in _causes(error):
        text = str(cause)
        if isinstance(cause, MemoryError | pa.ArrowMemoryError) or "RESOURCE_EXHAUSTED" in text:
            return _memory(cause, config)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, its causes, and the members of exception groups among them."""
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


def _environment(error: BaseException) -> str:
    """Returns one line about devices, home folder or shared memory that are missing, else ""."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename.replace(os.sep, "/") for frame in frames]
    if files and files[-1].endswith("jax/_src/xla_bridge.py"):
        asked = [f"{n}={os.environ[n]}" for n in _PLATFORM_VARIABLES if os.environ.get(n)]
        reason = " ".join(str(error).split())[:160]
        return (
            f"{', '.join(asked) or 'JAX_PLATFORMS is not set'}: JAX finds no such device"
            f"{f' ({reason})' if reason else ''}; unset it, or install JAX for that device, as by"
            ' pip install "jax[cuda12]"'
        )
    if isinstance(error, RuntimeError) and "determine home directory" in str(error):
        return "a path with ~: no home folder is known; set HOME, or give the path without ~"
    if isinstance(error, OSError) and any(f.endswith(_LOCKS) for f in files):
        return f"/dev/shm: processes cannot share memory ({error}); mount it, and give it room"
    return ""


_LOCKS = "multiprocessing/synchronize.py"
_PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES")


def _disk(error: BaseException, folder: Path | None) -> str:
    number = error.errno if isinstance(error, OSError) else None
    name = getattr(error, "filename", None) or folder or "a file"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) and not getattr(error, "filename", None):
        return f"the system refuses an operation that names no file ({error}); --debug shows where"
    if number in _DISK:
        return f"{name}: {_DISK[number]}; what was finished is kept, and the same command goes on"
    text = str(error)
    for known, reason in _TEXTS.items():
        if known in text:
            where = folder or "a file"
            return f"{where}: {reason}; what was finished is kept, and the same command goes on"
    if isinstance(error, FileNotFoundError) and folder is not None:
        return f"{name}: is missing; put it back, and the same command goes on"
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
