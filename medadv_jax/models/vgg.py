"""VGG (Simonyan & Zisserman 2015), configurations D (16 layers) and E (19), without BatchNorm.

Layers are named as in the authors' release: `conv<stage>_<layer>`; then `fc1`, `fc2` and `fc`. Maps
are flattened in the order height, width, channels; a converter from another order permutes the rows
of `fc1`. torchvision's and Keras' networks differ only in dropout, which Keras leaves out.

The paper initialises with N(0, 0.1²) and copies layers from a shallower trained network. Here
convolutions are initialised as in He et al. (2015), which trains from scratch, and dense layers
with N(0, 0.01²), as in torchvision.
"""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from medadv_jax.models.layers import (
    Conv,
    Dense,
    HiddenDense,
    check_images,
    check_size,
    scale_channels,
)
from medadv_jax.models.ops import convolution as ops
from medadv_jax.models.ops import pooling

MAP = 7  # height and width of the map that the classifier takes
SMALLEST = 32  # pixels: the maps are halved five times
DENSE_INIT = nn.initializers.normal(0.01)


class VGG(nn.Module):
    """VGG, normalised images (B, H, W, 3) → logits (B, num_classes) float32.

    Images have at least 32×32 pixels. Options: `head`, "fc": maps averaged to 7×7 (unchanged for
    224 pixels) and two hidden layers of 4096, or "gap": global average pooling; `dropout`, the rate
    after each hidden layer, used in train mode with the key named `dropout`.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"head": ("fc", "gap")}

    num_layers: Sequence[int]
    num_classes: int
    width: float = 1.0
    dtype: Dtype = jnp.float32
    conv_impl: str = "plain"
    head: str = "fc"
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images of any height and width from 32; see the class."""
        check_images(images)
        check_size(images, SMALLEST, "VGG")
        hidden = images
        for stage, layers in enumerate(self.num_layers):
            features = scale_channels(min(64 * 2**stage, 512), self.width)
            for layer in range(layers):
                conv = Conv(
                    features,
                    padding=1,
                    use_bias=True,
                    dtype=self.dtype,
                    conv_impl=self.conv_impl,
                    name=f"conv{stage + 1}_{layer + 1}",
                )
                hidden = nn.relu(conv(hidden))
            hidden = pooling.max_pool(hidden, (2, 2), (2, 2), "VALID", self.conv_impl)
        if self.head == "fc":
            hidden = self._classifier(hidden, train)
        else:
            hidden = hidden.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes, kernel_init=DENSE_INIT, name="fc")(hidden)

    def _classifier(self, maps: jax.Array, train: bool) -> jax.Array:
        """The two hidden dense layers, (B, H, W, C) → (B, 4096)."""
        hidden = adaptive_avg_pool(maps, (MAP, MAP)).reshape(maps.shape[0], -1)
        for name in ("fc1", "fc2"):
            features = scale_channels(4096, self.width)
            dense = HiddenDense(features, self.dtype, DENSE_INIT, name=name)
            hidden = nn.relu(dense(hidden))
            hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return hidden


def adaptive_avg_pool(images: jax.Array, size: ops.Pair) -> jax.Array:
    """Mean over `size` evenly spaced windows that may overlap, (B, H, W, C) → (B, *size, C).

    As in PyTorch, window i of n covers pixels floor(i·H/n) to ceil((i+1)·H/n), exclusive. Smaller
    images are enlarged by repetition; images of this size are returned unchanged.
    """
    if images.shape[1:3] == size:
        return images
    rows, columns = (
        jnp.asarray(_windows(images.shape[axis + 1], count), images.dtype)
        for axis, count in enumerate(size)
    )
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images)


def _windows(length: int, count: int) -> np.ndarray:
    """(count, length): row i is the weight of each pixel in window i."""
    weights = np.zeros((count, length))
    for i in range(count):
        start, stop = i * length // count, math.ceil((i + 1) * length / count)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


vgg16 = functools.partial(VGG, num_layers=(2, 2, 3, 3, 3))
vgg19 = functools.partial(VGG, num_layers=(2, 2, 4, 4, 4))
