"""Augmentation inside the compiled step: small rotations and shifts, brightness, flips."""

import jax
import jax.numpy as jnp

from medadv_jax.config import Config


def augment(key: jax.Array, pixels: jax.Array, settings: Config) -> jax.Array:
    """Returns augmented images; each image has its own random draw.

    Args:
      key: a key from `jax.random.key`.
      pixels: (B, H, W, C) float32 in [0, 1]; H = W for flips.
      settings: `config.data.augment`: shift (share of the side), rotation (degrees), brightness
        (factor within 1 ± this), flip (bool). Each is the largest value of a uniform draw.

    Returns:
      (B, H, W, C) float32 in [0, 1].
    """
    move_key, brightness_key, flip_key = jax.random.split(key, 3)
    if settings.flip:
        pixels = _flip(flip_key, pixels)
    if settings.shift > 0 or settings.rotation > 0:
        keys = jax.random.split(move_key, pixels.shape[0])
        move = jax.vmap(_move, in_axes=(0, 0, None, None))
        pixels = move(keys, pixels, settings.shift, settings.rotation)
    if settings.brightness > 0:
        shape = (pixels.shape[0], 1, 1, 1)
        span = settings.brightness
        factor = jax.random.uniform(brightness_key, shape, minval=1 - span, maxval=1 + span)
        pixels = jnp.clip(pixels * factor, 0.0, 1.0)
    return pixels


def _flip(key: jax.Array, pixels: jax.Array) -> jax.Array:
    """Applies a random one of the 8 symmetries of a square to each image: flips and a transpose."""
    draws = jax.random.bernoulli(key, 0.5, (3, pixels.shape[0], 1, 1, 1))
    pixels = jnp.where(draws[2], jnp.swapaxes(pixels, 1, 2), pixels)
    pixels = jnp.where(draws[0], pixels[:, :, ::-1], pixels)
    return jnp.where(draws[1], pixels[:, ::-1], pixels)


def _move(key: jax.Array, image: jax.Array, shift: float, rotation: float) -> jax.Array:
    """Rotates and shifts one image (H, W, C); bilinear, edge pixels repeated outside."""
    draw = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    angle = jnp.deg2rad(rotation * draw[0])
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    rows = jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2 + shift * height * draw[1]
    columns = jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2 + shift * width * draw[2]
    return _bilinear(image, rows, columns)


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Samples (H, W, C) at real coordinates (H, W); outside the image the edge is repeated."""
    rows = jnp.clip(rows, 0.0, image.shape[0] - 1)
    columns = jnp.clip(columns, 0.0, image.shape[1] - 1)
    top, left = jnp.floor(rows).astype(int), jnp.floor(columns).astype(int)
    bottom = jnp.minimum(top + 1, image.shape[0] - 1)
    right = jnp.minimum(left + 1, image.shape[1] - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down
