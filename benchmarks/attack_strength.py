"""Compares our evaluation attacks with other libraries': who breaks more images, and how fast.

    make peers
    .venv-peers/bin/python benchmarks/attack_strength.py --output=benchmarks/attack_strength.json

The same networks, images, radii and budgets for all: see `small_networks.py`. Every library's
adversarial images are classified by our network, and count if they are within ε.
"""

# pyright: reportMissingImports=false
# PyTorch is no dependency of this project; `make peers` installs it.

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks import small_networks
from benchmarks.evaluation_attacks import MAKERS, Budget
from benchmarks.small_networks import COUNT, TASKS, Images, Task, TorchNetwork
from benchmarks.strength_records import NAMES, Record, table, write
from medadv_jax.attacks.apgd import Apgd
from medadv_jax.attacks.autoattack import NUM_TARGETS, AutoAttack, AutoAttackQueue
from medadv_jax.attacks.fab import Fab
from medadv_jax.attacks.fmn import Fmn
from medadv_jax.attacks.square import Square
from medadv_jax.attacks.stepwise import StepwiseAttack, StepwiseQueue, target_classes

_ATTACKS = flags.DEFINE_list("attacks", list(NAMES), f"Out of {', '.join(NAMES)}.")
_TASKS = flags.DEFINE_list("tasks", [t.name for t in TASKS], "Networks.")
_NORMS = flags.DEFINE_list("norms", ["linf", "l2"], "Out of linf, l2.")
_QUERIES = flags.DEFINE_integer("queries", 5000, "Of Square.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", "", "JSON file for all results; what it holds of other attacks is kept."
)

LOGITS_BOUND = 1e-5  # largest difference of the two forms of a network, over the largest logit


def our_attack(name: str, budget: Budget) -> StepwiseAttack:
    """Returns our attack; for two classes APGD and targeted APGD are on the margin."""
    options: dict[str, Any] = {"epsilon": budget.epsilon, "norm": budget.norm}
    if name == "square":
        return Square(name, num_steps=budget.queries, **options)
    options["num_steps"] = budget.num_steps
    if name.endswith("_t"):
        options["num_targets"] = NUM_TARGETS
    if name.startswith("apgd"):
        dlr = "margin" if budget.classes == 2 else "dlr"
        return Apgd(name, loss="cross_entropy" if name == "apgd_ce" else dlr, **options)
    return Fmn(name, **options) if name == "fmn" else Fab(name, **options)


class Subject:
    """A trained network and the images that are attacked."""

    def __init__(self, task: Task):
        images = task.make()
        self.task = task
        self.weights = small_networks.train(task, Images(*(x[:-COUNT] for x in images)))
        self.pixels, self.labels = (x[-COUNT:] for x in images)
        self.torch_network = TorchNetwork(self.weights).eval()
        self.clean = self.logits(self.pixels)
        with torch.no_grad():
            theirs = self.torch_network(_to_torch(self.pixels)).numpy()
        self.difference = float(np.abs(theirs - self.clean).max() / np.abs(self.clean).max())
        if not self.difference <= LOGITS_BOUND:
            raise RuntimeError(f"{task.name}: logits differ by {self.difference:.1e}")

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Returns our logits (n, K) of pixels (n, H, W, C)."""
        return np.asarray(small_networks.logits(self.weights, jnp.asarray(pixels)))

    def robust(self, found: np.ndarray, budget: Budget) -> int:
        """Returns the images that are correct when clean and as `found` (n, H, W, C).

        An adversarial image that is not within ε and [0, 1], to rounding, does not count.
        """
        change = (found - self.pixels).reshape(COUNT, -1)
        order = {"linf": np.inf, "l2": 2}[budget.norm]
        inside = np.linalg.norm(change, order, axis=1) <= budget.epsilon * (1 + 1e-4)
        inside &= (found.reshape(COUNT, -1) >= -1e-6).all(1)
        inside &= (found.reshape(COUNT, -1) <= 1 + 1e-6).all(1)
        correct = self.logits(found).argmax(1) == self.labels
        clean = self.clean.argmax(1) == self.labels
        return int((clean & (correct | ~inside)).sum())

    def ours(self, name: str, budget: Budget) -> np.ndarray:
        """Returns the adversarial images of our attack."""
        key = jax.random.key(0)
        if name == "autoattack":
            attack = AutoAttack(
                name, budget.epsilon, budget.norm, num_steps=budget.num_steps,
                queries=budget.queries,
            )  # fmt: skip
            queue = AutoAttackQueue(attack, small_networks.logits, budget.classes, slots=COUNT)
            return queue.run(self.weights, self.pixels, self.labels, key).pixels
        attack = our_attack(name, budget)
        queue = StepwiseQueue(attack, small_networks.logits, slots=COUNT)
        clean, labels = jnp.asarray(self.clean), jnp.asarray(self.labels)
        targets = np.asarray(target_classes(clean, labels, attack.num_targets))
        pixels, left = self.pixels.copy(), self.clean.argmax(1) == self.labels
        for aim in targets.T if attack.num_targets else (None,):
            rows = np.flatnonzero(left)
            aimed = None if aim is None else aim[rows]
            found = queue.run(self.weights, self.pixels[rows], self.labels[rows], aimed, key)
            pixels[rows], left[rows] = found.pixels, ~found.success
        return pixels

    def theirs(self, library: str, name: str, budget: Budget) -> np.ndarray | None:
        """Returns the adversarial images of a library's attack; None if it lacks it."""
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (ART draws from it)
        run = MAKERS[library](self.torch_network, name, budget)
        if run is None:
            return None
        found = run(_to_torch(self.pixels), torch.tensor(self.labels).long())
        return found.detach().numpy().transpose(0, 2, 3, 1)


def _to_torch(pixels: np.ndarray) -> Any:
    return torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def compare(subject: Subject, name: str, budget: Budget) -> list[Record]:
    """Returns a record of each implementation of an attack; prints them."""
    runs: dict[str, Callable[[], np.ndarray | None]] = {
        "medadv_jax": lambda: subject.ours(name, budget)
    }
    for library in MAKERS:
        runs[library] = lambda library=library: subject.theirs(library, name, budget)
    records = []
    for implementation, run in runs.items():
        record = {"task": subject.task.name, **budget._asdict()}
        record |= {"attack": name, "implementation": implementation}
        before = time.perf_counter()
        try:
            found = run()
        except IndexError as error:  # the DLR loss looks for a third class
            record |= {"robust": None, "error": f"IndexError: {error}"}
        else:
            if found is None:
                continue
            record |= {"robust": subject.robust(found, budget), "error": None}
        record["seconds"] = time.perf_counter() - before
        records.append(record)
        print(f"  {name:10} {implementation:13} {record['robust'] or record['error']}", flush=True)
    return records


def main(_: list[str]) -> None:
    """Compares everything that the flags ask for."""
    records, subjects = [], []
    for task in TASKS:
        if task.name not in _TASKS.value:
            continue
        subject = Subject(task)
        accuracy = float((subject.clean.argmax(1) == subject.labels).mean())
        found = {"task": task.name, "accuracy": accuracy, "logits_differ": subject.difference}
        subjects.append(found)
        print(found, flush=True)
        for norm in _NORMS.value:
            budget = Budget(norm, task.epsilon[norm], task.classes, queries=_QUERIES.value)
            print(budget)
            for name in _ATTACKS.value:
                records += compare(subject, name, budget)
    if _OUTPUT.value:
        records = write(Path(_OUTPUT.value), COUNT, subjects, records)
    print(table(records))


if __name__ == "__main__":
    app.run(main)
