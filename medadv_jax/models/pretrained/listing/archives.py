"""Lists the arrays of PyTorch's `.pth` files, zip and legacy, and of Keras' `.keras` archives.

No pickle is executed: `pickles.py` interprets it. A tensor is checked against the bytes of its
storage.
"""

import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hdf5
from pickles import Storage, Tensor, WeightsFileError, load

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_PICKLE = 1 << 26  # bytes; a ResNet50 has 40,000
_MAX_ENTRIES = 100_000  # of a zip archive
_MAX_CONFIG = 1 << 22  # bytes of a config.json; a ResNet50's has 100,000
_MAX_EXTRACTED = 4 << 30  # bytes
_MAX_DEPTH = 4  # of the containers around a state_dict
# Usual names of the state_dict within a checkpoint; the first decides. Copies that are averaged
# over the training (`ema_state_dict`) have other names.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params")
_LOCAL_HEADER = 30  # bytes of it in a zip archive, beside name and extra field


def list_archive(path: Path, scratch: Path) -> dict[str, Any]:
    """Returns the listing of a zip archive; see `__main__.py`.

    The HDF5 file of a Keras archive is extracted to `scratch`, and "extracted" is true.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        whole = sum(entry.file_size for entry in entries.values())
        # A Keras file may be compressed; floating-point numbers hardly are.
        if len(entries) > _MAX_ENTRIES or whole > min(4 * path.stat().st_size, _MAX_EXTRACTED):
            raise WeightsFileError("its entries would be over 4 times the size of the file")
        if "model.weights.h5" not in entries:
            return _list_torch(archive, entries)
        config = None
        if "config.json" in entries:
            if entries["config.json"].file_size > _MAX_CONFIG:
                raise WeightsFileError(
                    f"its config.json has {entries['config.json'].file_size} bytes"
                )
            config = json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as source, scratch.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return {**hdf5.list_hdf5(scratch), "config": config, "extracted": True}


def _list_torch(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """The listing of a `torch.save` of PyTorch 1.6 or later."""
    program = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), "")
    if not program:
        raise WeightsFileError("a zip archive, but neither of torch.save nor of Keras")
    folder = program[: -len("data.pkl")]
    # torch.save never compresses, so the entries are never larger than the file.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise WeightsFileError(
            "a zip archive with compressed entries, which torch.save never writes"
        )
    if entries[program].file_size > _MAX_PICKLE:
        raise WeightsFileError(f"its data.pkl has {entries[program].file_size} bytes")
    order = f"{folder}byteorder"
    if order in entries and archive.read(order).strip() != b"little":
        raise WeightsFileError("written on a big-endian machine")

    tensors = _state_dict(load(io.BytesIO(archive.read(program))))
    starts = {
        storage: _start(archive, entries, f"{folder}data/{storage.key}", storage)
        for storage in {tensor.storage for tensor in tensors.values()}
    }
    return _listed(tensors, starts)


def _start(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, storage: Storage
) -> int:
    """Returns the place of a storage in the file, after a comparison of its checksum."""
    if name not in entries:
        raise WeightsFileError(f"the storage {name[:80]} is missing: damaged")
    if entries[name].file_size != storage.bytes:
        raise WeightsFileError(
            f"the storage {name[:80]} has {entries[name].file_size} bytes, not {storage.bytes}"
        )
    with archive.open(name) as contents:  # raises an error at its end if the checksum differs
        while contents.read(1 << 20):
            pass
    file: Any = archive.fp
    file.seek(entries[name].header_offset)
    header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return entries[name].header_offset + _LOCAL_HEADER + lengths


def list_legacy(path: Path) -> dict[str, Any]:
    """Returns the listing of a `torch.save` of before PyTorch 1.6; see `__main__.py`."""
    with path.open("rb") as whole:
        # Unlike a file, BytesIO never allocates more than its content.
        file = io.BytesIO(whole.read(_MAX_PICKLE))
        if load(file) != _LEGACY_MAGIC:
            raise WeightsFileError("a pickle, but not one of torch.save")
        protocol, system = load(file), load(file)
        if protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
            raise WeightsFileError("the protocol of torch.save, or its byte order, is unknown")
        storages: dict[str, Storage] = {}
        tensors = _state_dict(load(file, storages))
        keys = load(file)
        if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
            raise WeightsFileError("the list of its storages is damaged")
        if sorted(map(str, keys)) != sorted(storages):
            raise WeightsFileError("the list of its storages is damaged")

        starts: dict[Storage, int] = {}
        place, end = file.tell(), path.stat().st_size
        for storage in [storages[str(key)] for key in keys]:
            whole.seek(place)
            count = int.from_bytes(whole.read(8), "little", signed=True)
            if count != storage.count:
                raise WeightsFileError(f"a storage has {count} numbers, not {storage.count}")
            starts[storage] = place + 8
            place += 8 + storage.bytes
            if place > end:
                raise WeightsFileError("its storages reach beyond its end: it is cut short")
    return _listed(tensors, starts)


def _listed(tensors: dict[str, Tensor], starts: dict[Storage, int]) -> dict[str, Any]:
    arrays = {name: _place(tensor, starts[tensor.storage]) for name, tensor in tensors.items()}
    used = {tensor.storage for tensor in tensors.values()}
    read = sum(tensor.bytes_to_read for tensor in tensors.values())
    if read > 4 * _total(used):
        raise WeightsFileError("its tensors overlap: they need over 4 times the memory of the file")
    return {"layout": "torchvision", "metadata": {}, "arrays": arrays}


def _total(storages: Iterable[Storage]) -> int:
    return sum(storage.bytes for storage in storages)


def _place(tensor: Tensor, start: int) -> list[Any]:
    """The entry of a tensor in the listing.

    Raises:
      WeightsFileError: it reaches outside its storage.
    """
    count = math.prod(tensor.shape)
    # An expanded tensor repeats its storage: small in the file, of any size in memory.
    if count and (
        tensor.offset + tensor.span > tensor.storage.count or count > tensor.storage.count
    ):
        raise WeightsFileError(f"a tensor of shape {tensor.shape} reaches outside its storage")
    axes = range(len(tensor.shape))
    c_strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in axes)
    strides = None if c_strides == tensor.strides or not count else list(tensor.strides)
    place = start + tensor.offset * tensor.storage.itemsize if count else 0
    return [tensor.storage.dtype, list(tensor.shape), strides, place]


# The state_dict within a checkpoint


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    """Returns name → tensor of the state_dict in what was loaded, at any usual place in it."""
    for _ in range(_MAX_DEPTH):
        inner = _inner(loaded)
        if inner is None:
            break
        loaded = inner
    tensors = _tensors(loaded)
    if not tensors:
        raise WeightsFileError(
            "it holds no state_dict: save model.state_dict() instead of the model"
        )
    return {str(name): value for name, value in tensors.items()}


def _inner(loaded: Any) -> dict | None:
    """The dictionary to go on with; None if the tensors of `loaded` itself are meant."""
    if not isinstance(loaded, dict):
        return None
    holding = [key for key, value in loaded.items() if type(key) is str and _holds(value)]
    usual = [key for key in _CONTAINERS if key in holding]
    own = [key for key in _tensors(loaded) if "." in str(key)]
    if usual or (len(holding) == 1 and not own):
        return loaded[(usual or holding)[0]]
    if holding and not own:
        names = ", ".join(key[:40] for key in holding[:5])
        raise WeightsFileError(
            f"it holds several networks ({names}); keep one: torch.save(checkpoint["
            f"{holding[0][:40]!r}], FILE)"
        )
    return None


def _holds(value: Any, depth: int = _MAX_DEPTH) -> bool:
    """Whether a dictionary has tensors with names; an optimizer numbers its own."""
    if not isinstance(value, dict) or not depth:
        return False
    found = any(isinstance(each, Tensor) for key, each in value.items() if type(key) is str)
    return found or any(_holds(each, depth - 1) for key, each in value.items() if type(key) is str)


def _tensors(loaded: Any) -> dict[str | int, Tensor]:
    items = loaded.items() if isinstance(loaded, dict) else ()
    return {key: value for key, value in items if isinstance(value, Tensor)}
