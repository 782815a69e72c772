"""A frontal chest X-ray: rib cage, spine, heart and two lungs; pneumonia adds opacities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medadv_jax.data.phantoms import fields

_LUNG, _TISSUE = 0.22, 0.68  # brightness of air and of an opacity


@dataclass(frozen=True)
class _Chest:
    """The anatomy of a patient; lengths as fractions of the image's side."""

    centre: float
    lung_width: float  # half axes
    lung_height: float
    spread: float  # of the lungs from the spine
    top: float  # of the lungs' centre
    heart: float
    rib_spacing: float
    rib_slope: float
    rib_phase: float
    exposure: float
    contrast: float


def draw(
    label: int, patient_rng: np.random.Generator, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, int]:
    """Draws one image.

    Args:
      label: 1 for pneumonia.
      patient_rng: for properties shared by the patient's images.
      rng: for the rest.
      size: pixels a side.

    Returns:
      (size, size, 3) uint8, the three channels equal, and the magnification 0.
    """
    chest = _chest(patient_rng)
    tissue = fields.texture(patient_rng, size, 2, 14)
    x, y = _posed_grid(rng, size)
    lungs = _lungs(chest, x, y)
    image = _anatomy(chest, x, y, lungs) + 0.025 * tissue
    haze = fields.texture(rng, size, 3, 12)
    air = np.ones_like(image)
    for strength, spot in _opacities(label, chest, rng, x, y):
        air *= 1 - strength * np.clip(spot * (1 + 0.35 * haze), 0, 1)
    image += (1 - air) * lungs * (_TISSUE - _LUNG)
    image += _fine_texture(label, rng) * lungs * fields.texture(rng, size, 18, 28)
    exposure = chest.exposure + rng.normal(0, 0.015)
    image = 0.5 + chest.contrast * (image - 0.5) + exposure
    image += 0.012 * fields.texture(rng, size, 1, 128)
    return np.repeat(fields.to_uint8(image)[..., None], 3, axis=-1), 0


