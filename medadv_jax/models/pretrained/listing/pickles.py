"""Interprets a pickle of torch.save without PyTorch and without executing it.

A pickle is a program. `load` parses its opcodes with `pickletools.genops` and interprets only those
that build strings, numbers and containers. A tensor becomes a `Tensor`. Objects of the classes in
`_LEFT_OUT`, which checkpoints keep beside their tensors, become `_LEFT`, which stands for nothing;
any other class or function is an error that names it.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any

_MAX_OPCODES = 2_000_000  # a ResNet50 has 9,000

# name of a class -> dtype as numpy writes it, bytes of a number
_STORAGES: dict[str, tuple[str, int]] = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Float": ("<f4", 4),
        "Double": ("<f8", 8),
        "Half": ("<f2", 2),
        "BFloat16": ("bfloat16", 2),
        "Long": ("<i8", 8),
        "Int": ("<i4", 4),
        "Short": ("<i2", 2),
        "Char": ("|i1", 1),
        "Byte": ("|u1", 1),
        "Bool": ("|b1", 1),
    }.items()
}


class WeightsFileError(Exception):
    """Why a file cannot be read, in one line."""


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in one piece of the file.

    Attributes:
      key: its name in the file.
      dtype: as numpy writes it, or "bfloat16".
      itemsize: bytes of a number.
      count: numbers.
    """

    key: str
    dtype: str
    itemsize: int
    count: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.count * self.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """The numbers of the storage from its first to its last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the span."""
        return self.span * self.storage.itemsize


# The calls that a pickle may contain


_LEFT = object()  # in place of an object that is no weight
# Classes and functions of what checkpoints keep beside their tensors: metrics, settings, dates.
_LEFT_OUT = {
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *("_codecs.encode", "copy_reg._reconstructor", "copyreg._reconstructor"),
    *("argparse.Namespace", "types.SimpleNamespace", "collections.Counter", "collections.deque"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
    *("datetime.datetime", "datetime.date", "datetime.timedelta", "decimal.Decimal"),
    *("torch.Size", "torch.device", "torch.Generator"),
    *(f"torch.{kind}{bits}" for kind in ("float", "int") for bits in (16, 32, 64)),
    *(
        f"{module}.{name}"
        for module in ("__builtin__", "builtins")
        for name in (
            *("set", "frozenset", "dict", "list", "tuple", "slice", "range", "xrange", "object"),
            *("int", "long", "float", "complex", "bool", "str", "unicode", "bytearray"),
        )
    ),
}


def _ordered_dict(pairs: Any = ()) -> dict:
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise WeightsFileError("a dictionary is damaged")
    return _set_items({}, [item for pair in pairs for item in pair])


def _default_dict(*factory: Any) -> dict:
    del factory
    return {}


def _from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    del kind, state  # a subclass of tensors, and its attributes
    return _call(function, arguments)


def _call(function: Any, arguments: Any) -> Any:
    """The result of a call in a pickle."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise WeightsFileError("its pickle is damaged")
    if function.name in _LEFT_OUT:
        return _LEFT
    if function.name not in _BUILDERS:
        raise WeightsFileError(f"it calls {function.name}")
    return _BUILDERS[function.name](*arguments)


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 32 or not all(map(_is_natural, values)):
        raise WeightsFileError("the shape of a tensor is damaged")
    return values


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    del rest  # requires_grad, hooks, metadata
    shape, strides = _naturals(shape), _naturals(strides)
    if not isinstance(storage, Storage) or not _is_natural(offset) or len(shape) != len(strides):
        raise WeightsFileError("a tensor is damaged")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any, *rest: Any) -> Any:
    del rest  # requires_grad, hooks, state
    return data


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _global(name: str) -> _Global:
    # The type of a tensor is only an argument, of `_from_type`.
    types = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    if name not in _BUILDERS | _STORAGES and name not in _LEFT_OUT and name not in types:
        raise WeightsFileError(
            f"it holds {name[:100]}, which is no weight; where the file can be trusted, load it "
            "with PyTorch and save the state_dict alone: torch.save(model.state_dict(), FILE)"
        )
    return _Global(name)


def _persistent(identity: Any) -> Storage:
    """("storage", class, key, device, count) and, in legacy files, None for `no view`."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise WeightsFileError("it refers to something that is no storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, _Global) or kind.name not in _STORAGES or not isinstance(key, str):
        raise WeightsFileError("a storage is damaged")
    if not _is_natural(count) or view not in ([], [None]):
        raise WeightsFileError("a storage is damaged, or of a PyTorch before 0.4")
    return Storage(key, *_STORAGES[kind.name], count)


def _set_items(target: Any, items: list) -> Any:
    if target is _LEFT:
        return target
    if not isinstance(target, dict) or len(items) % 2:
        raise WeightsFileError("a dictionary is damaged")
    # Only plain keys: hashing nested tuples can take exponential time.
    target.update(
        (key, value)
        for key, value in zip(items[::2], items[1::2], strict=True)
        if type(key) in (str, int)
    )
    return target


# The pickle machine: a stack, a memo, and the opcodes that torch.save writes

_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: _LEFT}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Machine:
    """Interprets opcodes; all values are strings, numbers, containers or the classes above."""

    def __init__(self, storages: dict[str, Storage]):
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
        self.stack.append(_call(*self._pop(2)))

    def _NEWOBJ(self, _: Any) -> None:
        self.stack.append(_call(*self._pop(2)))

    def _FROZENSET(self, _: Any) -> None:
        self._pop_mark()
        self.stack.append(_LEFT)

    def _ADDITEMS(self, _: Any) -> None:
        self._pop_mark()
        if self._top() is not _LEFT:
            raise WeightsFileError("its pickle is damaged")

    def _BUILD(self, _: Any) -> None:
        # The state of a state_dict is `_metadata`, its modules' versions: ignored.
        target, _state = self._pop(2)
        if not isinstance(target, dict) and target is not _LEFT:
            raise WeightsFileError("it sets attributes of something that is no dictionary")
        self.stack.append(target)

    def _APPEND(self, _: Any) -> None:
        self._extend(self._pop(1))

    def _APPENDS(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif target is not _LEFT:
            raise WeightsFileError("its pickle is damaged")

    def _SETITEM(self, _: Any) -> None:
        items = self._pop(2)
        _set_items(self._top(), items)

    def _SETITEMS(self, _: Any) -> None:
        items = self._pop_mark()
        _set_items(self._top(), items)


def load(file: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Returns the value of one pickle, adds to `storages`, and leaves the file after the pickle."""
    machine = _Machine({} if storages is None else storages)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MAX_OPCODES:
            raise WeightsFileError(f"its pickle has more than {_MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine._pop(1)[0]
        machine.step(opcode.name, argument)
    raise WeightsFileError("its pickle is cut short")
