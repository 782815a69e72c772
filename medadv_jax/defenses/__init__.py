"""Defences: how a classifier is trained, where it starts, on what its checkpoint is chosen.

To add one that trains on other examples, write a function that returns an `ExamplesFn` and name
it in `DEFENSES`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from medadv_jax.attacks import Attack, LogitsFn, make_attack
from medadv_jax.config import Config
from medadv_jax.defenses.adversarial import adversarial_examples
from medadv_jax.defenses.examples import Examples, clean_examples
from medadv_jax.errors import UserError

__all__ = ["DEFENSES", "Defense", "Examples", "ExamplesFn", "attack_from_config", "get_defense"]

# (logits_fn, images, labels, mask, key) -> what to train on, inside the compiled step
ExamplesFn = Callable[[LogitsFn, jax.Array, jax.Array, jax.Array, jax.Array], Examples]


@dataclasses.dataclass(frozen=True)
class Defense:
    """One way to make a classifier.

    Attributes:
      name: the name in `results.csv`.
      make_examples_fn: config -> ExamplesFn.
      starts_from: the defence whose best checkpoint training starts from; None: fresh weights.
      robust_selection: whether the best checkpoint is that of attacked, not of clean validation
        accuracy. Robust accuracy peaks and sinks while clean accuracy rises (Rice et al. 2020).
    """

    name: str
    make_examples_fn: Callable[[Config], ExamplesFn]
    starts_from: str | None
    robust_selection: bool


def attack_from_config(config: Config, name: str, num_steps: int, **options: Any) -> Attack:
    """Returns the attack `name` at the radius, norm and step size of `config.attack`."""
    settings = config.attack
    if name == "mifgsm":
        options["decay"] = settings.decay
    elif name != "fgsm":
        options["step_size"] = settings.relative_step * settings.epsilon / num_steps
    return make_attack(name, settings.epsilon, num_steps=num_steps, norm=settings.norm, **options)


def get_defense(name: str) -> Defense:
    """Returns a defence by name; UserError names the known ones."""
    if name not in DEFENSES:
        raise UserError(f"unknown defence {name!r}: known are {', '.join(sorted(DEFENSES))}")
    return DEFENSES[name]


def _base(config: Config) -> ExamplesFn:
    del config
    return lambda logits_fn, images, labels, mask, key: clean_examples(images, mask)


def _adversarial(config: Config) -> ExamplesFn:
    train = config.train
    return functools.partial(
        adversarial_examples,
        attacks=[attack_from_config(config, a, train.num_steps) for a in train.attacks.split(",")],
        assignment=train.assignment,
        weight=train.adversarial_weight,
        loop=config.attack.loop,
    )


DEFENSES: dict[str, Defense] = {
    "base": Defense("base", _base, None, robust_selection=False),
    "adversarial": Defense("adversarial", _adversarial, "base", robust_selection=True),
}
