"""Tissue stained with haematoxylin and eosin: stroma, gaps and nuclei.

Malignant nuclei are more, larger, darker and less regular.
"""

from dataclasses import dataclass

import numpy as np

from medadv_jax.data.phantoms import fields

# Optical density of the two stains in red, green and blue (Ruifrok and Johnston 2001).
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
_SCALE = {40: 0.72, 100: 0.85, 200: 1.0, 400: 1.25}  # of a nucleus, by magnification


@dataclass(frozen=True)
class _Slide:
    """Properties shared by all images of a patient."""

    haematoxylin: np.ndarray  # (3,) optical densities
    eosin: np.ndarray
    light: np.ndarray  # (3,) colour of the lamp
    fibre_angle: float
    fibre_waves: float
    gaps: float  # threshold above which there is no tissue
    density: float  # of nuclei, around 1


@dataclass(frozen=True)
class _Nuclei:
    """Appearance of the nuclei of one image."""

    count: int
    radius: float  # mean, as a fraction of the image's side
    variety: float  # standard deviation of the logarithm of the radius
    irregularity: float  # of the outline, in radii
    darkness: float  # density of haematoxylin


def draw(
    label: int, patient_rng: np.random.Generator, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, int]:
    """Draws one image.

    Args:
      label: 1 for malignant.
      patient_rng: for properties shared by the patient's images.
      rng: for the rest.
      size: pixels a side.

    Returns:
      (size, size, 3) uint8 and the magnification: 40, 100, 200 or 400.
    """
    slide = _slide(patient_rng)
    bundles = fields.texture(patient_rng, size, 1, 7)
    magnification = int(rng.choice(list(_SCALE)))
    scale = _SCALE[magnification]
    stroma, tissue = _stroma(slide, bundles, rng, size)
    nuclei = _nuclei(label, slide, rng, scale)
    chromatin = _chromatin(nuclei, rng, size)
    grain = fields.texture(rng, size, 18, 28)
    blue = 0.05 * tissue + chromatin * tissue * (1 + 0.25 * grain)
    blue += _fine_texture(label, rng) * grain
    pink = stroma * (1 - 0.5 * np.clip(chromatin, 0, 1))
    density = blue[..., None] * slide.haematoxylin + pink[..., None] * slide.eosin
    image = slide.light * np.exp(-density)
    image += 0.008 * fields.texture(rng, size, 1, 128)[..., None]
    return fields.to_uint8(image), magnification


def _slide(rng: np.random.Generator) -> _Slide:
    tints = rng.normal(1, 0.06, (2, 3)).astype(np.float32)
    return _Slide(
        haematoxylin=_HAEMATOXYLIN * tints[0] * rng.uniform(0.85, 1.15),
        eosin=_EOSIN * tints[1] * rng.uniform(0.7, 1.25),
        light=rng.uniform(0.9, 0.98, 3).astype(np.float32),
        fibre_angle=rng.uniform(0, np.pi),
        fibre_waves=rng.uniform(5, 9),
        gaps=rng.uniform(1.1, 2.0),
        density=rng.uniform(0.8, 1.25),
    )


def _stroma(
    slide: _Slide, bundles: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the density of eosin and the fraction of tissue, both (size, size)."""
    x, y = fields.grid(size)
    angle = slide.fibre_angle + rng.normal(0, 0.15)
    along = x * np.cos(angle) + y * np.sin(angle)
    phase = 2 * np.pi * slide.fibre_waves * along + 2.2 * bundles + rng.uniform(0, 2 * np.pi)
    tissue = fields.soft_edge(slide.gaps - bundles - 0.4 * fields.texture(rng, size, 2, 8), 0.25)
    cloudy = fields.texture(rng, size, 2, 16)
    eosin = 0.42 + 0.09 * np.cos(phase) + 0.05 * cloudy
    return np.clip(eosin, 0, None) * tissue, tissue


def _nuclei(label: int, slide: _Slide, rng: np.random.Generator, scale: float) -> _Nuclei:
    grade = rng.normal(0.75, 0.18) if label else rng.normal(0.15, 0.15)
    grade = float(np.clip(grade, 0, 1.1))
    wobble = rng.normal(1, 0.08, 4)
    return _Nuclei(
        count=int((26 + 26 * grade) * slide.density * wobble[0] / scale),
        radius=(0.026 + 0.018 * grade) * wobble[1] * scale,
        variety=0.10 + 0.25 * grade * wobble[2],
        irregularity=0.05 + 0.14 * grade,
        darkness=(0.75 + 0.55 * grade) * wobble[3],
    )


def _chromatin(nuclei: _Nuclei, rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns the nuclei's density of haematoxylin, (size, size)."""
    x, y = fields.grid(size)
    chromatin = np.zeros((size, size), np.float32)
    for _ in range(nuclei.count):
        centre_x, centre_y = rng.uniform(-0.02, 1.02, 2)
        radius = nuclei.radius * np.exp(rng.normal(0, nuclei.variety))
        darkness = nuclei.darkness * rng.uniform(0.75, 1.15)
        stretch, turn = rng.uniform(1.0, 1.6), rng.uniform(0, np.pi)
        bumps = nuclei.irregularity * np.clip(rng.normal(0, 1, 3), -1.5, 1.5)
        low = np.floor((np.array([centre_y, centre_x]) - 1.9 * radius) * size).astype(int)
        high = np.ceil((np.array([centre_y, centre_x]) + 1.9 * radius) * size).astype(int) + 1
        (top, left), (bottom, right) = np.clip(low, 0, size), np.clip(high, 0, size)
        across, down = x[:, left:right] - centre_x, y[top:bottom] - centre_y
        angle = np.arctan2(down, across) - turn
        outline = 1 + sum(bump * np.cos(k * angle + k) for k, bump in enumerate(bumps, start=1))
        squeeze = np.sqrt(np.cos(angle) ** 2 / stretch + np.sin(angle) ** 2 * stretch)
        distance = (outline / squeeze - np.hypot(across, down) / radius) * radius
        edge = max(0.006, 0.4 / size)
        box = chromatin[top:bottom, left:right]
        np.maximum(box, darkness * fields.soft_edge(distance, edge), out=box)
    return chromatin


def _fine_texture(label: int, rng: np.random.Generator) -> float:
    """Returns the amplitude of a fine texture that tells the class; ε = 0.03 can forge it."""
    return rng.uniform(0.012, 0.035) if label else rng.uniform(0.0, 0.02)
