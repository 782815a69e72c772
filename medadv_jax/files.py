"""Files under their own name are complete and on disk; records are verified by their SHA-256.

A record is a file that a later stage or a report reads. The folder's `digests.json` holds the
SHA-256 of every record in it, and of itself. A record that it does not name, such as one of an
earlier version, is read unverified.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medadv_jax.errors import UserError

DIGESTS = "digests.json"
_AGAIN = "put it back, or delete it, and the same command makes it anew"
WITHOUT_DIGESTS = (
    'delete it and take "digests" out of a config.json beside it: the records are then read'
    " unverified"
)
_TEMPORARY = ".medadv-tmp"  # ends the names of files that are being written


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; after the block it is renamed to `path`.

    When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; after the block it takes the place of `path`.

    When the block raises, it is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    before = path.with_name(f".{path.name}.before.{os.getpid()}{_TEMPORARY}")
    try:
        beside.mkdir()
        yield beside
        for each in (*beside.rglob("*"), beside):
            sync(each)
        if path.exists():
            path.replace(before)
        beside.replace(path)
        sync(path.parent)
    finally:
        for each in (beside, before):
            shutil.rmtree(each, ignore_errors=True)


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
    """Removes temporary files and folders of killed processes; no other may write to the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not re.fullmatch(rf"\..+\.\d+{re.escape(_TEMPORARY)}", path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """Returns text of any origin as one file name: at most 100 ASCII letters, digits, "-_."."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)
    return re.sub(r"^\.", "_", kept[:100]) or "_"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; no record."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def write_record(path: Path) -> Iterator[Path]:
    """Yields a temporary path, as `atomic_write`, and keeps the digest of what is written.

    The old and the new digest are both valid while the file is renamed, so a process that is killed
    leaves a file that its digest fits.
    """
    with atomic_write(path) as beside:
        yield beside
        known, new = read_digests(path.parent), sha256(beside.read_bytes())
        old = known.get(path.name) or ([sha256(path.read_bytes())] if path.exists() else [])
        _write_digests(path.parent, {**known, path.name: sorted({*old, new})})
    _write_digests(path.parent, {**known, path.name: [new]})


def read_record(path: Path, remedy: str = _AGAIN) -> bytes:
    """Returns the content of a record.

    Args:
      path: the file.
      remedy: what the user can do about a damaged file.

    Raises:
      UserError: the content is not what was written, or `digests.json` is damaged.
    """
    content, known = path.read_bytes(), read_digests(path.parent)
    if path.name in known and sha256(content) not in known[path.name]:
        raise UserError(f"{path}: damaged: its SHA-256 is not the one in {DIGESTS}; {remedy}")
    return content


def verify_records(folder: Path) -> None:
    """Raises UserError if a record of a folder is damaged; derived tables (CSV) are not read."""
    for name in read_digests(folder):
        if (folder / name).is_file() and not name.endswith(".csv"):
            read_record(folder / name)


def keep_digest(path: Path) -> None:
    """Makes a file that was written otherwise a record."""
    digests = {**read_digests(path.parent), path.name: [sha256(path.read_bytes())]}
    _write_digests(path.parent, digests)


def drop_digest(path: Path) -> None:
    """Makes a file no record, before lines are appended to it."""
    digests = dict(read_digests(path.parent))
    if digests.pop(path.name, None):
        _write_digests(path.parent, digests)


def read_digests(folder: Path) -> Mapping[str, list[str]]:
    """Returns name -> SHA-256 of every record of a folder; two while a file is replaced.

    Raises:
      UserError: `digests.json` is damaged.
    """
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        files, own = content["files"], content["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        files, own = {}, ""
    if sha256(json.dumps(files, sort_keys=True).encode()) != own:
        raise UserError(f"{path}: damaged; put it back, or {WITHOUT_DIGESTS}")
    return files


def _write_digests(folder: Path, files: Mapping[str, list[str]]) -> None:
    own = sha256(json.dumps(files, sort_keys=True).encode())
    content = {"sha256": own, "files": dict(sorted(files.items()))}
    write_text(folder / DIGESTS, json.dumps(content, indent=2) + "\n")


def sha256(content: bytes) -> str:
    """Returns the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes a record of indented JSON."""
    with write_record(path) as beside:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        beside.write_text(text, encoding="utf-8")


def read_json(path: Path, remedy: str = _AGAIN, read: Callable[[Any], Any] = lambda x: x) -> Any:
    """Returns what a JSON record holds.

    Args:
      path: the file.
      remedy: what the user can do about a damaged file.
      read: makes of the content what is returned; what it raises of a content of another form is
        damage, too.

    Raises:
      UserError: the file is damaged.
    """
    content = read_record(path, remedy)
    try:
        return read(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: damaged ({type(error).__name__}: {reason}); {remedy}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`, none if it is missing, by today's names.

    Earlier versions called validation under attack just `validation_accuracy` and `_loss`.

    Raises:
      UserError: the file, or a line of it, is damaged.
    """
    content = read_record(path) if path.is_file() else b""
    try:
        lines = content.decode().splitlines()
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
      UserError: another process holds it, or the file is something else.
    """
    with path.open("r" if shared else "a+", encoding="utf-8", errors="replace") as file:
        if not _lock(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{owner}: {holder} is at work in it; {remedy}")
        if not shared:
            file.seek(0)
            if not re.match(r"process \d+ on |$", file.read(200)):
                raise UserError(f"{path}: is not a lock of this program; {remedy}")
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
