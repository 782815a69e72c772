"""Downloads and unpacks a published archive, once."""

import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from medadv_jax.errors import UserError

_MAX_UNPACKED = 64 << 30  # bytes; BreakHis, the largest, has 4e9
_MAX_FILES = 1_000_000
_CONNECT_TIMEOUT = 10  # seconds; TFDS alone would retry for minutes


def fetch(name: str, url: str, homepage: str, folder: Path) -> Path:
    """Returns the folder of an unpacked archive; downloads it if that folder does not exist.

    TFDS downloads; its unpacking and its Kaggle client would need TensorFlow.

    Args:
      name: the data set's name, and that of the returned folder.
      url: http(s) address of a zip or tar archive.
      homepage: where a person can get the archive; for the error.
      folder: where downloads are kept.

    Raises:
      UserError: there is no network, the server refuses, or the download is no archive.
    """
    target = folder / name
    if target.is_dir():  # complete, since it is moved into place at the end
        return target
    logging.info("Fetching %s from %s into %s", name, url, target)
    try:
        _check_reachable(url)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"incomplete.{name}.", dir=folder) as temporary:
            manager = tfds.download.DownloadManager(download_dir=temporary, dataset_name=name)
            _unpack(Path(manager.download(url)), Path(temporary, "unpacked"))
            shutil.move(Path(temporary, "unpacked"), target)
    except (OSError, ValueError, tarfile.TarError, tfds.download.DownloadError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"config.data.dir is empty and {name} could not be fetched from {url} ({reason}): "
            f"download it from {homepage}, unpack it and pass --config.data.dir=FOLDER"
        ) from error
    return target


def _check_reachable(url: str) -> None:
    """Raises URLError or TimeoutError if no server answers; any HTTP status is an answer."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks into `folder` and nowhere else; ValueError if it is no archive or far too large."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            _check_sizes(entry.file_size for entry in content.infolist())
            content.extractall(folder)  # strips drives, leading slashes and ".."
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as content:
            _check_sizes(entry.size for entry in content)
            content.extractall(folder, filter="data")  # rejects links and paths that lead out
    else:
        raise ValueError("what came is no zip or tar archive; perhaps a page that asks for a login")


def _check_sizes(sizes: Iterable[int]) -> None:
    """Raises ValueError for far more data or files than any of these data sets has."""
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if total > _MAX_UNPACKED or count > _MAX_FILES:
            raise ValueError(f"over {_MAX_UNPACKED >> 30} GiB or {_MAX_FILES} files unpacked")
