"""PGD against a smoothed classifier: its gradient is that of the mean over noisy copies.

Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed
classifiers", section 3: the attacker follows log E[softmax(f(x + ε))], the expectation over a few
draws that stay the same for all steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.lanes import fingerprint
from medadv_jax.defenses.smoothing import LEVELS
from medadv_jax.evaluation.certificates import SmoothedAttack


class Voted(NamedTuple):
    """Votes on attacked images.

    Attributes:
      pixels: (n, H, W, C) float32 in [0, 1], within the radius.
      counts: (n, K) int, how often each class was named.
    """

    pixels: np.ndarray
    counts: np.ndarray


def attack_smoothed(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    sigma: float,
    attack: SmoothedAttack,
    key: jax.Array,
    slots: int = 32,
    put: Callable[[Any], Any] = jax.device_put,
) -> Voted:
    """Attacks images (n, H, W, C) uint8 with labels (n,), and lets the smoothed classifier vote.

    Noisy copies are rounded to levels, as those that are certified; the guarantee covers any real
    image, so attacked images are not rounded. An image's draws depend on its own pixels.

    Args:
      logits_fn: (variables, pixels (S, H, W, C)) -> logits (S, K).
      variables: of it.
      images, labels: any n, at least 1.
      sigma: of the noise, in pixels of [0, 1].
      attack: its settings.
      key: of all draws.
      slots: S, images at a time.
      put: places arrays on the devices, split along their first axes.
    """

    def run(variables: Any, pixels: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(lambda image: jax.random.fold_in(key, fingerprint(image)))(pixels)

        def noise(number: jax.Array) -> jax.Array:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            draw = jax.vmap(lambda each: jax.random.normal(each, pixels.shape[1:]))
            return sigma * draw(own)

        def mean_logits(points: jax.Array) -> jax.Array:
            def sample(number: jax.Array) -> jax.Array:
                return jax.nn.log_softmax(logits_fn(variables, points + noise(number)), axis=-1)

            found = jax.lax.map(sample, jnp.arange(attack.samples))
            return jax.nn.logsumexp(found, axis=0)

        pgd = make_attack("pgd", attack.radius, num_steps=attack.steps, norm="l2", keep_best=True)
        adversarial = pgd(mean_logits, pixels, labels, key)

        def vote(number: jax.Array, counts: jax.Array) -> jax.Array:
            noisy = jnp.round((adversarial + noise(attack.samples + number)) * LEVELS) / LEVELS
            named = jnp.argmax(logits_fn(variables, noisy), axis=-1)
            return counts + jax.nn.one_hot(named, counts.shape[1], dtype=jnp.int32)

        classes = jax.eval_shape(logits_fn, variables, pixels).shape[1]
        start = jnp.zeros((len(pixels), classes), jnp.int32)
        return adversarial, jax.lax.fori_loop(0, attack.votes, vote, start)

    program, pixels, counts = jax.jit(run), [], []
    for first in range(0, len(images), slots):
        rows = np.arange(first, min(first + slots, len(images)))
        whole = rows[np.arange(slots) % len(rows)]
        batch = put((images[whole].astype(np.float32) / LEVELS, labels[whole].astype(np.int32)))
        found = program(variables, *batch)
        pixels.append(np.asarray(found[0])[: len(rows)])
        counts.append(np.asarray(found[1])[: len(rows)])
    return Voted(np.concatenate(pixels), np.concatenate(counts))
