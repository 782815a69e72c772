"""How a purifier is trained: on which inputs, and by which loss.

    examples = purification_inputs(logits_fn, images, labels, mask, key, objective="guided", ...)
    loss, metrics = purification_loss(
        classifier, variables, examples.images, images, examples.weights,
        objective="guided", guidance=1.0,
    )

The network behind the purifier is not trained: the caller differentiates with respect to
`variables["purifier"]` only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn, run_assigned
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.defenses.objectives import (
    Batch,
    Examples,
    Loss,
    clean_examples,
    kl_divergence,
    weighted_sum,
)
from medadv_jax.errors import UserError

# Unit of the reconstruction error, in pixels: 8 of 255 grey levels, about the radius of the paper's
# attacks. An image that is wrong by this much everywhere has the error 1, so that the error and
# the divergence, which `guidance` weighs against it, are of similar size.
ERROR_UNIT = 8 / 255


class _Traits(NamedTuple):
    """Properties of an objective.

    Attributes:
      corrupted: inputs are also noisy and adversarial images; False: clean ones only.
      guided: the loss includes the classifier's outputs; False: pixels only.
    """

    corrupted: bool
    guided: bool


def _traits(objective: str) -> _Traits:
    if objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise UserError(f"objective {objective!r} is unknown; choose one of {known}")
    return OBJECTIVES[objective]


def purification_inputs(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    attacks: Sequence[Attack],
    objective: str,
    noise: float,
    loop: str,
) -> Examples:
    """Returns the purifier's inputs, from which it is to restore the clean images.

    Args:
      logits_fn: the network without any purifier, in eval mode: pixels (N, H, W, C) -> (N, K).
        An attack through the purifier would train it to mislead that attack; an attack without
        it makes the perturbations that it is to remove.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      mask: (B,) float32, 0 for padding.
      key: for the noise and for random starts.
      attacks: A attacks; image i is attacked by attack i modulo A. Unused by "reconstruction".
      objective: a key of `OBJECTIVES`.
      noise: radius of the uniform noise, in pixels of [0, 1]; unused by "reconstruction".
      loop: form of the attack loop.

    Returns:
      Examples of one column, the clean images, or of three of equal weight: clean, noisy and
      adversarial ones.
    """
    clean = clean_examples(images, mask)
    if not _traits(objective).corrupted:
        return clean
    noise_key, attack_key = jax.random.split(key)
    drawn = jax.random.uniform(noise_key, images.shape, minval=-noise, maxval=noise)
    noisy = jnp.clip(images + drawn, 0.0, 1.0)
    adversarial = run_assigned(attacks, logits_fn, images, labels, attack_key, loop=loop)
    columns = jnp.stack([images, noisy, adversarial], axis=1)
    return Examples(columns, jnp.tile(clean.weights, (1, 3)) / 3)


def purification_loss(
    classifier: Classifier,
    variables: Variables,
    inputs: jax.Array,
    images: jax.Array,
    weights: jax.Array,
    *,
    objective: str,
    guidance: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of a purifier on one batch.

    "reconstruction" and "denoising": the mean squared error of the purified pixels against the
    clean ones, in units of `ERROR_UNIT`². "guided" adds `guidance` times the divergence
    KL(p(clean) ‖ p(purified)), where p are the probabilities of the network without purifier for
    the clean image and for the purified input. The idea is the guided denoiser of Liao et al.
    (2018). They use the L1 distance of logits or features, no pixel term, and adversarial images
    made beforehand from several networks; here adversarial images are made in each step, pixels
    count too, and the distance is one of probabilities.

    Args:
      classifier: a classifier with a purifier.
      variables: its variables; "purifier" holds the trained parameters.
      inputs: (B, V, H, W, C) float32 in [0, 1], from `purification_inputs`.
      images: (B, H, W, C) float32 in [0, 1], the clean ones.
      weights: (B, V) float32, summing to 1.
      objective: a key of `OBJECTIVES`.
      guidance: weight of the divergence, at least 0.

    Returns:
      The loss () float32, and metrics, () each: "pixel_error", the root of the mean squared
      error, in pixels of [0, 1], and for "guided" also "divergence", in nats.
    """
    purified = classifier.purify(variables, inputs.reshape(-1, *inputs.shape[2:]))
    errors = jnp.square(purified.reshape(inputs.shape) - images[:, None])
    error = weighted_sum(weights, jnp.mean(errors, axis=(2, 3, 4)))
    loss, metrics = error / ERROR_UNIT**2, {"pixel_error": jnp.sqrt(error)}
    if _traits(objective).guided:
        clean = jax.lax.stop_gradient(classifier.logits(variables, images, gradient="bare"))
        logits = classifier.logits(variables, purified, gradient="bare")
        logits = logits.reshape(*weights.shape, -1)
        divergence = weighted_sum(weights, kl_divergence(clean[:, None], logits))
        loss, metrics = loss + guidance * divergence, metrics | {"divergence": divergence}
    return loss, metrics


def purifier_loss(
    classifier: Classifier,
    variables: Variables,
    inputs: Examples,
    batch: Batch,
    key: jax.Array,
    *,
    objective: str,
    guidance: float,
) -> Loss:
    """Returns `purification_loss` as the loss of an `Objective`; the network is not trained."""
    del key  # the network stays in eval mode: no dropout
    value, metrics = purification_loss(
        classifier, variables, inputs.images, batch.images, inputs.weights,
        objective=objective, guidance=guidance,
    )  # fmt: skip
    return Loss(value, metrics, variables["batch_stats"])


OBJECTIVES: dict[str, _Traits] = {
    "reconstruction": _Traits(corrupted=False, guided=False),
    "denoising": _Traits(corrupted=True, guided=False),
    "guided": _Traits(corrupted=True, guided=True),
}
