"""Attacks at the radius, norm and step size of a config."""

from typing import Any

from medadv_jax.attacks import EVALUATION_ATTACKS, make_attack
from medadv_jax.config import Config


def attack_from_config(config: Config, name: str, num_steps: int, **options: Any) -> Any:
    """Returns the attack `name` at the radius, norm and step size of `config.attack`.

    Those of `EVALUATION_ATTACKS` have their published numbers of steps, not `num_steps`, and no
    options.
    """
    settings = config.attack
    if name in EVALUATION_ATTACKS:
        return make_attack(name, settings.epsilon, norm=settings.norm)
    if name == "mifgsm":
        options["decay"] = settings.decay
    elif name != "fgsm":
        options["step_size"] = settings.relative_step * settings.epsilon / num_steps
    return make_attack(name, settings.epsilon, num_steps=num_steps, norm=settings.norm, **options)
