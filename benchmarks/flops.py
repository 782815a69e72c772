"""FLOPs of a case, and the peak FLOP/s of the device.

Recomputation and elementwise work are not counted; see `medadv_jax/models/ops/flops.py`.
"""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.cases import ALL, ATTACKS, Case
from medadv_jax.models import create_model
from medadv_jax.models.ops.flops import layer_flops

# The compiler also counts elementwise operations: normalisation, activations, pooling, loss.
TOLERANCE = 0.05
CLASSES = 2


class Counts(NamedTuple):
    """FLOPs of a network on one image."""

    forward: int
    first: int  # forward of the first layer; training needs no gradient to the pixels

    @property
    def input_gradient(self) -> int:
        """Forward, and backward to the pixels only."""
        return 2 * self.forward

    @property
    def train(self) -> int:
        """Forward, and backward to all parameters."""
        return 3 * self.forward - self.first


@functools.cache
def network_flops(model: str, image_size: int) -> Counts:
    """Returns the counts of a network at full width with two classes."""
    per_layer = layer_flops(*_forward(model, image_size))
    return Counts(sum(per_layer), per_layer[0])


def _forward(model: str, image_size: int, batch: int = 1) -> tuple[Any, Any, Any]:
    """Returns the forward pass with plain convolutions, and the shapes of its arguments."""
    network = create_model(model, CLASSES, conv_impl="plain")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return lambda v, x: network.apply(v, x, train=False), variables, images


def case_flops(case: Case) -> int:
    """Returns the FLOPs of one run of a case, over all devices."""
    counts = network_flops(case.model, case.image_size)
    attack = _attack_gradients(case.attack, case.num_steps)
    if case.task == "clean_step":
        each = counts.train
    elif case.task == "attack":
        each = attack * counts.input_gradient
    elif case.task == "adversarial_step":
        # "all": each image gets one of the four. Trains on clean and adversarial images.
        share = attack / len(ATTACKS) if case.attack == ALL else attack
        each = share * counts.input_gradient + 2 * counts.train
    else:  # logits of clean images; each attack scores its last point, then its logits
        each = counts.forward * (1 + 2 * len(ATTACKS)) + attack * counts.input_gradient
    return round(case.batch * each)


def _attack_gradients(attack: str | None, num_steps: int) -> int:
    """Returns the number of gradients for one image; FGSM takes one step."""
    names = ATTACKS if attack == ALL else (attack,) if attack else ()
    return sum(1 if name == "fgsm" else num_steps for name in names)


def compiler_check(model: str, image_size: int) -> dict[str, Any]:
    """Compares our counts with the compiler's, before optimisation, for two images.

    The compiler also counts elementwise operations, so its count may be higher by `TOLERANCE`, but
    not lower by more than 1 %.
    """
    function, variables, images = _forward(model, image_size, batch=2)
    counts = network_flops(model, image_size)

    def total(v: Any, x: Any) -> jax.Array:
        return jnp.sum(function(v, x))

    pairs = {
        "forward": (function, counts.forward),
        "input_gradient": (jax.grad(total, argnums=1), counts.input_gradient),
        "train": (jax.grad(lambda v, x: total(v, x)), counts.train),
    }
    result: dict[str, Any] = {"model": model, "image_size": image_size, "tolerance": TOLERANCE}
    within = True
    for name, (differentiated, ours) in pairs.items():
        analysis = jax.jit(differentiated).lower(variables, images).cost_analysis()
        theirs = float((analysis or {}).get("flops", math.nan)) / 2
        result[name] = {"counted": ours, "compiler": theirs, "ratio": theirs / ours}
        within &= -0.01 <= theirs / ours - 1 <= TOLERANCE
    return result | {"within": within}


class Peak:
    """The highest measured FLOP/s of the device, by precision."""

    def __init__(self):
        self.flops: dict[str, float] = {}

    def measure(self, precision: str, runs: int = 3) -> None:
        """Times a matrix product in `precision`; keeps the best run."""
        size = 2048 if jax.default_backend() == "cpu" else 8192
        key = jax.random.key(0)
        left = jax.random.normal(key, (size, size), jnp.dtype(precision))
        multiply = jax.jit(jnp.matmul)
        seconds = best_seconds(lambda: multiply(left, left), runs)
        self.flops[precision] = max(self.flops.get(precision, 0.0), 2 * size**3 / seconds)

    def share(self, case: Case, seconds: float) -> float | None:
        """Returns a run's fraction of the peak; virtual CPU devices share one machine's peak."""
        if case.precision not in self.flops:
            return None
        devices = 1 if jax.default_backend() == "cpu" else case.devices
        return case_flops(case) / seconds / (devices * self.flops[case.precision])


def copy_bytes_per_second() -> float:
    """Returns the bytes a second that a copy reads and writes: the memory bandwidth."""
    count = 2**26 if jax.default_backend() == "cpu" else 2**29
    array = jnp.zeros(count, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)  # XLA would optimise a plain copy away
    return 2 * array.nbytes / best_seconds(lambda: copy(array), 5)


def best_seconds(run: Any, runs: int) -> float:
    """Returns the shortest time of `runs` blocking runs, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
