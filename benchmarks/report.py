"""Records of the timings, and the tables on the terminal."""

import dataclasses
import statistics
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks.cases import Case
from benchmarks.flops import Peak, case_flops
from benchmarks.timing import Timed

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "torch", "torchvision", "torchattacks", "foolbox",
    "adversarial-robustness-toolbox", "jax2onnx", "onnxruntime",
)  # fmt: skip

Record = dict[str, Any]


def make_record(timed: Timed, peak: Peak) -> Record:
    """Returns the record of one implementation of one case."""
    case, job = timed.job.case, timed.job
    return {
        **dataclasses.asdict(case),
        "implementation": job.implementation,
        "variant": job.variant or None,
        "seconds": timed.seconds,
        "images_per_second": case.batch / timed.median,
        "flops": case_flops(case),
        "share_of_peak": peak.share(case, timed.median),
        "peak_memory_bytes": timed.peak_memory_bytes,
        "peak_memory_source": timed.peak_memory_source,
        "compile_seconds": timed.compile_seconds,
        "first_run_seconds": timed.first_run_seconds,
    }


def describe_machine() -> dict[str, Any]:
    """Returns device, versions and commit."""
    device = jax.devices()[0]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "device_count": jax.device_count(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Returns this checkout's commit, marked if files differ from it; None without git."""
    folder = Path(__file__).parent
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"])
    try:
        head, changes = (
            subprocess.run(each, cwd=folder, capture_output=True, text=True, check=True).stdout
            for each in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + (" and changes" if changes.strip() else "")


def print_records(records: list[Record]) -> None:
    """Prints a line for each record of one case."""
    for record in records:
        times = record["seconds"]
        name = f"{record['implementation']} {record['variant'] or ''}"
        spread = f"{statistics.median(times):.4g} ({min(times):.4g}–{max(times):.4g}) s"
        cells = [f"  {name:22}{spread:30}{record['images_per_second']:10.1f} images/s"]
        cells.append(f"first run {record['first_run_seconds']:.1f} s")
        if record["compile_seconds"] is not None:
            cells.append(f"compiling {record['compile_seconds']:.1f} s")
        if record["share_of_peak"] is not None:
            cells.append(f"{record['share_of_peak']:.0%} of peak")
        if record["peak_memory_bytes"] is not None:
            cells.append(f"{record['peak_memory_bytes'] / 2**30:.1f} GiB")
        print(", ".join(cells), flush=True)


def ratios(records: list[Record]) -> list[dict[str, Any]]:
    """Returns each peer's time over ours for each case: above 1 we are faster.

    PyTorch's faster variant counts. Only times of the same group, measured in turn, are compared.
    """
    ours = {
        (record["group"], _place(record)): _median(record)
        for record in records if record["implementation"] == "medadv_jax"
    }  # fmt: skip
    found: dict[tuple, dict[str, Any]] = {}
    for record in records:
        mine = ours.get((record["group"], _place(record)))
        if mine is None or record["implementation"] == "medadv_jax":
            continue
        ratio = _median(record) / mine
        key = (record["implementation"], *_place(record))
        if key not in found or ratio < found[key]["ratio"]:
            place = dict(zip(_PLACE, _place(record), strict=True))
            found[key] = {
                "peer": record["implementation"], "variant": record["variant"],
                **place, "ratio": ratio,
            }  # fmt: skip
    return list(found.values())


_PLACE = tuple(field.name for field in dataclasses.fields(Case))


def _place(record: Record) -> tuple:
    return tuple(record[name] for name in _PLACE)


def _median(record: Record) -> float:
    return statistics.median(record["seconds"])


def geometric_means(found: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the geometric mean of the ratios to each peer."""
    peers = {each["peer"]: None for each in found}
    return {
        peer: statistics.geometric_mean(r["ratio"] for r in found if r["peer"] == peer)
        for peer in peers
    }


def print_ratios(found: list[dict[str, Any]]) -> None:
    """Prints the table of ratios."""
    print("\ntheir time / ours: above 1 we are faster")
    for each in found:
        peer = f"{each['peer']} {each['variant'] or ''}"
        task = f"{each['task']} {each['attack'] or ''}"
        place = f"{each['model']} {each['image_size']} px, batch {each['batch']}"
        print(f"  {peer:22}{task:24}{place:36}{each['precision']:10}{each['ratio']:6.2f}")
    for peer, mean in geometric_means(found).items():
        print(f"  {peer:22}geometric mean {mean:.2f}")
