"""Trains a tiny network on whatever devices there are; run by test_sharding.py.

    python tests/helpers/sharding_worker.py FOLDER [--steps=20] [--one_device]
        [--coordinator=HOST:PORT --num_processes=N --process_id=I]

The first process leaves `variables.npz` and `step.hlo`, the compiled step.
"""

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType

from medadv_jax import distributed
from medadv_jax.classifier import Classifier
from medadv_jax.config import Config
from medadv_jax.data.loader import make_loader
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import make_key, make_mesh, put_batch
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import TrainState, create_state
from medadv_jax.training.step import make_train_step
from tests.helpers.tiny import SIZE, tiny_config, tiny_dataset

IMAGES, BATCH = 80, 32  # the last batch of a pass is half padding


class Net(nn.Module):
    """Two convolutions with BatchNorm. Without biases before it: their gradients are rounding,
    and Adam makes whole steps of them."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, H, W, 3) → (B, 2)."""
        hidden = images
        for _ in range(2):
            hidden = nn.Conv(8, (3, 3), (2, 2), use_bias=False)(hidden)
            hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        return nn.Dense(2)(hidden.mean((1, 2)))


def make_config() -> Config:
    """Returns a config under which every kind of attack is trained against."""
    config = tiny_config()
    config.train.batch_size = BATCH
    config.train.attacks = "fgsm,pgd,bim,mifgsm"
    config.train.num_steps = 3
    return config


def train(mesh: Any, steps: int) -> tuple[TrainState, str]:
    """Returns the state after `steps` adversarial steps, and the program of one."""
    config, dataset = make_config(), tiny_dataset(IMAGES)
    classifier = Classifier(Net())
    optimizer = make_optimizer(1e-3, "constant", steps)
    objective = get_defense("adversarial").make_objective(config)
    step: Any = make_train_step(classifier, optimizer, objective, config.data.augment)
    state, _ = create_state(classifier, optimizer, mesh, jax.random.key(0), SIZE)
    key = make_key(mesh, 0, 1)
    part = (jax.process_index(), jax.process_count())
    program, taken, epoch = "", 0, 0
    while taken < steps:
        for host in make_loader(
            dataset, range(IMAGES), BATCH, shuffle_seed=0, epoch=epoch, part=part, num_threads=0
        ):
            batch = put_batch(mesh, host)
            program = program or step.lower(state, batch, key).compile().as_text()
            if taken < steps:
                state, _ = step(state, batch, key)
            taken += 1
        epoch += 1
    return state, program


def main() -> None:
    """Trains, and writes what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one_device", action="store_true")
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--num_processes", type=int, default=0)
    parser.add_argument("--process_id", type=int, default=-1)
    given = parser.parse_args()
    if given.coordinator:
        distributed.start(given.coordinator, given.num_processes, given.process_id)
    mesh = make_mesh()
    if given.one_device:
        mesh = jax.make_mesh(
            (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
        )
    state, program = train(mesh, given.steps)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    if distributed.is_first():
        np.savez(
            given.folder / "variables.npz",
            **{jax.tree_util.keystr(path): leaf for path, leaf in leaves},
        )
        (given.folder / "step.hlo").write_text(program)
    print(f"{jax.process_count()} processes, {mesh.size} devices")


if __name__ == "__main__":
    main()
