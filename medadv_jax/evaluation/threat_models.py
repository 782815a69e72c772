"""What an attacker knows, whose gradients it has, and which attacks an evaluation runs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks import ATTACKS, Attack
from medadv_jax.attacks.from_config import (
    attack_from_config,
    restricted_attack_from_config,
    restriction_from_config,
)
from medadv_jax.attacks.universal import UNIVERSAL, Universal
from medadv_jax.config import Config
from medadv_jax.defenses import Defense
from medadv_jax.defenses.from_config import SINGLE_STEP
from medadv_jax.errors import UserError
from medadv_jax.evaluation.checks.overfitting_check import FGSM, PGD


class Source(NamedTuple):
    """Whose gradients make adversarial examples; `gradient`: the output, see `Model.logits`."""

    gradient: str
    variables: Any


class Threat(NamedTuple):
    """What an attacker knows.

    Attributes:
      names: of the threat model in records; two where two are the same.
      sources: each makes an example, and the worst of them for the defender counts.
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]


class Target(NamedTuple):
    """A deployed model, with its output: a classifier's with its purifier ("full") or without one
    ("bare"), or an ensemble's vote; see `Model.logits`."""

    deployed: str
    variables: Any


def evaluation_attacks(config: Config) -> list[Attack]:
    """Returns the first-order attacks of `config.eval`, in its order: for every threat model."""
    return [evaluation_attack(config, name) for name in _names(config) if name in ATTACKS]


def searching_attacks(config: Config) -> list[Any]:
    """Returns the other attacks of `config.eval`, in its order: for the adaptive attacker alone.

    They stop at the first point that is misclassified, which says little of another classifier.
    """
    steps, known = config.eval.apgd_steps, {*ATTACKS, UNIVERSAL}
    others = [name for name in _names(config) if name not in known]
    return [_named(config, restricted_attack_from_config(config, name, steps)) for name in others]


def universal_attack(config: Config, batch_size: int) -> Universal | None:
    """Returns the universal perturbation of `config.eval`, None if it is not asked for."""
    if UNIVERSAL not in _names(config):
        return None
    settings, restriction = config.attack, restriction_from_config(config)
    found = Universal(
        settings.epsilon, settings.norm, config.eval.universal_epochs, batch_size, restriction
    )
    return _named(config, found)


def _names(config: Config) -> list[str]:
    return [name for name in config.eval.attacks.split(",") if name]


def validation_attack(config: Config, through_purifier: bool) -> Any:
    """Returns the attack on whose validation accuracy robust checkpoints are chosen.

    Args:
      config: of the run.
      through_purifier: does its gradient go through a purifier? Fixed steps are too weak there.
    """
    name, settings = config.eval.validation_attack, config.eval
    if name == "auto":
        name = "apgd" if through_purifier else "pgd"
    steps = config.train.num_steps if name in ATTACKS else settings.validation_steps
    return attack_from_config(config, name, steps)


def overfitting_attacks(config: Config) -> dict[str, Attack]:
    """Returns, after training with attacks of one step, FGSM and PGD by the names that their
    accuracies have in self-check 13; else nothing."""
    if config.train.method not in SINGLE_STEP:
        return {}
    pgd = attack_from_config(config, "pgd", config.eval.num_steps)
    return {FGSM: attack_from_config(config, "fgsm", 1), PGD: pgd}


def evaluation_attack(config: Config, name: str) -> Attack:
    """Returns the attack `name` as `config.eval` has it; "<name>_targeted" if it is targeted,
    and the same with what it may change, as "<name>_patch"."""
    settings = config.eval
    options: dict[str, Any] = {}
    # FGSM is one step, and its result is where that step ends: as in its paper.
    if name != "fgsm":
        options["keep_best"] = settings.keep_best
    if name == "pgd":
        options["num_restarts"] = settings.restarts
    attack = restricted_attack_from_config(config, name, settings.num_steps, **options)
    if config.attack.targeted != "none":
        attack = dataclasses.replace(attack, name=f"{name}_targeted", targeted=True)
    return _named(config, attack)


def _named(config: Config, attack: Any) -> Any:
    """Returns the attack under a name that says what it may change."""
    suffix = restriction_from_config(config).suffix
    return dataclasses.replace(attack, name=f"{attack.name}{suffix}")


def choose_targets(
    config: Config, class_names: Sequence[str]
) -> Callable[[jax.Array], jax.Array] | None:
    """Returns labels (B,) -> the classes that `config.attack.targeted` aims at, None if none.

    Raises:
      UserError: it is no class.
    """
    given, num_classes = config.attack.targeted, len(class_names)
    if given == "none":
        return None
    if given == "next":
        return lambda labels: (labels + 1) % num_classes
    numbers = {str(k): k for k in range(num_classes)}
    numbers |= {name: k for k, name in enumerate(class_names)}
    if given not in numbers:
        raise UserError(
            f"config.attack.targeted={given}: must be none, next, a class out of"
            f" {', '.join(class_names)}, or its number"
        )
    return lambda labels: jnp.full_like(labels, numbers[given])


def threats(defense: Defense, variables: Any, base: Any | None) -> list[Threat]:
    """Returns the threat models of a defence; `base`: the undefended network, if there is one.

    Without a purifier, oblivious and adaptive are one attack, which is called adaptive.
    """
    transfer = [Source("bare", base)] if base is not None else []
    if not defense.purified:
        adaptive = Threat(("adaptive",), (Source(defense.deployed, variables),))
        others = [Threat(("transfer",), tuple(transfer))] if defense.needs and transfer else []
        return [*others, adaptive]
    oblivious, adaptive = ("oblivious",), (Source("full", variables), Source("bpda", variables))
    first = []
    if defense.network_from == "base":  # without its purifier it is the undefended network
        oblivious = ("transfer", "oblivious")
    elif transfer:
        first = [Threat(("transfer",), tuple(transfer))]
    return [
        *first,
        Threat(oblivious, (Source("bare", variables),)),
        Threat(("adaptive",), adaptive),
    ]


def record_keys(
    threats: Sequence[Threat], attacks: Sequence[Attack], epsilon: float
) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """Yields (column of `Predictions`, (threat model, evaluation, epsilon)) for each record."""
    yield 0, ("none", "clean", 0.0)
    for first, threat in enumerate(threats):
        for name in threat.names:
            for column, attack in enumerate(attacks, start=1 + first * len(attacks)):
                yield column, (name, attack.name, epsilon)
