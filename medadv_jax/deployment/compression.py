"""Smaller versions of a trained model: bfloat16 weights, and 8-bit integers for ONNX programs.

to_bfloat16(model)                       # a Model, which is exported like any other
quantize_onnx(source, target, images)    # weights and activations, calibrated on images
"""

# pyright: reportMissingImports=false
# The extra `onnx` is not in the lock file that the code is checked with.

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.deployment.description import make_classifier
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.onnx_program import INPUT, explained, quiet
from medadv_jax.errors import UserError

# images (B, S, S, 3) uint8 -> probabilities (B, K), logits (B, K)
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
LEAST = 20  # images to calibrate on
_BATCH = 10  # of them at a time
_QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Transpose")


def to_bfloat16(model: Model) -> Model:
    """Returns the model that computes in bfloat16, with kernels rounded to it.

    Biases, the statistics of BatchNorm, the sums of the head and the logits stay float32.
    """
    described, dtype = model.description, {"dtype": "bfloat16"}
    purifier = described.purifier and {**described.purifier, **dtype}
    described = dataclasses.replace(
        described, network={**described.network, **dtype}, purifier=purifier
    )
    return Model(described, make_classifier(described, "plain"), _round(model.variables))


def _round(variables: Any) -> Any:
    """Returns variables whose kernels have values of bfloat16, as float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.ndim > 1 else leaf,
        variables,
    )


def quantize_onnx(source: Path, target: Path, images: np.ndarray) -> None:
    """Writes an ONNX program with 8-bit weights and activations (static quantisation, QDQ form).

    Weights are symmetric, with a scale for each channel; activations are asymmetric, with the range
    that they have on `images`. See Jacob et al. (2018), eq. 1.

    Args:
      source: a float32 program from `write_onnx`.
      target: the file to write.
      images: (n, S, S, 3) uint8, to calibrate on.

    Raises:
      UserError: fewer than 20 images, or onnxruntime is missing.
    """
    if len(images) < LEAST:
        raise UserError(
            f"--quantize=int8: {len(images)} images to calibrate on, and at least {LEAST} are"
            " needed; give a folder of more by --images"
        )
    with explained(), quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference

        prepared = target.with_name(f"{target.name}.prepared")
        # Joins the transposes around convolutions.
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared, target, _Reader(images), per_channel=True,
            op_types_to_quantize=[*_QUANTIZED],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        prepared.unlink()


class _Reader:
    """Hands batches of images to the calibration."""

    def __init__(self, images: np.ndarray):
        parts = (images[first : first + _BATCH] for first in range(0, len(images), _BATCH))
        self._parts = ({INPUT: part} for part in parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next inputs, None at the end."""
        return next(self._parts, None)


def as_function(
    run: Runner, like: Callable[[jax.Array], jax.Array], num_classes: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns a program of 8-bit images as a function that attacks and `evaluate` take.

    Its values are the program's, on pixels rounded to 8 bits. Its gradient is the one of `like` at
    the pixels, as if nothing were rounded: straight through (Athalye et al. 2018, section 4.1).

    Args:
      run: images (B, S, S, 3) uint8 -> probabilities and logits, (B, K) each; without jax.
      like: pixels (B, S, S, 3) float32 in [0, 1] -> logits (B, K); the model before compression.
      num_classes: K.
    """

    def ask(pixels: Any) -> np.ndarray:
        return np.asarray(run(to_8_bits(np.asarray(pixels)))[1], np.float32)

    @jax.custom_jvp
    def function(pixels: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((len(pixels), num_classes), jnp.float32)
        return jax.pure_callback(ask, shape, pixels)

    function.defjvp(
        lambda primals, tangents: (function(*primals), jax.jvp(like, primals, tangents)[1])
    )
    return function


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Returns the nearest uint8 values of pixels in [0, 1]."""
    return np.rint(255 * pixels).astype(np.uint8)
