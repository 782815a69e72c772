"""The objective of adversarial training that a config asks for: `train.objective`, `.method` and
what goes with them."""

import functools
from collections.abc import Sequence
from typing import Any

from medadv_jax.attacks import Attack
from medadv_jax.attacks.from_config import attack_from_config
from medadv_jax.config import Config
from medadv_jax.defenses.adversarial import (
    AttackFn,
    adversarial_examples,
    attacked_examples,
    run_training_attacks,
)
from medadv_jax.defenses.free import move_points, random_points
from medadv_jax.defenses.mart import mart_losses
from medadv_jax.defenses.objectives import Objective, Replay, classification_loss, pair_loss
from medadv_jax.defenses.single_step import fast_attack, noisy_fgsm
from medadv_jax.defenses.trades import kl_attack, trades_losses

TRAIN_OBJECTIVES = ("mixed", "madry", "trades", "mart")
METHODS = ("multi_step", "fast", "noise", "free")
SINGLE_STEP = ("fast", "noise")
PAIRED = ("trades", "mart")  # objectives whose loss compares a clean with an attacked image


def train_attacks(config: Config) -> list[Attack]:
    """Returns the attacks of training, of many steps."""
    train = config.train
    return [attack_from_config(config, name, train.num_steps) for name in train.attacks.split(",")]


def attack_passes(attacks: Sequence[Attack], assignment: str) -> float:
    """Returns the gradient passes of the attacks of training for each image."""
    steps = sum(attack.num_steps for attack in attacks)
    return steps / len(attacks) if assignment == "one" else steps


def adversarial_objective(config: Config) -> Objective:
    """Returns the objective of adversarial training."""
    train = config.train
    attack, steps = _attack(config)
    examples = functools.partial(
        adversarial_examples, attack=attack, weight=train.adversarial_weight
    )
    smoothing: Any = {"smoothing": train.label_smoothing}
    norm: Any = {"dual_norm": train.dual_norm}
    loss = functools.partial(classification_loss, **norm, **smoothing)
    columns = 1 + (len(train_attacks(config)) if train.assignment == "all" else 1)
    if train.objective == "madry":
        examples = functools.partial(attacked_examples, attack=attack)
        loss = functools.partial(classification_loss, clean=False, **smoothing)
        columns -= 1
    elif train.objective == "trades":
        losses = functools.partial(trades_losses, beta=train.beta, **smoothing)
        loss = functools.partial(pair_loss, losses=losses, **norm)
    elif train.objective == "mart":
        losses = functools.partial(mart_losses, beta=train.beta)
        loss = functools.partial(pair_loss, losses=losses, **norm)
    updates = 2 if train.weight_perturbation else 1
    objective = Objective(
        examples, loss, weight_perturbation=train.weight_perturbation,
        passes=steps + updates * columns,
    )  # fmt: skip
    if train.method != "free":
        return objective
    ball: Any = {"epsilon": config.attack.epsilon, "norm": config.attack.norm}
    replay = Replay(train.replays, functools.partial(move_points, **ball))
    return objective._replace(replay=replay, passes=float(train.replays))


def _attack(config: Config) -> tuple[AttackFn, float]:
    """Returns what makes the adversarial images, and its gradient passes for each image."""
    train, loop = config.train, config.attack.loop
    ball: Any = {"epsilon": config.attack.epsilon, "norm": config.attack.norm}
    if train.method == "free":
        return functools.partial(random_points, **ball), 0
    if train.method == "noise":
        return functools.partial(noisy_fgsm, **ball), 1
    if train.objective == "trades":
        pgd = attack_from_config(config, "pgd", train.num_steps)
        return functools.partial(kl_attack, attack=pgd, loop=loop), train.num_steps
    attacks = [fast_attack(**ball)] if train.method == "fast" else train_attacks(config)
    run = functools.partial(
        run_training_attacks, attacks=attacks, assignment=train.assignment, loop=loop
    )
    return run, attack_passes(attacks, train.assignment)
