"""Reads a weights file of any known format into arrays by name, and writes safetensors files.

Files are untrusted: no pickle is executed, no object is built from a config. A subprocess with
limits of time and memory (`listing/`) finds where the arrays lie; every size is checked against the
file before memory is allocated. Any fault of a file is a one-line UserError.
"""

import dataclasses
import json
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained.keras_files import FileFault, name_arrays

Layout = Literal["torchvision", "keras", "medadv_jax"]

FORMAT = "medadv_jax"  # the value of `format` in the metadata of our own files
_MAX_FILE = 4 << 30  # bytes; the largest published file, VGG19, has 0.6e9
_MAX_ARRAYS = 2 << 30  # bytes of all arrays; a checkpoint's optimizer is not read
_LISTING = Path(__file__).with_name("listing")
_TIMEOUT = 300  # seconds for it; a file of 4 GiB takes 10
_TYPES = {
    **{name: np.dtype(name) for name in ("<f2", "<f4", "<f8", "|b1", "|i1", "<i2", "<i4", "<i8")},
    **{name: np.dtype(name) for name in ("|u1", "<u2", "<u4", "<u8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# What torch.compile, data parallelism and averaged models put into names, at any place.
_WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    "_forward_module",
}


@dataclasses.dataclass(frozen=True)
class RawWeights:
    """The content of a weights file, with the file's own names, shapes and dtypes.

    Only the parts that PyTorch's wrappers put into names are taken off.

    Attributes:
      layout: how arrays are named: "torchvision" (keys of a state_dict), "keras" (`layer/variable`)
        or "medadv_jax" (`collection/layer/array`, a converted file).
      arrays: name → array.
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
        UserError: the file is missing, damaged, too large, no regular file, or holds no weights.
    """
    path = Path(path).expanduser()
    try:
        _check_file(path)
        with tempfile.TemporaryDirectory() as folder:
            extracted = Path(folder) / "weights.h5"
            listing = _list(path, extracted)
            layout, metadata, arrays = listing["layout"], listing["metadata"], listing["arrays"]
            if layout == "torchvision":
                arrays = _without_wrappers(arrays)
            elif layout == "keras":
                arrays, version = name_arrays(listing)
                metadata = {"keras_version": version}
            found = _read_arrays(extracted if listing.get("extracted") else path, arrays)
        return RawWeights(layout, found, metadata, str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a file of weights") from error
    except FileFault as error:
        raise UserError(f"{path}: {_line(error)}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # a listing that lies
        reason = _line(error) or type(error).__name__
        raise UserError(f"{path}: damaged, or no file of weights: {reason}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _without_wrappers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Renames `module.conv1.weight`, `features._orig_mod.0.weight` … of PyTorch's wrappers.

    Names stay as they are where two of them would become one.
    """
    short = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in arrays]
    distinct = len(set(short)) == len(arrays)
    return dict(zip(short if distinct else arrays, arrays.values(), strict=True))


def _check_file(path: Path) -> None:
    """Raises an error for a pipe or device, which may have no end, and for a file too large."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise FileFault("is a directory; give a file of weights")
    if not stat.S_ISREG(found.st_mode):
        raise FileFault("not a regular file but a pipe or device; copy its content into a file")
    if found.st_size > _MAX_FILE:
        raise FileFault(
            f"it has {found.st_size} bytes, and no file of weights needs over {_MAX_FILE}"
        )
    with path.open("rb"):  # may not be readable
        pass


def _list(path: Path, scratch: Path) -> dict[str, Any]:
    """Runs `listing/` on a file."""
    command = [sys.executable, "-I", str(_LISTING), str(path.resolve()), str(scratch)]
    # "::": no plugins, which HDF5 would load for a compression that the file names.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FileFault(f"listing its arrays did not end in {_TIMEOUT} s: damaged") from error
    if result.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise FileFault("listing its arrays takes more time or memory than for any file of weights")
    if result.returncode:
        reason = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise FileFault(reason[-1] if reason else "damaged: the library that reads it crashes")
    return json.loads(result.stdout)


def _read_arrays(path: Path, listed: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Reads name → [dtype, shape, strides, offset]; see `listing/`."""
    arrays: dict[str, np.ndarray] = {}
    size, total = path.stat().st_size, 0
    with path.open("rb") as file:
        for name, (dtype, shape, strides, offset) in listed.items():
            if dtype not in _TYPES:
                raise FileFault(f"{name[:80]} is of type {str(dtype)[:20]}, not of numbers")
            if offset is None:
                raise FileFault(f"{name[:80]} is not stored in one piece; save it with Keras")
            kind, count = _TYPES[dtype], math.prod(shape)
            if strides is not None:
                count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            total += count * kind.itemsize
            if total > _MAX_ARRAYS:
                raise FileFault(f"its arrays have over {_MAX_ARRAYS} bytes, more than any network")
            if offset + count * kind.itemsize > size:
                raise FileFault(f"{name[:80]} of shape {shape} reaches outside the file")
            file.seek(offset)
            numbers = np.fromfile(file, kind, count)
            if strides is not None:
                steps = tuple(stride * kind.itemsize for stride in strides)
                numbers = np.lib.stride_tricks.as_strided(numbers, shape, steps)
            arrays[name] = np.ascontiguousarray(numbers).reshape(shape)
    return arrays


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
