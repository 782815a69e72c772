"""Inception v3 (Szegedy et al. 2016); layers are named as in torchvision.

`Conv2d_1a_3x3` … `Mixed_7c`, each convolution a pair `conv`, `bn`; optionally `AuxLogits`; `fc`.
The options' defaults are torchvision's network; Keras has `bn_scale=False`, `bn_momentum=0.99`,
`bn_unbiased=False`, `count_padding=False`, `dropout=0.0`. Both libraries pad symmetrically, so
padding is no option.

The paper gives no initialiser. As in torchvision, kernels are drawn from a normal distribution of
standard deviation 0.1 (0.01 and 0.001 in the auxiliary head), truncated at two deviations.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from medadv_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    check_images,
    check_size,
    scale_channels,
)
from medadv_jax.models.ops import convolution as ops
from medadv_jax.models.ops import pooling

Layer = Callable[..., nn.Module]

SMALLEST = 75  # pixels: `Mixed_7a`, which does not pad, has one window left
SMALLEST_AUX = 299  # pixels: `AuxLogits` has one window left


def truncated_normal(deviation: float) -> Initializer:
    """Normal, truncated at two deviations without rescaling, as TensorFlow's initialiser."""
    return nn.initializers.truncated_normal(deviation)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU: (B, H, W, C) → (B, H', W', features·width).

    At stride 1 it keeps the size, unless `padding` is "valid". `conv` and `norm` make the layers;
    the network passes them with dtype, conv_impl and mode set.
    """

    features: int
    kernel_size: int | ops.Pair
    stride: int = 1
    padding: str = "same"
    width: float = 1.0
    conv: Layer = Conv
    norm: Layer = BatchNorm
    kernel_init: Initializer = truncated_normal(0.1)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Runs the layer; see the class."""
        window = self.kernel_size
        window = (window, window) if isinstance(window, int) else window
        same = self.stride == 1 and self.padding == "same"
        features = scale_channels(self.features, self.width)
        hidden = self.conv(
            features,
            window,
            (self.stride, self.stride),
            padding=(window[0] // 2, window[1] // 2) if same else 0,
            kernel_init=self.kernel_init,
            name="conv",
        )(images)
        return nn.relu(self.norm(name="bn")(hidden))


def _chain(images: jax.Array, *layers: nn.Module) -> jax.Array:
    for layer in layers:
        images = layer(images)
    return images


def _maximum(images: jax.Array, conv_impl: str) -> jax.Array:
    return pooling.max_pool(images, (3, 3), (2, 2), "VALID", conv_impl)


class Mixed(nn.Module):
    """A block of parallel branches, concatenated along the channels; see `_branches`.

    `layer` makes a `ConvNorm`; `average` is the 3×3 mean at stride 1, `maximum` the 3×3 maximum at
    stride 2 without padding.
    """

    layer: Layer
    average: Callable[[jax.Array], jax.Array]
    maximum: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Runs the block: (B, H, W, C) → (B, H', W', sum of the branches' channels)."""
        return jnp.concatenate(self._branches(images), axis=-1)

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        raise NotImplementedError

    def _pooled(self, images: jax.Array, features: int) -> jax.Array:
        return self.layer(features, 1, name="branch_pool")(self.average(images))


class MixedA(Mixed):
    """Figure 5: 5×5 as two branches of 3×3."""

    pool_features: int = 64

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        layer = self.layer
        return [
            layer(64, 1, name="branch1x1")(images),
            _chain(
                images,
                layer(48, 1, name="branch5x5_1"),
                layer(64, 5, name="branch5x5_2"),
            ),
            _chain(
                images,
                layer(64, 1, name="branch3x3dbl_1"),
                layer(96, 3, name="branch3x3dbl_2"),
                layer(96, 3, name="branch3x3dbl_3"),
            ),
            self._pooled(images, self.pool_features),
        ]


class MixedB(Mixed):
    """Figure 10: halves the map."""

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        layer = self.layer
        return [
            layer(384, 3, 2, name="branch3x3")(images),
            _chain(
                images,
                layer(64, 1, name="branch3x3dbl_1"),
                layer(96, 3, name="branch3x3dbl_2"),
                layer(96, 3, 2, name="branch3x3dbl_3"),
            ),
            self.maximum(images),
        ]


class MixedC(Mixed):
    """Figure 6: 7×7 as 1×7 and 7×1."""

    features: int = 128

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        layer, features = self.layer, self.features
        return [
            layer(192, 1, name="branch1x1")(images),
            _chain(
                images,
                layer(features, 1, name="branch7x7_1"),
                layer(features, (1, 7), name="branch7x7_2"),
                layer(192, (7, 1), name="branch7x7_3"),
            ),
            _chain(
                images,
                layer(features, 1, name="branch7x7dbl_1"),
                layer(features, (7, 1), name="branch7x7dbl_2"),
                layer(features, (1, 7), name="branch7x7dbl_3"),
                layer(features, (7, 1), name="branch7x7dbl_4"),
                layer(192, (1, 7), name="branch7x7dbl_5"),
            ),
            self._pooled(images, 192),
        ]


class MixedD(Mixed):
    """Halves the map again."""

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        layer = self.layer
        return [
            _chain(
                images,
                layer(192, 1, name="branch3x3_1"),
                layer(320, 3, 2, name="branch3x3_2"),
            ),
            _chain(
                images,
                layer(192, 1, name="branch7x7x3_1"),
                layer(192, (1, 7), name="branch7x7x3_2"),
                layer(192, (7, 1), name="branch7x7x3_3"),
                layer(192, 3, 2, name="branch7x7x3_4"),
            ),
            self.maximum(images),
        ]


class MixedE(Mixed):
    """Figure 7: 1×3 and 3×1 side by side."""

    def _branches(self, images: jax.Array) -> list[jax.Array]:
        layer = self.layer
        single = layer(384, 1, name="branch3x3_1")(images)
        double = _chain(
            images,
            layer(448, 1, name="branch3x3dbl_1"),
            layer(384, 3, name="branch3x3dbl_2"),
        )
        return [
            layer(320, 1, name="branch1x1")(images),
            layer(384, (1, 3), name="branch3x3_2a")(single),
            layer(384, (3, 1), name="branch3x3_2b")(single),
            layer(384, (1, 3), name="branch3x3dbl_3a")(double),
            layer(384, (3, 1), name="branch3x3dbl_3b")(double),
            self._pooled(images, 192),
        ]


class AuxLogits(nn.Module):
    """The auxiliary head, (B, H, W, C) → (B, num_classes) float32; maps of at least 17×17."""

    num_classes: int
    layer: Layer
    conv_impl: str

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        """Classifies; see the class."""
        hidden = pooling.avg_pool(maps, (5, 5), (3, 3), "VALID", self.conv_impl)
        hidden = self.layer(128, 1, name="conv0")(hidden)
        hidden = self.layer(
            768, 5, padding="valid", kernel_init=truncated_normal(0.01), name="conv1"
        )(hidden)
        pooled = hidden.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes, kernel_init=truncated_normal(0.001), name="fc")(pooled)


class InceptionV3(nn.Module):
    """Inception v3, normalised images (B, H, W, 3) → logits (B, num_classes) float32.

    Images have at least 75×75 pixels. Options: `dropout`, the rate before `fc`, used in train mode
    with the key named `dropout`; `aux`, the auxiliary head (images of at least 299×299), whose
    logits a train-mode `apply` with `mutable=["aux"]` returns as `updated["aux"]["logits"]`;
    `count_padding`, whether padded zeros count in the mean of the pooling branches; scale, ε,
    momentum (share kept of the running statistics) and variance of BatchNorm; `freeze_norm`:
    BatchNorm normalises by its running statistics in train mode too. `folded`: see
    `ops/batchnorm_folding.py`.
    """

    num_classes: int
    width: float = 1.0
    dtype: Dtype = jnp.float32
    conv_impl: str = "plain"
    dropout: float = 0.5
    aux: bool = False
    count_padding: bool = True
    bn_scale: bool = True
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9
    bn_unbiased: bool = True
    freeze_norm: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images of any height and width from 75; see the class."""
        check_images(images)
        check_size(images, SMALLEST, "inception_v3")
        layer = self._layer(train)
        hidden = self._blocks(self._stem(images, layer), layer)
        if self.aux and (train or self.is_initializing()):
            self._aux(hidden, images, layer)
        mixed = self._mixed(layer)
        hidden = MixedD(**mixed, name="Mixed_7a")(hidden)
        hidden = MixedE(**mixed, name="Mixed_7b")(hidden)
        hidden = MixedE(**mixed, name="Mixed_7c")(hidden)
        pooled = hidden.astype(jnp.float32).mean((1, 2))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return Dense(self.num_classes, kernel_init=truncated_normal(0.1), name="fc")(pooled)

    def _layer(self, train: bool) -> Layer:
        norm = functools.partial(
            BatchNorm,
            train=train and not self.freeze_norm,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            use_scale=self.bn_scale,
            unbiased=self.bn_unbiased,
            dtype=self.dtype,
            folded=self.folded,
        )
        conv = functools.partial(
            Conv, use_bias=self.folded, dtype=self.dtype, conv_impl=self.conv_impl
        )
        return functools.partial(ConvNorm, width=self.width, conv=conv, norm=norm)

    def _mixed(self, layer: Layer) -> dict[str, Any]:
        average = functools.partial(
            pooling.avg_pool,
            window=(3, 3),
            strides=(1, 1),
            padding=1,
            conv_impl=self.conv_impl,
            count_padding=self.count_padding,
        )
        maximum = functools.partial(_maximum, conv_impl=self.conv_impl)
        return {"layer": layer, "average": average, "maximum": maximum}

    def _stem(self, images: jax.Array, layer: Layer) -> jax.Array:
        hidden = layer(32, 3, 2, name="Conv2d_1a_3x3")(images)
        hidden = layer(32, 3, padding="valid", name="Conv2d_2a_3x3")(hidden)
        hidden = layer(64, 3, name="Conv2d_2b_3x3")(hidden)
        hidden = layer(80, 1, name="Conv2d_3b_1x1")(_maximum(hidden, self.conv_impl))
        hidden = layer(192, 3, padding="valid", name="Conv2d_4a_3x3")(hidden)
        return _maximum(hidden, self.conv_impl)

    def _blocks(self, hidden: jax.Array, layer: Layer) -> jax.Array:
        mixed = self._mixed(layer)
        for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            hidden = MixedA(**mixed, pool_features=features, name=name)(hidden)
        hidden = MixedB(**mixed, name="Mixed_6a")(hidden)
        widths = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
        for name, features in widths.items():
            hidden = MixedC(**mixed, features=features, name=name)(hidden)
        return hidden

    def _aux(self, maps: jax.Array, images: jax.Array, layer: Layer) -> None:
        check_size(images, SMALLEST_AUX, "inception_v3 with aux=True")
        logits = AuxLogits(self.num_classes, layer, self.conv_impl, name="AuxLogits")(maps)
        if not self.is_initializing():  # else `init` would return it, too
            self.sow("aux", "logits", logits, reduce_fn=lambda _, new: new, init_fn=lambda: logits)


inception_v3 = InceptionV3
