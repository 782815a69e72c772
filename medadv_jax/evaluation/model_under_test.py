"""A defended classifier and test images, attacked by evaluations, curves and self-checks.

Curves and checks take a small subset (64 images by default) and attack it in many ways, through
compiled programs that all defences of a run share.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medadv_jax.attacks import Attack
from medadv_jax.attacks.autoattack import AutoAttack, AutoAttackResult
from medadv_jax.attacks.continuous_batching import AttackJob, AttackQueue
from medadv_jax.attacks.restriction import FREE, Restriction
from medadv_jax.attacks.stepwise import StepwiseAttack
from medadv_jax.classifier import to_pixels
from medadv_jax.data.loader import Dataset
from medadv_jax.data.splits import Example, Splits
from medadv_jax.distributed import Share
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.searching import SearchingAttacks, gather_results
from medadv_jax.evaluation.threat_models import Source, Target


class Attacked(NamedTuple):
    """What J jobs found; images that a job left out are unchanged.

    Attributes:
      pixels: (J, n, H, W, 3) float32 in [0, 1].
      logits: (J, n, K) float32, the deployed classifier's.
    """

    pixels: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class ModelUnderTest:
    """One deployed classifier under an adaptive (white-box) attacker.

    Attributes:
      defense: its name.
      predictor: runs it as in the evaluation.
      queue: first-order attacks on it.
      searching: other attacks on it.
      target: the deployed classifier.
      sources: whose gradients the attacker has; the worst for the defender counts.
      images: (n, H, W, 3) float32 in [0, 1].
      labels: (n,) int32.
      examples: n of them.
      seed: of random starts.
    """

    defense: str
    predictor: Predictor
    queue: AttackQueue
    searching: SearchingAttacks
    target: Target
    sources: tuple[Source, ...]
    images: np.ndarray
    labels: np.ndarray
    examples: tuple[Example, ...]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the deployed classifier's logits, any (m, H, W, 3) -> (m, K).

        In batches of one shape, the last one filled up, through the program of the evaluation.
        """
        logits, size = [], self.queue.slots
        for first in range(0, len(pixels), size):
            part = pixels[first : first + size]
            whole = part[np.arange(size) % len(part)]
            found = self.predictor.logits(self.target, self.queue.put(whole))
            logits.append(np.asarray(found)[: len(part)])
        return np.concatenate(logits)

    def batch(self, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first batch of `images` (or its own), (N, H, W, 3), and labels (N,); images
        repeat if too few."""
        rows = np.arange(self.queue.slots) % len(self)
        return (self.images if images is None else images)[rows], self.labels[rows]

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields images (N, H, W, 3) and labels (N,), the last batch filled up with the first."""
        for first in range(0, len(self), self.queue.slots):
            rows = np.arange(first, first + self.queue.slots) % len(self)
            yield self.images[rows], self.labels[rows]

    def noise(self, epsilon: float, draw: int, restriction: Restriction = FREE) -> np.ndarray:
        """Returns uniform draws (n, H, W, 3) from the balls around the images."""
        key = jax.random.fold_in(jax.random.key(self.seed), 2)
        found = [
            self.queue.starts(images, epsilon, draw, key, restriction)
            for images, _ in self.batches()
        ]
        return np.concatenate(found)[: len(self)]

    def evaluated(self, attacks: Sequence[Attack], source: Source) -> np.ndarray:
        """Returns the images as the evaluation attacks them by the gradients of one source, of A
        attacks (A, n, H, W, 3)."""
        found = []
        for images, labels in self.batches():
            pixels = np.round(images * 255).astype(np.uint8)
            batch = self.queue.put({"image": pixels, "label": labels.astype(np.int32)})
            attacked = self.predictor.attack(attacks, source, batch, jax.random.key(self.seed))
            found.append(np.asarray(attacked))
        return np.concatenate(found, axis=1)[:, : len(self)]

    def attack(
        self,
        jobs: Sequence[AttackJob],
        salt: int = 0,
        advance: Callable[[int], None] = lambda runs: None,
    ) -> Attacked:
        """Runs jobs with the gradients of every source; for each image the lowest margin counts.

        A source attacks only the images that those before it could not break. `salt` gives other
        random starts than those of the evaluation; `advance` is told the number of runs done or
        left out, as in `AttackQueue.run`. Each process attacks its share of the images.
        """
        share = Share(len(self))
        own = [_restrict(job, share.mine) for job in jobs]
        found = self._share(share)._attack_all(own, salt, advance)
        return Attacked(*(share.gather(each, 1) for each in found))

    def _share(self, share: Share) -> "ModelUnderTest":
        """Returns the classifier with the images of this process."""
        rows = share.mine
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.labels[rows],
            examples=tuple(self.examples[row] for row in rows),
        )  # fmt: skip

    def _attack_all(
        self, jobs: Sequence[AttackJob], salt: int, advance: Callable[[int], None]
    ) -> Attacked:
        key = jax.random.key(self.seed)
        key = jax.random.fold_in(key, salt) if salt else key
        clean = self.logits(self.images)
        pixels = np.repeat(self.images[None], len(jobs), axis=0)
        logits = np.repeat(clean[None], len(jobs), axis=0)
        every = np.ones(len(self), bool)
        tried = [every if job.active is None else job.active for job in jobs]
        for number, source in enumerate(self.sources):
            for job, active in zip(jobs, tried, strict=True):
                advance(job.attack.num_restarts * int((~active).sum()))
            now = [job._replace(active=active) for job, active in zip(jobs, tried, strict=True)]
            found = self.queue.run(
                source.variables, self.images, self.labels, now, key, source.gradient, advance
            )
            for j, job in enumerate(jobs):
                new = self.logits(found[j])
                lower = margins(new, self.labels) < margins(logits[j], self.labels)
                take = tried[j] & (lower | (number == 0))
                pixels[j][take], logits[j][take] = found[j][take], new[take]
                tried[j] = tried[j] & is_correct(logits[j], self.labels, job.shift)
        return Attacked(pixels, logits)

    def search(
        self,
        attack: AutoAttack | StepwiseAttack,
        active: np.ndarray | None = None,
        epsilon: float | None = None,
        salt: int = 0,
        advance: Callable[[int], None] = lambda images: None,
    ) -> AutoAttackResult:
        """Runs an attack with the gradients of every source on the images of `active` (m,) int.

        Args:
          attack: a set or a single attack.
          active: positions of the images to attack; None: all.
          epsilon: another radius than the attack's.
          salt: gives other draws than those of the evaluation.
          advance: told the number of images that an attack is done with.

        Each process attacks its share of the images.
        """
        key = jax.random.key(self.seed)
        rows = np.arange(len(self)) if active is None else active
        share = Share(len(rows))
        mine = rows[share.mine]
        found = self.searching.run(
            attack, self.sources, self.images[mine], self.labels[mine],
            jax.random.fold_in(key, salt) if salt else key, self.logits, epsilon, advance,
        )  # fmt: skip
        return gather_results(found, share)


