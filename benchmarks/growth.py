"""Time against attack steps and against batch size; both should be linear."""

import dataclasses
from typing import Any

from benchmarks.cases import Case
from benchmarks.ours import Ours
from benchmarks.timing import fit_line, measure

STEPS = (2, 5, 10, 20, 40)
BATCHES = (1, 2, 4, 8)  # times a quarter of the case's batch, at least 1


def measure_growth(place: Case, runs: int) -> dict[str, Any]:
    """Times PGD for several numbers of steps and several batch sizes.

    Returns {"steps": a fit, "batch": a fit}; see `fit_line`. Slopes are seconds a step and seconds
    an image.
    """
    case = dataclasses.replace(place, task="attack", attack="pgd", num_steps=10)
    by_steps = [dataclasses.replace(case, num_steps=steps) for steps in STEPS]
    unit = max(1, case.batch // 4)
    by_batch = [dataclasses.replace(case, batch=unit * times) for times in BATCHES]
    result = {}
    for name, field, cases in (("steps", "num_steps", by_steps), ("batch", "batch", by_batch)):
        jobs = [Ours(each).job(each) for each in cases]
        timed = measure(jobs, runs, _stop)
        amounts = [getattr(each, field) for each in cases]
        fit = fit_line(amounts, [each.median for each in timed])
        print(
            f"\ntime against {name}: {fit['intercept']:.3g} + {fit['slope']:.3g} × {name} s;"
            f" largest difference {fit['residual']:.1%}"
        )
        result[name] = fit
    return result


def _stop(job: Any, error: Exception) -> None:
    raise error
