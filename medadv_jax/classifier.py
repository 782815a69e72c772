"""What is deployed, and so what is attacked: pixels → purifier? → normalise → network → logits."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...} and whatever a purifier needs

# name -> (mean, standard deviation) of the three channels, in pixels of [0, 1]
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # [0, 1] -> [-1, 1]
}


def to_pixels(images: jax.Array) -> jax.Array:
    """Returns float32 in [0, 1] from uint8, (…) -> (…)."""
    return images.astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network with all that stands before it, as a function of pixels.

    Attributes:
      network: a Flax module from `create_model`; takes normalised images.
      normalization: a key of `NORMALIZATIONS`.
      purifier: (variables, pixels) -> pixels, both (B, H, W, 3) float32 in [0, 1]; None: none.
    """

    network: nn.Module
    normalization: str = "imagenet"
    purifier: Callable[[Variables, jax.Array], jax.Array] | None = None

    def init(self, key: jax.Array, image_size: int) -> Variables:
        """Returns fresh variables for images of `image_size` × `image_size` pixels."""
        return dict(self.network.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32)))

    def logits(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        """Returns the deployed classifier's logits: (B, H, W, 3) in [0, 1] -> (B, K) float32."""
        inputs = self._inputs(variables, pixels)
        return cast(jax.Array, self.network.apply(variables, inputs, train=False))

    def logits_fn(self, variables: Variables) -> Callable[[jax.Array], jax.Array]:
        """Returns pixels -> logits with these variables: what an attack is given."""
        return lambda pixels: self.logits(variables, pixels)

    def train_logits(self, variables: Variables, pixels: jax.Array) -> tuple[jax.Array, Any]:
        """Returns logits under batch statistics (B, K) float32, and the updated statistics."""
        logits, updated = self.network.apply(
            variables, self._inputs(variables, pixels), train=True, mutable=["batch_stats"]
        )
        return logits, updated.get("batch_stats", {})  # a network without BatchNorm has none

    def _inputs(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        if self.purifier is not None:
            pixels = self.purifier(variables, pixels)
        mean, std = np.asarray(NORMALIZATIONS[self.normalization], np.float32)[:, None, None, None]
        return (pixels - mean) / std
