"""Adversarial training: the examples of a batch are its adversarial images, beside the clean ones
or alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn, run_assigned, run_attacks
from medadv_jax.defenses.objectives import Examples, clean_examples

# (logits_fn, images (B, H, W, C), labels (B,), key) -> adversarial images (B, A, H, W, C)
AttackFn = Callable[[LogitsFn, jax.Array, jax.Array, jax.Array], jax.Array]


def adversarial_examples(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    attack: AttackFn,
    weight: float,
) -> Examples:
    """Returns the batch beside its adversarial examples (Madry et al. 2018; mixed with clean ones
    as in Goodfellow et al. 2015, eq. 6, and Kurakin et al. 2017).

    Args:
      logits_fn: the classifier in eval mode: pixels (N, H, W, C) -> logits (N, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      mask: (B,) float32, 0 for padding.
      key: for random starts.
      attack: makes A adversarial images of each.
      weight: share of the loss from adversarial examples, in [0, 1].

    Returns:
      Examples with 1 + A columns.
    """
    adversarial = attack(logits_fn, images, labels, key)
    clean = clean_examples(images, mask)
    share = jnp.full((1, adversarial.shape[1]), weight / adversarial.shape[1])
    return Examples(
        # On axis 1, not axis 0: a batch sharded over devices is not moved between them.
        images=jnp.concatenate([clean.images, adversarial], axis=1),
        weights=jnp.concatenate([(1 - weight) * clean.weights, clean.weights * share], axis=1),
    )


def attacked_examples(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    attack: AttackFn,
) -> Examples:
    """Returns the adversarial examples alone, A columns of equal weight (Madry et al. 2018,
    eq. 2.1). Arguments: `adversarial_examples`."""
    adversarial = attack(logits_fn, images, labels, key)
    count = adversarial.shape[1]
    return Examples(adversarial, jnp.tile(clean_examples(images, mask).weights / count, (1, count)))


def run_training_attacks(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    attacks: Sequence[Attack],
    assignment: str,
    loop: str,
) -> jax.Array:
    """Returns adversarial images; an `AttackFn` of A attacks.

    Args:
      logits_fn, images, labels, key: see `adversarial_examples`.
      attacks: A attacks.
      assignment: "one": image i is attacked by attack i modulo A, at the cost of one attack, and
        the result has one column; "all": each image is attacked by each attack.
      loop: form of the attack loop.
    """
    if assignment == "one":
        return run_assigned(attacks, logits_fn, images, labels, key, loop=loop)[:, None]
    return jnp.moveaxis(run_attacks(attacks, logits_fn, images, labels, key, loop=loop), 0, 1)
