"""Attacks at the radius, norm and step size of a config."""

from typing import Any

from medadv_jax.attacks import EVALUATION_ATTACKS, make_attack, parse_restriction
from medadv_jax.attacks.restriction import Restriction
from medadv_jax.config import Config


def attack_from_config(
    config: Config, name: str, num_steps: int, epsilon: float | None = None, **options: Any
) -> Any:
    """Returns the attack `name` as `config.attack` has it, at another radius if one is given.

    The step size follows from radius and number of steps. `num_steps`: those of APGD, FAB and FMN
    are also those of AutoAttack's components; Square asks `config.eval.queries` times instead.
    `options`: further fields of the attack.
    """
    settings = config.attack
    radius = settings.epsilon if epsilon is None else epsilon
    if name in EVALUATION_ATTACKS:
        if name == "square":
            num_steps = config.eval.queries
        elif name == "autoattack":
            options["queries"] = config.eval.queries
        return make_attack(name, radius, num_steps=num_steps, norm=settings.norm, **options)
    if name == "mifgsm":
        options["decay"] = settings.decay
    elif name != "fgsm":
        options["step_size"] = settings.relative_step * radius / num_steps
    return make_attack(name, radius, num_steps=num_steps, norm=settings.norm, **options)


def restriction_from_config(config: Config) -> Restriction:
    """Returns what the attackers of an evaluation may change."""
    return parse_restriction(config.attack.mask, config.attack.grey)


def restricted_attack_from_config(
    config: Config, name: str, num_steps: int, epsilon: float | None = None, **options: Any
) -> Any:
    """Returns the attack `name` of an evaluation, as `attack_from_config`; it changes only what
    `config.attack.mask` and `config.attack.grey` allow."""
    restriction = restriction_from_config(config)
    return attack_from_config(config, name, num_steps, epsilon, restriction=restriction, **options)
