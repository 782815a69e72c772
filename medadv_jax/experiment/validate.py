"""Checks a config before any work: a rule for each field, then fields that limit each other."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from medadv_jax.attacks import ATTACKS, EVALUATION_ATTACKS, parse_restriction
from medadv_jax.attacks.inputs import LARGEST_POWER, LINF_RADIUS
from medadv_jax.attacks.lanes import LOOPS
from medadv_jax.attacks.norms import BALLS
from medadv_jax.attacks.restriction import MASKS
from medadv_jax.attacks.universal import UNIVERSAL
from medadv_jax.classifier import NORMALIZATIONS, PRECISIONS
from medadv_jax.config import Config, expand_path, flatten, nearest_field
from medadv_jax.data import DATASETS
from medadv_jax.data.folder.names import compile_pattern, split_names
from medadv_jax.defenses import DEFENSES
from medadv_jax.defenses.from_config import METHODS, PAIRED, TRAIN_OBJECTIVES
from medadv_jax.defenses.purification import OBJECTIVES
from medadv_jax.errors import UserError
from medadv_jax.evaluation.threat_models import choose_targets
from medadv_jax.models import MODELS, default_options
from medadv_jax.models.ops.convolution import CONV_IMPLS
from medadv_jax.models.purifiers import PURIFIERS
from medadv_jax.training.optimizer import OPTIMIZERS

Rule = tuple[Callable[[Any], bool], str]  # (is the value allowed?, what is allowed)


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number from `low` (or above it) to `high`."""
    start = f"above {low:g}" if above else f"at least {low:g}"
    end = "" if high == math.inf else f" and at most {high:g}"

    def possible(value: float) -> bool:
        return low <= value <= high and value != math.inf and not (above and value == low)

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


def _is_path(value: str) -> bool:
    try:
        expand_path(value, "")
    except UserError:
        return False
    return True


def _is_pattern(value: str) -> bool:
    try:
        compile_pattern(value)
    except UserError:
        return False
    return True


def _are_classes(value: str) -> bool:
    names = split_names(value)
    return not value or (all(names) and len(names) == len({*names}) > 1)


def _is_mask(value: str) -> bool:
    try:
        parse_restriction(value)
    except ValueError:
        return False
    return True


_ANY: Rule = (lambda value: True, "")
_PATH: Rule = (_is_path, "a path without ~, or set HOME: no home folder is known")
_MANY = 10**7  # images
_EPOCHS = 10**5
_RATE = 1e6  # of learning; Adam's steps are as long

