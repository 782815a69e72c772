"""Kills a small run repeatedly and compares its results with those of an undisturbed run.

    python -m tools.soak --folder=runs/soak                    # 24 kills, and 4 times SIGTERM
    python -m tools.soak --folder=runs/soak --steps=2000       # instead: memory while training

The run has all stages: four defences, their evaluation, detectors, pictures, self-checks, report.
After every kill the same command starts it again; the kills come at random moments, spread over
the stages. At the end parameters, records and results must be bit-identical to those of an
undisturbed run. Exit code 1 if they are not, or if memory grows.

A network of two convolutions replaces the named ones, since the loop around it is what is tested.
"""

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tools.fuzz import cpu_seconds

ROOT = Path(__file__).parents[1]
OVERRIDES = {
    "model.head": "auto", "data.image_size": 32, "data.phantom_images": 120, "data.per_class": 0,
    "train.batch_size": 8, "train.epochs": 2, "train.attacks": "pgd,fgsm", "train.num_steps": 2,
    "train.log_steps": 3,
    "purifier.epochs": 2, "purifier.joint_epochs": 2, "purifier.width": 0.25,
    "eval.attacks": "fgsm,pgd,apgd", "eval.num_steps": 2, "eval.apgd_steps": 4,
    "eval.batch_size": 8, "eval.check_images": 8, "eval.second_images": 8,
    "eval.second_queries": 5, "eval.threshold": "youden",
}  # fmt: skip
SAME_BYTES = (
    "predictions.parquet", "results.csv", "splits.json", "detection.parquet", "detection.csv",
    "curves.parquet", "self_checks.json", "networks.json", "per_class.csv", "confusion.json",
    "thresholds.json",
)  # fmt: skip
_MAX_GROWTH = 0.05  # of memory over all steps; more is a leak
_STAGE = re.compile(r"(train|evaluate|check) (\w+):|(detectors|pictures):|self-checks of the (m)")


class TinyNet(nn.Module):
    """A network that compiles fast; takes the arguments of every network in MODELS."""

    num_classes: int = 2
    width: float = 1.0
    dtype: str = "float32"
    conv_impl: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits."""
        hidden = nn.Conv(8, (3, 3), (2, 2))(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        hidden = nn.relu(nn.Conv(8, (3, 3), (2, 2))(hidden))
        return nn.Dense(self.num_classes)(hidden.mean((1, 2))).astype(jnp.float32)


class End(NamedTuple):
    """How a process ended.

    Attributes:
      code: exit code, negative for a signal.
      stage: the last stage that began.
      at: seconds of processor time until the signal, or until the end.
      took: seconds of wall time from the signal to the end.
      starts: stage -> seconds of processor time at its beginning.
      errors: the end of its standard error.
    """

    code: int
    stage: str
    at: float
    took: float
    starts: dict[str, float]
    errors: str


def main() -> int:
    """Runs the soak or the memory test; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new, for runs and caches")
    parser.add_argument("--kills", type=int, default=24, help="with SIGKILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--steps", type=int, default=0, help="measure memory over so many steps")
    parser.add_argument("--defenses", default="base,adversarial,autoencoder,hybrid")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sharding info")  # Orbax, reading checkpoints
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.steps:
        return watch_memory(given.folder, given.steps)
    return soak(given.folder, given.kills, given.seed, {"defenses": given.defenses})


def child() -> None:
    """Runs main.py with the small network in place of all others."""
    import main as program
    from medadv_jax import cli, models

    models.MODELS.update(dict.fromkeys(models.MODELS, TinyNet))
    sys.argv = [str(ROOT / "main.py"), *sys.argv[2:]]
    cli.run(program.main)


