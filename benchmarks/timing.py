"""Times jobs in turn, times the compiler, fits time against an amount of work."""

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
_LONG = 0.3  # seconds; shorter jobs are repeated within a timed run, for the clock's precision


@dataclasses.dataclass
class Timed:
    """The times of a job.

    Attributes:
      job: the job.
      seconds: of each timed run.
      first_run_seconds: of the first run, including tracing and compiling.
      compile_seconds: of the compiler during the first run; None: unknown.
      peak_memory_bytes: None: unknown.
      peak_memory_source: how the peak was measured; None: unknown.
    """

    job: Job
    seconds: list[float]
    first_run_seconds: float
    compile_seconds: float | None
    peak_memory_bytes: int | None
    peak_memory_source: str | None

    @property
    def median(self) -> float:
        """Median seconds of the timed runs."""
        return statistics.median(self.seconds)


def measure(
    jobs: Sequence[Job], runs: int, failed: Callable[[Job, Exception], None]
) -> list[Timed]:
    """Warms up the jobs and times them in turn, so that other load affects all of them.

    Args:
      jobs: implementations of one case.
      runs: timed runs of each.
      failed: called with a job that raised, which is then left out.
    """
    timed, repeats = [], []
    for job in jobs:
        try:
            times, repeat = _warm_up(job)
        except Exception as error:  # out of memory, for example
            failed(job, error)
            continue
        timed.append(times)
        repeats.append(repeat)
    for _ in range(runs):
        for times, repeat in zip(timed, repeats, strict=True):
            times.seconds.append(_seconds(times.job, repeat))
    return timed


def _warm_up(job: Job) -> tuple[Timed, int]:
    """Runs twice; returns a `Timed` without times, and the repeats within a timed run."""
    job.memory()  # resets the peak
    with compile_seconds() as compiling:
        first = _seconds(job, 1)
    second = _seconds(job, 1)
    memory, source = job.memory()
    ours = job.implementation == "medadv_jax"
    # PyTorch does not report its compile time; the first run minus the second estimates it.
    compiled = sum(compiling) if ours else first - second if job.variant == "compiled" else None
    repeat = max(1, math.ceil(_LONG / second))
    return Timed(job, [], first, compiled, memory, source), repeat


def _seconds(job: Job, repeat: int) -> float:
    """Returns the mean seconds of `repeat` runs, started one after the other."""
    start = time.perf_counter()
    for _ in range(repeat - 1):
        job.run()
    job.wait(job.run())
    return (time.perf_counter() - start) / repeat


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Yields a list that collects the seconds of each XLA compilation inside the block."""
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
    """Fits seconds = intercept + slope × amount by least squares of the relative errors.

    Returns amounts, seconds, slope, intercept and residual, the largest relative error of the fit.
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
