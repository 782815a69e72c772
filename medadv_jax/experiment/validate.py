"""Checks a config before any work: a rule for each field, then fields that limit each other."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from medadv_jax.attacks import ATTACKS, EVALUATION_ATTACKS
from medadv_jax.attacks.lanes import LOOPS
from medadv_jax.attacks.norms import BALLS
from medadv_jax.classifier import NORMALIZATIONS
from medadv_jax.config import Config, flatten
from medadv_jax.data import DATASETS
from medadv_jax.defenses import DEFENSES
from medadv_jax.defenses.purification import OBJECTIVES
from medadv_jax.errors import UserError
from medadv_jax.models import MODELS, default_options
from medadv_jax.models.purifiers import PURIFIERS

Rule = tuple[Callable[[Any], bool], str]  # (is the value allowed?, what is allowed)


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number from `low` (or above it) to `high`."""
    start = f"above {low:g}" if above else f"at least {low:g}"
    end = "" if high == math.inf else f" and at most {high:g}"

    def possible(value: float) -> bool:
        return math.isfinite(value) and low <= value <= high and not (above and value == low)

    return possible, start + end


def _one_of(known: Iterable[str]) -> Rule:
    names = sorted(known)
    return lambda value: value in names, f"one of {', '.join(names)}"


def _list_of(known: Iterable[str]) -> Rule:
    names = sorted(known)

    def possible(value: str) -> bool:
        given = value.split(",")
        return set(given) <= set(names) and len(set(given)) == len(given)

    return possible, f"names out of {', '.join(names)}, comma-separated, each once"


_ANY: Rule = (lambda value: True, "")

RULES: dict[str, Rule] = {
    "seed": _number(0, 2**31 - 1),
    "defenses": _list_of(DEFENSES),
    "deterministic": _ANY,
    "compile_cache": _ANY,
    "reuse": _ANY,
    "data.name": _one_of(DATASETS),
    "data.dir": _ANY,
    "data.cache_dir": (bool, "a folder"),
    "data.image_size": _number(32, 1024),
    "data.fit": _one_of(("crop", "pad")),
    "data.split": _one_of(("patient", "image", "official")),
    "data.official_list": _ANY,
    "data.per_class": _number(0),
    "data.num_folds": (lambda value: value == 0 or 2 <= value <= 100, "0, or from 2 to 100"),
    "data.fold": _number(0),
    "data.phantom_kind": _one_of(("histology", "xray")),
    "data.phantom_images": _number(20),
    "data.phantom_seed": _number(0, 2**31 - 1),
    "data.augment.shift": _number(0, 0.5),
    "data.augment.rotation": _number(0, 180),
    "data.augment.brightness": _number(0, 1),
    "data.augment.flip": _ANY,
    "model.name": _one_of(MODELS),
    "model.width": _number(0, 4, above=True),
    "model.weights": (bool, "none, a file of weights, or a name such as torchvision/resnet50"),
    "model.normalization": _one_of(("auto", *NORMALIZATIONS)),
    "model.head": _one_of(("auto", "fc", "gap")),
    "model.dropout": (lambda value: value == -1 or 0 <= value < 1, "a rate below 1, or -1"),
    "model.conv_impl": _one_of(("auto", "cpu", "plain")),
    "model.dtype": _one_of(("bfloat16", "float32")),
    "train.epochs": _number(1),
    "train.batch_size": _number(1),
    "train.learning_rate": _number(0, above=True),
    "train.schedule": _one_of(("constant", "cosine")),
    "train.trainable": _one_of(("all", "head", "last_stage")),
    "train.attacks": _list_of(ATTACKS),
    "train.assignment": _one_of(("all", "one")),
    "train.adversarial_weight": _number(0, 1),
    "train.num_steps": _number(1),
    "train.log_steps": _number(1),
    "train.checkpoint_minutes": _number(0),
    "attack.epsilon": _number(0),
    "attack.norm": _one_of(BALLS),
    "attack.relative_step": _number(0, above=True),
    "attack.decay": _number(0),
    "attack.loop": _one_of(LOOPS),
    "purifier.name": _one_of(PURIFIERS),
    "purifier.bottleneck": _number(1, 4096),
    "purifier.width": _number(0, 4, above=True),
    "purifier.objective": _one_of(OBJECTIVES),
    "purifier.noise": _number(0, 1),
    "purifier.guidance": _number(0),
    "purifier.epochs": _number(1),
    "purifier.learning_rate": _number(0, above=True),
    "purifier.joint_epochs": _number(0),
    "purifier.joint_learning_rate": _number(0, above=True),
    "eval.attacks": _list_of([*ATTACKS, *EVALUATION_ATTACKS]),
    "eval.images": (lambda value: value == 0 or value >= 2, "0: all, or at least 2"),
    "eval.num_steps": _number(1),
    "eval.apgd_steps": _number(1),
    "eval.queries": _number(1),
    "eval.restarts": _number(1),
    "eval.keep_best": _ANY,
    "eval.batch_size": _number(1),
    "eval.validation_attack": _one_of(["auto", "apgd", *ATTACKS]),
    "eval.validation_steps": _number(1),
    "eval.checks": _ANY,
    "eval.check_images": _number(2),
    "eval.second_images": _number(2),
    "eval.second_queries": _number(1),
    "detector.run": _ANY,
    "detector.false_positive_rate": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "detector.attack": _one_of(ATTACKS),
    "detector.penalty": _number(0),
}


