"""The deployed classifier: pixels → purifier? → normalise → network → logits."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.models.ops.batchnorm_folding import fold, folded_network, in_compute_dtype

Variables = dict[str, Any]  # {"params": …, "batch_stats": …, "purifier": …}; see `Classifier`
# what an attack differentiates; see `Classifier.logits`
GRADIENTS = ("full", "bpda", "bare", "student")

# The backend's fastest, such as TF32 on GPUs and bfloat16 on TPUs; 3 passes of it; float32.
PRECISIONS = ("default", "high", "highest")


class Normalization(NamedTuple):
    """From pixels to a network's inputs: (channels - mean) / std."""

    mean: tuple[float, float, float]  # in pixels of [0, 1], in the order of the network's channels
    std: tuple[float, float, float]
    bgr: bool = False  # whether the network's channels are blue, green, red


NORMALIZATIONS: dict[str, Normalization] = {
    # torchvision's
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # [0, 1] -> [-1, 1]: Keras' "tf", and torchvision's InceptionV3 with `transform_input`
    "symmetric": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # Keras' "caffe": 0 to 255, less the means of ImageNet
    "caffe": Normalization(
        (103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True
    ),
}


def to_pixels(images: jax.Array) -> jax.Array:
    """Returns float32 in [0, 1] from uint8, (…) -> (…)."""
    return images.astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network with purifier and normalisation, as a function of pixels.

    Its variables are {"params": …, "batch_stats": …}, the network's; "purifier": the purifier's
    parameters, if there is one; "logit_bias" (K,): added to the logits, if it decides by another
    threshold than the largest logit.

    Attributes:
      network: a Flax module from `create_model`; takes normalised images.
      normalization: a key of `NORMALIZATIONS`.
      purifier: a Flax module from `create_purifier`: pixels -> pixels, both (B, H, W, 3) float32
        in [0, 1]; None: none.
      student: a narrower network of the same kind, which `logits` runs on variables of its own, so
        that one program runs all classifiers of a run; None: none.
      precision: of the products of networks that compute in float32, a key of `PRECISIONS`. On
        CPUs all are float32's. The head's products are float32's in any case.
    """

    network: nn.Module
    normalization: str = "imagenet"
    purifier: nn.Module | None = None
    student: nn.Module | None = None
    precision: str = "highest"

    def init(self, key: jax.Array, image_size: int) -> Variables:
        """Returns fresh variables for images of `image_size` × `image_size` pixels."""
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = dict(self.network.init(key, images))
        variables.setdefault("batch_stats", {})  # a network without BatchNorm has none
        if self.purifier is not None:
            variables["purifier"] = self.init_purifier(key, image_size)
        return variables

    def init_purifier(self, key: jax.Array, image_size: int) -> Any:
        """Returns fresh parameters of the purifier."""
        assert self.purifier is not None
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        return self.purifier.init(jax.random.fold_in(key, 1), images)["params"]

    def folded(self) -> "Classifier":
        """Returns the classifier that takes the variables of `fold`, for attacks, which run the
        same network many times."""
        student = self.student and folded_network(self.student)
        return dataclasses.replace(self, network=folded_network(self.network), student=student)

    def fold(self, variables: Variables) -> Variables:
        """Returns the variables prepared for many passes: BatchNorm folded into the kernels, and
        parameters in the compute dtype; see `models/ops/batchnorm_folding.py`."""
        folded = fold(self.network, variables)
        if self.purifier is None or "purifier" not in variables:
            return folded
        return {**folded, "purifier": in_compute_dtype(self.purifier, folded["purifier"])}

    def purify(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        """Returns the purified pixels; without a purifier the pixels themselves."""
        if self.purifier is None:
            return pixels
        with self._products(self.purifier):
            return cast(jax.Array, self.purifier.apply({"params": variables["purifier"]}, pixels))

    def logits(self, variables: Variables, pixels: jax.Array, gradient: str = "full") -> jax.Array:
        """Returns logits, (B, H, W, 3) in [0, 1] -> (B, K) float32.

        Args:
          variables: see the class.
          pixels: images.
          gradient: "full": of the deployed classifier; "bpda": the deployed classifier's values,
            with the purifier taken for the identity in the backward pass (Athalye et al. 2018,
            section 4.1.1); "bare": the network without its purifier, value and gradient; "student":
            the same of the student's network.
        """
        if gradient == "student":
            assert self.student is not None, "there is no student"
            student = Classifier(self.student, self.normalization, precision=self.precision)
            return student.logits(variables, pixels, "bare")
        if gradient == "full":
            pixels = self.purify(variables, pixels)
        elif gradient == "bpda":
            pixels = _straight_through(functools.partial(self.purify, variables), pixels)
        elif gradient != "bare":
            raise ValueError(f"gradient={gradient!r}: known are {', '.join(GRADIENTS)}")
        with self._products(self.network):
            logits = cast(
                jax.Array, self.network.apply(*self._arguments(variables, pixels), train=False)
            )
        return logits + variables["logit_bias"][None] if "logit_bias" in variables else logits

    def logits_fn(
        self, variables: Variables, gradient: str = "full"
    ) -> Callable[[jax.Array], jax.Array]:
        """Returns pixels -> logits with these variables, the function that an attack is given."""
        return functools.partial(self.logits, variables, gradient=gradient)

    def train_logits(
        self, variables: Variables, pixels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns logits under batch statistics and dropout (B, K) float32, and the updated
        statistics; `key` is dropout's."""
        arguments = self._arguments(variables, self.purify(variables, pixels))
        with self._products(self.network):
            logits, updated = self.network.apply(
                *arguments, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
        return logits, updated.get("batch_stats", {})

    def _products(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Sets the precision of the module's matrix products and convolutions, and of their
        gradients, while it is traced. In bfloat16 there is nothing to choose."""
        wide = getattr(module, "dtype", jnp.float32) == jnp.float32
        return jax.default_matmul_precision(self.precision if wide else "default")

    def _arguments(self, variables: Variables, pixels: jax.Array) -> tuple[Variables, jax.Array]:
        """The network's variables, and the normalised images."""
        normalization = NORMALIZATIONS[self.normalization]
        if normalization.bgr:
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in normalization[:2])
        names = ("params", "batch_stats", "spectra")  # the last of `fold`
        own = {name: variables[name] for name in names if name in variables}
        return own, (pixels - mean) / std


def _straight_through(function: Callable[[jax.Array], jax.Array], pixels: jax.Array) -> jax.Array:
    """Returns `function(pixels)` to the bit, with the gradient of the identity."""

    @jax.custom_jvp
    def apply(pixels: jax.Array) -> jax.Array:
        return function(pixels)

    apply.defjvp(lambda primals, tangents: (apply(*primals), tangents[0]))
    return apply(pixels)
