"""Fetches a published archive once, where there is a network."""

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
_CONNECT_TIMEOUT = 10  # seconds; TFDS alone would retry for minutes before it gave up


def fetch(name: str, url: str, homepage: str, folder: Path) -> Path:
    """Downloads and unpacks an archive, unless that was done before.

    TFDS' own unpacking and its Kaggle client need TensorFlow; its download does not.

    Args:
      name: the data set's name; becomes a folder.
      url: http(s) address of a zip or tar archive.
      homepage: where a person can get the archive; for the error.
      folder: where downloads are kept.

    Returns:
      the folder with the unpacked archive.

    Raises:
      UserError: there is no network, the server refuses, or what comes is no archive.
    """
    target = folder / name
    if target.is_dir():  # renamed into place when whole
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
            "download it "
            f"from {homepage}, unpack it and pass --config.data.dir=FOLDER"
        ) from error
    return target


def _check_reachable(url: str) -> None:
    """Raises URLError or TimeoutError when no server answers; any answer will do."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks below `folder`, whatever the paths in the archive say; refuses bombs."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            _check_sizes(entry.file_size for entry in content.infolist())
            content.extractall(folder)  # leaves out drives, leading slashes and ".."
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as content:
            _check_sizes(entry.size for entry in content)
            content.extractall(folder, filter="data")  # refuses links and paths that lead out
    else:
        raise ValueError("what came is no zip or tar archive; perhaps a page that asks for a login")


def _check_sizes(sizes: Iterable[int]) -> None:
    """Raises ValueError once there is more in an archive than any of these data sets needs."""
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if total > _MAX_UNPACKED or count > _MAX_FILES:
            raise ValueError(f"over {_MAX_UNPACKED >> 30} GiB or {_MAX_FILES} files unpacked")