def soak(folder: Path, kills: int, seed: int, overrides: Mapping[str, Any]) -> int:
    """Runs twice undisturbed, then with kills; prints a table; returns 1 for any difference."""
    for name in ("whole", "again"):  # the first compiles; the second times the stages
        began = time.monotonic()
        end = Process(folder, name, overrides).finish()
        if end.code:
            print(f"the undisturbed run fails with {end.code}: {end.errors}")
            return 1
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    differences = list(compare(folder / "whole", folder / "again"))
    print(f"undisturbed twice: {'; '.join(differences) or 'the same bits'}", flush=True)

    rng, stages = np.random.default_rng(seed), list(end.starts)
    lengths = dict(zip(stages, np.diff([*end.starts.values(), end.at]), strict=True))
    print(f"{'n':>3}  {'signal':8} {'in stage':22} {'after CPU s':>11} {'took s':>7}")
    for number, (stage, name) in enumerate(plan(stages, kills), start=1):
        process = Process(folder, "killed", overrides)
        later = set(stages[stages.index(stage) :])
        end = process.strike(later, lengths, float(rng.uniform()), getattr(signal, name))
        print(f"{number:3}  {name:8} {end.stage:22} {end.at:11.1f} {end.took:7.1f}", flush=True)
        expected = -signal.SIGKILL if name == "SIGKILL" else 128 + signal.SIGTERM
        if end.code != expected:
            differences.append(f"ended with {end.code}, not {expected}: {end.errors}")
    end = Process(folder, "killed", overrides).finish()
    if end.code:
        differences.append(f"the last run fails with {end.code}: {end.errors}")
    else:
        differences += compare(folder / "whole", folder / "killed")
    print(f"{kills} kills: {'; '.join(differences) or 'the same bits as if never disturbed'}")
    return int(bool(differences))


