"""Times one attack and one adversarial training step, beside a plain PyTorch loop if asked.

python scripts/benchmark.py --image_size=64 --batch_size=32 --peers --output=benchmark.json

Ours and the peer alternate, so that a noisy neighbour disturbs both. Needs jax, flax, optax and
ml_collections; `--peers` needs PyTorch as well.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from configs import default
from medadv_jax import train_step
from medadv_jax.classifier import Classifier
from medadv_jax.defenses import attack_from_config, get_defense
from medadv_jax.models import create_model

_IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Pixels, height = width.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a step.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "Steps of PGD.")
_RUNS = flags.DEFINE_integer("runs", 7, "Timed runs of each; the median is printed.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_PEERS = flags.DEFINE_bool("peers", False, "Also time a plain PyTorch loop.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the records.")

Task = tuple[str, str, Callable[[], None]]  # task, implementation, one blocking run


def our_tasks(images: np.ndarray, labels: np.ndarray) -> list[Task]:
    """Returns our attack and our adversarial step on images (B, H, W, 3) uint8."""
    config = default.get_config()
    config.train.update(attacks="pgd", num_steps=_NUM_STEPS.value)
    config.data.augment.update(shift=0.0, rotation=0.0, brightness=0.0)  # the peer has none
    network = create_model("resnet50", num_classes=2, dtype=_DTYPE.value)
    classifier, mesh = Classifier(network), train_step.make_mesh()
    optimizer = train_step.make_optimizer(config.train.learning_rate, "constant", 1)
    key, size = jax.random.key(0), images.shape[1]
    state, _ = train_step.create_state(classifier, optimizer, mesh, key, size)
    variables = jax.tree.map(jnp.copy, state.variables())
    attack = attack_from_config(config, "pgd", _NUM_STEPS.value)
    run_attack = jax.jit(lambda v, x, y: attack(classifier.logits_fn(v), x, y, key))
    objective = get_defense("adversarial").make_objective(config)
    step = train_step.make_train_step(classifier, optimizer, objective, config.data.augment)
    mask = np.ones(len(labels), np.float32)
    batch = train_step.put_batch(mesh, {"image": images, "label": labels, "mask": mask})
    pixels = train_step.put_batch(mesh, {"image": images.astype(np.float32) / 255})["image"]

    def adversarial_step() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return [
        (
            "attack",
            "medadv_jax",
            lambda: jax.block_until_ready(run_attack(variables, pixels, batch["label"])),
        ),
        ("adversarial_step", "medadv_jax", adversarial_step),
    ]


def measure(tasks: list[Task]) -> list[dict[str, Any]]:
    """Runs the tasks in turn and returns a record for each."""
    first = []
    for _, _, run in tasks:
        start = time.perf_counter()
        run()
        first.append(time.perf_counter() - start)
        run()
    seconds: list[list[float]] = [[] for _ in tasks]
    for _ in range(_RUNS.value):
        for times, (_, _, run) in zip(seconds, tasks, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return [
        {
            "task": task,
            "attack": "pgd",
            "num_steps": _NUM_STEPS.value,
            "model": "resnet50",
            "image_size": _IMAGE_SIZE.value,
            "batch": _BATCH_SIZE.value,
            "precision": _DTYPE.value,
            "devices": jax.device_count() if implementation == "medadv_jax" else 1,
            "implementation": implementation,
            "seconds": times,
            "images_per_second": _BATCH_SIZE.value / statistics.median(times),
            "first_run_seconds": first_run,  # compiles, for those that compile
        }
        for (task, implementation, _), times, first_run in zip(tasks, seconds, first, strict=True)
    ]


def main(argv: list[str]) -> None:
    """Prints a table; writes the records if asked."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rng = np.random.default_rng(0)
    shape = (_BATCH_SIZE.value, _IMAGE_SIZE.value, _IMAGE_SIZE.value, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = rng.integers(0, 2, _BATCH_SIZE.value, dtype=np.int32)
    tasks = our_tasks(images, labels)
    if _PEERS.value:
        import benchmark_pytorch  # beside this file

        tasks += benchmark_pytorch.tasks(images, labels, _NUM_STEPS.value, _DTYPE.value)
    records = measure(tasks)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; seconds: median (min–max)")
    for record in records:
        times = record["seconds"]
        spread = f"{statistics.median(times):.3f} ({min(times):.3f}–{max(times):.3f})"
        rate = f"{record['images_per_second']:.1f} images/s"
        print(f"{record['task']:18}{record['implementation']:12}{spread:24}{rate}")
    if _OUTPUT.value:
        device = jax.devices()[0].device_kind
        content = {"device": device, "jax": jax.__version__, "records": records}
        Path(_OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
