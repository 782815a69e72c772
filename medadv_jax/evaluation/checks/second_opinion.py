"""Check 7: other algorithms than those of the evaluation, on what these left correct.

Repeating an algorithm with more steps does not show that it is the wrong one. Where the evaluation
took steps of fixed length only, APGD is tried; where it ran APGD, FMN is, which looks for the
smallest perturbation, and Square, which takes no gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.from_config import (
    restricted_attack_from_config,
    restriction_from_config,
)
from medadv_jax.config import Config
from medadv_jax.evaluation.checks.prediction_checks import columns_of, correct_under
from medadv_jax.evaluation.checks.result import Check, check, judge
from medadv_jax.evaluation.model_under_test import ModelUnderTest
from medadv_jax.evaluation.predictions import Columns

_OWN_STEPS = {"apgd", "apgd_t", "autoattack"}  # attacks that choose the length of their steps
_SECOND = 0.01  # share of images that attacks of another kind may break in addition
_UNSEEN = 0.002  # share of images that an attack without their gradients may break


class SecondOpinion(NamedTuple):
    """What other attacks did to n images.

    Attributes:
      broken: name of the attack -> images that it broke, in addition to those before it.
      left: images that the evaluation left correct; the others were not attacked.
      n: images.
    """

    broken: dict[str, int]
    left: int
    n: int


def other_attacks(config: Config) -> list[Any]:
    """Returns the attacks that an evaluation is checked by: of other kinds than its own."""
    steps, queries = config.eval.apgd_steps, config.eval.second_queries
    if not set(config.eval.attacks.split(",")) & _OWN_STEPS:
        return [restricted_attack_from_config(config, "apgd", steps)]
    epsilon, norm = config.attack.epsilon, config.attack.norm
    square = make_attack(
        "square", epsilon, num_steps=queries, norm=norm, restriction=restriction_from_config(config)
    )
    return [restricted_attack_from_config(config, "fmn", steps), square]


def ask(
    model: ModelUnderTest,
    attacks: Sequence[Any],
    predictions: pa.Table,
    advance: Callable[[int], None] = lambda images: None,
) -> SecondOpinion:
    """Runs each attack on the images that the evaluation and the attacks before it left correct.

    Args:
      model: the classifier and n images.
      attacks: see `other_attacks`.
      predictions: of the evaluation.
      advance: told the number of images that an attack is done with, or was spared.
    """
    columns = columns_of(predictions, model.defense)
    white = correct_under(columns, ("none", "adaptive"))
    left = np.array([white.get(example.id, False) for example in model.examples], bool)
    attacked, broken = int(left.sum()), {}
    for attack in attacks:
        rows = np.flatnonzero(left)
        advance(len(left) - len(rows))
        if len(rows):
            left[rows] = model.search(attack, rows, salt=3, advance=advance).correct
        broken[attack.name] = len(rows) - int(left.sum())
    return SecondOpinion(broken, attacked, len(left))


def no_other_breaks_more(
    defense: str, columns: Columns, epsilon: float, second: SecondOpinion
) -> Check:
    """7. Neither transfer nor attacks of another kind break what adaptive attacks leave.

    More than `_SECOND` of the images broken by another kind fail, not warn: the evaluation's own
    attacks are then too weak, whatever they say of each other.

    Args:
      defense: whose.
      columns: its predictions.
      epsilon: of the headline.
      second: what attacks of another kind did.
    """
    white = correct_under(columns, ("adaptive",), epsilon)
    others = correct_under(columns, ("transfer", "oblivious"), epsilon)
    unseen = sum(good and not others.get(example, True) for example, good in white.items())
    more = sum(second.broken.values()) / max(second.n, 1)
    verdict = "fail" if more > _SECOND else judge(unseen, max(len(white), 1), _UNSEEN)
    counts = ", ".join(f"{name} {count}" for name, count in second.broken.items())
    return check(
        7, defense, verdict, more,
        f"of {second.left} images (among {second.n}) that adaptive attacks leave right, others"
        f" break: {counts} (limit {_SECOND:g} of all); transferred or oblivious ones break {unseen}"
        f" of {sum(white.values())} (among {len(white)}; limit {_UNSEEN:g} of all)",
    )  # fmt: skip
