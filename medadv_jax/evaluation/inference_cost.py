"""What a prediction costs: parameters, FLOPs and latency of one image, in `inference_cost.json`."""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from medadv_jax.classifier import Classifier
from medadv_jax.evaluation.threat_models import Target
from medadv_jax.files import write_json
from medadv_jax.models.ops.flops import layer_flops

_WARM, _RUNS = 3, 20


def inference_cost(classifier: Classifier, target: Target, image_size: int) -> dict[str, float]:
    """Returns what the prediction of one image costs, as the classifier is deployed.

    Args:
      classifier: of the target's variables.
      target: the classifier.
      image_size: height and width in pixels.

    Returns:
      "parameters": trained numbers, the purifier's with the network's where it is deployed;
      "flops": of one forward pass, whatever the backend's algorithm, see `ops/flops.py`;
      "milliseconds": the median of 20 calls with one image on this device.
    """
    pixels = jnp.full((1, image_size, image_size, 3), 0.5, jnp.float32)
    arguments = target.variables, pixels
    program = jax.jit(classifier.logits, static_argnums=2).lower(*arguments, target.deployed)
    plain = functools.partial(_plain(classifier).logits, gradient=target.deployed)
    return {
        "parameters": count_parameters(target),
        "flops": sum(layer_flops(plain, *arguments)),
        "milliseconds": 1000 * _median_seconds(program.compile(), arguments),
    }


def _plain(classifier: Classifier) -> Classifier:
    """Returns the classifier with every convolution as one operation of XLA."""
    networks = {"network": classifier.network, "purifier": classifier.purifier}
    changed = {
        name: network.clone(conv_impl="plain")
        for name, network in networks.items()
        if getattr(network, "conv_impl", "plain") != "plain"
    }
    return dataclasses.replace(classifier, **changed)


def count_parameters(target: Target) -> int:
    """Returns how many numbers were trained of what is deployed."""
    parts = ("params", "purifier") if target.deployed == "full" else ("params",)
    leaves = jax.tree.leaves([target.variables.get(part, {}) for part in parts])
    return sum(leaf.size for leaf in leaves)


def _median_seconds(program: Any, arguments: tuple[Any, ...]) -> float:
    seconds = []
    for _ in range(_WARM + _RUNS):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM:])


def write_inference_cost(
    path: Path,
    classifier: Classifier,
    targets: Mapping[str, Target],
    image_size: int,
    advance: Callable[[int], None] = lambda programs: None,
) -> None:
    """Writes `inference_cost.json`: the device, and the cost of each defence's classifier.

    Classifiers of one program, such as `base` and `adversarial`, are measured once. `advance`: told
    the number of programs done.
    """
    costs: dict[str, dict[str, float]] = {}
    for target in {each.deployed: each for each in targets.values()}.values():
        costs[target.deployed] = inference_cost(classifier, target, image_size)
        advance(1)
    classifiers = {name: costs[target.deployed] for name, target in targets.items()}
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    write_json(path, {"device": device, "classifiers": classifiers})
