"""Reads PyTorch's `.pth` files, zip and legacy, without PyTorch and without executing a pickle.

A pickle is a program. `_load` parses its opcodes with `pickletools.genops` and interprets only
those that build strings, numbers and containers. Of classes and functions it accepts those in
`_BUILDERS` and `_STORAGES`; any other is an error that names it. A tensor becomes a `_Tensor`,
checked against the bytes of its storage before it is read.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_OPCODES = 2_000_000  # a ResNet50 has 9,000
_MAX_PICKLE = 1 << 26  # bytes; a ResNet50 has 40,000

_STORAGES: dict[str, np.dtype] = {
    f"{module}.{name}Storage": np.dtype(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Float": np.float32,
        "Double": np.float64,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}


class WeightsFileError(Exception):
    """Why a file cannot be read; `read_weights` adds the path and raises a UserError."""


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, data: np.ndarray) -> np.ndarray:
        """Returns the array as a view of its storage, (count,).

        Raises:
          WeightsFileError: it reaches outside the storage.
        """
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, data.dtype)
        # An expanded tensor repeats its storage: small in the file, of any size in memory.
        if last >= len(data) or math.prod(self.shape) > len(data):
            raise WeightsFileError(f"a tensor of shape {self.shape} reaches outside its storage")
        steps = tuple(stride * data.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, steps, writeable=False
        )


def read_torch_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Returns the arrays of a `torch.save` of PyTorch 1.6 or later, by name."""
    entries = {entry.filename: entry for entry in archive.infolist()}
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

    loaded = _load(io.BytesIO(archive.read(program)))
    tensors = _state_dict(loaded)
    return _materialise(tensors, lambda s: archive.read(f"{folder}data/{s.key}"))


def read_torch_legacy(contents: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a `torch.save` of before PyTorch 1.6, by name."""
    file = io.BytesIO(contents)  # unlike a file, it never allocates more than its content
    if _load(file) != _LEGACY_MAGIC:
        raise WeightsFileError("a pickle, but not one of torch.save")
    protocol, system = _load(file), _load(file)
    if protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
        raise WeightsFileError(
            f"torch.save protocol {str(protocol)[:20]} or its byte order is unknown"
        )
    storages: dict[str, _Storage] = {}
    tensors = _state_dict(_load(file, storages))
    keys = _load(file)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise WeightsFileError("the list of its storages is damaged")

    parts: dict[str, memoryview] = {}
    for storage in [storages[str(key)] for key in keys]:
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count:
            raise WeightsFileError(f"a storage has {count} numbers, not {storage.count}")
        start, size = file.tell(), count * storage.dtype.itemsize
        parts[storage.key] = memoryview(contents)[start : start + size]
        file.seek(start + size)
    return _materialise(tensors, lambda s: parts[s.key])


def _materialise(
    tensors: dict[str, _Tensor], read: Callable[[_Storage], bytes | memoryview]
) -> dict[str, np.ndarray]:
    """Reads every storage once; a tensor laid out like its storage is a view of it."""
    storages: dict[_Storage, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    copied = 0
    for name, tensor in tensors.items():
        if tensor.storage not in storages:
            data = read(tensor.storage)
            if len(data) != tensor.storage.count * tensor.storage.dtype.itemsize:
                raise WeightsFileError(f"the storage of {name} has {len(data)} bytes: cut short")
            storages[tensor.storage] = np.frombuffer(data, tensor.storage.dtype)
        arrays[name] = tensor.view(storages[tensor.storage])
        if not arrays[name].flags.c_contiguous:
            copied += arrays[name].nbytes
            if copied > 4 * sum(data.nbytes for data in storages.values()):
                raise WeightsFileError(
                    "its tensors overlap: they need over 4 times the memory of the file"
                )
            arrays[name] = np.ascontiguousarray(arrays[name])
    return arrays


def _state_dict(loaded: Any) -> dict[str, _Tensor]:
    """Name → tensor, from the object or its `state_dict` or `model`, without prefix `module.`."""
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsFileError(
            "it holds no state_dict: save model.state_dict() instead of the model"
        )
    for name, value in loaded.items():
        if not isinstance(value, _Tensor):
            raise WeightsFileError(f"{str(name)[:80]!r} in its state_dict is no tensor")
    prefix = "module." if all(str(name).startswith("module.") for name in loaded) else ""
    return {str(name)[len(prefix) :]: value for name, value in loaded.items()}


# The calls that a pickle may contain


def _ordered_dict(pairs: Any = ()) -> dict:
    return _set_items({}, [item for pair in pairs for item in pair])


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 32 or not all(map(_is_natural, values)):
        raise WeightsFileError("the shape of a tensor is damaged")
    return values


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    del rest  # requires_grad, hooks, metadata
    shape, strides = _naturals(shape), _naturals(strides)
    if not isinstance(storage, _Storage) or not _is_natural(offset) or len(shape) != len(strides):
        raise WeightsFileError("a tensor is damaged")
    return _Tensor(storage, offset, shape, strides)


def _parameter(data: Any, *rest: Any) -> Any:
    del rest  # requires_grad, hooks, state
    return data


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _global(name: str) -> _Global:
    if name not in _BUILDERS and name not in _STORAGES:
        raise WeightsFileError(
            f"it holds {name[:120]}, which is not among what weights are made of"
        )
    return _Global(name)


def _persistent(identity: Any) -> _Storage:
    """("storage", class, key, device, count) and, in legacy files, None for `no view`."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise WeightsFileError("it refers to something that is no storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, _Global) or kind.name not in _STORAGES or not isinstance(key, str):
        raise WeightsFileError("a storage is damaged")
    if not _is_natural(count) or view not in ([], [None]):
        raise WeightsFileError("a storage is damaged, or of a PyTorch before 0.4")
    return _Storage(key, _STORAGES[kind.name], count)


