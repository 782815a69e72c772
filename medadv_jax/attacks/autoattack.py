"""AutoAttack: a fixed set of attacks, each on the images that the ones before it left.

Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks". Versions:

  standard: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square; at least 3 classes.
  binary: the same for two classes, where DLR is not defined and the one target is the other class:
    APGD on cross-entropy, APGD on the margin, FAB, Square.
  rand: for randomised classifiers, whose `logits_fn` takes a key for each image after the pixels:
    APGD on cross-entropy and on DLR (two classes: the margin), averaged over 20 draws.

    attack = make_attack("autoattack", epsilon=8 / 255)
    adversarial = attack(logits_fn, images, labels, key)              # one batch, compiled whole
    result = AutoAttackQueue(attack, logits_fn, num_classes=2).run(variables, images, labels, key)
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks.apgd import Apgd, sample_keys
from medadv_jax.attacks.fab import Fab
from medadv_jax.attacks.inputs import check_classes, check_images, check_logits
from medadv_jax.attacks.lanes import fingerprint
from medadv_jax.attacks.restriction import FREE, Restriction
from medadv_jax.attacks.square import Square
from medadv_jax.attacks.stepwise import Found, StepwiseAttack, StepwiseQueue

VERSIONS = ("auto", "standard", "binary", "rand")
NUM_TARGETS = 9
SAMPLES = 20  # draws, of version "rand"


@dataclasses.dataclass(frozen=True)
class AutoAttack:
    """The set of attacks. Calling it runs them on a batch as one program.

    Attributes:
      name: in tables and records.
      epsilon: radius of the ball, in pixels of [0, 1].
      norm: "linf" or "l2".
      version: "standard", "binary", "rand", or "auto": binary for two classes, else standard.
      num_steps: of APGD and FAB.
      queries: of Square.
      restriction: what of the image may be changed.
    """

    name: str
    epsilon: float | jax.Array
    norm: str = "linf"
    version: str = "auto"
    num_steps: int = 100
    queries: int = 5000
    restriction: Restriction = FREE

    def __post_init__(self):
        """Raises ValueError for impossible values."""
        if self.version not in VERSIONS:
            raise ValueError(f"version={self.version!r}: known are {', '.join(VERSIONS)}")
        self.components(2 if self.version == "binary" else 3)

    def components(self, num_classes: int) -> tuple[StepwiseAttack, ...]:
        """Returns the attacks in their order; ValueError if version and classes do not fit."""
        common: Any = {
            "epsilon": self.epsilon, "norm": self.norm, "restriction": self.restriction,
        }  # fmt: skip
        steps = common | {"num_steps": self.num_steps}
        if self.version == "rand":
            losses = ("cross_entropy", "margin" if num_classes == 2 else "dlr")
            return tuple(
                Apgd(f"apgd_{loss}", loss=loss, samples=SAMPLES, **steps) for loss in losses
            )
        version = "binary" if num_classes == 2 else "standard"
        if self.version not in ("auto", version):
            raise ValueError(
                f"version={self.version!r} does not fit {num_classes} classes: take {version!r}"
            )
        square = Square("square", num_steps=self.queries, **common)
        first = Apgd("apgd_ce", loss="cross_entropy", **steps)
        if version == "binary":
            return first, Apgd("apgd_margin", loss="margin", **steps), Fab("fab", **steps), square
        targeted = steps | {"num_targets": NUM_TARGETS}
        return first, Apgd("apgd_t", loss="dlr", **targeted), Fab("fab_t", **targeted), square

    def __call__(
        self,
        logits_fn: Callable[..., jax.Array],
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns adversarial images (B, H, W, C); arguments: see `StepwiseAttack`."""
        check_images(images, labels)
        logits_fn = check_logits(logits_fn, labels)
        key = jax.random.key(0) if key is None else key
        logits = self.clean_logits(logits_fn, images, key)
        best, fallen = images, jnp.argmax(logits, axis=-1) != labels
        for number, attack in enumerate(self.components(logits.shape[-1])):
            own_key = jax.random.fold_in(key, number)
            best, fallen = attack.run(logits_fn, images, labels, own_key, best, fallen)
        return jax.lax.stop_gradient(best)

    def clean_logits(
        self, logits_fn: Callable[..., jax.Array], images: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns logits (B, K); of a randomised classifier the mean of `SAMPLES` draws."""
        if self.version != "rand":
            return logits_fn(images)
        keys = jax.vmap(lambda image: jax.random.fold_in(key, fingerprint(image)))(images)
        numbers = jnp.broadcast_to(jnp.arange(SAMPLES)[:, None], (SAMPLES, len(images)))
        found = jax.lax.map(lambda each: logits_fn(images, sample_keys(keys, each)), numbers)
        return found.mean(axis=0)


class Stage(NamedTuple):
    """What one attack of the set did, with all gradients that it was given."""

    name: str
    attacked: int  # images
    broken: int  # images
    passes: int  # summed over images; see `Found`
    seconds: float  # compilation included


class AutoAttackResult(NamedTuple):
    """Results on n images.

    Attributes:
      pixels: (n, H, W, C) float32 in [0, 1]; the image itself where nothing was found.
      correct: (n,) bool, classified correctly under every attack.
      broken_by: (n,) int32: the position in `stages` of the attack that broke the image, -1 where
        the clean image is misclassified, -2 where it is still correct.
      stages: the attacks in their order.
    """

    pixels: np.ndarray
    correct: np.ndarray
    broken_by: np.ndarray
    stages: tuple[Stage, ...]


class AutoAttackQueue:
    """The compiled programs of an `AutoAttack`, for any variables and any number of images.

    Args of the constructor:
      attack: the set, or a single attack.
      logits_fn: (variables, pixels (N, H, W, C)) -> logits (N, K); treats every image alone.
      num_classes: K.
      slots: N, images at a time.
      put: places a tree of arrays on the devices, split along their first axes.
      other_gradients: functions like `logits_fn`, of the same values and other gradients, such as
        BPDA's. Each attack runs with each of them on the images that are left; Square, which has
        no gradient, once.
    """

    def __init__(
        self,
        attack: AutoAttack | StepwiseAttack,
        logits_fn: Callable[..., jax.Array],
        num_classes: int,
        slots: int = 32,
        put: Callable[[Any], Any] = jax.device_put,
        other_gradients: Sequence[Callable[..., jax.Array]] = (),
    ):
        self._slots, self._put = slots, put
        self._logits = jax.jit(
            lambda variables, images, key: attack.clean_logits(
                check_logits(functools.partial(logits_fn, variables)), images, key
            )
        )
        self._queues = [
            [
                StepwiseQueue(component, each, slots, put)
                for each in (logits_fn, *(() if isinstance(component, Square) else other_gradients))
            ]
            for component in attack.components(num_classes)
        ]

    def run(
        self,
        variables: Any,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        *,
        epsilon: float | None = None,
        deployed_fn: Callable[[np.ndarray], np.ndarray] | None = None,
        advance: Callable[[int], None] = lambda images: None,
    ) -> AutoAttackResult:
        """Attacks images (n, H, W, C) float32 in [0, 1] with labels (n,) integer, any n.

        Args:
          variables: of `logits_fn`.
          images, labels: as above.
          key: of the random draws; an image's draws depend on its own pixels too.
          epsilon: another radius than the attack's.
          deployed_fn: pixels (m, H, W, C) -> logits (m, K) of the classifier that must be fooled,
            where `logits_fn` is only equal to it up to rounding.
          advance: told the number of images that the set is done with.
        """
        check_images(images, labels)
        labels, pixels = np.asarray(labels, np.int32), np.array(images, np.float32)
        logits = deployed_fn(pixels) if deployed_fn else self._all_logits(variables, images, key)
        check_classes(labels, logits.shape[1])
        broken_by = np.where(logits.argmax(axis=1) == labels, -2, -1).astype(np.int32)
        advance(int((broken_by == -1).sum()))
        stages = []
        for number, queues in enumerate(self._queues):
            before, left, passes = time.perf_counter(), int((broken_by == -2).sum()), 0
            attack, own_key = queues[0].attack, jax.random.fold_in(key, number)
            for queue in queues:
                rows = np.flatnonzero(broken_by == -2)
                is_last = queue is self._queues[-1][-1] and not attack.num_targets
                found = queue.run_targets(
                    variables, images[rows], labels[rows], logits[rows], own_key,
                    advance if is_last else lambda images: None, epsilon,
                )  # fmt: skip
                fallen = _confirmed(found, labels[rows], deployed_fn)
                pixels[rows[fallen]], broken_by[rows[fallen]] = found.pixels[fallen], number
                passes += found.passes
                advance(0 if is_last else int(fallen.sum()))
            broken, seconds = int((broken_by == number).sum()), time.perf_counter() - before
            stages.append(Stage(attack.name, left, broken, passes, seconds))
        return AutoAttackResult(pixels, broken_by == -2, broken_by, tuple(stages))

    def _all_logits(self, variables: Any, images: np.ndarray, key: jax.Array) -> np.ndarray:
        """Returns logits (n, K), in batches of one shape."""
        found = []
        for first in range(0, len(images), self._slots):
            part = images[first : first + self._slots]
            whole = part[np.arange(self._slots) % len(part)]
            found.append(np.asarray(self._logits(variables, self._put(whole), key))[: len(part)])
        return np.concatenate(found)


def _confirmed(
    found: Found, labels: np.ndarray, deployed_fn: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Returns (n,) bool: which images the deployed classifier misclassifies too."""
    fallen = found.success.copy()
    if deployed_fn is not None and fallen.any():
        fallen[fallen] = deployed_fn(found.pixels[fallen]).argmax(axis=1) != labels[fallen]
    return fallen
