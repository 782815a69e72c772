"""Times a run until its first step, with cold and with warm caches."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import Case

ROOT = Path(__file__).parents[1]
_TIMEOUT = 600.0  # seconds
_STAGES = ("base", "adversarial")


def measure_starts(case: Case) -> dict[str, Any]:
    """Starts `main.py` twice; the second time compiled programs and images are cached.

    Args:
      case: gives the network, the image size, the batch and the steps of the attack.

    Returns {"command", "base", "adversarial"}; the last two hold {"first_seconds",
    "second_seconds", "ratio"}: seconds from the start of the process until the metrics of the
    first clean step are written, and of the first adversarial step, which comes after an epoch of
    a few clean steps and its validation.

    Raises:
      RuntimeError: a run ended before its first adversarial step.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fields = _fields(case, folder)
        first, second = (_start(fields, folder / f"run{number}") for number in (1, 2))
    result: dict[str, Any] = {"command": " ".join(["main.py", *fields])}
    print(f"\na run, {case.place}, PGD-{case.num_steps}")
    for stage in _STAGES:
        ratio = second[stage] / first[stage]
        result[stage] = {
            "first_seconds": first[stage], "second_seconds": second[stage], "ratio": ratio
        }  # fmt: skip
        print(
            f"  first step of {stage}: after {first[stage]:.1f} s; of the same command again:"
            f" after {second[stage]:.1f} s, {ratio:.2f} of it"
        )
    return result


def _fields(case: Case, folder: Path) -> list[str]:
    fields = {
        "data.name": "phantoms", "data.phantom_images": 6 * case.batch, "data.per_class": 0,
        "data.image_size": case.image_size, "data.cache_dir": folder / "images",
        "compile_cache": folder / "programs", "defenses": ",".join(_STAGES),
        "model.name": case.model, "model.dtype": case.precision,
        "train.batch_size": case.batch, "train.attacks": "pgd", "train.num_steps": case.num_steps,
        "train.log_steps": 1, "train.epochs": 1, "eval.batch_size": case.batch,
    }  # fmt: skip
    return ["--config=configs/default.py", *(f"--config.{k}={v}" for k, v in fields.items())]


def _start(fields: list[str], workdir: Path) -> dict[str, float]:
    """Returns the seconds until each stage's first line of metrics; then kills the run."""
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}", *fields]
    found: dict[str, float] = {}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            while len(found) < len(_STAGES):
                ended, passed = process.poll() is not None, time.perf_counter() - start
                for stage in _begun(workdir / "metrics.jsonl"):
                    found.setdefault(stage, passed)
                if len(found) < len(_STAGES) and (ended or passed > _TIMEOUT):
                    output.seek(0)
                    raise RuntimeError(f"no first step: {output.read().decode()[-1000:]}")
                time.sleep(0.05)
            return found
        finally:
            process.kill()
            process.wait()


def _begun(metrics: Path) -> set[str]:
    """Returns the stages that have a complete line of metrics."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return {json.loads(line)["defense"] for line in lines if line.endswith("\n")}
