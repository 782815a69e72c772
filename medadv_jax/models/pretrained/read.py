"""Reads a file of weights of any known kind into named arrays, as the file has them.

A file comes from anywhere, so that nothing in it is trusted: no pickle is run, nothing is built
from a config, no size is believed before it is compared with the file. Whatever is wrong with a
file ends in one UserError.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

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
_MAX_HEADER = 1 << 26  # bytes of a safetensors header or a config.json
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class RawWeights:
    """What a file holds, under the names and in the shapes that it has there.

    Attributes:
      layout: "torchvision" (names of a state_dict), "keras" (`layer/variable`) or "medadv_jax".
      arrays: by name, in the dtype of the file; some are read-only.
      metadata: text by name; of our own files what `save_converted` wrote.
      path: of the file, for messages.
    """

    layout: Layout
    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = "weights"


def read_weights(path: str | Path) -> RawWeights:
    """Reads `.pth` `.pt` `.safetensors` `.h5` `.weights.h5` or `.keras`, by content.

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
    except Exception as error:  # the libraries were given arbitrary bytes: any error is the file's
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
        if sizes.get("config.json", 0) > _MAX_HEADER:
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
    """The format is a length, a JSON header and the numbers. (The library for it cannot give
    bfloat16 to numpy, and writes the header in an order that changes from call to call.)"""
    contents = np.fromfile(path, np.uint8)
    length = int(contents[:8].view("<u8")[0])
    if length > min(_MAX_HEADER, len(contents) - 8):
        raise WeightsFileError(f"its header of {length} bytes is cut short")
    header = json.loads(contents[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__", None) or {}
    numbers = contents[8 + length :]
    arrays = {name: _safetensor(name, entry, numbers) for name, entry in header.items()}
    if not arrays:
        raise WeightsFileError("it holds no array")
    if sum(array.nbytes for array in arrays.values()) != len(numbers):
        raise WeightsFileError("its arrays do not fill the file: cut short, or something is hidden")
    ours = metadata.get("format") == FORMAT
    metadata = {str(key): str(value) for key, value in metadata.items()}
    return RawWeights("medadv_jax" if ours else "torchvision", arrays, metadata, str(path))


def _safetensor(name: str, entry: Any, numbers: np.ndarray) -> np.ndarray:
    if entry["dtype"] not in _SAFETENSORS:
        raise WeightsFileError(f"{name[:80]} has the type {str(entry['dtype'])[:20]}")
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
    natural = all(type(value) is int and value >= 0 for value in (*shape, start, end))
    if not natural or len(shape) > 32 or end - start != math.prod(shape) * dtype.itemsize:
        raise WeightsFileError(f"the entry of {name[:80]} is damaged")
    if end > len(numbers):
        raise WeightsFileError(f"{name[:80]} is cut short")
    # A copy where the place is no multiple of the size, which the format allows.
    return np.frombuffer(numbers[start:end].tobytes(), dtype).reshape(shape)


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes float32 arrays and metadata; the same ones always give the same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, array in sorted(arrays.items()):
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in sorted(arrays.items()):
            file.write(np.ascontiguousarray(array, "<f4").tobytes())
