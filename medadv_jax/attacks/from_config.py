"""Attacks at the radius, norm and step size of a config."""

from typing import Any

from medadv_jax.attacks import EVALUATION_ATTACKS, make_attack
from medadv_jax.config import Config


def attack_from_config(
    config: Config, name: str, num_steps: int, epsilon: float | None = None, **options: Any
) -> Any:
    """Returns the attack `name` as `config.attack` has it, at another radius if one is given.

    The step size follows from radius and number of steps. `options`: further fields of `Attack`.
    Those of `EVALUATION_ATTACKS` take their published numbers of steps, not `num_steps`, and no
    options.
    """
    settings = config.attack
    radius = settings.epsilon if epsilon is None else epsilon
    if name in EVALUATION_ATTACKS:
        return make_attack(name, radius, norm=settings.norm)
    if name == "mifgsm":
        options["decay"] = settings.decay
    elif name != "fgsm":
        options["step_size"] = settings.relative_step * radius / num_steps
    return make_attack(name, radius, num_steps=num_steps, norm=settings.norm, **options)
