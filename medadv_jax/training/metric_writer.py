"""Training curves: lines of `metrics.jsonl`, and TensorBoard events."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from medadv_jax.files import drop_digest, keep_digest, write_text


class MetricsWriter:
    """Writes lines of `metrics.jsonl`, and the same values as TensorBoard events.

    Each defence has its own folder of events: resuming from a step hides all later events of a
    folder.

    `metrics.jsonl` is a record of the workdir except while a writer is open.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        drop_digest(workdir / "metrics.jsonl")
        self._file = self._open()
        self._events: dict[str, EventsWriter] = {}

    def rewind(self, defense: str, step: int) -> None:
        """Drops lines of a defence after `step`, which will be written again, and damaged lines."""
        self._file.close()
        path = self._workdir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_kept(line, defense, step)]
        if kept != lines:
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = self._open()
        self._close_events(defense)
        folder = self._workdir / "tensorboard" / defense
        folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its queue between processes needs /dev/shm.
        events = self._events[defense] = EventsWriter(str(folder / "events"))
        started = SessionLog(status=SessionLog.START)  # hides later events of earlier processes
        events.write_event(Event(step=step + 1, session_log=started))
        events.flush()

    def write(self, defense: str, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line of finite `values`; call `rewind` for the defence before."""
        self._file.write(json.dumps({"defense": defense, "step": step, **values}) + "\n")
        for name, value in values.items():
            event = Event(step=step, wall_time=time.time(), summary=scalar(name, value))
            self._events[defense].write_event(event)
        self._events[defense].flush()

    def flush(self) -> None:
        """Waits until the lines are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file and the events."""
        self.flush()
        self._file.close()
        keep_digest(self._workdir / "metrics.jsonl")
        for defense in [*self._events]:
            self._close_events(defense)

    def _open(self) -> Any:
        return (self._workdir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def _close_events(self, defense: str) -> None:
        if defense in self._events:
            self._events.pop(defense).close()


class SilentWriter(MetricsWriter):
    """Writes nothing; used in all processes but the first."""

    def __init__(self):
        pass

    def rewind(self, defense: str, step: int) -> None:
        """Does nothing."""

    def write(self, defense: str, step: int, values: Mapping[str, float | int]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _is_kept(line: str, defense: str, step: int) -> bool:
    try:
        found = json.loads(line)
        return found["defense"] != defense or found["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
