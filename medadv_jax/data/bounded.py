"""Reads files of strangers: bounds on their size, and the error of an image that is refused."""

import codecs
import stat
from pathlib import Path

MAX_PIXELS = 40_000_000  # 0.7 GB while decoding; more is a mistake or a decompression bomb
MAX_BYTES = 256 << 20  # of a file; more than any of 40 megapixels in these formats
_MAX_SCANS = 100  # of a JPEG; ten are usual, and each costs a pass over all pixels
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class BadImageError(Exception):
    """The file is no usable image; the message is the reason that the report prints."""


def read_bounded(path: Path, most: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      BadImageError: a pipe, a device or another thing that is no file, or over `most` bytes.
      OSError: it cannot be read.
    """
    if _regular_size(path) > most:
        raise BadImageError(f"over {most >> 20} MiB")
    with path.open("rb") as file:
        return file.read(most)


def read_head(path: Path, count: int) -> bytes:
    """Returns the first `count` bytes of a regular file; raises as `read_bounded`."""
    _regular_size(path)
    with path.open("rb") as file:
        return file.read(count)


def _regular_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise BadImageError("not a regular file")
    return status.st_size


def read_text(path: Path, most: int) -> str:
    """Returns the text of a file; a byte order mark, or the zeros of UTF-16, tell its encoding.

    Raises:
      BadImageError, OSError: as `read_bounded`.
      UnicodeError: neither UTF-8 nor UTF-16.
    """
    content = read_bounded(path, most)
    if content.startswith(_UTF16):
        return content.decode("utf-16")
    if b"\0" in content[:2]:  # ASCII in UTF-16 without a mark
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    return content.decode("utf-8-sig")


def check_size(width: int, height: int) -> None:
    """Raises BadImageError for an image of over MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadImageError(f"over {MAX_PIXELS / 1e6:.0f} megapixels: {width} x {height}")


def check_scans(content: bytes) -> None:
    """Raises BadImageError for a JPEG that takes minutes to decode."""
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise BadImageError(f"a JPEG of over {_MAX_SCANS} scans")
