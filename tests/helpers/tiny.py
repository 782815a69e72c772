"""A config, data and a network small enough for tests."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from configs import default, demo
from medadv_jax.classifier import Classifier
from medadv_jax.config import Config
from medadv_jax.data.loader import Dataset
from medadv_jax.data.splits import Example
from medadv_jax.deployment.description import Description, describe_network, describe_purifier
from medadv_jax.deployment.model import Model
from medadv_jax.files import DIGESTS
from medadv_jax.models import create_model
from medadv_jax.models.purifiers import create_purifier
from tools.soak import TinyNet

__all__ = [
    "SIZE", "TinyNet", "age_config", "make_model", "read_results", "tiny_config", "tiny_dataset",
    "write_demo_model",
]  # fmt: skip

CLASSES = ("negative", "positive")
SIZE = 16  # pixels


def tiny_config() -> Config:
    """Returns a config whose run takes seconds."""
    config = default.get_config()
    config.compile_cache = ""  # tests leave nothing behind
    config.data.name = "phantoms"
    config.data.image_size = 32
    config.data.phantom_images = 80
    config.data.per_class = 0
    config.defenses = "base,adversarial"  # all four take twice the time
    config.train.epochs = 2
    config.purifier.epochs = 1
    config.train.batch_size = 16
    config.train.num_steps = 2
    config.eval.num_steps = 2
    config.eval.apgd_steps, config.eval.second_images, config.eval.second_queries = 4, 8, 5
    config.eval.batch_size = 8
    config.eval.checks = config.detector.run = False  # tests/evaluation tests them
    config.eval.check_images = 8
    return config


def age_config(workdir: Path) -> None:
    """Rewrites `config.json` as earlier versions wrote it: an old name, fewer fields, no digest."""
    path = workdir / "config.json"
    saved = json.loads(path.read_text())
    config = saved["config"]
    config["model"]["forms"] = config["model"].pop("conv_impl")
    del config["deterministic"], config["compile_cache"]
    del config["eval"]["images"], config["train"]["checkpoint_minutes"]
    del saved["digests"]
    path.write_text(json.dumps(saved))
    (workdir / DIGESTS).unlink()


def tiny_dataset(count: int, seed: int = 0) -> Dataset:
    """Returns images whose class is their brightness, in memory."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    noise = rng.integers(0, 100, (count, SIZE, SIZE, 3))
    images = (noise + 60 * labels[:, None, None, None] + 40).astype(np.uint8)
    examples = tuple(
        Example(f"e{i}", int(label), f"g{i // 2}", 0, "", str(i)) for i, label in enumerate(labels)
    )
    return Dataset("tiny", CLASSES, examples, {}, list(images))


def make_model(classes: Sequence[str], purified: bool = False, **fields: Any) -> Model:
    """Returns an untrained model for images of 32 pixels; `fields`: of its description."""
    network = TinyNet(len(classes), dtype="float32", conv_impl="plain")
    purifier = create_purifier("spatial", 8, 0.25) if purified else None
    classifier = Classifier(network, "imagenet", purifier)
    described = Description(
        describe_network(network, "resnet50"), describe_purifier(purifier, "spatial"), "imagenet",
        tuple(classes), 32, "crop", **fields,
    )  # fmt: skip
    return Model(described, classifier, jax.jit(lambda: classifier.init(jax.random.key(1), 32))())


def write_demo_model(folder: Path) -> None:
    """Writes an untrained hybrid as the demo's run has it, and an image, into a folder."""
    config = demo.get_config()
    network = create_model("vgg16", 2, 0.125, head="gap")
    purifier = create_purifier("unet", 8, 0.25)
    classifier = Classifier(network, "imagenet", purifier)
    described = Description(
        describe_network(network, "vgg16"), describe_purifier(purifier, "unet"), "imagenet",
        CLASSES, config.data.image_size, "crop", detectors={"squeezing": 0.5},
        evaluation={"defense": "hybrid", "attack": {"norm": "linf"}},
    )  # fmt: skip
    init = jax.jit(classifier.init, static_argnums=1)
    run = folder / "runs/demo"
    Model(described, classifier, init(jax.random.key(0), config.data.image_size)).save(
        run / "models/hybrid"
    )
    (run / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    Image.new("RGB", (60, 50), "grey").save(folder / "image.png")


def read_results(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a results.csv as text."""
    return list(csv.DictReader(io.StringIO(path.read_text())))
