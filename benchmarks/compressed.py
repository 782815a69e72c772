"""What compression costs: size, latency, clean accuracy, and the robustness of each program itself.

    python benchmarks/compressed.py --run=runs/x --defense=adversarial \
      --output=benchmarks/compression.json

With --student=RUN, whose defence `distilled` learned from the same network, its programs too.
Images are 8-bit, and the radius is the largest number of grey levels within the run's ε. "worst":
correct when clean and under all of: PGD and APGD by the program's own gradient (of ONNX: straight
through to the float32 network that it was made of), the images that these and Square find against
the program float32, and Square. Clean: on all test images. Records are added to the file, one for
each program.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks.report import describe_machine
from medadv_jax import cli, evaluate, load
from medadv_jax.attacks import make_attack
from medadv_jax.config import Config, read_saved_config
from medadv_jax.data.loader import load_dataset
from medadv_jax.deployment.check_images import COUNT, Images, choose_images
from medadv_jax.deployment.compression import as_function, to_8_bits, to_bfloat16
from medadv_jax.deployment.export import export_model
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.onnx_program import INPUT, OUTPUTS, open_onnx
from medadv_jax.evaluation.model_under_test import choose_examples
from medadv_jax.evaluation.statistics import wilson_interval
from medadv_jax.experiment.finished_runs import find_examples
from medadv_jax.files import read_json, write_json

_RUN = flags.DEFINE_string("run", "", "Run directory; needed.")
_DEFENSE = flags.DEFINE_string("defense", "adversarial", "Which of its classifiers.")
_STUDENT = flags.DEFINE_string("student", "", "Run directory with the defence distilled.")
_PROGRAMS = flags.DEFINE_list("programs", [], "Those to measure; none: all in PROGRAMS.")
_IMAGES = flags.DEFINE_integer("images", 100, "Test images to attack, of each class as many.")
_STEPS = flags.DEFINE_integer("steps", 20, "Of PGD; APGD takes twice as many.")
_QUERIES = flags.DEFINE_integer("queries", 500, "Of Square.")
_RUNS = flags.DEFINE_integer("runs", 200, "Timed runs of each program.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file, which keeps its other records.")
_BATCH = 100


@dataclasses.dataclass(frozen=True)
class Program:
    """What is exported; `student`: of the narrower network; `compression`: see `export_model`."""

    format: str
    compression: str = ""
    student: bool = False


PROGRAMS = {
    "float32": Program("onnx"),
    "float32_jax": Program("stablehlo"),
    "bfloat16_jax": Program("stablehlo", "bfloat16"),
    "int8": Program("onnx", "int8"),
    "distilled": Program("onnx", student=True),
    "distilled_int8": Program("onnx", "int8", student=True),
}


@dataclasses.dataclass(frozen=True)
class Test:
    """Test images (n, S, S, 3) uint8, labels (n,), and the radius in pixels of [0, 1]."""

    images: np.ndarray
    labels: np.ndarray
    epsilon: float

    @property
    def pixels(self) -> np.ndarray:
        """The images as float32 in [0, 1]."""
        return self.images.astype(np.float32) / 255


def read_test(run: Path, count: int) -> Test:
    """Returns at most `count` test images of a run, drawn with as many of each class."""
    config: Config = ConfigDict(read_saved_config(run / "config.json")["config"])
    dataset = load_dataset(config.data)
    rows = find_examples(dataset, read_json(run / "splits.json")["test"], run)
    rows = rows[choose_examples(dataset.labels[rows], count, config.seed)]
    levels = int(255 * config.attack.epsilon + 1e-6)
    images = np.stack([dataset.source[int(row)] for row in rows])
    return Test(images, dataset.labels[rows], levels / 255)


def _rounded(pixels: jax.Array) -> jax.Array:
    """Returns pixels rounded to 8 bits, with the gradient of the identity."""
    return pixels + jax.lax.stop_gradient(jnp.rint(255 * pixels) / 255 - pixels)


def make_function(program: Program, model: Model, folder: Path) -> Callable[..., jax.Array]:
    """Returns pixels -> logits of an exported program, to be attacked.

    ONNX: the program itself, with the gradient of the network that it was made of. StableHLO: the
    model that was exported, with its own gradient, on images of 8 bits.
    """
    if program.format == "onnx":
        session = open_onnx(folder / "model.onnx")

        def run(images: np.ndarray) -> Any:
            return session.run([*OUTPUTS], {INPUT: images})

        return as_function(run, _prepared(model), len(model.classes))
    if program.compression == "bfloat16":
        short = to_bfloat16(model)
        return lambda pixels: short.logits(_rounded(pixels))
    function = _prepared(model)
    return lambda pixels: function(_rounded(pixels))


def _prepared(model: Model) -> Callable[[jax.Array], jax.Array]:
    """Returns the model's logits, with BatchNorm folded for speed."""
    classifier, variables = model.classifier.folded(), model.classifier.fold(model.variables)
    return functools.partial(classifier.logits, variables, gradient=model.gradient)


