"""A network small enough for tests: convolution, BatchNorm, mean, head. And data to match."""

import csv
import io
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from medadv_jax.config import Config
from medadv_jax.input_pipeline import Dataset
from medadv_jax.splits import Example

SIZE = 16  # pixels


class TinyNet(nn.Module):
    """Takes the arguments of every network of the table."""

    num_classes: int = 2
    width: float = 1.0
    dtype: str = "float32"
    forms: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        hidden = nn.Conv(8, (3, 3), (2, 2))(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        hidden = nn.relu(nn.Conv(8, (3, 3), (2, 2))(hidden))
        return nn.Dense(self.num_classes)(hidden.mean((1, 2))).astype(jnp.float32)


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
    config.eval.batch_size = 8
    config.eval.checks = config.detector.run = False  # tested by themselves; see test_experiment
    config.eval.check_images = 8
    config.attack.loop = "fori_loop"  # compiles sooner
    return config


def tiny_dataset(count: int, seed: int = 0) -> Dataset:
    """Returns images whose class is their brightness, in memory."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    noise = rng.integers(0, 100, (count, SIZE, SIZE, 3))
    images = (noise + 60 * labels[:, None, None, None] + 40).astype(np.uint8)
    examples = tuple(
        Example(f"e{i}", int(label), f"g{i // 2}", 0, "", str(i)) for i, label in enumerate(labels)
    )
    return Dataset("tiny", ("negative", "positive"), examples, {}, list(images))


def read_results(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a results.csv as text."""
    return list(csv.DictReader(io.StringIO(path.read_text())))
