"""Refuses images, labels, logits and numbers that would be attacked wrongly without an error.

Shapes and dtypes are checked always, also inside `jax.jit`; values only where arrays are concrete.
Every error is a ValueError.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 1e6  # of radius and step: squares of it, summed over an image, stay inside float32
LINF_RADIUS = "at most 1 with norm=linf, as pixels lie in [0, 1]: take 8/255 = 0.0314, not 8"
MOST_STEPS = 10**6
LARGEST_POWER = 1e30  # of decay ** num_steps, which bounds the momentum
_ROUNDING = 1e-5  # that pixels may lie outside [0, 1]

Logits = Callable[..., jax.Array]


def check_images(images: Any, labels: Any) -> None:
    """Raises ValueError unless images are (B, H, W, C) floats in [0, 1], labels (B,) integers."""
    shape, dtype = np.shape(images), jnp.result_type(images)
    if len(shape) != 4 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"images of shape {shape} and dtype {dtype}: must be (B, H, W, C) floats in [0, 1];"
            " divide bytes by 255"
        )
    found = np.shape(labels)
    if found != shape[:1] or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"labels of shape {found} and dtype {jnp.result_type(labels)}: must be the"
            f" {shape[0]} integer classes of the images, not one-hot"
        )
    low, high = _range(images)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise ValueError(
            f"images from {low:g} to {high:g}: must lie in [0, 1]; put the normalisation into"
            " logits_fn"
        )
    low, high = _range(labels)
    if low < 0:
        raise ValueError(f"labels from {low:g} to {high:g}: must be at least 0")


def check_logits(logits_fn: Logits, labels: Any = ()) -> Logits:
    """Returns `logits_fn`, which now raises ValueError unless its logits are (N, K) floats with
    K at least 2 and above every label."""

    def checked(pixels: jax.Array, *keys: Any) -> jax.Array:
        logits = logits_fn(pixels, *keys)
        shape, dtype = logits.shape, logits.dtype
        if len(shape) != 2 or shape[0] != len(pixels) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"logits of shape {shape} and dtype {dtype}: must be ({len(pixels)}, K) floats"
            )
        if shape[1] < 2:
            raise ValueError(
                f"logits of shape {shape}: must have at least 2 classes; turn the one logit z of a"
                " binary network into two, (0, z)"
            )
        check_classes(labels, shape[1])
        return logits

    return checked


def check_classes(labels: Any, num_classes: int) -> None:
    """Raises ValueError unless all labels are below the number of classes."""
    largest = _range(labels)[1]
    if largest >= num_classes:
        raise ValueError(f"labels up to {largest:g}: must be below the {num_classes} classes")


def check_radius(name: str, epsilon: Any, norm: str) -> None:
    """Raises ValueError unless a radius suits pixels of [0, 1]; a traced one passes."""
    check_number(name, "epsilon", epsilon)
    if norm == "linf" and _number(epsilon) > 1:
        raise ValueError(f"{name}: epsilon={epsilon} must be {LINF_RADIUS}")


def check_number(name: str, field: str, value: Any, high: float = LARGEST) -> None:
    """Raises ValueError unless a number is from 0 to `high`; a traced one passes."""
    number = _number(value)
    if not number >= 0:
        raise ValueError(f"{name}: {field}={value} must be at least 0")
    if number > high:
        raise ValueError(f"{name}: {field}={value} must be at most {high:g}")


def check_count(name: str, field: str, value: int, low: int = 1) -> None:
    """Raises ValueError unless a number of steps, restarts or classes is possible."""
    if not value >= low:
        raise ValueError(f"{name}: {field}={value} must be at least {low}")
    if value > MOST_STEPS or value != int(value):
        raise ValueError(f"{name}: {field}={value} must be an integer of at most {MOST_STEPS:,}")


def check_decay(name: str, decay: Any, num_steps: int) -> None:
    """Raises ValueError if the momentum would leave the range of float32; a traced one passes."""
    check_number(name, "decay", decay)
    number = _number(decay)
    if number > 1 and num_steps * math.log(number) > math.log(LARGEST_POWER):
        raise ValueError(
            f"{name}: decay={decay} must be smaller: raised to the {num_steps} steps it is above"
            f" {LARGEST_POWER:g}"
        )


def _number(value: Any) -> float:
    """Returns a concrete number; 0 for a traced one, of which nothing is known."""
    return 0.0 if isinstance(value, jax.core.Tracer) else float(value)  # pyright: ignore[reportAttributeAccessIssue]


def _range(array: Any) -> tuple[float, float]:
    """Returns the smallest and largest value; zeros for an array that is traced, empty or not of
    this process."""
    known = not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)  # pyright: ignore[reportAttributeAccessIssue]
    if not known or not np.size(array):
        return 0.0, 0.0
    values = np.asarray(array)
    return float(values.min()), float(values.max())
