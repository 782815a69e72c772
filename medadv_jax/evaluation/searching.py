"""The attacks of `EVALUATION_ATTACKS` against deployed classifiers, compiled once for all of them.

    programs = SearchingAttacks(predictor, slots, put, num_classes=2)
    found = programs.run(attack, sources, images, labels, key, deployed_fn)

Each gradient that the attacker has is tried on the images that are left; an image counts as broken
when the deployed classifier misclassifies it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medadv_jax.attacks.autoattack import AutoAttack, AutoAttackQueue, AutoAttackResult, Stage
from medadv_jax.attacks.stepwise import StepwiseAttack
from medadv_jax.data.splits import Example
from medadv_jax.distributed import Share, of_all_processes
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source
from medadv_jax.files import read_json, write_json


class SearchingAttacks:
    """Compiled programs: one for each attack and kind of gradient.

    Args of the constructor:
      predictor: of the classifiers.
      slots: images at a time, a multiple of the devices.
      put: places a tree of arrays on the devices, split along their first axes.
      num_classes: K.
    """

    def __init__(
        self, predictor: Predictor, slots: int, put: Callable[[Any], Any], num_classes: int
    ):
        self._predictor, self._slots, self._put = predictor, slots, put
        self._num_classes = num_classes
        self._queues: dict[Any, AutoAttackQueue] = {}

    def run(
        self,
        attack: AutoAttack | StepwiseAttack,
        sources: Sequence[Source],
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        deployed_fn: Callable[[np.ndarray], np.ndarray],
        epsilon: float | None = None,
        advance: Callable[[int], None] = lambda images: None,
    ) -> AutoAttackResult:
        """Attacks images (n, H, W, 3) float32 in [0, 1] with labels (n,).

        Args:
          attack: a set or a single attack.
          sources: gradients that the attacker has, of one classifier.
          images, labels: any n.
          key: of the random draws.
          deployed_fn: pixels (m, H, W, 3) -> logits (m, K) of the deployed classifier.
          epsilon: another radius than the attack's.
          advance: told the number of images that an attack is done with.
        """
        gradients = tuple(source.gradient for source in sources)
        if (attack, gradients) not in self._queues:
            first, *others = (self._logits_fn(gradient) for gradient in gradients)
            self._queues[attack, gradients] = AutoAttackQueue(
                attack, first, self._num_classes, self._slots, self._put, others
            )
        variables = self._predictor.fold(sources[0].variables)
        return self._queues[attack, gradients].run(
            variables, images, labels, key, epsilon=epsilon, deployed_fn=deployed_fn,
            advance=advance,
        )  # fmt: skip

    def _logits_fn(self, gradient: str) -> Callable[[Any, jax.Array], jax.Array]:
        attacked = self._predictor.attacked
        return lambda variables, pixels: attacked.logits(variables, pixels, gradient)


def gather_results(found: AutoAttackResult, share: Share) -> AutoAttackResult:
    """Returns the results of all processes, each of which attacked its share.

    Of each part images and passes are summed; seconds are those of the slowest process.
    """
    if jax.process_count() == 1:
        return found
    counts = np.array([(s.attacked, s.broken, s.passes) for s in found.stages], np.int32)
    counts = of_all_processes(counts * (not share.idle)).sum(axis=0)
    seconds = of_all_processes(np.array([s.seconds for s in found.stages], np.float32)).max(axis=0)
    stages = tuple(
        Stage(stage.name, int(attacked), int(broken), int(passes), float(slowest))
        for stage, (attacked, broken, passes), slowest in zip(
            found.stages, counts, seconds, strict=True
        )
    )
    pixels, correct, broken_by = map(share.gather, (found.pixels, found.correct, found.broken_by))
    return AutoAttackResult(pixels, correct, broken_by, stages)


def write_attack_record(
    path: Path,
    defense: str,
    examples: Sequence[Example],
    images: np.ndarray,
    attack: AutoAttack | StepwiseAttack,
    found: AutoAttackResult,
) -> None:
    """Adds to a run's record which part of an attack broke which image, and at what cost.

    Args:
      path: of `attack_record.json`: defence -> attack -> "parts", a dict for each `Stage`;
        "broken_by", example id -> name of the part; "exceeds", how far the largest perturbation
        goes beyond ε; "outside", how far pixels leave [0, 1].
      defense: its name.
      examples, images: n of them, attacked.
      attack: what ran.
      found: its result.
    """
    record, names = read_attack_record(path), [stage.name for stage in found.stages]
    broken = zip(examples, found.broken_by, strict=True)
    delta = (found.pixels - images).reshape(len(images), -1)
    order = np.inf if attack.norm == "linf" else 2
    largest = np.linalg.norm(delta, order, axis=1).max()
    record.setdefault(defense, {})[attack.name] = {
        "parts": [stage._asdict() for stage in found.stages],
        "broken_by": {example.id: names[part] for example, part in broken if part >= 0},
        "exceeds": float(largest - attack.epsilon),
        "outside": max(0.0, float(-found.pixels.min()), float(found.pixels.max() - 1)),
    }
    write_json(path, record)


def read_attack_record(path: Path) -> dict[str, Any]:
    """Returns what `write_attack_record` wrote so far, {} if there is no file."""
    return read_json(path, read=dict) if path.exists() else {}
