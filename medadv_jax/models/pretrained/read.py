"""Reads a weights file of any known format into arrays by name, and writes safetensors files.

Files are untrusted: no pickle is executed, no object is built from a config, and every size is
checked against the file before memory is allocated. Any fault of a file is a one-line UserError.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
from safetensors.numpy import save_file

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained.keras_files import read_keras
from medadv_jax.models.pretrained.torch_files import (
    WeightsFileError,
    read_torch_legacy,
    read_torch_zip,
)

Layout = Literal["torchvision", "keras", "medadv_jax"]

FORMAT = "medadv_jax"  # the value of `format` in the metadata of our own files
_MAX_FILE = 4 << 30  # bytes; the largest published file, VGG19, has 0.6e9
_MAX_ENTRIES = 100_000  # of a zip archive
_MAX_CONFIG = 1 << 26  # bytes of a config.json


@dataclasses.dataclass(frozen=True)
class RawWeights:
    """The content of a weights file, with the file's own names, shapes and dtypes.

    Attributes:
      layout: how arrays are named: "torchvision" (keys of a state_dict), "keras" (`layer/variable`)
        or "medadv_jax" (`collection/layer/array`, a converted file).
      arrays: name → array; some are read-only.
      metadata: name → text; for a converted file, what `save_converted` wrote.
      path: the file's path, for error messages.
    """

    layout: Layout
    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = "weights"


def read_weights(path: str | Path) -> RawWeights:
    """Reads `.pth` `.pt` `.safetensors` `.h5` `.weights.h5` or `.keras`; the content decides which.

    Raises:
        UserError: the file is missing, damaged, too large, or holds anything but weights.
    """
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
        if size > _MAX_FILE:
            raise WeightsFileError(
                f"it has {size} bytes, and no file of weights needs over {_MAX_FILE}"
            )
        return _reader(start)(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a file of weights") from error
    except WeightsFileError as error:
        raise UserError(f"{path}: {_line(error)}") from error
    except Exception as error:  # libraries fail in many ways on arbitrary bytes
        reason = _line(error) or type(error).__name__
        raise UserError(f"{path}: damaged, or no file of weights: {reason}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _reader(start: bytes) -> Any:
    if start[:4] == b"PK\x03\x04":
        return _read_zip
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return _read_hdf5
    if start[8:9] == b"{":
        return _read_safetensors
    if start[:1] == b"\x80":
        return _read_legacy
    if not start:
        raise WeightsFileError("the file is empty")
    raise WeightsFileError(
        "not a file of weights; known are .pth .pt .safetensors .h5 .weights.h5 .keras"
    )


def _read_legacy(path: Path) -> RawWeights:
    return RawWeights("torchvision", read_torch_legacy(path.read_bytes()), {}, str(path))


def _read_hdf5(path: Path) -> RawWeights:
    arrays, version = read_keras(path)
    return RawWeights("keras", arrays, {"keras_version": version}, str(path))


def _read_zip(path: Path) -> RawWeights:
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        # A Keras file may be compressed; floating-point numbers hardly are.
        if len(sizes) > _MAX_ENTRIES or sum(sizes.values()) > 4 * path.stat().st_size:
            raise WeightsFileError("its entries would be over 4 times the size of the file")
        if "model.weights.h5" not in sizes:
            return RawWeights("torchvision", read_torch_zip(archive), {}, str(path))
        if sizes.get("config.json", 0) > _MAX_CONFIG:
            raise WeightsFileError(f"its config.json has {sizes['config.json']} bytes")
        config = json.loads(archive.read("config.json")) if "config.json" in sizes else None
        with _extracted(archive, "model.weights.h5") as inner:
            arrays, version = read_keras(inner, config)
    return RawWeights("keras", arrays, {"keras_version": version}, str(path))


@contextlib.contextmanager
def _extracted(archive: zipfile.ZipFile, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.h5"  # never the name in the archive
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        yield target


def _read_safetensors(path: Path) -> RawWeights:
    """The library checks first that the arrays fill the file exactly and do not overlap."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata, arrays = dict(file.metadata() or {}), file.get_tensors()
    except safetensors.SafetensorError as error:
        if "not fully covered" in str(error):
            raise WeightsFileError("its arrays do not fill the file: it is cut short") from error
        raise
    if not arrays:
        raise WeightsFileError("it holds no array")
    ours = metadata.get("format") == FORMAT
    return RawWeights("medadv_jax" if ours else "torchvision", arrays, metadata, str(path))


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes C-contiguous arrays and metadata; equal input gives equal bytes.

    The library writes the metadata in random order, so its entries are sorted in place afterwards.
    """
    save_file(dict(arrays), path, dict(metadata))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(metadata.items()))
        file.seek(8)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        file.write(text.encode().ljust(length))
