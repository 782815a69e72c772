"""ResNet (He et al. 2016) with bottleneck blocks.

Parameters are named as in torchvision: `conv1`, `bn1`, then `layer<stage>_<block>` holding `conv1`
`bn1` `conv2` `bn2` `conv3` `bn3` and, where the shape changes, `downsample_conv` `downsample_bn`
(torchvision: `layer<stage>.<block>.downsample.0` and `.1`), and `fc`.

The options' defaults are torchvision's network; Keras has `variant="v1"`, `conv_bias=True`,
`bn_epsilon=1.001e-5`, `bn_momentum=0.99`, `bn_unbiased=False`. Both libraries pad symmetrically,
so padding is no option.
"""

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from medadv_jax.models.layers import BatchNorm, Conv, Dense, check_images, scale_channels
from medadv_jax.models.ops import pooling

Layer = Callable[..., nn.Module]


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolution and a shortcut, (B, H, W, C) → (B, H/stride, W/stride, 4·features).

    `conv` and `norm` make the layers; the network passes them with dtype, conv_impl and mode set.
    `stride_in` is the convolution with the stride: 1, as in the paper ("v1"), or 2 ("v1.5").
    """

    features: int
    stride: int
    conv: Layer
    norm: Layer
    stride_in: int = 2

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Runs the block; see the class."""
        strides, wide = (self.stride, self.stride), 4 * self.features
        first, second = (strides, (1, 1)) if self.stride_in == 1 else ((1, 1), strides)
        # A 1×1 window needs no padding: "SAME" and "VALID" are equal.
        hidden = self.conv(self.features, (1, 1), first, padding=0, name="conv1")(images)
        hidden = nn.relu(self.norm(name="bn1")(hidden))
        hidden = self.conv(self.features, (3, 3), second, padding=1, name="conv2")(hidden)
        hidden = nn.relu(self.norm(name="bn2")(hidden))
        hidden = self.conv(wide, (1, 1), name="conv3")(hidden)
        # Zero: a block starts as its shortcut, which eases training (Goyal et al. 2017, 5.1).
        hidden = self.norm(scale_init=nn.initializers.zeros, name="bn3")(hidden)
        if self.stride != 1 or images.shape[-1] != wide:
            images = self.conv(wide, (1, 1), strides, padding=0, name="downsample_conv")(images)
            images = self.norm(name="downsample_bn")(images)
        return nn.relu(images + hidden)


class ResNet(nn.Module):
    """Bottleneck ResNet, normalised images (B, H, W, 3) → logits (B, num_classes) float32.

    Options: `variant`, the convolution with a block's stride: "v1.5" the 3×3, "v1" the first;
    `conv_bias`; ε, momentum (share kept of the running statistics) and variance of BatchNorm;
    `freeze_norm`: BatchNorm normalises by its running statistics in train mode too.
    `folded`: see `ops/batchnorm_folding.py`.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"variant": ("v1.5", "v1")}

    num_blocks: Sequence[int]
    num_classes: int
    width: float = 1.0
    dtype: Dtype = jnp.float32
    conv_impl: str = "plain"
    variant: str = "v1.5"
    conv_bias: bool = False
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    bn_unbiased: bool = True
    freeze_norm: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images of any height and width; see the class."""
        check_images(images)
        bias = self.conv_bias or self.folded
        conv = functools.partial(Conv, use_bias=bias, dtype=self.dtype, conv_impl=self.conv_impl)
        norm = functools.partial(
            BatchNorm,
            train=train and not self.freeze_norm,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            unbiased=self.bn_unbiased,
            dtype=self.dtype,
            folded=self.folded,
        )
        hidden = conv(scale_channels(64, self.width), (7, 7), (2, 2), padding=3, name="conv1")(
            images
        )
        hidden = nn.relu(norm(name="bn1")(hidden))
        hidden = pooling.max_pool(hidden, (3, 3), (2, 2), 1, self.conv_impl)
        for stage, blocks in enumerate(self.num_blocks):
            for block in range(blocks):
                hidden = Bottleneck(
                    features=scale_channels(64 * 2**stage, self.width),
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    stride_in=1 if self.variant == "v1" else 2,
                    name=f"layer{stage + 1}_{block}",
                )(hidden)
        pooled = hidden.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes, name="fc")(pooled)


resnet50 = functools.partial(ResNet, num_blocks=(3, 4, 6, 3))
