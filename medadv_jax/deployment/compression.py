"""Smaller versions of a trained model: bfloat16 weights, and 8-bit integers for ONNX programs.

to_bfloat16(model)                       # a Model, which is exported like any other
quantize_onnx(source, target, images)    # weights and activations, calibrated on images
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.deployment.description import make_classifier
from medadv_jax.deployment.model import Model
from medadv_jax.errors import UserError

LEAST = 20  # images to calibrate on
_BATCH = 10  # of them at a time
_QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Transpose")


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
      source: a float32 program whose only input is images (B, S, S, 3) uint8.
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
    with _explained(), _quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference

        prepared = target.with_name(f"{target.name}.prepared")
        # Joins transposes, and BatchNorm with convolutions.
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        (name,) = (each.name for each in open_onnx(source).get_inputs())
        quantization.quantize_static(
            prepared, target, _Reader(name, images), per_channel=True,
            op_types_to_quantize=[*_QUANTIZED],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        prepared.unlink()


class _Reader:
    """Hands batches of images to the calibration."""

    def __init__(self, name: str, images: np.ndarray):
        parts = (images[first : first + _BATCH] for first in range(0, len(images), _BATCH))
        self._parts = ({name: part} for part in parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next inputs, None at the end."""
        return next(self._parts, None)


def open_onnx(path: Path, threads: int = 0) -> Any:
    """Returns an onnxruntime session on the CPU; `threads`: 0 for all cores."""
    with _explained():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--format=onnx: {error.name} is missing; pip install 'medadv_jax[onnx]'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the quantiser's advice, which concerns its own command line, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
