"""Writes weights files byte by byte, as the libraries do, and damaged or hostile ones."""

import dataclasses
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_TYPES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long"}


@dataclasses.dataclass
class Name:
    """A class or function by its name, as a pickle refers to it."""

    name: str


@dataclasses.dataclass
class Call:
    """A call in a pickle."""

    name: str
    arguments: tuple


@dataclasses.dataclass
class Plain:
    """Any importable value, pickled as it is."""

    value: Any


@dataclasses.dataclass
class Persistent:
    """A reference to something outside the pickle."""

    identity: tuple


def pickled(value: Any) -> bytes:
    """Returns the pickle, protocol 2, of values and of what cannot be imported here."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        number = value.to_bytes(20, "little", signed=True)
        return b"\x8a" + bytes([len(number)]) + number
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, Name):
        return "c{}\n{}\n".format(*value.name.rsplit(".", 1)).encode()
    if isinstance(value, Call):
        return _opcodes(Name(value.name)) + _opcodes(value.arguments) + b"R"
    if isinstance(value, Plain):
        return pickle.dumps(value.value, 2)[2:-1]
    assert isinstance(value, Persistent)
    return _opcodes(value.identity) + b"Q"


def storage(key: str, array: np.ndarray, count: int | None = None, legacy: bool = False):
    """The reference to a tensor's numbers."""
    kind = Name(f"torch.{_TYPES[array.dtype.str[1:]]}Storage")
    view = (None,) if legacy else ()
    return Persistent(("storage", kind, key, "cpu", array.size if count is None else count, *view))


def tensor(reference: Any, shape: tuple, strides: tuple | None = None, offset: int = 0) -> Call:
    """The call that builds a tensor; strides in numbers, those of a C array by default."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    arguments = (reference, offset, shape, strides, False, Call("collections.OrderedDict", ()))
    return Call("torch._utils._rebuild_tensor_v2", arguments)


def state_dict(arrays: dict[str, np.ndarray], legacy: bool = False) -> dict[str, Call]:
    """The state_dict of arrays whose storages are numbered."""
    return {
        name: tensor(storage(str(i), array, legacy=legacy), array.shape)
        for i, (name, array) in enumerate(arrays.items())
    }


def nested_tuples(depth: int) -> bytes:
    """The opcodes of a tuple of two equal tuples of two equal tuples …: 2**depth in words."""
    pairs = b"".join(b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86q" + bytes([at + 1])
                     for at in range(depth))  # fmt: skip
    return b")q\x00" + pairs


def torch_zip(path: Path, state: Any, storages: list[np.ndarray]) -> Path:
    """Writes what torch.save writes since PyTorch 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(state))
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def torch_legacy(path: Path, state: Any, storages: list[np.ndarray]) -> Path:
    """Writes what torch.save wrote before."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    parts = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(system), pickled(state)]
    parts += [pickled([str(key) for key in range(len(storages))])]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages]
    path.write_bytes(b"".join(parts))
    return path


def safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: Any = None) -> Path:
    """Writes a safetensors file of float32 arrays without the library for it."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    numbers = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    return path


def layers_of(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """`layer/variable` → layer → variable."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, variable = name.split("/")
        layers.setdefault(layer, {})[variable] = array
    return layers


def keras_h5(
    path: Path, arrays: dict[str, np.ndarray], root: str = "", weight: str = "{0}/{1}:0"
) -> Path:
    """Writes the layout of keras.applications; `root`: "model_weights" in a whole model's file."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        layers = layers_of(arrays)
        group.attrs["layer_names"] = np.array([b"input_1", *(name.encode() for name in layers)])
        group.attrs["keras_version"] = "2.1.0"
        group.create_group("input_1").attrs["weight_names"] = np.zeros(0)
        for layer, variables in layers.items():
            inner = group.create_group(layer)
            names = [weight.format(layer, variable) for variable in variables]
            # Long lists are kept in parts, as Keras does.
            for part, name in enumerate(names):
                inner.attrs[f"weight_names{part}"] = np.array([name.encode()])
            for name, array in zip(names, variables.values(), strict=True):
                inner.create_dataset(name, data=array)
    return path


def keras_nested_h5(
    path: Path, base: str, inner: dict[str, np.ndarray], outer: dict[str, np.ndarray]
) -> Path:
    """Writes a whole model that has the model `base` as one of its layers, as Keras 2 does."""
    with h5py.File(path, "w") as file:
        layers = {base: inner} | {
            layer: {f"{layer}/{name}": array for name, array in variables.items()}
            for layer, variables in layers_of(outer).items()
        }
        file.attrs["layer_names"] = np.array([name.encode() for name in layers])
        for layer, variables in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{name}:0".encode() for name in variables])
            for name, array in variables.items():
                group.create_dataset(f"{name}:0", data=array)
    return path


def keras_weights_h5(
    path: Path, groups: dict[str, list[np.ndarray]], names: dict[str, str] | None = None
) -> Path:
    """Writes the layout of Keras 3: groups by class and number; `names` as newer versions do."""
    with h5py.File(path, "w") as file:
        for group, variables in groups.items():
            inner = file.create_group(f"layers/{group}/vars")
            if names is not None:
                inner.attrs["name"] = names[group]
            for number, array in enumerate(variables):
                inner[str(number)] = array
        file.create_group("optimizer/vars")["0"] = np.zeros(1, np.int64)
    return path


def keras_zip(path: Path, weights: Path, config: Any) -> Path:
    """Writes a `.keras` file around a `.weights.h5`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(weights, "model.weights.h5")
    return path


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Random float32 arrays."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The bytes of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)
    return buffer.getvalue()
