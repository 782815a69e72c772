"""Runs attacks on images: several at once, or one on each image."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from medadv_jax.attacks.inputs import check_images, check_logits
from medadv_jax.attacks.lanes import (
    finish_lanes,
    make_score_fn,
    plan_lanes,
    run_lanes,
    start_lanes,
    strongest_restarts,
)
from medadv_jax.attacks.spec import AttackSpec, LogitsFn


@dataclasses.dataclass(frozen=True)
class Attack(AttackSpec):
    """An attack that can be called. Fields: see `AttackSpec`.

    Calling it runs it alone; `run_attacks` runs several as lanes of one batch.
    """

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
        *,
        loop: str = "fori_loop",
    ) -> jax.Array:
        """Returns adversarial images.

        Args:
          logits_fn: pixels (N, H, W, C) float32 -> logits (N, K); treats every image alone, as a
            classifier in eval mode does.
          images: (B, H, W, C) float32 in [0, 1].
          labels: (B,) integer; the true classes, or the targets of a targeted attack.
          key: a key from `jax.random.key`; needed by attacks with a random start. The draw for
            an image depends on the key and on the image's own pixels alone, so that neither
            batch, order nor padding changes a result.
          loop: "fori_loop" or "unrolled" (see `run_attacks`).

        Returns:
          (B, H, W, C) float32 in [0, 1], within `epsilon` of `images`; carries no gradient.

        Raises:
          ValueError: images, labels or logits of another shape or dtype than said here; where the
            arrays are concrete, not traced by `jax.jit`, also values out of their range.
        """
        return run_attacks([self], logits_fn, images, labels, key, loop=loop)[0]


def run_attacks(
    attacks: Sequence[AttackSpec | Callable[..., jax.Array]],
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    loop: str = "fori_loop",
    penalty_fn: LogitsFn | None = None,
) -> jax.Array:
    """Runs every attack on every image; first-order attacks as lanes of one batch.

    Args:
      attacks: L attacks. Those that are an `AttackSpec` share norm, loss and direction (targeted or
        not), ValueError else; others, like APGD, are called one after another.
      logits_fn: pixels (N, H, W, C) float32 -> logits (N, K); treats every image alone.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      key: needed by attacks with a random start.
      loop: "fori_loop", or "unrolled": a copy of the step in the program for each step. That takes
        longer to compile, and runs no faster with the networks of `models/`; with one of plain
        convolutions, whose gradients XLA's CPU backend may be slow at in a loop, it can (jax 0.12).
      penalty_fn: pixels (N, H, W, C) -> (N,), subtracted from each image's loss: what an attacker
        wants to keep low beside fooling the network, such as a detector's score. Of first-order
        attacks only, ValueError else.

    Returns:
      (L, B, H, W, C) float32 in [0, 1], in the order of `attacks`; carries no gradient.

    Raises:
      ValueError: as above, and as `Attack.__call__`.
    """
    check_images(images, labels)
    logits_fn = check_logits(logits_fn, labels)
    lanes = [attack for attack in attacks if isinstance(attack, AttackSpec)]
    if len(lanes) == len(attacks):
        return _run_lanes(lanes, logits_fn, images, labels, key, loop, penalty_fn)
    if penalty_fn is not None:
        raise ValueError("a penalty can only be added to the loss of first-order attacks")
    in_lanes = iter(_run_lanes(lanes, logits_fn, images, labels, key, loop, None) if lanes else ())
    found = [
        next(in_lanes) if isinstance(attack, AttackSpec) else attack(logits_fn, images, labels, key)
        for attack in attacks
    ]
    return jnp.stack(found)


def _run_lanes(
    attacks: Sequence[AttackSpec],
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    loop: str,
    penalty_fn: LogitsFn | None,
) -> jax.Array:
    plan = plan_lanes(attacks)
    shape = (images.shape[0], len(plan.lanes))
    state, images, labels = start_lanes(
        plan,
        jnp.broadcast_to(images[:, None], (*shape, *images.shape[1:])),
        jnp.broadcast_to(labels[:, None], shape),
        key,
    )
    score_fn = make_score_fn(plan, logits_fn, penalty_fn)
    state = run_lanes(plan, score_fn, state, images, labels, loop)
    return strongest_restarts(attacks, *finish_lanes(plan, score_fn, state, labels))


def run_assigned(
    attacks: Sequence[AttackSpec],
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    loop: str = "fori_loop",
) -> jax.Array:
    """Runs one attack on each image: image i meets attack i modulo L. Arguments: `run_attacks`.

    In a shuffled batch that is a random draw with equal shares. ValueError unless L divides B
    and no attack has restarts.

    Returns:
      (B, H, W, C) float32 in [0, 1]; carries no gradient.
    """
    check_images(images, labels)
    logits_fn = check_logits(logits_fn, labels)
    num_lanes = len(attacks)
    if images.shape[0] % num_lanes or any(attack.num_restarts > 1 for attack in attacks):
        raise ValueError(f"{images.shape[0]} images do not share {num_lanes} attacks evenly")
    plan, shape = plan_lanes(attacks), (images.shape[0] // num_lanes, num_lanes)
    state, points, targets = start_lanes(
        plan, images.reshape(*shape, *images.shape[1:]), labels.reshape(shape), key
    )
    score_fn = make_score_fn(plan, logits_fn)
    state = run_lanes(plan, score_fn, state, points, targets, loop)
    return finish_lanes(plan, score_fn, state, targets)[0].reshape(images.shape)
