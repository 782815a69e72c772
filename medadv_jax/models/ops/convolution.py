"""Convolution with two implementations, `plain` and `cpu`; `pooling.py` does the same for pooling.

`plain` is one XLA operation, for GPU and TPU. `cpu` has the same values and gradients and avoids
slow cases of XLA's CPU backend. `resolve_conv_impl` chooses between them by the backend; its `gpu`
is `plain` with another maximum pooling. `cpu` chooses an algorithm for each of the forward pass,
the gradient to the images and the gradient to the kernel, from static shapes alone
(`_algorithms`). The numbers beside its rules were measured on 2 AVX-512 cores, jax 0.10.2,
2026-11-22 and 23, float32.

`cpu` is a custom VJP: reverse-mode gradients, `jit`, `vmap` and sharding work; forward mode
(`jax.jvp`, `jax.jacfwd`) does not.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from medadv_jax.errors import UserError

CONV_IMPLS = ("auto", "cpu", "gpu", "plain")

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # (low, high) of the height, (low, high) of the width
Spectrum = list[list[jax.Array]]  # 4×4 of (C, F)
Padding = str | int | Sequence[int | Sequence[int]]


def resolve_conv_impl(conv_impl: str) -> str:
    """Returns "cpu", "gpu" or "plain"; "auto" follows jax's backend. UserError if unknown."""
    if conv_impl not in CONV_IMPLS:
        raise UserError(
            f"conv_impl={conv_impl!r} is unknown; choose one of {', '.join(CONV_IMPLS)}"
        )
    if conv_impl == "auto":
        backend = jax.default_backend()
        return backend if backend in CONV_IMPLS else "plain"
    return conv_impl


def resolve_padding(padding: Padding, size: Pair, window: Pair, strides: Pair) -> Pads:
    """Returns padding as ((top, bottom), (left, right)).

    Args:
        padding: "SAME", "VALID", one number for all sides, one for each axis, or all four.
        size: height and width of the images.
        window: height and width of the kernel or pooling window.
        strides: vertical and horizontal stride.
    """
    if isinstance(padding, str):
        (top, bottom), (left, right) = lax.padtype_to_pads(size, window, strides, padding)
        return (top, bottom), (left, right)
    height, width = (padding, padding) if isinstance(padding, int) else padding
    low_high = [(side, side) if isinstance(side, int) else tuple(side) for side in (height, width)]
    (top, bottom), (left, right) = low_high
    return (top, bottom), (left, right)


def output_size(size: Sequence[int], window: Sequence[int], strides: Pair, pads: Pads) -> Pair:
    """Returns the output height and width of a convolution or a pooling."""
    height = (size[0] + sum(pads[0]) - window[0]) // strides[0] + 1
    width = (size[1] + sum(pads[1]) - window[1]) // strides[1] + 1
    return height, width


def shifted(padded: jax.Array, window: Pair, strides: Pair, out: Pair) -> list[jax.Array]:
    """Returns the pixels under each position of the window, row by row: a list of (B, *out, C)."""
    last = (strides[0] * (out[0] - 1) + 1, strides[1] * (out[1] - 1) + 1)
    return [
        padded[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1], :]
        for i in range(window[0])
        for j in range(window[1])
    ]


def pad(images: jax.Array, pads: Pads, value: float = 0.0) -> jax.Array:
    """Pads height and width; a negative pad crops."""
    zero = (0, 0, 0)
    config = (zero, (*pads[0], 0), (*pads[1], 0), zero)
    return lax.pad(images, jnp.asarray(value, images.dtype), config)


# Convolutions: images (B, H, W, C), kernel (KH, KW, C, F) → (B, H', W', F)