def plan(stages: Sequence[str], kills: int) -> list[tuple[str, str]]:
    """Returns (stage, signal) in the order of the stages; each training also gets a SIGTERM."""
    found = [(i * len(stages) // kills, "SIGKILL") for i in range(kills)]
    found += [(i, "SIGTERM") for i, stage in enumerate(stages) if stage.startswith("train")]
    return [(stages[i], name) for i, name in sorted(found)]


class Process:
    """A started run; the same name gives the same command.

    Times are its processor time, which other work on the machine does not change.
    """

    def __init__(self, folder: Path, name: str, overrides: Mapping[str, Any]):
        fields = OVERRIDES | {"data.cache_dir": folder / f"cache-{name}"} | dict(overrides)
        command = [sys.executable, "-m", "tools.soak", "child", "--config=configs/demo.py"]
        command += [f"--config.{field}={value}" for field, value in fields.items()]
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(folder.resolve() / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling dominates
        }
        self._process = subprocess.Popen(
            [*map(str, command), f"--workdir={(folder / name).resolve()}"],
            cwd=ROOT, env={**os.environ, **settings, "PYTHONUNBUFFERED": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=(folder / f"{name}.err").open("w+"),
        )  # fmt: skip
        self._errors = folder / f"{name}.err"
        self.pid, self._lines = self._process.pid, queue.SimpleQueue()
        self.starts = {"start": 0.0}
        threading.Thread(target=self._read, daemon=True).start()

    def finish(self) -> End:
        """Waits for the end."""
        worked = 0.0
        while self._next():
            worked = cpu_seconds(self.pid) or worked
        return self._end(time.monotonic(), worked)

    def strike(
        self, stages: set[str], lengths: Mapping[str, float], share: float, number: int
    ) -> End:
        """Sends a signal in the first of `stages` to begin, after a fraction of its length."""
        while self.stage not in stages and self._next():
            pass
        until = self.starts[self.stage] + share * lengths[self.stage]
        while cpu_seconds(self.pid) < until and self._next():
            pass
        struck, worked = time.monotonic(), cpu_seconds(self.pid)
        self._process.send_signal(number)
        return self._end(struck, worked)

    @property
    def stage(self) -> str:
        """The last stage that began."""
        return list(self.starts)[-1]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put((cpu_seconds(self.pid), line))
        self._lines.put(None)

    def _next(self) -> bool:
        """Reads a line or waits 50 ms; returns False at the end of the output."""
        try:
            found = self._lines.get(timeout=0.05)
        except queue.Empty:
            return True
        if found is None:
            return False
        match = _STAGE.match(found[1])
        if match and not re.search(r"done before|nothing to do", found[1]):
            name = " ".join(filter(None, match.groups()))
            self.starts.setdefault("report" if name == "m" else name, found[0])
        return True

    def _end(self, struck: float, worked: float) -> End:
        code = self._process.wait()
        took = time.monotonic() - struck
        errors = " ".join(self._errors.read_text(errors="replace").split())[-300:]
        return End(code, self.stage, worked, took, self.starts, errors)


def compare(whole: Path, other: Path) -> Iterator[str]:
    """Yields the differences of two finished runs: parameters, records, results, curves, models."""
    for name in (*SAME_BYTES, *sorted({*model_files(whole), *model_files(other)})):
        if (whole / name).exists() != (other / name).exists():
            yield f"{name} is missing"
        elif (whole / name).exists() and (whole / name).read_bytes() != (other / name).read_bytes():
            yield f"{name} differs"
    if curves(whole) != curves(other):
        yield "metrics.jsonl differs"
    if attack_record(whole) != attack_record(other):
        yield "attack_record.json differs"
    pictures = [arrays(path / "pictures.npz") for path in (whole, other)]
    if not same(*pictures):
        yield "pictures.npz differs"
    steps = [checkpoints(path) for path in (whole, other)]
    if steps[0] != steps[1]:
        yield f"checkpoints are {steps[1]}, not {steps[0]}"
        return
    for step in steps[0]:
        states = [ocp.PyTreeCheckpointer().restore(p / step / "default") for p in (whole, other)]
        if not same(*map(flat, states)):
            yield f"{step} differs"


def curves(run: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of metrics.jsonl, without the speed."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images/s"} for line in lines]


def attack_record(run: Path) -> Any:
    """Returns attack_record.json without the time that each part took."""
    content = json.loads((run / "attack_record.json").read_bytes())
    for defense in content.values():
        for attack in defense.values():
            attack["parts"] = [{**part, "seconds": 0} for part in attack["parts"]]
    return content


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def checkpoints(run: Path) -> list[str]:
    """Returns the relative paths of a run's checkpoints and of anything beside them."""
    folder = run / "checkpoints"
    return sorted(str(path.relative_to(run)) for path in folder.glob("*/*"))


def model_files(run: Path) -> list[str]:
    """Returns the relative paths of all files of a run's model folders."""
    return [str(path.relative_to(run)) for path in (run / "models").rglob("*") if path.is_file()]


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns name -> array of nested dicts and lists."""
    if isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        parts = [flat(value, f"{prefix}/{name}") for name, value in items]
        return {name: array for part in parts for name, array in part.items()}
    return {prefix: np.asarray(tree)}


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Returns whether both have the same names, dtypes and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def watch_memory(folder: Path, steps: int) -> int:
    """Trains for `steps` adversarial steps and fits memory against steps; returns 1 if it grows."""
    images = int(OVERRIDES["data.phantom_images"]) * 0.7
    epochs = round(steps / (images / int(OVERRIDES["train.batch_size"]))) + 1
    overrides = {
        "defenses": "base,adversarial", "train.epochs": epochs, "eval.checks": False,
        "detector.run": False,
    }  # fmt: skip
    process, found = Process(folder, "memory", overrides), []
    last_seen = 0.0
    while process.stage in ("start", "train base", "train adversarial") and process._next():
        if time.monotonic() - last_seen < 1:
            continue
        last_seen, lines = time.monotonic(), folder / "memory" / "metrics.jsonl"
        step = len(curves(folder / "memory")) if lines.exists() else 0
        if process.stage == "train adversarial":
            found.append((step, resident(process.pid)))
    process._process.kill()
    process._process.wait()
    last = [line for line in curves(folder / "memory") if line["defense"] == "adversarial"][-1]
    per_line = last["step"] / (found[-1][0] - found[0][0])
    x = (np.array([line for line, _ in found]) - found[0][0]) * per_line
    y = np.array([memory for _, memory in found])
    late = x > 0.1 * x[-1]  # compilation is over
    slope, start = np.polyfit(x[late], y[late], 1)
    growth = slope * x[-1] / start
    print(f"{len(x)} samples over {last['step']} adversarial steps, after {x[late][0]:.0f}")
    print(f"memory {y[late][0]:.1f} to {y[-1]:.1f} MiB (at most {y.max():.1f})")
    print(f"slope {slope * 1000:.2f} MiB in 1000 steps: {growth:+.1%} over the run")
    return int(growth > _MAX_GROWTH)


def resident(pid: int) -> float:
    """Returns the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(child() if sys.argv[1:2] == ["child"] else main())
