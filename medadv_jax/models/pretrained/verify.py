"""Compares a converted network's logits with the original library's, for the same file.

torch, torchvision and keras are no dependencies of this package; install them to verify.
"""

# pyright: reportMissingImports=false

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medadv_jax.errors import UserError
from medadv_jax.models import create_model
from medadv_jax.models.pretrained.load import build_variables
from medadv_jax.models.pretrained.match import MatchedWeights, images_of, original_arrays
from medadv_jax.models.pretrained.read import RawWeights

BOUND = 1e-4  # largest difference of the logits, relative to the largest logit
_KERAS = {"vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50", "inception_v3": "InceptionV3"}


def verify(raw: RawWeights, matched: MatchedWeights) -> float:
    """Runs both networks on two random images of the paper's size.

    Args:
        raw: the content of an original file.
        matched: `match_arrays` of it.

    Returns:
        The largest difference of the logits, relative to the largest logit; at most `BOUND`.

    Raises:
        UserError: the library is not installed, the file has no head, or the logits differ.
    """
    if matched.num_classes is None:
        raise UserError(f"{raw.path}: has no head, so there are no logits to verify")
    originals = {"torchvision": _torchvision_logits, "keras": _keras_logits}
    if raw.layout not in originals:
        raise UserError(f"{raw.path}: is converted already; verify with the original file")
    images = np.random.default_rng(0).standard_normal(images_of(matched.name, 2).shape, np.float32)
    try:
        arrays = original_arrays(raw, matched)
        theirs = originals[raw.layout](matched.name, arrays, matched.num_classes, images)
    except ImportError as error:
        raise UserError(
            f"{error.name or raw.layout} is not installed, so there is nothing to verify with; "
            "install it, or leave --verify out"
        ) from error
    variables, _ = build_variables(matched, None)
    net: Any = create_model(matched.name, matched.num_classes, **matched.options)
    ours = np.asarray(net.apply(variables, images, train=False))
    if not np.isfinite(theirs).all():
        raise UserError(f"{raw.path}: {raw.layout}'s own logits are not finite with these weights")
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference <= BOUND:  # NaN is not
        raise UserError(
            f"{raw.path}: logits differ from {raw.layout}'s by {difference:.1e} of the largest, "
            f"more than {BOUND:g}; nothing was written"
        )
    return difference


def _torchvision_logits(
    name: str, arrays: Mapping[str, np.ndarray], num_classes: int, images: np.ndarray
) -> np.ndarray:
    import torch

    with without_fake_registration(torch):
        models: Any = importlib.import_module("torchvision.models")
    special = {"init_weights": False} if name != "resnet50" else {}
    if name == "inception_v3":
        special |= {"aux_logits": any(key.startswith("AuxLogits.") for key in arrays)}
    network = getattr(models, name)(weights=None, num_classes=num_classes, **special)
    tensors = {key: torch.from_numpy(_float32(array)) for key, array in arrays.items()}
    left = network.load_state_dict(tensors, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    with torch.no_grad():
        return network.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


@contextlib.contextmanager
def without_fake_registration(torch: Any) -> Iterator[None]:
    """Lets torchvision be imported where its compiled operations do not fit the build of torch."""
    register = torch.library.register_fake

    def skip(name: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = skip
    try:
        yield
    finally:
        torch.library.register_fake = register


def _keras_logits(
    name: str, arrays: Mapping[str, np.ndarray], num_classes: int, images: np.ndarray
) -> np.ndarray:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras: Any = importlib.import_module("keras")
    keras.utils.clear_session()  # layer numbers start from 0 again
    network: Any = getattr(keras.applications, _KERAS[name])(
        weights=None,
        input_shape=images.shape[1:],
        classes=num_classes,
        classifier_activation=None,
    )
    for layer in network.layers:
        for weight in layer.weights:
            weight.assign(_float32(arrays[f"{layer.name}/{weight.name}"]))
    return np.asarray(network(images, training=False))


def _float32(array: np.ndarray) -> np.ndarray:
    return np.array(array, np.float32)  # a copy: some are read-only
