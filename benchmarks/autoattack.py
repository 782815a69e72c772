"""Times our autoattack on a run's classifier beside PyTorch's nearest equivalent set.

    make peers
    .venv-peers/bin/python benchmarks/autoattack.py --run=runs/x --output=benchmarks/autoattack.json

Both attack the same test images of the run with the same weights, ResNet50 in two classes. The
reference set is torchattacks' APGD on cross-entropy, its APGD with the margin in place of DLR
(which two classes lack), FAB and Square: each on the images that the ones before left, with our
numbers of steps and queries, on torchvision's network in channels_last with frozen parameters.
Ours includes compilation.
"""

# pyright: reportMissingImports=false
# PyTorch is no dependency of this project; `make peers` installs it.

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import jax
import numpy as np
import torch
from absl import app, flags, logging

from benchmarks.evaluation_attacks import MAKERS, Budget, margin_apgd
from benchmarks.pytorch import Network, load_variables, to_pixels
from benchmarks.report import describe_machine
from medadv_jax.attacks.autoattack import AutoAttack, AutoAttackQueue
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.data.loader import load_dataset
from medadv_jax.defenses import get_defense
from medadv_jax.errors import UserError
from medadv_jax.evaluation.model_under_test import choose_examples, read_images
from medadv_jax.experiment.finished_runs import find_examples, load_runs
from medadv_jax.training.build import assemble

_RUN = flags.DEFINE_string("run", None, "A finished run directory.", required=True)
_DEFENSE = flags.DEFINE_string("defense", "adversarial", "A defence without a purifier.")
_IMAGES = flags.DEFINE_integer("images", 300, "Test images; 0: all.", lower_bound=0)
_STEPS = flags.DEFINE_integer("num_steps", 100, "Of APGD and FAB.", lower_bound=1)
_QUERIES = flags.DEFINE_integer("queries", 5000, "Of Square.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images at a time, of both.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the result.")

LOGITS_BOUND = 1e-4  # largest difference over the largest logit
Record = dict[str, Any]


