"""Defences: what is trained, on which examples, from which weights, and how to choose a checkpoint.

To add a defence, write a function config -> `Objective` and add a line to `DEFENSES`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from medadv_jax.config import Config
from medadv_jax.defenses.adversarial import adversarial_examples, run_training_attacks
from medadv_jax.defenses.distilled import distillation_loss
from medadv_jax.defenses.from_config import adversarial_objective, attack_passes, train_attacks
from medadv_jax.defenses.mislearned import taught_labels
from medadv_jax.defenses.objectives import (
    Examples,
    ExamplesFn,
    Objective,
    classification_loss,
    clean_examples,
)
from medadv_jax.defenses.purification import OBJECTIVES, purification_inputs, purifier_loss
from medadv_jax.defenses.smoothing import denoised_objective, smoothed_objective
from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, LAST_STAGE

__all__ = [
    "DEFENSES",
    "Defense",
    "Examples",
    "ExamplesFn",
    "Objective",
    "get_defense",
    "train_attacks",
]


class Training(NamedTuple):
    """Length and learning rate of a stage."""

    epochs: int  # 0: nothing is trained
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Defense:
    """One way to train a classifier.

    Attributes:
      name: its name in `results.csv`.
      make_objective: config -> Objective.
      training: config -> Training.
      trains: "network", "purifier" or "both".
      network_from: the defence whose best network it starts from; None: the run's first weights.
      purifier_from: the defence whose best purifier it starts from; None: a fresh one, if any.
      purified: whether the network is behind a purifier.
      student: whether its network is the one of `config.distill.width`, with fresh weights, which
        learns from the defence `config.distill.teacher`.
      smoothed: whether it is deployed under Gaussian noise of `config.defense.sigma`, under which
        its best checkpoint is chosen; see `smoothing.py`.
      chosen_under: gradient (see `Classifier.logits`) of the validation attack under which the
        best checkpoint is chosen; None: by clean accuracy. Robust accuracy may fall while clean
        accuracy still rises (Rice et al. 2020).
    """

    name: str
    make_objective: Callable[[Config], Objective]
    training: Callable[[Config], Training]
    trains: str = "network"
    network_from: str | None = None
    purifier_from: str | None = None
    purified: bool = False
    student: bool = False
    smoothed: bool = False
    chosen_under: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The defences that must be trained before; of a student also its teacher."""
        if self.student:
            return ("base",)
        return tuple(name for name in (self.network_from, self.purifier_from) if name)

    @property
    def deployed(self) -> str:
        """The output of the run's classifier that is deployed; see `Classifier.logits`."""
        return "full" if self.purified else "student" if self.student else "bare"

    def trained_layers(self, config: Config) -> Callable[[str, str], bool]:
        """Returns (collection, layer) -> is it trained, under `config.train.trainable`."""
        collections = {"network": ("params",), "purifier": ("purifier",)}
        mine = collections.get(self.trains, ("params", "purifier"))
        name, trainable = config.model.name, config.train.trainable
        layers = {"head": HEAD, "last_stage": {name: HEAD[name] + LAST_STAGE[name]}}

        def trains(collection: str, layer: str) -> bool:
            free = collection == "purifier" or trainable == "all" or self.student
            return collection in mine and (free or layer in layers[trainable][name])

        return trains


def get_defense(name: str) -> Defense:
    """Returns a defence by name; an unknown name is a UserError that lists the known ones."""
    if name not in DEFENSES:
        raise UserError(f"unknown defence {name!r}: known are {', '.join(sorted(DEFENSES))}")
    return DEFENSES[name]


def _train(config: Config) -> Training:
    return Training(config.train.epochs, config.train.learning_rate)


def _base(config: Config) -> Objective:
    smoothing = config.train.label_smoothing
    return Objective(
        lambda logits_fn, images, labels, mask, key: clean_examples(images, mask),
        functools.partial(classification_loss, smoothing=smoothing),
    )


