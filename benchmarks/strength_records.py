"""The records of `attack_strength.py`: their JSON file and their table."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import describe_machine

NAMES = ("apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "fmn", "square", "autoattack")
Record = dict[str, Any]
_NORMS = {"linf": "L∞", "l2": "L2"}


def table(records: list[Record]) -> str:
    """Returns a markdown table: images that withstand, by attack, implementation and network."""
    places = list(dict.fromkeys(map(_place, records)))
    heads = " | ".join(f"{task}, {_NORMS[norm]}, ε = {e}" for task, norm, e in places)
    lines = [f"| attack | implementation | {heads} |", "|" + " --- |" * (2 + len(places))]
    rows: dict[tuple[str, str], dict[Any, str]] = {}
    for record in sorted(records, key=lambda record: NAMES.index(record["attack"])):
        row = rows.setdefault((record["attack"], record["implementation"]), {})
        row[_place(record)] = "IndexError" if record["error"] else str(record["robust"])
    for (attack, implementation), row in rows.items():
        cells = " | ".join(row.get(place, "") for place in places)
        lines.append(f"| `{attack}` | {implementation} | {cells} |")
    return "\n".join(lines)


def _place(record: Record) -> tuple[str, str, float]:
    return record["task"], record["norm"], record["epsilon"]


def write(path: Path, count: int, subjects: list[Record], records: list[Record]) -> list[Record]:
    """Writes the file; returns its records, with those of earlier calls for other attacks.

    Args:
      path: of the JSON file.
      count: images that were attacked.
      subjects: accuracy of each network, and how far its two forms differ.
      records: of each implementation of each attack.
    """
    fields = ("task", "norm", "attack")
    new = {tuple(record[field] for field in fields) for record in records}
    before = json.loads(path.read_text()) if path.exists() else {"records": [], "networks": []}
    kept = [r for r in before["records"] if tuple(r[field] for field in fields) not in new]
    records = sorted(kept + records, key=_order)
    names = {subject["task"] for subject in subjects}
    content = {
        **describe_machine(), "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"),
        "images": count, "records": records,
        "networks": [s for s in before["networks"] if s["task"] not in names] + subjects,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=2) + "\n")
    return records


def _order(record: Record) -> tuple[int, int, int]:
    norm = list(_NORMS).index(record["norm"])
    return record["classes"], norm, NAMES.index(record["attack"])
