"""Timing: jobs in turn, what compiling takes, and how time grows."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.cases import Job

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_LONG = 0.3  # seconds: what takes less is repeated within a run, so that the clock is no matter


@dataclasses.dataclass
class Timed:
    """The times of a job.

    Attributes:
      job: what ran.
      seconds: of one run each.
      first_run_seconds: of the first call, with tracing and compiling.
      compile_seconds: of the compiler in it; None: not known.
      peak_memory_bytes: while it ran; None: not known.
      peak_memory_source: how that is known; None: it is not.
    """

    job: Job
    seconds: list[float]
    first_run_seconds: float
    compile_seconds: float | None
    peak_memory_bytes: int | None
    peak_memory_source: str | None

    @property
    def median(self) -> float:
        """Of the timed runs."""
        return statistics.median(self.seconds)


def measure(
    jobs: Sequence[Job], runs: int, failed: Callable[[Job, Exception], None]
) -> list[Timed]:
    """Warms the jobs up and times them in turn, so that a noisy neighbour disturbs all of them.

    Args:
      jobs: implementations of one case.
      runs: timed runs of each.
      failed: told of a job that raised (out of memory, say); it is left out.
    """
    timed, repeats = [], []
    for job in jobs:
        try:
            times, repeat = _warm_up(job)
        except Exception as error:  # a peer's or the device's: the others go on
            failed(job, error)
            continue
        timed.append(times)
        repeats.append(repeat)
    for _ in range(runs):
        for times, repeat in zip(timed, repeats, strict=True):
            times.seconds.append(_seconds(times.job, repeat))
    return timed


def _warm_up(job: Job) -> tuple[Timed, int]:
    """Runs twice; returns a `Timed` without times, and how often a timed run repeats the work."""
    job.memory()  # from here on
    with compile_seconds() as compiling:
        first = _seconds(job, 1)
    second = _seconds(job, 1)
    memory, source = job.memory()
    ours = job.implementation == "medadv_jax"
    # PyTorch does not say what its compiler takes: what the first run took beyond the second.
    compiled = sum(compiling) if ours else first - second if job.variant == "compiled" else None
    repeat = max(1, math.ceil(_LONG / second))
    return Timed(job, [], first, compiled, memory, source), repeat


def _seconds(job: Job, repeat: int) -> float:
    """Seconds of one of `repeat` runs that are started one after the other."""
    start = time.perf_counter()
    for _ in range(repeat - 1):
        job.run()
    job.wait(job.run())
    return (time.perf_counter() - start) / repeat


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each program that XLA compiles meanwhile."""
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def fit_line(amounts: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Fits seconds = intercept + slope × amount by least squares of relative errors.

    Returns slope, intercept, what was fitted, and residual: the largest difference between fit and
    time, as a share of the time.
    """
    x, y = np.asarray(amounts, float), np.asarray(seconds, float)
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    residual = float(np.max(np.abs(intercept + slope * x - y) / y))
    return {
        "amounts": list(amounts),
        "seconds": list(seconds),
        "slope": float(slope),
        "intercept": float(intercept),
        "residual": residual,
    }