RULES: dict[str, Rule] = {
    "seed": _number(0, 2**31 - 1),
    "defenses": _list_of(DEFENSES),
    "deterministic": _ANY,
    "compile_cache": _ANY,
    "reuse": _PATH,
    "data.name": _one_of(DATASETS),
    "data.dir": _PATH,
    "data.labels": _one_of(("class", "subtype")),
    "data.csv": _PATH,
    "data.classes": (_are_classes, "two or more names, comma-separated, each once"),
    "data.group_pattern": (_is_pattern, "a regular expression of at most 200 characters"),
    "data.cache_dir": (lambda value: bool(value) and _is_path(value), f"a folder; {_PATH[1]}"),
    "data.image_size": _number(32, 1024),
    "data.fit": _one_of(("crop", "pad")),
    "data.split": _one_of(("patient", "image", "official")),
    "data.official_list": _PATH,
    "data.per_class": _number(0, _MANY),
    "data.train_all": _ANY,
    "data.num_folds": (lambda value: value == 0 or 2 <= value <= 100, "0, or from 2 to 100"),
    "data.fold": _number(0, 99),
    "data.phantom_kind": _one_of(("histology", "xray")),
    "data.phantom_images": _number(20, _MANY),
    "data.phantom_seed": _number(0, 2**31 - 1),
    "data.augment.shift": _number(0, 0.5),
    "data.augment.rotation": _number(0, 180),
    "data.augment.brightness": _number(0, 1),
    "data.augment.flip": _ANY,
    "model.name": _one_of(MODELS),
    "model.width": _number(0, 4, above=True),
    "model.weights": (
        lambda value: bool(value) and _is_path(value),
        "none, a file of weights, or a name such as torchvision/resnet50",
    ),
    "model.normalization": _one_of(("auto", *NORMALIZATIONS)),
    "model.head": _one_of(("auto", "fc", "gap")),
    "model.dropout": (lambda value: value == -1 or 0 <= value < 1, "a rate below 1, or -1"),
    "model.conv_impl": _one_of(CONV_IMPLS),
    "model.dtype": _one_of(("bfloat16", "float32")),
    "model.precision": _one_of(PRECISIONS),
    "train.epochs": _number(0, _EPOCHS),
    "train.batch_size": _number(1, _MANY),
    "train.learning_rate": _number(0, _RATE, above=True),
    "train.optimizer": _one_of(OPTIMIZERS),
    "train.weight_decay": _number(0, 1),
    "train.momentum": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "train.clip_norm": _number(0, _RATE),
    "train.warmup_epochs": _number(0, _EPOCHS),
    "train.ema": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "train.class_weights": _one_of(("none", "balanced")),
    "train.sampling": _one_of(("uniform", "balanced")),
    "train.objective": _one_of(TRAIN_OBJECTIVES),
    "train.beta": _number(0, 10**6),
    "train.method": _one_of(METHODS),
    "train.replays": _number(1, 1000),
    "train.weight_perturbation": _number(0, 1),
    "train.dual_norm": _one_of(("attacked", "clean", "none")),
    "train.label_smoothing": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "train.schedule": _one_of(("constant", "cosine")),
    "train.trainable": _one_of(("all", "head", "last_stage")),
    "train.attacks": _list_of(ATTACKS),
    "train.assignment": _one_of(("all", "one")),
    "train.adversarial_weight": _number(0, 1),
    "train.num_steps": _number(1, 10_000),
    "train.log_steps": _number(1, 10**9),
    "train.checkpoint_minutes": _number(0, 10**6),
    "attack.epsilon": _number(0, 10_000),
    "attack.norm": _one_of(BALLS),
    "attack.relative_step": _number(0, 100, above=True),
    "attack.decay": _number(0, 10),
    "attack.targeted": (bool, "none, next, or a class"),
    "attack.mask": (_is_mask, MASKS),
    "attack.grey": _ANY,
    "attack.loop": _one_of(LOOPS),
    "purifier.name": _one_of(PURIFIERS),
    "purifier.bottleneck": _number(1, 4096),
    "purifier.width": _number(0, 4, above=True),
    "purifier.objective": _one_of(OBJECTIVES),
    "purifier.noise": _number(0, 1),
    "purifier.guidance": _number(0, 10**6),
    "purifier.epochs": _number(1, _EPOCHS),
    "purifier.learning_rate": _number(0, _RATE, above=True),
    "purifier.joint_epochs": _number(0, _EPOCHS),
    "purifier.joint_learning_rate": _number(0, _RATE, above=True),
    "distill.teacher": _one_of(name for name in DEFENSES if not DEFENSES[name].student),
    "distill.width": _number(0, 4, above=True),
    "distill.epochs": _number(1, _EPOCHS),
    "distill.temperature": _number(0, 10**3, above=True),
    "distill.weight": _number(0, 1),
    "defense.sigma": _number(0, 10, above=True),
    "eval.attacks": _list_of([*ATTACKS, *EVALUATION_ATTACKS, UNIVERSAL, "none"]),
    "eval.images": (lambda value: value == 0 or 2 <= value <= _MANY, "0: all, or at least 2"),
    "eval.num_steps": _number(1, 10_000),
    "eval.apgd_steps": _number(1, 10_000),
    "eval.queries": _number(1, 10**6),
    "eval.universal_images": _number(0, _MANY),
    "eval.universal_epochs": _number(1, 10_000),
    "eval.restarts": _number(1, 10_000),
    "eval.keep_best": _ANY,
    "eval.batch_size": _number(1, _MANY),
    "eval.validation_attack": _one_of(["auto", "apgd", *ATTACKS]),
    "eval.validation_steps": _number(1, 10_000),
    "eval.threshold": _one_of(("argmax", "youden")),
    "eval.checks": _ANY,
    "eval.check_images": _number(2, _MANY),
    "eval.saliency_images": _number(0, _MANY),
    "eval.save_images": _number(0, _MANY),
    "eval.second_images": _number(2, _MANY),
    "eval.second_queries": _number(1, 10**6),
    "detector.run": _ANY,
    "detector.images": (lambda value: value == 0 or 2 <= value <= _MANY, "0: all, or at least 2"),
    "detector.false_positive_rate": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "detector.attack": _one_of(ATTACKS),
    "detector.penalty": _number(0, 10**6),
}


def _refuse(field: str, value: Any, allowed: str) -> UserError:
    return UserError(f"config.{field}={value}: must be {allowed}")


def validate(config: Config) -> None:
    """Raises UserError if a config is impossible: field, value and what is allowed."""
    fields = flatten(config)
    for field in (*RULES, *fields):
        if field not in RULES or field not in fields:
            unknown = f"unknown field; {nearest_field(field, RULES)}"
            raise UserError(f"config.{field}: {_MISSING if field in RULES else unknown}")
        possible, allowed = RULES[field]
        try:
            is_possible = possible(fields[field])
        except (TypeError, AttributeError):  # of another type than in configs/default.py
            is_possible = False
        if not is_possible:
            raise _refuse(field, fields[field], allowed)
    _check_attack(config)
    _check_training(config)
    _check_together(config)


_MISSING = "missing from the config file: start from get_config() of configs/default.py"


