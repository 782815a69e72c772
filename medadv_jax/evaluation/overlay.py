"""Saliency maps over their images. Imports no JAX, so that a report can draw them."""

import numpy as np
from PIL import Image

_STRENGTH = 0.7  # of the colour where the heat is largest
_SMALLEST = 224  # pixels of an overlay's side; smaller ones are enlarged by a whole factor


def overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Returns an image in grey with heat in red.

    Args:
      image: (S, S, 3) uint8.
      heat: (h, w), at least 0; its 99th percentile gets the full colour.
    """
    size = image.shape[:2][::-1]
    heat = heat / max(float(np.percentile(heat, 99)), 1e-12)
    mask = Image.fromarray((255 * _STRENGTH * np.clip(heat, 0, 1)).astype(np.uint8))
    mask = mask.resize(size, Image.Resampling.BILINEAR)
    grey = Image.fromarray(image).convert("L").convert("RGB")
    joined = Image.composite(Image.new("RGB", size, (255, 0, 0)), grey, mask)
    factor = max(1, -(-_SMALLEST // size[0]))
    return joined.resize((factor * size[0], factor * size[1]), Image.Resampling.NEAREST)
