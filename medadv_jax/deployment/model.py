"""A trained classifier to ask: `medadv_jax.load`."""

import functools
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.data.images import read_bounded, read_square
from medadv_jax.defenses.detectors import DETECTORS
from medadv_jax.deployment import from_run
from medadv_jax.deployment.description import (
    Description,
    make_classifier,
    usable_detectors,
)
from medadv_jax.deployment.model_folder import (
    is_model_folder,
    read_model_folder,
    write_model_folder,
)
from medadv_jax.errors import UserError


class Predictions(NamedTuple):
    """What a model says of n images.

    Attributes:
      label: (n,) int32, the predicted class.
      probability: (n, K) float32, softmax of the logits.
      scores: name of a detector -> (n,) float32; higher is more suspicious.
      flagged: name of a calibrated detector -> (n,) bool: is the score above its threshold?
    """

    label: np.ndarray
    probability: np.ndarray
    scores: dict[str, np.ndarray]
    flagged: dict[str, np.ndarray]


class Model:
    """A deployed classifier: purifier, normalisation and network, with all that is known of it.

    Args of the constructor: what it is, its function, its variables.
    """

    def __init__(self, description: Description, classifier: Classifier, variables: Variables):
        if description.evaluation.get("labels") == "several":
            raise UserError(
                "a model of several labels an image only starts another run, as"
                " --config.model.weights=FOLDER; give one of classes that exclude each other"
            )
        self.description, self.classifier = description, classifier
        self.variables: Variables = jax.device_put(variables)
        if description.logit_bias:
            bias = np.zeros(len(description.classes), np.float32)
            bias[1] = description.logit_bias
            self.variables = {**self.variables, "logit_bias": jax.device_put(bias)}
        self.gradient = "full" if classifier.purifier is not None else "bare"
        # As in the evaluation of a run: a program of the logits alone.
        self._logits = jax.jit(functools.partial(classifier.logits, gradient=self.gradient))
        self._scores = jax.jit(self._all_scores)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of label 0, 1, …"""
        return self.description.classes

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.description.image_size

    @property
    def card(self) -> dict[str, Any]:
        """What is known of the model, as in `model.json`: data, results, checks, provenance."""
        return self.description.to_json()

    def logits(self, pixels: jax.Array, gradient: str = "") -> jax.Array:
        """Returns logits, (B, S, S, 3) float32 in [0, 1] -> (B, K) float32; differentiable.

        `gradient`: "": of the deployed classifier; else see `Classifier.logits`.
        """
        return self.classifier.logits(self.variables, pixels, gradient or self.gradient)

    def surrogates(self) -> list[Callable[[jax.Array], jax.Array]]:
        """Returns the functions whose gradients an attacker follows as well: BPDA of a purifier."""
        bpda = functools.partial(self.logits, gradient="bpda")
        return [bpda] if self.classifier.purifier is not None else []

    def logits_of(self, images: Any, batch_size: int = 32) -> np.ndarray:
        """Returns logits (n, K) float32 of images as `predict` takes them."""
        pixels, found = self._checked(np.asarray(images)), []
        for part, whole in _batches(pixels, batch_size):
            found.append(np.asarray(self._logits(self.variables, whole))[: len(part)])
        return np.concatenate([np.zeros((0, len(self.classes)), np.float32), *found])

    def predict(self, images: Any, batch_size: int = 32, detect: bool = True) -> Predictions:
        """Returns predictions.

        Args:
          images: (n, S, S, 3), uint8, or floating in [0, 1]; n ≥ 0.
          batch_size: images at a time; the last batch is filled up, so that each size is compiled
            once.
          detect: whether the detectors score the images: a few more passes of the network.

        Raises:
          ValueError: images of another shape, type or range.
        """
        names = usable_detectors(self.classifier) if detect else []
        scores = {name: [np.zeros(0, np.float32)] for name in names}
        for part, whole in _batches(self._checked(np.asarray(images)), batch_size):
            found = self._scores(self.variables, whole) if detect else {}
            for name, values in found.items():
                scores[name].append(np.asarray(values)[: len(part)])
        joined = {name: np.concatenate(of) for name, of in scores.items()}
        return self._predictions(self.logits_of(images, batch_size), joined)

    def _predictions(self, logits: np.ndarray, scores: dict[str, np.ndarray]) -> Predictions:
        probability = np.asarray(jax.nn.softmax(logits, axis=-1))
        label = logits.argmax(axis=-1)
        limits = self.description.detectors
        flagged = {name: scores[name] > limits[name] for name in scores if name in limits}
        return Predictions(label.astype(np.int32), probability, scores, flagged)

    def _all_scores(self, variables: Variables, pixels: jax.Array) -> dict[str, jax.Array]:
        names = usable_detectors(self.classifier)
        return {name: DETECTORS[name](self.classifier, variables, pixels) for name in names}

    def _checked(self, images: np.ndarray) -> np.ndarray:
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images of shape {images.shape}: the model takes (n, {size}, {size}, 3); files are"
                " fitted by model.read"
            )
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images of {images.dtype}: give uint8, or floats in [0, 1]")
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"images from {images.min():g} to {images.max():g}: give uint8, or floats in [0, 1]"
            )
        return images.astype(np.float32)

    def read(self, image: str | PathLike[str] | bytes) -> np.ndarray:
        """Returns an image file, or the bytes of one, as the model was trained on it.

        Returns:
          (S, S, 3) uint8.

        Raises:
          BadImageError: it is damaged or no image.
          OSError: it cannot be read.
        """
        content = image if isinstance(image, bytes) else read_bounded(Path(image))
        described = self.description
        return read_square(content, described.image_size, described.fit, described.white)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes a model folder, in place of what is there."""
        trained = {name: self.variables[name] for name in self.variables if name != "logit_bias"}
        arrays: Variables = jax.tree.map(np.asarray, trained)
        self.description = write_model_folder(Path(folder), self.description, arrays)

    def with_conv_impl(self, conv_impl: str) -> "Model":
        """Returns the same model with other convolutions; see `create_model`."""
        classifier = make_classifier(self.description, conv_impl)
        return Model(self.description, classifier, self.variables)


def _batches(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Yields parts of the images, and their pixels filled up to `size`."""
    for first in range(0, len(images), size):
        part = images[first : first + size]
        whole = jnp.asarray(part[np.arange(size) % len(part)])
        yield part, to_pixels(whole) if images.dtype == np.uint8 else whole


def load(path: str | PathLike[str], defense: str | None = None) -> Model:
    """Loads the classifier of a run directory, or of a model folder; see `medadv_jax.load`."""
    folder = Path(path).expanduser()
    if is_model_folder(folder):
        description, variables = read_model_folder(folder)
        own = description.evaluation.get("defense")
        if defense and own and defense != own:
            raise UserError(f"{folder}: a model of defence {own}, not {defense}")
        return Model(description, make_classifier(description), variables)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: neither a run directory nor a model folder; give one of them")
    known = from_run.run_defenses(folder)
    name = defense or (known[0] if len(known) == 1 else "")
    if name not in known:
        raise UserError(f"{folder}: defense={name!r}: the run has {', '.join(known)}; give one")
    if is_model_folder(folder / "models" / name):
        return load(folder / "models" / name)
    return Model(*from_run.restore_model(folder, name))
