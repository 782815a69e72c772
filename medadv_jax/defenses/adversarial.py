"""Adversarial training: each batch is trained on in its clean and its adversarial version."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn, run_assigned, run_attacks
from medadv_jax.defenses.objectives import Examples, clean_examples


def adversarial_examples(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    attacks: Sequence[Attack],
    assignment: str,
    weight: float,
    loop: str,
) -> Examples:
    """Returns the batch beside its adversarial examples (Madry et al. 2018; mixed with clean ones
    as in Goodfellow et al. 2015, eq. 6, and Kurakin et al. 2017).

    Args:
      logits_fn: the classifier in eval mode: pixels (N, H, W, C) -> logits (N, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      mask: (B,) float32, 0 for padding.
      key: for random starts.
      attacks: A attacks.
      assignment: "one": image i is attacked by attack i modulo A, at the cost of one attack;
        "all": each image is attacked by each attack.
      weight: share of the loss from adversarial examples, in [0, 1].
      loop: form of the attack loop.

    Returns:
      Examples with 1 + 1 columns ("one") or 1 + A columns ("all").
    """
    if assignment == "one":
        adversarial = run_assigned(attacks, logits_fn, images, labels, key, loop=loop)[:, None]
    else:
        adversarial = run_attacks(attacks, logits_fn, images, labels, key, loop=loop)
        adversarial = jnp.moveaxis(adversarial, 0, 1)
    clean = clean_examples(images, mask)
    share = jnp.full((1, adversarial.shape[1]), weight / adversarial.shape[1])
    return Examples(
        # On axis 1, not axis 0: a batch sharded over devices is not moved between them.
        images=jnp.concatenate([clean.images, adversarial], axis=1),
        weights=jnp.concatenate([(1 - weight) * clean.weights, clean.weights * share], axis=1),
    )
