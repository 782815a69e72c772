"""What is deployed, and so what is attacked: pixels → purifier? → normalise → network → logits."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...} and whatever a purifier needs


class Normalization(NamedTuple):
    """How a network's inputs are made of pixels: (channels - mean) / std."""

    mean: tuple[float, float, float]  # in pixels of [0, 1], in the order of the network's channels
    std: tuple[float, float, float]
    bgr: bool = False  # whether the network's channels are blue, green, red


NORMALIZATIONS: dict[str, Normalization] = {
    # torchvision's
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # [0, 1] -> [-1, 1]: Keras' "tf", and torchvision's InceptionV3 with `transform_input`
    "symmetric": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # Keras' "caffe": 0 to 255, less the means of ImageNet
    "caffe": Normalization(
        (103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True
    ),
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

    def train_logits(
        self, variables: Variables, pixels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns logits under batch statistics and dropout (B, K) float32, and the updated
        statistics; `key` is dropout's."""
        logits, updated = self.network.apply(
            variables,
            self._inputs(variables, pixels),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return logits, updated.get("batch_stats", {})  # a network without BatchNorm has none

    def _inputs(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        if self.purifier is not None:
            pixels = self.purifier(variables, pixels)
        normalization = NORMALIZATIONS[self.normalization]
        if normalization.bgr:
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in normalization[:2])
        return (pixels - mean) / std
