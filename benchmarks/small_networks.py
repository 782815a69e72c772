"""Small trained networks as one function in JAX and in PyTorch, with images to attack.

Three convolutions, the mean over places, and a dense layer, on pixels of [0, 1]. They are trained
on PGD's adversarial images, so that robust accuracy is neither 0 nor 1 at a small ε.
"""

# pyright: reportMissingImports=false
# PyTorch is no dependency of this project; `make peers` installs it.

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.data.phantoms import generate

COUNT = 100  # images to attack
CHANNELS, STRIDES = (16, 32, 64), (2, 2, 1)
Weights = list[tuple[jax.Array, jax.Array]]  # kernel and bias of each layer


class Images(NamedTuple):
    """Images (n, H, W, C) float32 in [0, 1] and labels (n,) int32."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """What is classified.

    Attributes:
      name: in tables.
      classes: K.
      make: returns the images; the last `COUNT` are attacked, the others trained on.
      epsilon: radius by norm, at which about half of the images withstand.
      epochs: of training.
    """

    name: str
    classes: int
    make: Callable[[], Images]
    epsilon: dict[str, float]
    epochs: int


def _phantoms() -> Images:
    found = list(generate("xray", 900, 32, seed=0))
    pixels = np.stack([each["image"] for each in found]).astype(np.float32) / 255
    return Images(pixels, np.array([each["label"] for each in found], np.int32))


def _digits() -> Images:
    """The digits of scikit-learn, doubled to 16 × 16 pixels."""
    found: Any = load_digits()
    pixels, labels = found.data, found.target
    pixels = pixels.reshape(-1, 8, 8, 1).repeat(2, axis=1).repeat(2, axis=2) / 16
    return Images(pixels.astype(np.float32), labels.astype(np.int32))


TASKS = (
    Task("phantoms", 2, _phantoms, {"linf": 0.03, "l2": 0.9}, epochs=15),
    Task("digits", 10, _digits, {"linf": 0.12, "l2": 1.2}, epochs=15),
)


def logits(weights: Weights, pixels: jax.Array) -> jax.Array:
    """Classifies: (N, H, W, C) in [0, 1] -> (N, K)."""
    hidden = 2 * pixels - 1
    for (kernel, bias), stride in zip(weights[:-1], STRIDES, strict=True):
        hidden = jax.lax.conv_general_dilated(
            hidden, kernel, (stride, stride), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        hidden = jax.nn.relu(hidden + bias)
    kernel, bias = weights[-1]
    return hidden.mean((1, 2)) @ kernel + bias


class TorchNetwork(nn.Module):
    """The same function in PyTorch: (N, C, H, W) in [0, 1] -> (N, K)."""

    def __init__(self, weights: Weights):
        super().__init__()
        arrays = [[torch.tensor(np.asarray(each)) for each in layer] for layer in weights]
        self.kernels = nn.ParameterList([kernel.permute(3, 2, 0, 1) for kernel, _ in arrays[:-1]])
        self.biases = nn.ParameterList([bias for _, bias in arrays])
        self.dense = nn.Parameter(arrays[-1][0])

    def forward(self, pixels: Any) -> Any:
        """Classifies."""
        hidden = 2 * pixels - 1
        for kernel, bias, stride in zip(self.kernels, self.biases, STRIDES, strict=False):
            hidden = F.relu(F.conv2d(hidden, kernel, bias, stride, padding=1))
        return hidden.mean((2, 3)) @ self.dense + self.biases[-1]


def train(task: Task, images: Images) -> Weights:
    """Returns weights trained on the images, half of each batch under PGD (Madry et al. 2018)."""
    attack = make_attack("pgd", task.epsilon["linf"], num_steps=5)
    rng, batch = np.random.default_rng(0), 64
    steps = task.epochs * (len(images.labels) // batch)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    weights = _initial(task, images.pixels.shape[-1], rng)

    def loss(weights: Weights, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(logits(weights, pixels), labels).mean()

    @jax.jit
    def step(weights: Weights, state: Any, pixels: jax.Array, labels: jax.Array, key: jax.Array):
        found = attack(lambda x: logits(weights, x), pixels, labels, key)
        both, twice = jnp.concatenate([pixels, found]), jnp.concatenate([labels, labels])
        updates, state = optimizer.update(jax.grad(loss)(weights, both, twice), state)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for number in range(steps):
        if number % (len(images.labels) // batch) == 0:
            order = rng.permutation(len(images.labels))
        rows, order = order[:batch], order[batch:]
        key = jax.random.key(number)
        weights, state = step(weights, state, images.pixels[rows], images.labels[rows], key)
    return weights


def _initial(task: Task, channels: int, rng: np.random.Generator) -> Weights:
    """Returns weights of He et al. (2015), and biases of 0."""
    shapes, inputs = [], channels
    for outputs in CHANNELS:
        shapes.append((3, 3, inputs, outputs))
        inputs = outputs
    shapes.append((inputs, task.classes))
    result = []
    for shape in shapes:
        kernel = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        result.append((jnp.asarray(kernel, jnp.float32), jnp.zeros(shape[-1])))
    return result
