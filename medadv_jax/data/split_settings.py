"""What is asked of the splits, and one line for what no data can give."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medadv_jax.data.examples import Example
from medadv_jax.errors import UserError

SPLITS = ("train", "validation", "test")
METHODS = ("patient", "image", "official")  # of config.data.split


@dataclass(frozen=True)
class SplitSettings:
    """The fields of config.data that decide about the splits."""

    name: str
    split: str
    official_list: str
    per_class: int
    train_all: bool
    num_folds: int
    fold: int


def check_request(
    examples: Sequence[Example], config: SplitSettings, class_names: Sequence[str]
) -> None:
    """Raises UserError if the fields contradict each other, or a class has too few images."""
    if config.split not in METHODS:
        raise UserError(
            f"config.data.split={config.split!r}: unknown; choose from {', '.join(METHODS)}"
        )
    if config.num_folds and config.split != "patient":
        raise UserError(
            f"config.data.num_folds={config.num_folds} cuts by patient and does not go with "
            f"config.data.split={config.split}; set config.data.split=patient or "
            "config.data.num_folds=0"
        )
    if config.train_all and config.num_folds:
        raise UserError(
            "config.data.train_all does not go with config.data.num_folds; set one of them"
        )
    if config.num_folds == 1 or not 0 <= config.fold < max(1, config.num_folds):
        raise UserError(
            f"config.data.fold={config.fold} of config.data.num_folds={config.num_folds}: "
            "needs at least 2 folds, and a fold from 0 to config.data.num_folds - 1"
        )
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise UserError(f"data: {len(repeated)} ids are not unique, for example {repeated[0]}")
    if not (config.per_class == 0 or config.per_class >= len(SPLITS)):
        raise UserError(
            f"config.data.per_class={config.per_class}: set 0 (all images) or at least 3"
        )
    require_images(config, [example.label for example in examples], class_names)


def require_images(
    config: SplitSettings, labels: Sequence[int], class_names: Sequence[str]
) -> None:
    """Raises UserError if a class has fewer images than there are splits."""
    for label, name in enumerate(class_names):
        if labels.count(label) < len(SPLITS):
            raise UserError(
                f"config.data.name={config.name}: {labels.count(label)} images of class {name}, at"
                f" least {len(SPLITS)} are needed; check data.dir"
            )
