"""How a purifier is trained: on what inputs, and against what loss. Pure, for the compiled step.

    examples = purification_inputs(logits_fn, images, labels, mask, key, objective="guided", ...)
    loss, metrics = purification_loss(
        classifier, variables, examples.images, images, examples.weights,
        objective="guided", guidance=1.0,
    )

The network behind the purifier is fixed: the caller takes the gradient with respect to
`variables["purifier"]` alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn, run_assigned
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.defenses.objectives import Examples, clean_examples
from medadv_jax.errors import UserError

# The unit of the reconstruction error, in pixels: 8 of 255 grey levels, about the radius of the
# paper's attacks. An image that is wrong by so much everywhere costs 1, and a squared error of
# pixels in [0, 1] is no longer a thousandth of the divergence that `guidance` weighs against it.
ERROR_UNIT = 8 / 255


class _Traits(NamedTuple):
    """What an objective asks for.

    Attributes:
      corrupted: whether noisy and adversarial images too, or clean ones alone.
      guided: whether the classifier's answers count, or the pixels alone.
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
    """Returns what the purifier is to make the clean images of.

    Args:
      logits_fn: the network without any purifier, in eval mode: pixels (N, H, W, C) -> (N, K).
        An attack through the purifier would teach it to fool the attack; one without it makes
        the perturbations that it is to take away.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      mask: (B,) float32, 0 for examples that do not count.
      key: for the noise and for random starts.
      attacks: A attacks, of which image i meets attack i modulo A; unused by "reconstruction".
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
    KL(p(clean) ‖ p(purified)) of what the network without purifier says about the clean image
    and about the purified input. The idea is that of the guided denoiser of Liao et al. (2018),
    judged by what it does to the classifier. They take the L1 distance of logits or features, no
    pixel term, and adversarial images made beforehand from several networks; ours are made on the
    fly, pixels still count, and a change of logits weighs what it does to the probabilities.

    Args:
      classifier: with the purifier.
      variables: the classifier's; "purifier" holds what is trained.
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
    error = jnp.vdot(weights, jnp.mean(errors, axis=(2, 3, 4)))
    loss, metrics = error / ERROR_UNIT**2, {"pixel_error": jnp.sqrt(error)}
    if _traits(objective).guided:
        clean = jax.lax.stop_gradient(classifier.logits(variables, images, gradient="bare"))
        logits = classifier.logits(variables, purified, gradient="bare")
        logits = logits.reshape(*weights.shape, -1)
        divergence = jnp.vdot(weights, kl_divergence(clean[:, None], logits))
        loss, metrics = loss + guidance * divergence, metrics | {"divergence": divergence}
    return loss, metrics


def kl_divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Returns KL(softmax(logits) ‖ softmax(others)) in nats, (..., K), (..., K) -> (...)."""
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (logits, others))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


OBJECTIVES: dict[str, _Traits] = {
    "reconstruction": _Traits(corrupted=False, guided=False),
    "denoising": _Traits(corrupted=True, guided=False),
    "guided": _Traits(corrupted=True, guided=True),
}
