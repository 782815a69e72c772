"""Reads optimised HLO, the text of a compiled program: loops, collectives, products, bytes.

An operation in a loop runs as often as the loop does; a count says so where it includes that.
Bytes moved are those of the operands and results of each operation that is not inside a fusion:
caches would save some, and an update in place counts as a whole array.
"""

import collections
import functools
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all",
)  # fmt: skip

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"\{?(%?[^,}\s]+(?:, ?%[^,}\s]+)*)\}?"
)
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_WIDTHS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # bits; the others end in theirs
# They move nothing, or what they move is counted where it is used.
_FREE = {
    "tuple", "get-tuple-element", "bitcast", "parameter", "while", "constant", "call",
    "conditional", "copy-done", "all-reduce-done", "async-done", "async-update", "after-all",
    "partition-id", "iota", "custom-call-done",
}  # fmt: skip


class Array(NamedTuple):
    """A dtype by HLO's name, such as "bf16", the shape, and whether it is in the chip's memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return functools.reduce(lambda a, b: a * b, self.shape, 1)

    @property
    def extents(self) -> tuple[int, ...]:
        """The sizes of the axes but those of one, sorted: the same in every layout."""
        return tuple(sorted(extent for extent in self.shape if extent > 1))

    @property
    def bytes(self) -> int:
        """Bytes, without the padding of a device's layout."""
        bits = _WIDTHS.get(self.dtype) or (
            8 if self.dtype.startswith("f8") else int(re.sub(r"\D", "", self.dtype))
        )
        return max(1, bits // 8) * self.size


class Operation(NamedTuple):
    """A line of a program; `rest` is what follows the opening bracket."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def source(self) -> str:
        """The primitive that JAX made it of, such as "conv_general_dilated"; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return re.sub(r"\[.*", "", found[1].rsplit("/", 1)[-1]) if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        names = [name for group in _CALLED.findall(self.rest) for name in group.split(",")]
        return [name.strip().lstrip("%") for name in names]


class Visit(NamedTuple):
    """An operation where it runs: how often, in a loop, inside a fusion."""

    operation: Operation
    times: int
    in_loop: bool
    fused: bool

    @property
    def where(self) -> str:
        """Loop or outside."""
        return "loop" if self.in_loop else "outside"


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of an HLO shape, which may be a tuple."""
    return [
        Array(dtype, tuple(int(n) for n in extents.split(",") if n), "S(1)" in layout)
        for dtype, extents, layout in _ARRAY.findall(shape)
    ]


def aliases(text: str) -> int:
    """Returns the number of results that lie in the memory of a donated argument."""
    return len(re.findall(r"\(\d+, \{[\d, ]*\}, (?:may|must)-alias\)", text.split("\n", 1)[0]))


class Program:
    """An optimised program, from its text.

    Attributes:
      computations: name -> operations.
      entry: the name of the computation that runs first.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Operation]] = {}
        self.entry, current = "", ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = head[2]
                self.computations[current] = []
                self.entry = current if head[1] else self.entry
            elif current and (found := _OPERATION.match(line)):
                self.computations[current].append(Operation(*found.groups()))
        every = [op for operations in self.computations.values() for op in operations]
        self._shapes = {operation.name: operation.shape for operation in every}

    def visits(self) -> Iterator[Visit]:
        """Yields every operation that runs, also those inside of fusions and loops."""
        return self._below(self.entry, 1, False, False)

    def _below(self, name: str, times: int, in_loop: bool, fused: bool) -> Iterator[Visit]:
        for operation in self.computations.get(name, ()):
            yield Visit(operation, times, in_loop, fused)
            loop = operation.opcode == "while"
            more = times * (self.trips(operation) or 1) if loop else times
            if operation.opcode in _RUNS:
                for called in operation.called:
                    inside = fused or operation.opcode == "fusion"
                    yield from self._below(called, more, in_loop or loop, inside)

    def trips(self, loop: Operation) -> int | None:
        """Returns how often a while loop runs: as annotated (GPU), or by the constant that its
        condition compares with; None if it depends on data."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        found = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        constants = [
            int(visit.operation.rest.split(")")[0])
            for visit in (self._below(found[1], 1, True, False) if found else ())
            if visit.operation.opcode == "constant"
            and re.match(r"[su]32\[\]", visit.operation.shape)
        ]
        return max(constants, default=None)

    def inputs(self, operation: Operation) -> list[Array]:
        """Returns the arrays that an operation reads."""
        return [a for name in operation.operands for a in arrays(self._shapes.get(name, ""))]

    def moved(self, operation: Operation) -> int:
        """Returns the bytes that an operation reads and writes outside of the chip's memory."""
        if operation.opcode in _FREE:
            return 0
        used = set(operation.operands)
        both = [operation.shape, *(self._shapes.get(name, "") for name in used)]
        return sum(a.bytes for shape in both for a in arrays(shape) if not a.on_chip)