def _restrict(job: AttackJob, rows: np.ndarray) -> AttackJob:
    """Returns a job on the images at these positions."""
    part = {
        name: None if array is None else array[rows]
        for name, array in (("shift", job.shift), ("active", job.active))
    }
    return job._replace(**part)


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the label's logit minus the largest other, (n, K), (n,) -> (n,): < 0 if wrong."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    return own - others.max(axis=1)


def is_correct(
    logits: np.ndarray, labels: np.ndarray, shift: np.ndarray | None = None
) -> np.ndarray:
    """Returns (n,) bool: is the label's logit the first of the largest, `shift` subtracted?"""
    if shift is not None:
        own = np.arange(logits.shape[1]) == labels[:, None]
        logits = np.where(own, logits - shift[:, None], logits)
    return logits.argmax(axis=1) == labels


def make_attack_programs(
    predictor: Predictor, norm: str, batch_size: int, mesh: Mesh, num_classes: int
) -> tuple[AttackQueue, SearchingAttacks]:
    """Returns the programs that attack the classifiers of `predictor`, for all defences.

    Args:
      predictor: of the evaluation.
      norm: of balls and steps.
      batch_size: that of the evaluation, so that the deployed classifier is compiled once.
      mesh: the devices; `batch_size` is a multiple of their number.
      num_classes: K.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(tree: Any) -> Any:
        return jax.device_put(tree, sharding)

    queue = AttackQueue(predictor.attacked.logits, batch_size, norm, put, predictor.fold)
    return queue, SearchingAttacks(predictor, batch_size, put, num_classes)


def choose_examples(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns at most `count` positions, drawn at random, as many of each class, sorted.

    Args:
      labels: (m,) integer, 0 … K-1; where a class has too few, the others fill up.
      count: at least 1.
      seed: of the draw.
    """
    rng = np.random.default_rng((seed, 5))
    classes = [
        rng.permutation(np.flatnonzero(labels == k)) for k in range(labels.max(initial=0) + 1)
    ]
    # Dealt out in rounds, one of each class, the last class first.
    rounds = np.concatenate([np.arange(len(of_class)) for of_class in classes])
    turns = np.concatenate([np.full(len(of_class), -k) for k, of_class in enumerate(classes)])
    return np.sort(np.concatenate(classes)[np.lexsort((turns, rounds))[:count]])


def with_fewer_tests(splits: Splits, labels: np.ndarray, count: int, seed: int) -> Splits:
    """Returns the splits with `count` test images, as many of each class; 0: with all."""
    total = len(splits.test)
    if not 0 < count < total:
        return splits
    test = np.array(splits.test)
    chosen = test[choose_examples(labels[test], count, seed)].tolist()
    note = f"config.eval.images={count}: {count} of {total} test images are evaluated"
    return dataclasses.replace(splits, test=chosen, notes=[*splits.notes, note])


def read_images(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the images of a data set as the evaluation's pixels, (n, H, W, 3) float32."""
    images = np.stack([dataset.source[int(index)] for index in indices])
    return np.asarray(to_pixels(jnp.asarray(images)))
