"""Noisy samples a second of our certification, beside the usual loop in PyTorch.

    make peers
    .venv-peers/bin/python benchmarks/smoothing.py --output=benchmarks/smoothing.json

Both count the classes of the same number of noisy copies of the same images by the same ResNet50
(untrained: speed does not depend on weights). The loop is that of Cohen et al.'s algorithm: for
each image, batches of copies with `torch.randn_like` noise, argmax, counts; network in
channels_last, inference mode. Ours draws exact integer noise. Both are warmed up, then take turns.
"""

# pyright: reportMissingImports=false
# PyTorch is no dependency of this project; `make peers` installs it.

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import jax
import numpy as np
import torch
from absl import app, flags

from benchmarks.pytorch import Network, load_variables, to_pixels
from benchmarks.report import describe_machine
from medadv_jax.classifier import Classifier
from medadv_jax.defenses.smoothing import LEVELS, make_noise
from medadv_jax.evaluation.certificates import Settings
from medadv_jax.evaluation.certification import NoisyCounter, certify
from medadv_jax.models import create_model

_IMAGES = flags.DEFINE_integer("images", 4, "Images.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 1000, "Noisy copies of each.", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 64, "Pixels, height = width.", lower_bound=32)
_WIDTH = flags.DEFINE_float("width", 0.5, "Of ResNet50.")
_SIGMA = flags.DEFINE_float("sigma", 0.25, "Of the noise.")
_BATCH = flags.DEFINE_list("batch_sizes", ["32", "128"], "Copies at a time; the best counts.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the result.")

LOGITS_BOUND = 1e-4  # largest difference of the two networks over the largest logit


def count_ours(counter: NoisyCounter, images: np.ndarray) -> int:
    """Returns the number of noisy copies that were classified."""
    # α close to 1/2 needs few of the draws' votes, so that no image ends early.
    settings = Settings(selection=counter.block, draws=_DRAWS.value - counter.block, alpha=0.499)
    return sum(c.calls for c in certify(counter, images, settings, jax.random.key(0)))


def count_theirs(network: Network, images: np.ndarray, batch: int) -> int:
    """Returns the number of noisy copies that were classified."""
    total, counts = 0, np.zeros(2, int)
    with torch.inference_mode():
        for image in to_pixels(images.astype(np.float32) / LEVELS, "cpu"):
            left = _DRAWS.value
            while left:
                size = min(batch, left)
                copies = image[None].repeat(size, 1, 1, 1).to(memory_format=torch.channels_last)
                found = network(copies + _SIGMA.value * torch.randn_like(copies)).argmax(1)
                counts += np.bincount(found.numpy(), minlength=2)
                total, left = total + size, left - size
    return total


def main(_: list[str]) -> None:
    """Times both and compares."""
    classifier = Classifier(create_model("resnet50", 2, _WIDTH.value))
    variables = jax.jit(classifier.init, static_argnums=1)(jax.random.key(0), _SIZE.value)
    shape = (_IMAGES.value, _SIZE.value, _SIZE.value, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    network = Network("resnet50", "float32", _WIDTH.value, classifier.normalization)
    load_variables(network, "resnet50", jax.tree.map(np.asarray, variables))
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    pixels = images.astype(np.float32) / LEVELS
    ours, theirs = (
        classifier.logits(variables, jax.numpy.asarray(pixels)),
        network(to_pixels(pixels, "cpu")).numpy(),
    )
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference <= LOGITS_BOUND:
        raise RuntimeError(f"logits differ by {difference:.1e}")
    folded, prepared = classifier.folded(), classifier.fold(variables)
    noise, sizes = make_noise(_SIGMA.value), [int(size) for size in _BATCH.value]
    runs = {}
    for size in sizes:
        counter = NoisyCounter(folded.logits, prepared, noise, 2, slots=size)
        runs[f"medadv_jax, {size}"] = lambda counter=counter: count_ours(counter, images)
        runs[f"pytorch, {size}"] = lambda size=size: count_theirs(network, images, size)
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _turn in range(_ROUNDS.value):
        for name, run in runs.items():
            before = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - before))
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    for name, rate in medians.items():
        print(f"{name:18} {rate:8.1f} samples/s")
    best = [max(v for n, v in medians.items() if n.startswith(w)) for w in ("medadv", "pytorch")]
    print(f"ours is {best[0] / best[1]:.2f} times as fast")
    if _OUTPUT.value:
        content = {
            **describe_machine(), "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(), "image_size": _SIZE.value, "width": _WIDTH.value,
            "logits_differ": difference, "samples_per_second": rates, "ratio": best[0] / best[1],
        }  # fmt: skip
        Path(_OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
