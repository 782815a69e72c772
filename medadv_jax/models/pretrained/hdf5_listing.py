"""Lists the arrays of an HDF5 file as JSON; `keras_files.py` runs it in a subprocess.

    python -I hdf5_listing.py FILE

A damaged file can crash the HDF5 library, or make it loop or allocate endlessly (h5py 3.16: 2 of
6,000 files with a few bytes changed). In a subprocess with limits, only the subprocess fails. It
reads no arrays, and prints their offsets in the file: Keras stores arrays in one piece.
"""

import contextlib
import json
import sys
from typing import Any

import h5py
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

_MEMORY = 4 << 30  # bytes of address space; the libraries alone take up 1 GiB
_DATA = 768 << 20  # bytes of writable memory
_SECONDS = 8  # of processor time; an undamaged file takes 0.3
_MAX_OBJECTS = 100_000
_MAX_DEPTH = 16
_ATTRIBUTES = ("layer_names", "weight_names", "name", "dtype", "keras_version")


def main() -> None:
    """Prints {"groups": {path: {attribute: text or list}}, "arrays": {path: [shape, …]}}."""
    _limit()
    listing: dict[str, dict] = {"groups": {}, "arrays": {}}
    with h5py.File(sys.argv[1], "r") as file:
        _walk(file, "", listing, set())
    json.dump(listing, sys.stdout)


def _limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA, _DATA))


def _walk(group: Any, path: str, listing: dict[str, dict], seen: set) -> None:
    address = h5o.get_info(group.id).addr
    if address in seen or path.count("/") > _MAX_DEPTH:
        raise ValueError(f"{path[:80]}: groups within groups without end")
    seen.add(address)
    listing["groups"][path] = _attributes(group)
    for name in group:
        if len(listing["groups"]) + len(listing["arrays"]) > _MAX_OBJECTS:
            raise ValueError(f"more than {_MAX_OBJECTS} groups and arrays")
        inner = f"{path}/{name}" if path else name
        # A soft or external link may lead to another file.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{inner[:80]}: a link, which Keras does not write")
        item: Any = group[name]
        if isinstance(item, h5py.Group):
            _walk(item, inner, listing, seen)
        elif isinstance(item, h5py.Dataset):
            listing["arrays"][inner] = _describe(item)


def _describe(array: Any) -> list:
    """[shape, dtype, offset in bytes; None if not contiguous or not in this file]."""
    offset = None if array.external or array.is_virtual else array.id.get_offset()
    dtype = _attributes(array).get("dtype", array.dtype.str)
    return [list(array.shape or ()), dtype, offset]


def _attributes(item: Any) -> dict[str, Any]:
    """The attributes in `_ATTRIBUTES`; Keras stores long lists in numbered parts, joined here."""
    found: dict[str, Any] = {}
    for key in sorted(item.attrs, key=lambda key: (len(key), key)):  # part 10 after part 9
        name = key.rstrip("0123456789")
        if name in _ATTRIBUTES:
            value = item.attrs[key]
            if getattr(value, "shape", ()):
                found[name] = [*found.get(name, []), *map(_text, value)]
            else:
                found[name] = _text(value)
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the library's message, in one line
        print(" ".join(str(error).split())[:200] or type(error).__name__, file=sys.stderr)
        sys.exit(1)