class Subject:
    """A run's classifier and test images, in JAX and in PyTorch."""

    def __init__(self, run: Path, defense: str, count: int):
        if get_defense(defense).purified:
            raise UserError(f"--defense={defense} has a purifier, which is not built in PyTorch")
        config, test, (classifiers,) = load_runs([run])
        if config.model.name != "resnet50":
            raise UserError(f"{run}: the network is {config.model.name}; only resnet50 is compared")
        dataset = load_dataset(config.data)
        rows = find_examples(dataset, test, run)
        if count:
            rows = rows[choose_examples(dataset.labels[rows], count, config.seed)]
        self.classifier: Classifier = assemble(config, dataset.class_names).bare
        self.variables: Variables = classifiers.variables(get_defense(defense))
        self.pixels = read_images(dataset, rows)
        self.labels = dataset.labels[rows]
        self.epsilon, self.norm = float(config.attack.epsilon), config.attack.norm
        self.network = self._in_torch(config.model.width)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Returns our logits (n, 2)."""
        return np.asarray(jax.jit(self.classifier.logits)(self.variables, pixels))

    def correct(self, pixels: np.ndarray) -> np.ndarray:
        """Returns which images our network classifies correctly (n,)."""
        size = _BATCH.value
        parts = [self.logits(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        return np.concatenate(parts).argmax(1) == self.labels

    def _in_torch(self, width: float) -> Network:
        """Returns the same classifier in PyTorch; RuntimeError if its logits differ."""
        network = Network("resnet50", "float32", width, self.classifier.normalization)
        load_variables(network, "resnet50", jax.tree.map(np.asarray, self.variables))
        network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        ours = self.logits(self.pixels[: _BATCH.value])
        theirs = network(to_pixels(self.pixels[: _BATCH.value], "cpu")).numpy()
        self.difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
        if not self.difference <= LOGITS_BOUND:
            raise RuntimeError(f"logits differ by {self.difference:.1e}")
        return network


def run_ours(subject: Subject) -> Record:
    """Attacks with our set; returns its record."""
    attack = AutoAttack(
        "autoattack", subject.epsilon, subject.norm, num_steps=_STEPS.value, queries=_QUERIES.value
    )
    folded, variables = subject.classifier.folded(), subject.classifier.fold(subject.variables)
    queue = AutoAttackQueue(attack, folded.logits, num_classes=2, slots=_BATCH.value)
    result = queue.run(variables, subject.pixels, subject.labels, jax.random.key(0))
    stages = [stage._asdict() for stage in result.stages]
    return {
        "stages": stages,
        "robust": int((result.correct & subject.correct(result.pixels)).sum()),
    }


def run_reference(subject: Subject) -> Record:
    """Attacks with torchattacks, each attack on the images that the ones before left."""
    budget = Budget(subject.norm, subject.epsilon, 2, _STEPS.value, _QUERIES.value)
    make, network = MAKERS["torchattacks"], subject.network
    attacks: dict[str, Any] = {
        "apgd_ce": make(network, "apgd_ce", budget), "apgd_margin": margin_apgd(network, budget),
        "fab": make(network, "fab", budget), "square": make(network, "square", budget),
    }  # fmt: skip
    found, left, stages = subject.pixels.copy(), subject.correct(subject.pixels), []
    for name, attack in attacks.items():
        before, rows = time.perf_counter(), np.flatnonzero(left)
        for first in range(0, len(rows), _BATCH.value):
            part = rows[first : first + _BATCH.value]
            targets = torch.tensor(subject.labels[part]).long()
            # Contiguous: torchattacks' FAB cannot take images in channels_last.
            images = attack(to_pixels(subject.pixels[part], "cpu").contiguous(), targets).detach()
            with torch.no_grad():
                left[part] = (network(images).argmax(1) == targets).numpy()
            found[part] = images.numpy().transpose(0, 2, 3, 1)
        stages.append({
            "name": name, "attacked": len(rows), "broken": int(len(rows) - left.sum()),
            "seconds": time.perf_counter() - before,
        })  # fmt: skip
    return {"stages": stages, "robust": int((left & subject.correct(found)).sum())}


def timed(name: str, run: Callable[[Subject], Record], subject: Subject) -> Record:
    """Returns the record with wall-clock and CPU seconds; prints it."""
    before, cpu = time.perf_counter(), time.process_time()
    record = {"implementation": name, **run(subject)}
    record["seconds"] = time.perf_counter() - before
    record["cpu_seconds"] = time.process_time() - cpu
    for stage in record["stages"]:
        print(
            f"  {stage['name']:12} {stage['attacked']:4} attacked, {stage['broken']:4} broken,"
            f" {stage['seconds']:8.1f} s"
        )
    print(
        f"{name}: {record['robust']} of {len(subject.labels)} withstand;"
        f" {record['seconds']:.1f} s, {record['cpu_seconds']:.1f} CPU s",
        flush=True,
    )
    return record


def main(_: list[str]) -> None:
    """Times both and compares."""
    logging.set_verbosity(logging.WARNING)  # Orbax says much
    subject = Subject(Path(_RUN.value), _DEFENSE.value, _IMAGES.value)
    ours = timed("medadv_jax", run_ours, subject)
    theirs = timed("torchattacks", run_reference, subject)
    ratio = theirs["seconds"] / ours["seconds"]
    print(f"ours is {ratio:.2f} times as fast ({theirs['cpu_seconds'] / ours['cpu_seconds']:.2f} in"
          " CPU seconds)")  # fmt: skip
    if _OUTPUT.value:
        content = {
            **describe_machine(), "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(), "image_size": subject.pixels.shape[1],
            "images": len(subject.labels), "epsilon": subject.epsilon, "norm": subject.norm,
            "logits_differ": subject.difference, "ratio": ratio, "records": [ours, theirs],
        }  # fmt: skip
        Path(_OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