def find_attacked(model: Model, test: Test, steps: int) -> np.ndarray:
    """Returns what PGD finds against a model at its highest loss, (n, S, S, 3) uint8."""
    function, found = _prepared(model), []
    pgd = make_attack("pgd", test.epsilon, num_steps=steps, keep_best=True)
    attack = jax.jit(lambda *batch: pgd(lambda x: function(_rounded(x)), *batch, jax.random.key(0)))
    for first in range(0, len(test.labels), _BATCH):
        part = slice(first, first + _BATCH)
        found.append(attack(test.pixels[part], test.labels[part]))
    return to_8_bits(np.concatenate(found))


class Attacked(NamedTuple):
    """Which images a program classifies correctly under each attack (n,), and what they found."""

    correct: dict[str, np.ndarray]
    pixels: np.ndarray


def attack(function: Callable[..., Any], test: Test, transferred: Sequence[np.ndarray]) -> Attacked:
    """Attacks a program; `transferred`: images (n, S, S, 3) uint8 found against another one."""
    steps, epsilon = _STEPS.value, test.epsilon
    attacks = [
        make_attack("pgd", epsilon, num_steps=steps, keep_best=True),
        make_attack("apgd", epsilon, num_steps=2 * steps),
        make_attack("square", epsilon, num_steps=_QUERIES.value),
    ]
    found = evaluate(
        function, test.pixels, test.labels, epsilon, "linf", attacks, batch_size=_BATCH,
        check_images=0,
    )  # fmt: skip
    correct = dict(zip(found.attacks, found.correct.T, strict=True))
    clean = found.predicted == test.labels
    right = [classify(function, images) == test.labels for images in transferred]
    transfer = np.all([clean, *right], axis=0)
    own = correct["pgd"] & correct["apgd"]
    shown = {"own_gradient": own, "transfer": transfer, "square": correct["square"]}
    return Attacked(shown | {"worst": np.all([*shown.values()], axis=0)}, to_8_bits(found.pixels))


def classify(function: Callable[..., Any], images: np.ndarray) -> np.ndarray:
    """Returns the class of each image, (n, S, S, 3) uint8 -> (n,)."""
    predict, found = jax.jit(lambda pixels: function(pixels).argmax(axis=-1)), []
    for first in range(0, len(images), _BATCH):
        rows = np.arange(first, first + _BATCH) % len(images)  # the last batch is filled up
        found.append(np.asarray(predict(images[rows].astype(np.float32) / 255)))
    return np.concatenate(found)[: len(images)]


def _shares(correct: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {
            "images": len(each),
            "accuracy": float(each.mean()),
            "interval": wilson_interval(int(each.sum()), len(each)),
        }
        for name, each in correct.items()
    }