def _refuse(field: str, value: Any, allowed: str) -> UserError:
    return UserError(f"config.{field}={value}: must be {allowed}")


def validate(config: Config) -> None:
    """Raises UserError if a config is impossible: field, value and what is allowed."""
    fields = flatten(config)
    for field in (*RULES, *fields):
        if field not in RULES or field not in fields:
            known = ", ".join(RULES)
            raise UserError(f"config.{field}: {_defect(field, RULES)}; the fields are {known}")
        possible, allowed = RULES[field]
        if not possible(fields[field]):
            raise _refuse(field, fields[field], allowed)
    _check_together(config)


def _defect(field: str, rules: dict[str, Rule]) -> str:
    return "missing from the config file" if field in rules else "unknown field"


def _check_together(config: Config) -> None:
    """Checks the fields that limit each other."""
    devices = jax.device_count()
    if config.train.batch_size % devices:
        raise _refuse(
            "train.batch_size", config.train.batch_size, f"a multiple of {devices} devices"
        )
    attacks = config.train.attacks.split(",")
    together = len(attacks) * devices
    if config.train.assignment == "one" and config.train.batch_size % together:
        allowed = f"a multiple of {len(attacks)} attacks × {devices} devices with assignment=one"
        if config.defenses != "base":
            raise _refuse("train.batch_size", config.train.batch_size, allowed)
    if config.data.num_folds and config.data.fold >= config.data.num_folds:
        raise _refuse("data.fold", config.data.fold, f"below num_folds={config.data.num_folds}")
    trained: list[str] = []
    for name in config.defenses.split(","):
        for first in DEFENSES[name].needs:
            if first not in trained:
                allowed = f"such that {first} stands before {name}"
                raise _refuse("defenses", config.defenses, allowed)
        trained.append(name)
    _check_options(config)


def _check_options(config: Config) -> None:
    """Refuses an option that the network does not have: it would be ignored silently."""
    name, known = config.model.name, default_options(config.model.name)
    if config.model.head != "auto" and "head" not in known:
        raise _refuse("model.head", config.model.head, f"auto: {name} has no such choice")
    if config.model.dropout != -1 and "dropout" not in known:
        raise _refuse("model.dropout", config.model.dropout, f"-1: {name} has no dropout")


def check_batch(config: Config, images: int, what: str) -> None:
    """Raises UserError if a training batch is larger than the number of images."""
    if config.train.batch_size > images:
        allowed = f"at most the {images} {what}"
        raise _refuse("train.batch_size", config.train.batch_size, allowed)