_RUNS = {"while", "fusion", "call", "async-start", "conditional", "custom-call"}


def describe(text: str, parameters: Collection[tuple[int, ...]] = ()) -> dict[str, Any]:
    """Returns what is in an optimised program; "loop": in any loop, else "outside".

    `parameters`: shapes of the network's kernels, to find them in loops.
    """
    program = Program(text)
    visits = list(program.visits())
    loops = [v.operation for v in visits if v.operation.opcode == "while"]
    kernels = {Array("f32", shape).extents for shape in parameters}
    state = [a for loop in loops for a in arrays(loop.shape) if a.extents in kernels]
    return {
        "loops": [program.trips(loop) for loop in loops],
        "collectives": _collectives(program, visits),
        "products": _products(program, visits),
        "moved_bytes": _moved(program, visits),
        "moved_by_source": _by_source(program, visits),
        "float32_parameter_bytes_in_loop_state": sum(a.bytes for a in state if a.dtype == "f32"),
        "parameter_cast_bytes_in_loop": _cast_bytes(program, visits, kernels),
    }


def _collectives(program: Program, visits: list[Visit]) -> list[dict[str, Any]]:
    """Returns each kind of collective: number in the program, arrays and bytes a run."""
    found: dict[tuple[str, ...], collections.Counter] = collections.defaultdict(collections.Counter)
    for visit in visits:
        opcode = visit.operation.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        operands = program.inputs(visit.operation)
        dtypes = "+".join(sorted({array.dtype for array in operands}))
        found[(opcode, visit.where, dtypes)].update(
            number=1, arrays=len(operands), bytes=visit.times * sum(a.bytes for a in operands)
        )
    names = ("op", "where", "dtype")
    return [dict(zip(names, key, strict=True)) | counts for key, counts in sorted(found.items())]


def _products(program: Program, visits: list[Visit]) -> dict[str, int]:
    """Returns the number of convolutions and matrix products by dtypes, precision and place."""
    found: collections.Counter[str] = collections.Counter()
    for visit in visits:
        operation = visit.operation
        target = re.search(r'custom_call_target="([^"]*)"', operation.rest)
        called = target[1] if target and operation.opcode == "custom-call" else ""
        if operation.opcode not in ("convolution", "dot") and not _PRODUCT.search(called):
            continue
        inputs = "×".join(array.dtype for array in program.inputs(operation)[:2])
        result = arrays(operation.shape)[0].dtype
        precisions = set(_PRECISION.findall(operation.rest))
        precision = "+".join(
            sorted({p.strip('"') for group in precisions for p in group.split(",")})
        )
        kind = called.strip("_").replace("$", " ") or operation.opcode
        found[f"{kind} {inputs}→{result} {precision or 'default'} {visit.where}"] += 1
    return dict(sorted(found.items()))


_PRODUCT = re.compile(r"cudnn\$conv|cublas|gemm|matmul", re.IGNORECASE)
_PRECISION = re.compile(r'operand_precision(?:=\{|":\[)"?([\w",]*?)"?[\]}]')


def _moved(program: Program, visits: list[Visit]) -> dict[str, int]:
    found = {"loop": 0, "outside": 0}
    for visit in visits:
        if not visit.fused:
            found[visit.where] += visit.times * program.moved(visit.operation)
    return found


def _by_source(program: Program, visits: list[Visit], most: int = 8) -> dict[str, dict[str, int]]:
    """Returns the bytes moved by the JAX primitives that move most."""
    found: dict[str, collections.Counter[str]] = {
        "loop": collections.Counter(), "outside": collections.Counter()
    }  # fmt: skip
    for visit in visits:
        if not visit.fused:
            source = visit.operation.source or visit.operation.opcode
            found[visit.where][source] += visit.times * program.moved(visit.operation)
    return {where: dict(counts.most_common(most)) for where, counts in found.items()}


def _cast_bytes(program: Program, visits: list[Visit], kernels: set[tuple[int, ...]]) -> int:
    """Returns the bytes of float32 parameters that one iteration of the loops casts."""
    return sum(
        array.bytes
        for visit in visits
        if visit.in_loop and visit.operation.opcode == "convert"
        for array in program.inputs(visit.operation)[:1]
        if array.dtype == "f32" and array.extents in kernels
    )
