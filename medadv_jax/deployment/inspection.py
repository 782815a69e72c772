"""What the page shows of one image: what the model says, where it looks, and both when attacked."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from medadv_jax.classifier import to_pixels
from medadv_jax.deployment.attack_images import attack_images
from medadv_jax.deployment.model import Model
from medadv_jax.evaluation import saliency
from medadv_jax.evaluation.overlay import overlay

_ATTACK = "pgd"  # 10 steps


class View(NamedTuple):
    """What a model says of an image.

    Attributes:
      probability: of each class, in the model's order.
      detectors: name -> (score, threshold or None, is it flagged?).
      pictures: caption -> picture, in the order of the page.
    """

    probability: Mapping[str, float]
    detectors: Mapping[str, tuple[float, float | None, bool]]
    pictures: Mapping[str, Image.Image]

    @property
    def predicted(self) -> str:
        """The name of the most likely class."""
        return max(self.probability, key=lambda name: self.probability[name])


class Inspector:
    """Looks at images (S, S, 3) uint8, one at a time; every program is compiled once."""

    def __init__(self, model: Model):
        self.model = model
        self._maps = saliency.make_maps(model.classifier, model.gradient)
        self._purify = jax.jit(model.classifier.purify)

    def warm_up(self) -> None:
        """Compiles all programs."""
        grey = np.full((self.model.image_size, self.model.image_size, 3), 128, np.uint8)
        self.look(grey)
        self.attack(grey, 1)

    def look(self, image: np.ndarray) -> View:
        """Returns what the model says of an image; with saliency maps of the predicted class."""
        view = self._view(image, {"Image, as the model reads it": Image.fromarray(image)})
        label = np.array([self.model.classes.index(view.predicted)])
        shares, cam = self._maps(self.model.variables, _pixels(image), label)
        overlays = {
            "Integrated gradients": overlay(image, np.asarray(shares[0])),
            "Grad-CAM": overlay(image, np.asarray(cam[0])),
        }
        return view._replace(pictures={**view.pictures, **overlays})

    def attack(self, image: np.ndarray, levels: int) -> View:
        """Attacks the class that the model predicts, by PGD through all of it, purifier included.

        Args:
          image: (S, S, 3) uint8.
          levels: the radius in steps of 8-bit pixels, at least 1: ε is `levels` / 255.

        Returns:
          What the model says of the attacked image, rounded to 8 bits.
        """
        label = self.model.predict(image[None], 1, detect=False).label
        found, _ = attack_images(self.model, image[None], label, _ATTACK, levels / 255)
        gain = 127 // levels
        change = 128 + gain * (found[0].astype(int) - image)
        pictures = {
            "Attacked image": Image.fromarray(found[0]),
            f"Perturbation, amplified {gain} times": Image.fromarray(change.astype(np.uint8)),
        }
        return self._view(found[0], pictures | self._purified_picture(found[0]))

    def _view(self, image: np.ndarray, pictures: Mapping[str, Image.Image]) -> View:
        model = self.model
        said = model.predict(image[None], 1)
        limits = model.description.detectors
        detectors = {
            name: (float(score[0]), limits.get(name), bool(said.flagged.get(name, [False])[0]))
            for name, score in said.scores.items()
        }
        named = zip(model.classes, map(float, said.probability[0]), strict=True)
        return View(dict(named), detectors, pictures)

    def _purified_picture(self, image: np.ndarray) -> dict[str, Image.Image]:
        """The image behind the purifier; nothing without a purifier."""
        if self.model.classifier.purifier is None:
            return {}
        purified = np.asarray(self._purify(self.model.variables, _pixels(image))[0])
        picture = Image.fromarray(np.rint(255 * purified).clip(0, 255).astype(np.uint8))
        return {"Purified image": picture}


def _pixels(image: np.ndarray) -> jax.Array:
    return to_pixels(jnp.asarray(image[None]))
