"""Maximum and mean pooling with an implementation for each backend, as `convolution.py` explains.

Maximum pooling that remembers the winner of each window is for CPU and GPU. XLA's own gradient
searches the windows again: on a GPU by a scatter, with index arrays of the maps' size.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from medadv_jax.models.ops.convolution import (
    Padding,
    Pads,
    Pair,
    output_size,
    pad,
    resolve_padding,
    shifted,
)

# As wide as the maps on a CPU, for its vector units; on a GPU the bytes count.
_WINNER_DTYPES: dict[str, DTypeLike] = {"cpu": jnp.int32, "gpu": jnp.int8}


def _max_shifted(images: jax.Array, window: Pair, strides: Pair, pads: Pads) -> list[jax.Array]:
    out = output_size(images.shape[1:3], window, strides, pads)
    return shifted(pad(images, pads, -jnp.inf), window, strides, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_winners(
    images: jax.Array, window: Pair, strides: Pair, pads: Pads, index: DTypeLike
) -> jax.Array:
    """Maximum pooling; `index`: the dtype in which the winner of each window is remembered."""
    del index
    return functools.reduce(jnp.maximum, _max_shifted(images, window, strides, pads))


def _max_pool_forward(images: jax.Array, window: Pair, strides: Pair, pads: Pads, index: DTypeLike):
    pooled, *others = _max_shifted(images, window, strides, pads)
    winner = jnp.zeros(pooled.shape, index)
    for tap, seen in enumerate(others, start=1):
        winner = jnp.where(seen > pooled, tap, winner)
        pooled = jnp.maximum(pooled, seen)
    # Without the barrier XLA recomputes the winner at every use in the backward pass.
    pooled, winner = lax.optimization_barrier((pooled, winner))
    return pooled, (images, winner)


def _max_pool_backward(
    window: Pair, strides: Pair, pads: Pads, index: DTypeLike, saved, cotangent: jax.Array
):
    """The first of equal maxima gets the whole gradient, as in XLA's own gradient and PyTorch's.

    For each place in a block of stride × stride pixels, the gradients from the positions of the
    window are slices, summed; the places are interleaved at the end. A border is padded first, so
    that no slice crosses the bounds: 3×3 on (8, 112, 112, 64) takes 4 ms instead of 12 (instead of
    40 inside a network).
    """
    del index
    images, winner = saved
    (sh, sw), (_, oh, ow, channels) = strides, cotangent.shape
    more = (math.ceil(window[0] / sh) - 1, math.ceil(window[1] / sw) - 1)
    border = ((more[0], more[0]), (more[1], more[1]))
    winner, cotangent = lax.optimization_barrier((pad(winner, border, -1), pad(cotangent, border)))
    height, width = oh + more[0], ow + more[1]  # in blocks
    empty = jnp.zeros((len(images), height, width, channels), cotangent.dtype)
    places = [[empty] * sw for _ in range(sh)]
    for tap in range(math.prod(window)):
        (i, j), (k, m) = (divmod(tap // window[1], sh), divmod(tap % window[1], sw))
        rows = slice(more[0] - i, more[0] - i + height)
        columns = slice(more[1] - k, more[1] - k + width)
        places[j][m] += jnp.where(winner[:, rows, columns] == tap, cotangent[:, rows, columns], 0)
    full = jnp.stack([jnp.stack(row, axis=3) for row in places], axis=2)
    (top, _), (left, _) = pads
    crop = (
        (-top, images.shape[1] + top - height * sh),
        (-left, images.shape[2] + left - width * sw),
    )
    return (pad(full.reshape(-1, height * sh, width * sw, channels), crop),)


_max_pool_winners.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool(
    images: jax.Array, window: Pair, strides: Pair, padding: Padding, conv_impl: str
) -> jax.Array:
    """Maximum over windows, (B, H, W, C) floating → (B, H', W', C); padding is minus infinity.

    The gradient goes to the first of equal maxima. `padding`: see `resolve_padding`; `conv_impl`:
    "cpu", "gpu" or "plain"; on a GPU, "gpu" moves half the bytes of VGG16's attack.
    """
    pads = resolve_padding(padding, (images.shape[1], images.shape[2]), window, strides)
    if conv_impl in _WINNER_DTYPES:
        return _max_pool_winners(images, window, strides, pads, _WINNER_DTYPES[conv_impl])
    name = _padding_name(pads, images, window, strides)
    if name is None:  # padded apart, since jax2onnx takes a pool's padding by name only
        border = ((0, 0), *pads, (0, 0))
        images, name = jnp.pad(images, border, constant_values=-jnp.inf), "VALID"
    return nn.max_pool(images, window_shape=window, strides=strides, padding=name)


def _padding_name(pads: Pads, images: jax.Array, window: Pair, strides: Pair) -> str | None:
    """Returns "VALID" or "SAME" if one of them pads so, else None."""
    size = (images.shape[1], images.shape[2])
    for name in ("VALID", "SAME"):
        if resolve_padding(name, size, window, strides) == pads:
            return name
    return None


def _sum(arrays: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def avg_pool(
    images: jax.Array,
    window: Pair,
    strides: Pair,
    padding: Padding,
    conv_impl: str,
    count_padding: bool = True,
) -> jax.Array:
    """Mean over windows, (B, H, W, C) floating → (B, H', W', C).

    `count_padding`: whether padded zeros count in the mean (torchvision: yes; Keras: no).
    `padding`: see `resolve_padding`; `conv_impl`: "cpu", or one of the others, which are equal.
    """
    size = (images.shape[1], images.shape[2])
    pads = resolve_padding(padding, size, window, strides)
    if conv_impl != "cpu":
        return nn.avg_pool(
            images,
            window_shape=window,
            strides=strides,
            padding=_padding_name(pads, images, window, strides) or pads,  # pyright: ignore
            count_include_pad=count_padding,
        )
    out = output_size(size, window, strides, pads)
    total = _sum(shifted(pad(images, pads), window, strides, out))
    if count_padding:
        return total / math.prod(window)
    ones = pad(jnp.ones((1, *size, 1), images.dtype), pads)
    return total / _sum(shifted(ones, window, strides, out))
