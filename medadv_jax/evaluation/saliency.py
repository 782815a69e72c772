"""Which pixels a prediction depends on: integrated gradients and Grad-CAM."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medadv_jax.classifier import Classifier, Variables


def explained(classifier: Classifier, deployed: str) -> Classifier:
    """Returns the classifier of one output (see `Classifier.logits`) of a run's, on its own."""
    network = classifier.student if deployed == "student" else classifier.network
    assert network is not None, "there is no student"
    purifier = classifier.purifier if deployed == "full" else None
    return Classifier(network, classifier.normalization, purifier)


def make_maps(classifier: Classifier, gradient: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns a compiled function that draws both maps; `gradient` as in `Classifier.logits`.

    It maps variables, pixels (B, H, W, 3) in [0, 1] and labels (B,) to integrated gradients
    (B, H, W), their absolute values summed over channels, and Grad-CAM (B, h, w).
    """

    @jax.jit
    def maps(
        variables: Variables, pixels: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        function = functools.partial(classifier.logits, variables, gradient=gradient)
        shares = integrated_gradients(function, pixels, labels)
        return abs(shares).sum(-1), grad_cam(classifier, variables, pixels, labels)

    return maps


def integrated_gradients(
    logits_fn: Callable[[jax.Array], jax.Array],
    pixels: jax.Array,
    labels: jax.Array,
    num_steps: int = 32,
) -> jax.Array:
    """Returns the share of each pixel in the label's logit (Sundararajan et al. 2017, eq. 1).

    The shares of an image sum up to its logit less that of a black image (completeness), up to the
    error of the midpoint rule.

    Args:
      logits_fn: pixels (B, H, W, C) -> logits (B, K).
      pixels: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      num_steps: points between black and the image.

    Returns:
      (B, H, W, C) float32.
    """

    def gradient_at(step: jax.Array, total: jax.Array) -> jax.Array:
        share = (step.astype(jnp.float32) + 0.5) / num_steps
        return total + jax.grad(lambda x: _label_logits(logits_fn(x), labels).sum())(share * pixels)

    total = jax.lax.fori_loop(0, num_steps, gradient_at, jnp.zeros_like(pixels))
    return pixels * total / num_steps


def grad_cam(
    classifier: Classifier, variables: Variables, pixels: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns where the network's last map of features speaks for the label.

    After Selvaraju et al. (2017), section 3. Behind a purifier the network sees the purified image.

    Args:
      classifier: takes `variables`.
      variables: of the classifier.
      pixels: (B, H, W, 3) float32 in [0, 1].
      labels: (B,) integer.

    Returns:
      (B, h, w) float32, at least 0; h and w are those of the map.
    """
    seen = classifier.purify(variables, pixels)
    path, shape = _last_map(classifier, variables, seen)

    def run(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept: list[jax.Array] = []

        def shifted(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = method(*args, **kwargs)
            if context.module.path == path and context.method_name == "__call__":
                kept.append(result)
                return result + shift.astype(result.dtype)
            return result

        with nn.intercept_methods(shifted):
            logits = classifier.logits(variables, seen, gradient="bare")
        return _label_logits(logits, labels).sum(), kept[0]

    gradient, features = jax.grad(run, has_aux=True)(jnp.zeros(shape, jnp.float32))
    weights = gradient.mean((1, 2), keepdims=True)
    return nn.relu((weights * features.astype(jnp.float32)).sum(-1))


def _last_map(
    classifier: Classifier, variables: Variables, pixels: jax.Array
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The path of the module that returns the last (B, h, w, C), and that shape."""
    found: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def watch(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = method(*args, **kwargs)
        if getattr(result, "ndim", 0) == 4 and context.method_name == "__call__":
            found.append((context.module.path, result.shape))
        return result

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: classifier.logits(variables, pixels, gradient="bare"))
    return found[-1]


def _label_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