def _conv_plain(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(
        images, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_pointwise(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """A 1×1 convolution as one matrix product; the pixels that a stride skips are dropped first."""
    del pads  # none, by the rule in `_algorithms`
    return images[:, :: strides[0], :: strides[1], :] @ kernel[0, 0]


def _conv_patches(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """Concatenates the pixels of each window as channels (im2col), then one matrix product."""
    window = (kernel.shape[0], kernel.shape[1])
    out = output_size(images.shape[1:3], window, strides, pads)
    patches = jnp.concatenate(shifted(pad(images, pads), window, strides, out), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _chunk(images: jax.Array, kernel: jax.Array) -> int:
    """Number of images whose maps fit into the cache (2.5 MB), but at most 32 chunks in all."""
    _, height, width, _ = images.shape
    each = images.dtype.itemsize * height * width * max(kernel.shape[2:])
    return max(1, int(2.5e6 // each), len(images) // 32)


def _conv_chunks(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """One convolution per few images. Unrolled: with `lax.map` the CPU is 40 times slower."""
    size = _chunk(images, kernel)
    parts = [
        _conv_plain(images[first : first + size], kernel, strides, pads)
        for first in range(0, len(images), size)
    ]
    return jnp.concatenate(parts)


def _conv_winograd(images: jax.Array, weights: Spectrum, pads: Pads) -> jax.Array:
    """A 3×3 convolution of stride 1 as F(2×2, 3×3) (Winograd 1980; Lavin & Gray 2016, section 4.1):
    2×2 output pixels take 16 multiplications per channel instead of 36."""
    batch, height, width, channels = images.shape
    out = output_size((height, width), (3, 3), (1, 1), pads)
    tall, wide = math.ceil(out[0] / 2), math.ceil(out[1] / 2)  # tiles
    (top, _), (left, _) = pads
    padded = pad(images, ((top, 2 * tall + 2 - height - top), (left, 2 * wide + 2 - width - left)))
    seen = shifted(padded, (4, 4), (2, 2), (tall, wide))  # (B, tall, wide, C), 16 of them
    columns = [_tile([seen[4 * i + j] for i in range(4)]) for j in range(4)]
    tiles = [_tile([column[i] for column in columns]) for i in range(4)]

    def products(i: int) -> list[jax.Array]:
        flat = [tile.reshape(-1, channels) for tile in tiles[i]]
        return [tile @ weight for tile, weight in zip(flat, weights[i], strict=True)]

    rows = [_untile(products(i)) for i in range(4)]
    places = [_untile([row[b] for row in rows]) for b in range(2)]  # [b][a]: pixel (a, b) of a tile
    shape = (batch, tall, wide, -1)
    pixels = [[places[b][a].reshape(shape) for b in range(2)] for a in range(2)]
    full = jnp.stack([jnp.stack(row, axis=3) for row in pixels], axis=2)
    return full.reshape(batch, 2 * tall, 2 * wide, -1)[:, : out[0], : out[1]]


def has_spectrum(kernel: jax.Array) -> bool:
    """Tells whether a kernel (KH, KW, C, F) may be convolved by Winograd's algorithm."""
    return kernel.ndim == 4 and kernel.shape[:2] == (3, 3) and kernel.shape[2] >= 64


@jax.jit
def spectrum(kernel: jax.Array) -> Spectrum:
    """Winograd's transform of a kernel, GgGᵀ of Lavin & Gray: (3, 3, C, F) → 4×4 of (C, F).

    Without the barrier XLA recomputes Gg for every entry of the result: with 512 channels on 8×8,
    forward and backward, 106 ms instead of 62.
    """
    columns = [_taps([kernel[i, j] for i in range(3)]) for j in range(3)]
    columns = lax.optimization_barrier(columns)
    return [_taps([column[i] for column in columns]) for i in range(4)]


def _tile(d: list[jax.Array]) -> list[jax.Array]:
    """Bᵀd of Lavin & Gray's equation 10, one column d of a tile."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _taps(g: list[jax.Array]) -> list[jax.Array]:
    """Gg of Lavin & Gray, one column g of the kernel."""
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _untile(m: list[jax.Array]) -> list[jax.Array]:
    """Aᵀm of Lavin & Gray, one column m of the products."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _winograd_images_grad(cotangent: jax.Array, weights: Spectrum, pads: Pads) -> jax.Array:
    """The gradient to the images: a convolution with the kernel rotated by 180°, whose spectrum has
    the first and last rows, and the first and last columns, exchanged."""
    rotated = [[weights[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    return _conv_winograd(cotangent, rotated, pads)


def _rotated(kernel: jax.Array) -> jax.Array:
    """(KH, KW, C, F) → (KH, KW, F, C), the kernel of the gradient to the images at stride 1.

    The barrier keeps XLA from folding the transposition into the convolution. In a loop, its CPU
    backend has no fast routine for that: half the time of an attack on ResNet50 at 64 px.
    """
    return lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))


def _gradient_pads(kernel: jax.Array, pads: Pads) -> Pads:
    """The padding of the gradient to the images at stride 1, from that of the forward pass."""
    (top, bottom), (left, right) = pads
    high, wide = kernel.shape[0] - 1, kernel.shape[1] - 1
    return (high - top, high - bottom), (wide - left, wide - right)


def _blocks_images_grad(
    cotangent: jax.Array, images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads
) -> jax.Array:
    """The gradient to the images of a strided convolution, as one of stride 1 whose output channels
    are blocks of stride × stride pixels; the kernel is padded with zeros to whole blocks."""
    (sh, sw), (kh, kw, channels, features) = strides, kernel.shape
    rows, columns = math.ceil(kh / sh), math.ceil(kw / sw)
    kernel = jnp.pad(kernel, ((0, rows * sh - kh), (0, columns * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(rows, sh, columns, sw, channels, features).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(rows, columns, -1, features)
    none = ((0, 0), (0, 0))
    blocks = _conv_plain(cotangent, _rotated(kernel), (1, 1), _gradient_pads(kernel, none))

    batch, tall, wide, _ = blocks.shape
    blocks = blocks.reshape(batch, tall, wide, sh, sw, channels).transpose(0, 1, 3, 2, 4, 5)
    (_, height, width, _), (top, _), (left, _) = images.shape, *pads
    bottom, right = height + top - tall * sh, width + left - wide * sw
    whole = blocks.reshape(batch, tall * sh, wide * sw, channels)
    return pad(whole, ((-top, bottom), (-left, right)))


_CONVS = {  # "winograd" (takes a spectrum) and "blocks" (a gradient only) have other arguments
    "plain": _conv_plain,
    "pointwise": _conv_pointwise,
    "patches": _conv_patches,
    "chunks": _conv_chunks,
}


def _algorithms(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> tuple[str, ...]:
    """Algorithm of the forward pass, the gradient to the images and the gradient to the kernel."""
    kh, kw, channels, _ = kernel.shape
    out = output_size(images.shape[1:3], (kh, kw), strides, pads)
    if (kh, kw) == (1, 1) and pads == ((0, 0), (0, 0)):
        return "pointwise", "pointwise", "pointwise"
    # 64 images, 256 channels on 16×16: 93 GFLOP/s plain, 170 in chunks
    chunks = (max(strides) == 1 or channels <= 4) and _chunk(images, kernel) < len(images)
    to_kernel = "chunks" if chunks else "plain"
    # Forward and backward, plain and winograd: 32 images, 512 channels on 8×8: 109 and 62 ms; 64 on
    # 64×64: 280 and 200; 8 images, 256 on 56×56: 331 and 249; 128 on 112×112: 375 and 410. Below 16
    # pixels it gains a fifth, too, but small networks would compile longer
    if has_spectrum(kernel) and max(strides) == 1 and 16 <= math.prod(out) <= 64**2:
        return "winograd", "winograd", to_kernel
    if math.prod(out) <= 9:  # 512 channels on 2×2: 2 GFLOP/s plain, 180 as patches
        return "patches", "patches", "plain"
    if channels <= 4:  # 3 on 64×64: 13 GFLOP/s plain, 26 in chunks; stride 2: 26 and 60 in blocks
        return "plain", to_kernel if max(strides) == 1 else "blocks", to_kernel
    patches = images.dtype.itemsize * len(images) * math.prod(out) * kh * kw * channels
    # 512 on 7×7: 130 GFLOP/s plain, 190 as patches, as long as those fit into the cache
    few = math.prod(out) <= 256 and patches <= 2**25
    return "plain", "patches" if few or max(strides) > 1 else "plain", to_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _conv_cpu(
    images: jax.Array, kernel: jax.Array, prepared: Spectrum | None, strides: Pair, pads: Pads
) -> jax.Array:
    return _conv_cpu_forward(images, kernel, prepared, strides, pads)[0]


def _conv_cpu_forward(
    images: jax.Array, kernel: jax.Array, prepared: Spectrum | None, strides: Pair, pads: Pads
):
    forward = _algorithms(images, kernel, strides, pads)[0]
    if forward != "winograd":
        return _CONVS[forward](images, kernel, strides, pads), (images, kernel, prepared, None)
    weights = spectrum(kernel) if prepared is None else prepared  # both passes need them
    return _conv_winograd(images, weights, pads), (images, kernel, prepared, weights)


def _conv_cpu_backward(strides: Pair, pads: Pads, saved, cotangent: jax.Array):
    images, kernel, prepared, weights = saved
    # The gradient goes to the kernel; its spectrum, computed beforehand, gets none.
    prepared_grad = jax.tree.map(jnp.zeros_like, prepared)
    _, to_images, to_kernel = _algorithms(images, kernel, strides, pads)
    if to_images == "winograd":
        images_grad = _winograd_images_grad(cotangent, weights, _gradient_pads(kernel, pads))
    elif to_images == "blocks":
        images_grad = _blocks_images_grad(cotangent, images, kernel, strides, pads)
    elif to_images in ("plain", "chunks"):  # stride 1, by the rules of `_algorithms`
        algorithm = _CONVS[to_images]
        images_grad = algorithm(cotangent, _rotated(kernel), (1, 1), _gradient_pads(kernel, pads))
    else:
        algorithm = _CONVS[to_images]
        (images_grad,) = jax.linear_transpose(
            lambda x: algorithm(x, kernel, strides, pads), images
        )(cotangent)
    if to_kernel == "pointwise":
        return images_grad, _pointwise_kernel_grad(images, strides, cotangent), prepared_grad
    algorithm = _CONVS[to_kernel]
    (kernel_grad,) = jax.linear_transpose(lambda k: algorithm(images, k, strides, pads), kernel)(
        cotangent
    )
    return images_grad, kernel_grad, prepared_grad


def _pointwise_kernel_grad(images: jax.Array, strides: Pair, cotangent: jax.Array) -> jax.Array:
    """The gradient to a 1×1 kernel, as a matrix product: contracting three axes instead takes twice
    as long (128 to 512 channels on 8×8: 66 instead of 154 GFLOP/s)."""
    seen = images[:, :: strides[0], :: strides[1], :].reshape(-1, images.shape[-1])
    flat = cotangent.reshape(-1, cotangent.shape[-1])
    return lax.dot_general(seen, flat, (((0,), (0,)), ((), ())))[None, None]


_conv_cpu.defvjp(_conv_cpu_forward, _conv_cpu_backward)


def conv(
    images: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: Padding,
    conv_impl: str,
    prepared: Spectrum | None = None,
) -> jax.Array:
    """2-D convolution (cross-correlation), equal to `lax.conv_general_dilated`.

    Args:
        images: (B, H, W, C) floating, of the kernel's dtype.
        kernel: (KH, KW, C, F).
        strides: vertical and horizontal stride.
        padding: see `resolve_padding`.
        conv_impl: "cpu", or one of the others, which are equal.
        prepared: the kernel's `spectrum`, to save computing it; it gets no gradient.

    Returns:
        (B, H', W', F), of the images' dtype.
    """
    window = (kernel.shape[0], kernel.shape[1])
    pads = resolve_padding(padding, (images.shape[1], images.shape[2]), window, strides)
    if conv_impl == "cpu":
        return _conv_cpu(images, kernel, prepared, strides, pads)
    return _conv_plain(images, kernel, strides, pads)
