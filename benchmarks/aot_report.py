"""Tables of compiled programs."""

from collections.abc import Iterable
from typing import Any

_HEAD = (
    "program", "network", "dtype", "device", "images a device", "peak GB", "donated",
    "collectives in the loop", "outside: number dtype MB", "GB moved", "floors ms",
)  # fmt: skip


def table(results: Iterable[dict[str, Any]]) -> str:
    """Returns a markdown table, one program a row."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(result) for result in results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    spec = result["spec"]
    steps = f", {spec['num_steps']} steps" if spec["program"] in ("step", "attack") else ""
    steps += "" if spec["augment"] else ", images unmoved"
    network = spec["model"] + (f" ({spec['blocks']} blocks)" if spec["blocks"] else "")
    place = (
        f"{spec['program']}{steps}", f"{network}, {spec['image_size']} px", spec["dtype"],
        spec["target"], _batch(result),
    )  # fmt: skip
    if "error" in result:
        return (*place, result["error"][:80].replace("|", "/"), *[""] * (len(_HEAD) - 6))
    if spec["program"] == "mesh":
        return (*place, f"processes {result['processes']}", *[""] * (len(_HEAD) - 6))
    floors = result["floors"]
    times = f"{1e3 * floors['arithmetic_seconds']:.0f} / {1e3 * floors['bandwidth_seconds']:.0f}"
    return (
        *place,
        f"{result['peak_bytes'] / 1e9:.2f}",
        f"{result['donated']:.0%}" if spec["program"].endswith("step") else "–",
        collectives(result, "loop"),
        collectives(result, "outside"),
        f"{sum(result['moved_bytes'].values()) / 1e9:.1f}",
        times,
    )


def _batch(result: dict[str, Any]) -> str:
    if "largest_batch" in result:
        return f"{result['largest_batch']} (largest)"
    return str(result["spec"]["batch"])


def collectives(result: dict[str, Any], where: str) -> str:
    """Returns the collectives of a place, in words."""
    found = [
        f"{each['number']} {each['op']} {each['dtype']} {each['bytes'] / 1e6:.1f}"
        for each in result["collectives"]
        if each["where"] == where
    ]
    return ", ".join(found) or "none"


def describe(result: dict[str, Any]) -> str:
    """Returns lines about one program, for people."""
    lines = [" | ".join(_row(result))]
    if "products" in result:
        lines += [f"  {count} {kind}" for kind, count in result["products"].items()]
        for where, sources in result["moved_by_source"].items():
            parts = [f"{name} {size / 1e9:.2f}" for name, size in sources.items()]
            lines.append(f"  GB moved {where}: {', '.join(parts)}")
        for name in ("float32_parameter_bytes_in_loop_state", "parameter_cast_bytes_in_loop"):
            lines.append(f"  {name}: {result[name] / 1e6:.1f} MB")
        lines.append(f"  {result['seconds']} s to compile, {result['cpu_seconds']} CPU s")
    return "\n".join(lines)
