"""Lists the arrays of a foreign file of weights as JSON; `read.py` runs it in a subprocess.

    python -I listing FILE SCRATCH      # SCRATCH: the file to extract a Keras archive's HDF5 to

A hostile or damaged file can make a reader crash, loop or allocate endlessly (h5py 3.16: 2 of 6,000
files with a few bytes changed). Here only this process fails, within limits of time and memory. It
prints where the arrays lie in the file, not the arrays:

    {"layout": "torchvision" or "keras" or "medadv_jax", "metadata": {name: text},
     "arrays": {name: [dtype, shape, strides or null (as in C), offset in bytes or null]}}

Strides count numbers. Keras' listing has "groups", "config" and "extracted" too (`keras_files.py`).
It runs without the package, whose import would take longer than the reading.
"""

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

import archives
import hdf5
import pickles
import safetensors_header

_MEMORY = 4 << 30  # bytes of address space; the libraries alone take up 1 GiB
_DATA = 768 << 20  # bytes of writable memory
_SECONDS = 10  # of processor time, beside a second for every 64 MiB of the file
_MAX_LISTING = 1 << 25  # characters of the JSON; a ResNet50 has 30,000


def main() -> None:
    """Prints the listing, or one line on standard error and ends with 1."""
    path, scratch = map(Path, sys.argv[1:])
    try:
        _limit(path.stat().st_size)
        text = json.dumps(_listing(path, scratch))
        if len(text) > _MAX_LISTING:
            raise pickles.WeightsFileError("it names more arrays than any network has")
    except pickles.WeightsFileError as error:
        sys.exit(_line(error))
    except MemoryError:
        sys.exit("listing its arrays needs more memory than for any file of weights")
    except Exception as error:  # libraries fail in many ways on arbitrary bytes
        sys.exit(f"damaged, or no file of weights: {_line(error) or type(error).__name__}")
    print(text)


def _line(error: Exception) -> str:
    return " ".join(str(error)[:1000].split())[:250]


def _limit(size: int) -> None:
    seconds = _SECONDS + (size >> 26)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_AS, _MEMORY)
    _lower(resource.RLIMIT_DATA, _DATA)


def _lower(kind: int, most: int) -> None:
    """Lowers a limit; one that is lower already stays."""
    with contextlib.suppress(ValueError, OSError):  # not every system has all of them
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _listing(path: Path, scratch: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04":
        return archives.list_archive(path, scratch)
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return hdf5.list_hdf5(path)
    if start[8:9] == b"{":
        return safetensors_header.list_safetensors(path)
    if start[:1] == b"\x80":
        return archives.list_legacy(path)
    if not start:
        raise pickles.WeightsFileError("the file is empty")
    raise pickles.WeightsFileError(
        "not a file of weights; known are .pth .pt .safetensors .h5 .weights.h5 .keras"
    )


if __name__ == "__main__":
    main()