def _set_items(target: Any, items: list) -> dict:
    # Only plain keys: hashing nested tuples can take exponential time.
    if not isinstance(target, dict) or len(items) % 2:
        raise WeightsFileError("a dictionary is damaged")
    if not all(type(key) in (str, int) for key in items[::2]):
        raise WeightsFileError("a dictionary has a key that is neither text nor a number")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


# The pickle machine: a stack, a memo, and the opcodes that torch.save writes

_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Machine:
    """Interprets opcodes; all values are strings, numbers, containers or the classes above."""

    def __init__(self, storages: dict[str, _Storage]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages  # by key; filled

    def step(self, opcode: str, argument: Any) -> None:
        """Executes one opcode."""
        if opcode in _PUSHED:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode in ("PROTO", "FRAME"):
            pass
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self._top()
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif hasattr(self, f"_{opcode}"):
            getattr(self, f"_{opcode}")(argument)
        else:
            raise WeightsFileError(f"its pickle has the opcode {opcode}, which weights do not need")

    def _pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise WeightsFileError("its pickle is damaged")
        popped = [self.stack.pop() for _ in range(count)][::-1]
        if any(value is _MARK for value in popped):
            raise WeightsFileError("its pickle is damaged")
        return popped

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise WeightsFileError("its pickle is damaged")
        return self.stack[-1]

    def _pop_mark(self) -> list:
        values = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise WeightsFileError("its pickle is damaged")

    def _MARK(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _MEMOIZE(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def _TUPLE(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _LIST(self, _: Any) -> None:
        self.stack.append(self._pop_mark())

    def _DICT(self, _: Any) -> None:
        self.stack.append(_set_items({}, self._pop_mark()))

    def _GLOBAL(self, argument: Any) -> None:
        self.stack.append(_global(str(argument).replace(" ", ".", 1)))

    def _STACK_GLOBAL(self, _: Any) -> None:
        module, name = self._pop(2)
        self.stack.append(_global(f"{module}.{name}"))

    def _BINPERSID(self, _: Any) -> None:
        storage = _persistent(self._pop(1)[0])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise WeightsFileError("a storage has two sizes")
        self.stack.append(storage)

    def _REDUCE(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise WeightsFileError("its pickle is damaged")
        if function.name not in _BUILDERS:
            raise WeightsFileError(f"it calls {function.name}")
        self.stack.append(_BUILDERS[function.name](*arguments))

    def _BUILD(self, _: Any) -> None:
        # The state of a state_dict is `_metadata`, its modules' versions: ignored.
        target, _state = self._pop(2)
        if not isinstance(target, dict):
            raise WeightsFileError("it sets attributes of something that is no dictionary")
        self.stack.append(target)

    def _APPEND(self, _: Any) -> None:
        self._extend(self._pop(1))

    def _APPENDS(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list) -> None:
        if not isinstance(self._top(), list):
            raise WeightsFileError("its pickle is damaged")
        self.stack[-1].extend(values)

    def _SETITEM(self, _: Any) -> None:
        items = self._pop(2)
        _set_items(self._top(), items)

    def _SETITEMS(self, _: Any) -> None:
        items = self._pop_mark()
        _set_items(self._top(), items)


def _load(file: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Returns the value of one pickle, adds to `storages`, and leaves the file after the pickle."""
    machine = _Machine({} if storages is None else storages)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MAX_OPCODES:
            raise WeightsFileError(f"its pickle has more than {_MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine._pop(1)[0]
        machine.step(opcode.name, argument)
    raise WeightsFileError("its pickle is cut short")
