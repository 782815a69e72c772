"""Compiles our programs for GPUs and TPUs that are not there, and says what is in them.

    make aot                                        # the table of docs/performance.md
    python -m benchmarks.aot --spec=target=h100,program=attack,model=vgg16,batch=32 --hlo=FOLDER
    python -m benchmarks.aot --largest --spec=target=h100,model=vgg16
    make aot-check                                  # assertions, on VGG16 and ResNet50
    python -m benchmarks.aot --table=benchmarks/aot.json

Nothing runs: there are no times here, but memory, collectives, dtypes and bytes. The GPU's compiler
cannot try kernels, so that workspaces of cuDNN are missing. Each program has a process of its own.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.aot_check import failures
from benchmarks.aot_programs import Spec, compile_spec
from benchmarks.aot_report import describe, table
from benchmarks.aot_suite import CHECKED, SUITE
from benchmarks.aot_targets import ENVIRONMENT, TARGETS, USABLE

_SPEC = flags.DEFINE_multi_string("spec", [], "Fields of a Spec: field=value,…; repeat for more.")
_LARGEST = flags.DEFINE_bool("largest", False, "Search the largest batch for each --spec.")
_CHECK = flags.DEFINE_bool("check", False, "Compile a few programs; fail if one is not as it must.")
_BUDGET = flags.DEFINE_integer("budget", 600, "Seconds for a program.", lower_bound=1)
_HLO = flags.DEFINE_string("hlo", "", "Folder for the optimised programs.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the results.")
_TABLE = flags.DEFINE_string("table", "", "JSON file of results: prints its table only.")
_CHILD = flags.DEFINE_string("child", "", "Used by this command: a Spec as JSON.")
_ROOT = Path(__file__).parents[1]


def parse_spec(text: str) -> Spec:
    """Returns the Spec of "field=value,…"; within a value, ; stands for a comma.

    Raises:
      ValueError: an unknown field, or a value of another type.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Spec)}
    values: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise ValueError(f"{name!r} is no field of a spec; known are {', '.join(kinds)}")
        parse = {bool: lambda v: v == "true", str: lambda v: v.replace(";", ",")}
        values[name] = parse.get(kinds[name], kinds[name])(value)  # pyright: ignore
    return Spec(**values)


def run(spec: Spec, budget: int, folder: str) -> dict[str, Any]:
    """Compiles a program in a process of its own, for at most `budget` seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "result.json")
        command = [sys.executable, "-m", "benchmarks.aot", f"--output={output}", f"--hlo={folder}"]
        command.append(f"--child={json.dumps(dataclasses.asdict(spec))}")
        environment = {**os.environ, **ENVIRONMENT}
        failed = {"spec": dataclasses.asdict(spec), "device": TARGETS[spec.target].sheet.name}
        try:
            done = subprocess.run(
                command, cwd=_ROOT, env=environment, timeout=budget, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return failed | {"error": f"not compiled within {budget} s"}
        if done.returncode:
            return failed | {"error": " ".join(done.stderr.split())[-400:]}
        return json.loads(output.read_text())


def largest_batch(peak: Callable[[int], float], limit: float, start: int, step: int) -> int:
    """Returns the largest multiple of `step` with peak(batch) ≤ limit; 0 if there is none.

    Bisection; the next point is where a line through the last two would meet the limit.

    Args:
      peak: bytes of a batch, rising; infinite where it does not compile.
      limit: bytes.
      start: the first batch to try, a multiple of `step`.
      step: at least 1.
    """
    known: dict[int, float] = {0: 0.0}
    batch = start
    while True:
        known[batch] = peak(batch)
        low = max(b for b, size in known.items() if size <= limit)
        high = min((b for b, size in known.items() if size > limit), default=0)
        if high == low + step:
            return low
        guess = (low + high) // 2 if high else 2 * low
        points = sorted(b for b, size in known.items() if size < float("inf"))[-2:]
        if len(points) == 2 and known.get(high) != float("inf"):
            first, second = points if known[points[0]] < known[points[1]] else (0, points[1])
            rise = (known[second] - known[first]) / (second - first)
            guess = int(min(max(second + (limit - known[second]) / rise, low), 2 * second))
        batch = max(low + step, min(guess // step * step, high - step if high else guess))


def search(spec: Spec, budget: int, folder: str, step: int = 128) -> dict[str, Any]:
    """Returns what the program of the largest batch that fits holds, and its batch."""
    found: dict[int, dict[str, Any]] = {}

    def peak(batch: int) -> float:
        found[batch] = run(dataclasses.replace(spec, batch=batch), budget, folder)
        _say(found[batch])
        return found[batch].get("peak_bytes", float("inf"))

    limit = USABLE * TARGETS[spec.target].sheet.memory
    best = largest_batch(peak, limit, spec.batch, step)
    tried = {batch: each.get("peak_bytes") for batch, each in sorted(found.items())}
    return found.get(best, found[min(found)]) | {"largest_batch": best, "tried": tried}


def _say(result: dict[str, Any]) -> None:
    print(describe(result), flush=True)


def _results(programs: Iterable[tuple[Spec, bool]]) -> list[dict[str, Any]]:
    """Returns what each program holds, or that of its largest batch; the file has them at once."""
    results = []
    for spec, largest in programs:
        if largest:
            results.append(search(spec, _BUDGET.value, _HLO.value))
        else:
            results.append(run(spec, _BUDGET.value, _HLO.value))
            _say(results[-1])
        _write(results)
    return results


def _write(results: list[dict[str, Any]]) -> None:
    if not _OUTPUT.value:
        return
    versions = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    document = {"versions": versions, "usable_memory": USABLE, "programs": results}
    Path(_OUTPUT.value).write_text(json.dumps(document, indent=1) + "\n")


def _main(arguments: Sequence[str]) -> None:
    del arguments
    if _HLO.value:
        Path(_HLO.value).mkdir(parents=True, exist_ok=True)
    if _CHILD.value:
        spec = Spec(**json.loads(_CHILD.value))
        name = "_".join(str(v) for v in dataclasses.astuple(spec) if v not in ("", True))
        text = Path(_HLO.value, f"{name.replace(':', '')}.hlo") if _HLO.value else None
        Path(_OUTPUT.value).write_text(json.dumps(compile_spec(spec, text)))
        return
    if _TABLE.value:
        print(table(json.loads(Path(_TABLE.value).read_text())["programs"]))
        return
    given = [parse_spec(text) for text in _SPEC.value]
    if _CHECK.value:
        results = _results((spec, False) for spec in CHECKED)
        if wrong := [line for result in results for line in failures(result)]:
            sys.exit("\n".join(wrong))
        return
    results = _results([(spec, _LARGEST.value) for spec in given] or SUITE)
    print(table(results))


if __name__ == "__main__":
    app.run(_main)