def _distilled(config: Config) -> Objective:
    train, distill, attacks = config.train, config.distill, train_attacks(config)
    attack = functools.partial(
        run_training_attacks, attacks=attacks, assignment=train.assignment, loop=config.attack.loop
    )
    columns = 1 + (len(attacks) if train.assignment == "all" else 1)
    return Objective(
        functools.partial(adversarial_examples, attack=attack, weight=distill.weight),
        functools.partial(distillation_loss, temperature=distill.temperature),
        passes=attack_passes(attacks, train.assignment) + columns,
    )


def _mislearned(config: Config) -> Objective:
    train, attacks = config.train, train_attacks(config)
    attack = functools.partial(
        run_training_attacks, attacks=attacks, assignment="one", loop=config.attack.loop
    )
    return Objective(
        functools.partial(adversarial_examples, attack=attack, weight=train.adversarial_weight),
        functools.partial(
            classification_loss, smoothing=train.label_smoothing, teach=taught_labels
        ),
        passes=attack_passes(attacks, "one") + 2,
    )


def _autoencoder(config: Config) -> Objective:
    purifier = config.purifier
    examples = functools.partial(
        purification_inputs,
        attacks=train_attacks(config),
        objective=purifier.objective,
        noise=purifier.noise,
        loop=config.attack.loop,
    )

    loss = functools.partial(
        purifier_loss, objective=purifier.objective, guidance=purifier.guidance
    )
    steps = attack_passes(train_attacks(config), "one")
    corrupted, guided = OBJECTIVES[purifier.objective]
    passes = corrupted * steps + guided * (3 if corrupted else 1)
    return Objective(examples, loss, gradient="bare", passes=passes)


def _purifier_training(config: Config) -> Training:
    return Training(config.purifier.epochs, config.purifier.learning_rate)


def _denoised(name: str, network_from: str) -> Defense:
    return Defense(
        name, denoised_objective, _purifier_training, trains="purifier", network_from=network_from,
        purified=True, smoothed=True,
    )  # fmt: skip


DEFENSES: dict[str, Defense] = {
    "base": Defense("base", _base, _train),
    "adversarial": Defense(
        "adversarial", adversarial_objective, _train, network_from="base", chosen_under="full"
    ),
    # The undefended network behind a purifier.
    "autoencoder": Defense(
        "autoencoder",
        _autoencoder,
        _purifier_training,
        trains="purifier",
        network_from="base",
        purified=True,
        chosen_under="bare",
    ),
    # The adversarially trained network behind the same purifier; with joint_epochs, both are then
    # trained further against attacks through both.
    "hybrid": Defense(
        "hybrid",
        adversarial_objective,
        lambda config: Training(config.purifier.joint_epochs, config.purifier.joint_learning_rate),
        trains="both",
        network_from="adversarial",
        purifier_from="autoencoder",
        purified=True,
        chosen_under="full",
    ),
    # A narrower network that learns from a robust one.
    "distilled": Defense(
        "distilled",
        _distilled,
        lambda config: Training(config.distill.epochs, config.train.learning_rate),
        student=True,
        chosen_under="full",
    ),
    # No defence: what learning attacked images under wrong labels makes of the network.
    "mislearned": Defense("mislearned", _mislearned, _train, network_from="base"),
    # A network for randomised smoothing, trained under noise.
    "smoothed": Defense("smoothed", smoothed_objective, _train, smoothed=True),
    # A purifier that removes the noise before a network that was trained without.
    "denoised": _denoised("denoised", "base"),
    "denoised_adversarial": _denoised("denoised_adversarial", "adversarial"),
    # Network and purifier trained together from the first epoch, against attacks through both.
    "joint": Defense(
        "joint", adversarial_objective, _train, trains="both", purified=True, chosen_under="full"
    ),
    # The adversarially trained network, kept as it is, behind a purifier that is trained on the
    # examples of an attacker who knows both.
    "purified": Defense(
        "purified",
        lambda config: _autoencoder(config)._replace(gradient="full"),
        _purifier_training,
        trains="purifier",
        network_from="adversarial",
        purified=True,
        chosen_under="full",
    ),
}
