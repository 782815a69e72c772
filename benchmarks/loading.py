"""Compares the loader's speed with that of training steps."""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cases import Case
from benchmarks.ours import Ours, case_config
from medadv_jax.data.loader import Dataset, load_dataset, make_loader
from medadv_jax.distributed import put_batch

LEAST_IMAGES = 512
_WARM, _STEPS = 2, 20  # batches before timing starts, and timed ones


def measure_loader(case: Case, runs: int) -> dict[str, Any]:
    """Times the loader alone, clean steps alone, and both together, in turn.

    Args:
      case: a clean step.
      runs: timed runs of each; medians count.

    Returns {"model", "image_size", "batch", "loader_images_per_second", "step_images_per_second",
    "ratio": loader over step, "waiting": the fraction of time that steps fed by the loader spend
    waiting for it; noise can make it negative}.
    """
    ours = Ours(case)
    step = ours.stepper(case)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(case, Path(folder))

        def loader() -> Iterable[Any]:
            return make_loader(dataset, _enough(dataset, case), case.batch, shuffle_seed=0)

        def fed() -> Iterable[Any]:
            return (put_batch(ours.mesh, batch) for batch in loader())

        still = [ours.batch] * (_WARM + _STEPS)
        sources = {"loader": (loader, None), "step": (lambda: still, step), "fed": (fed, step)}
        times: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(runs):
            for name, (source, use) in sources.items():
                times[name].append(_seconds(source(), use))
    seconds = {name: float(np.median(each)) for name, each in times.items()}
    rates = {name: case.batch / value for name, value in seconds.items()}
    result = {
        "model": case.model, "image_size": case.image_size, "batch": case.batch,
        "loader_images_per_second": rates["loader"], "step_images_per_second": rates["step"],
        "ratio": rates["loader"] / rates["step"], "waiting": 1 - seconds["step"] / seconds["fed"],
    }  # fmt: skip
    print(
        f"\nloader, {case.place}: {rates['loader']:.0f} images/s, {result['ratio']:.1f} times what"
        f" a clean step takes; of the time of steps fed by it, {result['waiting']:.1%} is waiting"
    )
    return result


def _dataset(case: Case, folder: Path) -> Dataset:
    """Returns generated images, cached as every data set is."""
    config = case_config(case).data
    count = max(LEAST_IMAGES, case.batch)
    config.update(name="phantoms", cache_dir=str(folder), phantom_images=count, per_class=0)
    config.image_size = case.image_size
    return load_dataset(config)


def _enough(dataset: Dataset, case: Case) -> np.ndarray:
    """Returns the positions of the images of one run, repeating the data set as needed."""
    return np.arange((_WARM + _STEPS) * case.batch) % len(dataset.examples)


def _seconds(batches: Iterable[Any], use: Any) -> float:
    """Returns seconds per batch."""
    start, done, result = 0.0, 0, None
    for batch in batches:
        result = use(batch) if use is not None else None
        done += 1
        if done == _WARM:
            jax.block_until_ready(result)
            start = time.perf_counter()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / (done - _WARM)