def draw_findings(
    found: Sequence[int],
    count: int,
    patient_rng: np.random.Generator,
    rng: np.random.Generator,
    size: int,
) -> np.ndarray:
    """Draws a chest with a bright spot for each finding, at a place of its own in the lungs.

    Args:
      found: numbers of the findings, below `count`.
      count: how many findings there are; even numbers are in one lung, odd ones in the other.
      patient_rng, rng, size: as for `draw`.

    Returns:
      (size, size) uint8.
    """
    chest = _chest(patient_rng)
    x, y = _posed_grid(rng, size)
    lungs = _lungs(chest, x, y)
    image = _anatomy(chest, x, y, lungs) + 0.02 * fields.texture(patient_rng, size, 2, 14)
    for k in found:
        across = x - chest.centre - (-1) ** k * chest.spread
        down = y - chest.top - chest.lung_height * (1.4 * (k // 2 + 0.5) / -(-count // 2) - 0.7)
        image += rng.uniform(0.25, 0.4) * np.exp(-((across / 0.08) ** 2) - (down / 0.025) ** 2)
    return fields.to_uint8(image + rng.normal(0, 0.015))


def _chest(rng: np.random.Generator) -> _Chest:
    return _Chest(
        centre=rng.uniform(0.47, 0.53),
        lung_width=rng.uniform(0.145, 0.18),
        lung_height=rng.uniform(0.29, 0.36),
        spread=rng.uniform(0.2, 0.225),
        top=rng.uniform(0.43, 0.49),
        heart=rng.uniform(0.11, 0.16),
        rib_spacing=rng.uniform(0.085, 0.11),
        rib_slope=rng.uniform(0.5, 1.1),
        rib_phase=rng.uniform(0, 1),
        exposure=rng.uniform(-0.07, 0.07),
        contrast=rng.uniform(0.85, 1.1),
    )


def _posed_grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (size, size) coordinates, slightly rotated, shifted and scaled."""
    x, y = fields.grid(size)
    angle = rng.normal(0, 0.03)
    shift_x, shift_y = rng.normal(0, 0.012, 2)
    scale = 1 + rng.normal(0, 0.02)
    across, down = (x - 0.5 - shift_x) * scale, (y - 0.5 - shift_y) * scale
    cos, sin = np.cos(angle), np.sin(angle)
    return 0.5 + cos * across - sin * down, 0.5 + sin * across + cos * down


def _lungs(chest: _Chest, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the fraction of air, (size, size) in [0, 1]."""
    side = np.abs(x - chest.centre)
    bottom = chest.top + chest.lung_height
    # Narrow at the apex, wide at the base.
    width = chest.lung_width * (0.75 + 0.45 * (y - chest.top + chest.lung_height))
    inside = 1 - ((side - chest.spread) / width) ** 2
    inside = inside - np.abs((y - chest.top) / chest.lung_height) ** 3
    dome = bottom - 0.09 + 1.6 * (side - chest.spread) ** 2 - y
    air = fields.soft_edge(inside, 0.22) * fields.soft_edge(dome, 0.025)
    return air * (1 - _heart(chest, x, y))


def _heart(chest: _Chest, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across = (x - chest.centre - 0.055) / chest.heart
    down = (y - chest.top - 0.17) / (1.25 * chest.heart)
    tilted = 1 - across**2 - down**2 - 0.5 * across * down
    return fields.soft_edge(tilted, 0.25)


def _anatomy(chest: _Chest, x: np.ndarray, y: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Returns the healthy chest, (size, size) around [0, 1]."""
    side = np.abs(x - chest.centre)
    shoulders = 0.5 - 0.32 * np.clip(0.2 - y, 0, 1) / 0.2
    image = 0.04 + 0.56 * fields.soft_edge(shoulders - side, 0.03)
    image += 0.1 * fields.soft_edge(y - chest.top - chest.lung_height + 0.02, 0.05)
    image += (_LUNG - 0.58) * lungs
    cage = fields.soft_edge(1 - (side / 0.43) ** 2 - ((y - chest.top) / 0.42) ** 2, 0.15)
    arch = y + chest.rib_slope * (side - 0.1) * side - 0.25 * side
    wave = np.cos(2 * np.pi * (arch / chest.rib_spacing + chest.rib_phase))
    image += 0.085 * cage * fields.soft_edge(wave - 0.25, 0.5) * (0.35 + 0.65 * lungs)
    collar = y - 0.17 + 0.22 * (side - 0.05)
    image += 0.13 * np.exp(-((collar / 0.018) ** 2)) * fields.soft_edge(0.34 - side, 0.03)
    image += 0.12 * _heart(chest, x, y) * fields.soft_edge(chest.top + chest.lung_height - y, 0.08)
    vertebrae = 1 + 0.2 * np.cos(2 * np.pi * y / 0.075)
    image += 0.17 * vertebrae * np.exp(-((side / 0.04) ** 2))
    # Vessels fan out from the roots of the lungs.
    roots = np.exp(-(((side - 0.1) / 0.07) ** 2) - ((y - chest.top) / 0.12) ** 2)
    return image + 0.1 * roots * lungs


def _opacities(
    label: int, chest: _Chest, rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> list[tuple[float, np.ndarray]]:
    """Returns (strength, (size, size) spot) pairs; a healthy chest has at most one small one."""
    count = rng.integers(2, 6) if label else rng.integers(0, 2)
    severity = rng.beta(3, 1) if label else rng.beta(1, 3)  # the classes overlap
    spots = []
    for _ in range(count):
        strength = 0.1 + 0.85 * severity * rng.uniform(0.8, 1)
        radius = rng.uniform(0.08, 0.15) if label else rng.uniform(0.04, 0.09)
        side = rng.choice([-1, 1]) * chest.spread * rng.uniform(0.75, 1.25)
        height = chest.top + chest.lung_height * rng.uniform(-0.6, 0.6)
        stretch = rng.uniform(0.7, 1.4)
        across = (x - chest.centre - side) / radius
        down = (y - height) / (radius * stretch)
        spots.append((strength, np.exp(-(across**2) - down**2)))
    return spots


def _fine_texture(label: int, rng: np.random.Generator) -> float:
    """Returns the amplitude of a fine texture that tells the class; ε = 0.03 can forge it."""
    return rng.uniform(0.008, 0.022) if label else rng.uniform(0.0, 0.013)