def measure_latency(folders: Mapping[str, Path], runs: int) -> dict[str, dict[str, Any]]:
    """Returns program -> latency of one image, by the number of threads, in seconds."""
    found: dict[str, dict[str, Any]] = {name: {} for name in folders}
    for threads in (1, 2):
        script = Path(__file__).with_name("latency.py")
        command = [sys.executable, str(script), f"--threads={threads}", f"--runs={runs}"]
        done = subprocess.run(
            [*command, *map(str, folders.values())], capture_output=True, text=True, check=True
        )
        seconds = json.loads(done.stdout.splitlines()[-1])
        for name, folder in folders.items():
            times = seconds[str(folder)]
            found[name][f"threads_{threads}"] = {
                "median": float(np.median(times)),
                "percentile_95": float(np.percentile(times, 95)),
                "fastest": min(times),
            }
    return found


def table(records: Mapping[str, Any]) -> str:
    """Returns the results as a markdown table."""
    lines = [
        "| program | MB | ms, 1 thread | ms, 2 threads | clean | own gradient | transfer | Square |"
        " worst |",
        "|" + " --- |" * 9,
    ]
    for name, record in records.items():
        times = [
            "{:.1f} ({:.1f}; {:.1f})".format(*(1000 * x for x in record["latency"][key].values()))
            for key in ("threads_1", "threads_2")
        ]
        kinds = ("clean", "own_gradient", "transfer", "square", "worst")
        shares = [f"{record['correct'][kind]['accuracy']:.3f}" for kind in kinds]
        size = f"{record['bytes'] / 1e6:.1f}"
        lines.append(f"| {' | '.join([name, size, *times, *shares])} |")
    return "\n".join(lines)


def export_all(
    models: Mapping[str, Model], images: Images, scratch: Path
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Exports programs of models; returns program -> its folder, and its entry in the card."""
    found = {}
    for number, (name, model) in enumerate(models.items()):
        program, folder = PROGRAMS[name], Path(scratch, str(number))
        for line in export_model(model, folder, [program.format], images, program.compression):
            print(name, line, flush=True)
        entry = read_json(folder / "export.json")["exports"][program.format]
        found[name] = (folder, {k: v for k, v in entry.items() if k != "use"})
    return found


def measure(run: Path, models: Mapping[str, Model], teacher: Model) -> dict[str, Any]:
    """Returns a record for each program; `models`: program -> what it is exported from."""
    test, every = (read_test(run, count) for count in (_IMAGES.value, 10**6))
    records: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        images = choose_images(teacher, run, None, 2 * COUNT)
        exported = export_all(models, images, Path(scratch))
        latency = measure_latency({name: each[0] for name, each in exported.items()}, _RUNS.value)
        transferred = [find_attacked(teacher, test, _STEPS.value)]
        for name, (folder, entry) in exported.items():
            function = make_function(PROGRAMS[name], models[name], folder)
            found = attack(function, test, transferred)
            if name == "float32":
                transferred.append(found.pixels)
            clean = classify(function, every.images) == every.labels
            correct = {"clean": clean, **found.correct}
            print(name, {kind: float(each.mean()) for kind, each in correct.items()}, flush=True)
            records[name] = {
                **entry, "latency": latency[name], "epsilon": test.epsilon,
                "correct": _shares(correct), "load_average": os.getloadavg(),
                "machine": describe_machine(),
            }  # fmt: skip
    return records


def main() -> None:
    """Measures the programs, writes the file, prints the table."""
    run, output = Path(_RUN.value), Path(_OUTPUT.value)
    teacher, models = load(run, defense=_DEFENSE.value), {}
    student = load(Path(_STUDENT.value), defense="distilled") if _STUDENT.value else None
    for name in _PROGRAMS.value or PROGRAMS:
        of = student if PROGRAMS[name].student else teacher
        if of is not None:
            models[name] = of
    settings = {
        "pgd_steps": _STEPS.value, "apgd_steps": 2 * _STEPS.value,
        "square_queries": _QUERIES.value,
    }  # fmt: skip
    records = measure(run, models, teacher)
    records = {name: each | settings for name, each in records.items()}
    if output.is_file():
        records = read_json(output) | records
    records = {name: records[name] for name in PROGRAMS if name in records}
    write_json(output, records)
    print(table(records))


if __name__ == "__main__":
    cli.run(main)
