"""Universal perturbations: one change δ for all images.

Moosavi-Dezfooli et al. (2017), "Universal adversarial perturbations", in the gradient form of
Shafahi et al. (2020), "Universal adversarial training": δ climbs the mean loss over batches of
images, is projected to the ball after each step, and each image's loss is capped, so that images
that are broken already do not decide where δ goes. It is fitted on some images and measured on
others.

    attack = Universal(epsilon=0.03)
    delta = attack.fit(logits_fn, variables, images, labels)            # of training images
    adversarial = attack.apply(test_images, delta)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks.inputs import check_count, check_images, check_logits, check_radius
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.attacks.norms import BALLS, normalize
from medadv_jax.attacks.restriction import FREE, Restriction

UNIVERSAL = "universal"  # its name in configs
CAP = 5.0  # nats, of an image's cross-entropy
# Of ε; falls to 0 along a line. Few steps are longer: all together they cover twice ε.
FIRST_STEP, COVERED = 0.25, 2.0


@dataclasses.dataclass(frozen=True)
class Universal:
    """One change δ for all images, inside a ball.

    Attributes:
      epsilon: radius of the ball that holds δ, in pixels of [0, 1].
      norm: "linf" or "l2".
      epochs: passes over the images that it is fitted on; at least 1.
      batch_size: images in each step; a multiple of the devices.
      restriction: what of an image may be changed.
      name: in tables and records.
    """

    epsilon: float
    norm: str = "linf"
    epochs: int = 5
    batch_size: int = 32
    restriction: Restriction = FREE
    name: str = UNIVERSAL

    def __post_init__(self):
        """Raises ValueError for impossible values."""
        if self.norm not in BALLS:
            raise ValueError(f"norm={self.norm!r}: known are {', '.join(sorted(BALLS))}")
        check_radius(self.name, self.epsilon, self.norm)
        check_count(self.name, "epochs", self.epochs)
        check_count(self.name, "batch_size", self.batch_size)

    def fit(
        self,
        logits_fn: Callable[[Any, jax.Array], jax.Array],
        variables: Any,
        images: np.ndarray,
        labels: np.ndarray,
        seed: int = 0,
        put: Callable[[Any], Any] = jax.device_put,
        advance: Callable[[int], None] = lambda images: None,
    ) -> np.ndarray:
        """Returns δ, (H, W, C) float32, within ε of 0.

        Args:
          logits_fn: (variables, pixels (N, H, W, C)) -> logits (N, K); treats every image alone.
          variables: of it.
          images: (n, H, W, C) float32 in [0, 1], any n; a last batch is filled up.
          labels: (n,) integer.
          seed: of the order of the images.
          put: places a batch on the devices, split along its first axis.
          advance: told the number of images of each step.
        """
        check_images(images, labels)
        step = jax.jit(functools.partial(self._step, logits_fn))
        rng, delta = np.random.default_rng((seed, 6)), jnp.zeros(images.shape[1:], jnp.float32)
        steps = -(-len(images) // self.batch_size)
        total = self.epochs * steps
        longest = self.epsilon * max(FIRST_STEP, 2 * COVERED / total)
        for number in range(total):
            if number % steps == 0:
                order = np.resize(rng.permutation(len(images)), steps * self.batch_size)
            first = number % steps * self.batch_size
            rows = order[first : first + self.batch_size]
            batch = put((images[rows], labels[rows].astype(np.int32)))
            length = np.float32(longest * (1 - number / total))
            delta = step(variables, delta, *batch, length)
            advance(min(self.batch_size, len(images) - first))
        return np.asarray(delta)

    def apply(self, images: Any, delta: Any) -> jax.Array:
        """Returns images + δ, (n, H, W, C), cut to [0, 1] and to what may be changed."""
        return jax.vmap(lambda image: self._moved(image, jnp.asarray(delta)))(jnp.asarray(images))

    def _moved(self, image: jax.Array, delta: jax.Array) -> jax.Array:
        return self.restriction.point(jnp.clip(image + delta, 0.0, 1.0), image)

    def _step(
        self,
        logits_fn: Callable[[Any, jax.Array], jax.Array],
        variables: Any,
        delta: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        length: jax.Array,
    ) -> jax.Array:
        """Moves δ by one step of this length, and back into the ball."""
        checked = check_logits(functools.partial(logits_fn, variables), labels)

        def loss(delta: jax.Array) -> jax.Array:
            logits = checked(self.apply(images, delta)).astype(jnp.float32)
            return jnp.sum(jnp.minimum(cross_entropy(logits, labels), CAP))

        gradient = self.restriction.direction(jax.grad(loss)(delta))
        delta = delta + length * BALLS[self.norm].direction(gradient)
        if self.norm == "linf":
            return jnp.clip(delta, -self.epsilon, self.epsilon)
        norm = jnp.linalg.norm(delta.ravel())
        return jnp.where(norm > self.epsilon, normalize(delta, norm) * self.epsilon, delta)
