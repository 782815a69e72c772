"""What a run writes: JSON, one line of metrics at a time, TensorBoard events."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


def write_text(path: Path, text: str) -> None:
    """Writes beside and renames: a file under its own name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


class MetricsWriter:
    """Training curves: lines of `metrics.jsonl`, and the same as TensorBoard events."""

    def __init__(self, workdir: Path):
        self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._events = SummaryWriter(str(workdir / "tensorboard"), flush_secs=10)

    def write(self, defense: str, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line; `values` are finite numbers."""
        self._file.write(json.dumps({"defense": defense, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{defense}/{name}", value, step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()
