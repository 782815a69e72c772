"""A model as an ONNX program: images (B, S, S, 3) uint8, any B → probabilities and logits (B, K).

    write_onnx(model, Path("model.onnx"))
    probability, logits = run_onnx(Path("model.onnx"), images)

By jax2onnx, run by onnxruntime; both come with the extra `onnx`. BatchNorm is folded into the
convolutions.
"""

# pyright: reportMissingImports=false
# The extra `onnx` is not in the lock file that the code is checked with.

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from medadv_jax.classifier import to_pixels
from medadv_jax.deployment.model import Model
from medadv_jax.errors import UserError

_OPSET = 21  # of ONNX; onnxruntime 1.18 and later read it
INPUT, OUTPUTS = "images", ("probabilities", "logits")


def write_onnx(model: Model, path: Path) -> None:
    """Writes one file with program and weights.

    Args:
      model: with convolutions in their plain form; see `Model.with_conv_impl`.
      path: of the file.

    Raises:
      UserError: jax2onnx is missing, or the model computes in bfloat16, which onnxruntime cannot.
    """
    parts = [part for part in (model.description.network, model.description.purifier) if part]
    if any(part["dtype"] != "float32" for part in parts):
        raise UserError("--format=onnx: the model computes in bfloat16; export it by stablehlo")
    with explained(), quiet(), jax.numpy_rank_promotion("allow"):  # the converter needs it
        import jax2onnx

        size, (count,) = model.image_size, export.symbolic_shape("B")
        images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
        program: Any = jax2onnx.to_onnx(
            _function(model), [images], model_name="medadv_jax", opset=_OPSET,
            input_names=[INPUT], output_names=[*OUTPUTS],
        )  # fmt: skip
    path.write_bytes(program.SerializeToString())


def _function(model: Model) -> Any:
    classifier, variables = model.classifier.folded(), model.classifier.fold(model.variables)
    variables = jax.tree.map(np.asarray, variables)  # constants of the program

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = classifier.logits(variables, to_pixels(images), model.gradient)
        return jax.nn.softmax(logits, axis=-1), logits

    return run


def open_onnx(path: Path, threads: int = 0) -> Any:
    """Returns an onnxruntime session on the CPU; `threads`: 0 for all cores."""
    with explained():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the program in a file says of images (B, S, S, 3) uint8."""
    probability, logits = open_onnx(path).run([*OUTPUTS], {INPUT: images})
    return probability, logits


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Names the extra where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--format=onnx: {error.name} is missing; pip install 'medadv_jax[onnx]'"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings of converter and quantiser about their own graphs from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
