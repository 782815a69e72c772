"""Lists the groups and arrays of an HDF5 file; Keras stores arrays in one piece."""

from pathlib import Path
from typing import Any

_MAX_OBJECTS = 100_000
_MAX_DEPTH = 16
_ATTRIBUTES = ("layer_names", "weight_names", "name", "dtype", "keras_version")


def list_hdf5(path: Path) -> dict[str, Any]:
    """Returns the listing (see `__main__.py`), with "groups": {path: {attribute: text or list}}.

    The offset of an array that is not in one piece, or not in this file, is None.
    """
    import h5py  # takes 0.2 s

    listing: dict[str, Any] = {"layout": "keras", "metadata": {}, "groups": {}, "arrays": {}}
    with h5py.File(path, "r") as file:
        _walk(file, "", listing, set())
    return listing


def _walk(group: Any, path: str, listing: dict[str, dict], seen: set) -> None:
    import h5py

    address = h5py.h5o.get_info(group.id).addr  # pyright: ignore[reportAttributeAccessIssue]
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
            offset = None if item.external or item.is_virtual else item.id.get_offset()
            dtype = _attributes(item).get("dtype", item.dtype.str)
            listing["arrays"][inner] = [dtype, list(item.shape or ()), None, offset]


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