def _check_attack(config: Config) -> None:
    """Refuses radii that hold every image, and momentum that leaves the range of float32."""
    attack = config.attack
    if attack.norm == "linf" and attack.epsilon > 1:
        raise _refuse("attack.epsilon", attack.epsilon, LINF_RADIUS)
    diagonal = math.sqrt(3) * config.data.image_size
    if attack.epsilon > diagonal:
        allowed = f"at most {diagonal:.1f} with norm=l2, which holds every image"
        raise _refuse("attack.epsilon", attack.epsilon, allowed)
    steps = max(config.train.num_steps, config.eval.num_steps)
    most = max(1.0, LARGEST_POWER ** (1 / steps))
    if attack.decay > most:
        raise _refuse("attack.decay", attack.decay, f"at most {most:.3g} with {steps} steps")


def _check_training(config: Config) -> None:
    """Refuses settings of the start and of the optimizer that contradict each other."""
    model, train = config.model, config.train
    own = expand_path(model.weights, "config.model.weights").is_dir()  # of any width
    if model.weights != "none" and model.width != 1 and not own:
        allowed = "1 with weights of a file; give model.width=1, or model.weights=none"
        raise _refuse("model.width", model.width, allowed)
    if not train.epochs and model.weights == "none":
        allowed = "at least 1 with model.weights=none: an untrained network"
        raise _refuse("train.epochs", train.epochs, allowed)
    trained = [name for name in ("adversarial", "joint") if name in config.defenses.split(",")]
    if not train.epochs and trained:
        allowed = f"at least 1 to train {trained[0]}; give --config.defenses=base"
        raise _refuse("train.epochs", train.epochs, allowed)
    if config.purifier.objective == "reconstruction" and "purified" in config.defenses.split(","):
        allowed = "denoising or guided for defense purified: reconstruction has no attacked images"
        raise _refuse("purifier.objective", config.purifier.objective, allowed)
    if train.weight_decay and train.optimizer == "adam":
        raise _refuse("train.weight_decay", train.weight_decay, "0 with adam; adamw has one")
    if train.warmup_epochs > train.epochs:
        allowed = f"at most train.epochs={train.epochs}"
        raise _refuse("train.warmup_epochs", train.warmup_epochs, allowed)
    _check_objective(config)


def _check_objective(config: Config) -> None:
    """Refuses parts of adversarial training that do not compose."""
    train = config.train
    free, paired = train.method == "free", train.objective in PAIRED
    dual, name = train.dual_norm != "none", config.model.name
    one_column = paired or train.method != "multi_step"
    for field, refused, allowed in (
        ("objective", free and train.objective != "madry",
         "madry with method=free, which trains on attacked images alone"),
        ("weight_perturbation", free and train.weight_perturbation > 0,
         "0 with method=free, which has one backward pass for each update"),
        ("method", train.objective == "trades" and train.method != "multi_step",
         "multi_step with objective=trades, which has an attack of its own"),
        ("assignment", one_column and train.assignment == "all",
         f"one with objective={train.objective} and method={train.method}"),
        ("label_smoothing", train.objective == "mart" and train.label_smoothing > 0,
         "0 with objective=mart, whose loss has no such form"),
        ("dual_norm", dual and train.objective == "madry",
         "none with objective=madry, which trains on no clean images"),
        ("dual_norm", dual and name.startswith("vgg"), f"none: {name} has no BatchNorm"),
        ("dual_norm", dual and train.trainable != "all",
         f"none with trainable={train.trainable}, where BatchNorm stays as it is"),
    ):  # fmt: skip
        if refused:
            raise _refuse(f"train.{field}", train[field], allowed)


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
        taught_by = [config.distill.teacher] if DEFENSES[name].student else []
        for first in (*DEFENSES[name].needs, *taught_by):
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


# What data of several labels an image are restricted to: the clean network, without a defence.
_MULTI_LABEL = {
    "defenses": "base", "eval.attacks": "none", "eval.checks": False, "detector.run": False,
    "eval.threshold": "argmax", "train.class_weights": "none", "train.sampling": "uniform",
    "train.label_smoothing": 0.0, "eval.saliency_images": 0, "eval.save_images": 0,
}  # fmt: skip


def check_classes(config: Config, class_names: Sequence[str], multi_label: bool = False) -> None:
    """Raises UserError for fields that do not fit the classes of the data.

    `multi_label`: an image has any number of them.
    """
    fields = flatten(config)
    for field, only in _MULTI_LABEL.items() if multi_label else ():
        if fields[field] != only:
            allowed = f"{only}: {config.data.name} has several labels an image"
            raise _refuse(field, fields[field], allowed)
    if "none" in config.eval.attacks.split(",") and not multi_label:
        raise _refuse("eval.attacks", config.eval.attacks, "names of attacks with these data")
    choose_targets(config, class_names)
    if config.eval.threshold != "argmax" and len(class_names) != 2:
        allowed = f"argmax: there are {len(class_names)} classes, and a threshold divides two"
        raise _refuse("eval.threshold", config.eval.threshold, allowed)


def check_batch(config: Config, images: int, what: str) -> None:
    """Raises UserError if a training batch is larger than the number of images."""
    if not config.train.epochs and config.defenses == "base":
        return  # nothing is trained
    if config.train.batch_size > images:
        allowed = f"at most the {images} {what}"
        raise _refuse("train.batch_size", config.train.batch_size, allowed)
