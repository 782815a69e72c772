"""The layers that all networks are built of.

Parameters have the names and shapes of flax's own layers (`kernel` HWIO, `bias`; `scale`, `bias`;
running `mean` and `var`). They are float32 for every compute dtype and do not depend on
`conv_impl`, which only changes how values are computed (see `ops/convolution.py`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from medadv_jax.errors import UserError
from medadv_jax.models.ops import convolution as ops
from medadv_jax.models.ops.parameter_gradients import summed_in_float32

HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015

# The head: float32 whatever the compute dtype, because attacks need exact logits.
Dense = functools.partial(nn.Dense, dtype=jnp.float32, precision=lax.Precision.HIGHEST)


class Conv(nn.Module):
    """2-D convolution, (B, H, W, C) → (B, H', W', features) in `dtype`.

    `padding`: "SAME", "VALID", one number for all sides, or for each axis one or (low, high).
    """

    features: int
    kernel_size: ops.Pair = (3, 3)
    strides: ops.Pair = (1, 1)
    padding: ops.Padding = "SAME"
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    conv_impl: str = "plain"
    kernel_init: Initializer = HE_FAN_OUT

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolves; see the class."""
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        prepared = self.get_variable("spectra", "kernel")  # only in attacks: `batchnorm_folding.py`
        prepared = jax.tree.map(lambda x: x.astype(self.dtype), prepared)

        def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
            kernel = kernel.astype(self.dtype)
            return ops.conv(images, kernel, self.strides, self.padding, self.conv_impl, prepared)

        result = summed_in_float32(convolve, images.astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            result = summed_in_float32(_add_bias, result, bias)
        return result


class HiddenDense(nn.Module):
    """A dense layer within a network, (B, C) → (B, features) in `dtype`."""

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Multiplies and adds; see the class."""
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

        def multiply(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
            return inputs @ kernel.astype(self.dtype)

        result = summed_in_float32(multiply, inputs.astype(self.dtype), kernel)
        return summed_in_float32(_add_bias, result, bias)


def _add_bias(result: jax.Array, bias: jax.Array) -> jax.Array:
    return result + _along_channels(bias, result).astype(result.dtype)


def _along_channels(vector: jax.Array, like: jax.Array) -> jax.Array:
    """(C,) → (1, …, 1, C), so that no rank promotion is needed."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


class BatchNorm(nn.Module):
    """Normalises each channel, (..., C) → (..., C) in `dtype`; statistics in float32.

    With `train`, the batch's statistics normalise (under jit those of all examples on all devices),
    and the running ones move by `1 - momentum` towards them: apply with `mutable=["batch_stats"]`.
    The running variance is biased, as in flax and Keras; with `unbiased` it is unbiased, as in
    PyTorch, which also normalises by the biased one. Running statistics get no gradient. `folded`:
    the identity, for a network whose variables are folded; see `ops/batchnorm_folding.py`.
    """

    train: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    unbiased: bool = False
    dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    folded: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises; see the class."""
        if self.folded:
            return inputs
        shape = (inputs.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        inputs = inputs.astype(jnp.promote_types(self.dtype, jnp.float32))
        mean, var = running_mean.value, running_var.value
        if self.train:
            mean, var = _batch_statistics(inputs)
            if not self.is_initializing():
                running_mean.value = self._moved(running_mean.value, mean)
                count = inputs.size // inputs.shape[-1]
                factor = count / max(count - 1, 1) if self.unbiased else 1.0
                running_var.value = self._moved(running_var.value, factor * var)
        return _normalize(inputs, mean, var, scale, bias, self.epsilon).astype(self.dtype)

    def _moved(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        moved = self.momentum * running + (1 - self.momentum) * batch
        return lax.stop_gradient(moved)


def check_images(images: jax.Array) -> None:
    """Raises UserError unless images are (B, H, W, 3) and floating."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images have shape {images.shape}; the network takes (B, H, W, 3)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}; scale to [0, 1] and normalise them first")


def check_size(images: jax.Array, smallest: int, network: str) -> None:
    """Raises UserError unless height and width of (B, H, W, C) are at least `smallest`."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise UserError(
            f"images are {height}×{width} pixels; {network} takes at least {smallest}×{smallest}"
        )


# Both are jitted, so that they are traced once for each shape instead of once for each layer.


@jax.jit
def _normalize(
    inputs: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """One multiplication and one addition per value; the rest are vectors over channels."""
    factor = scale * lax.rsqrt(var + epsilon)
    offset = bias - mean * factor
    return inputs * _along_channels(factor, inputs) + _along_channels(offset, inputs)


@jax.jit
def _batch_statistics(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, in one pass over the inputs."""
    axes = tuple(range(inputs.ndim - 1))
    mean, mean_of_squares = inputs.mean(axes), jnp.square(inputs).mean(axes)
    return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)


def scale_channels(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))
