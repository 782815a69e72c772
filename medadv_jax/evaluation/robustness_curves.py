"""Accuracy against the radius, and against the number of steps: rows of `curves.parquet`.

    table = curve_rows(model, config)      # one defence
    write_table(path, pa.concat_tables([read_curves(path), table]))

Radius and number of steps are arguments of one compiled step (`attacks/continuous_batching.py`),
and the deployed classifier gives the logits, as in the evaluation. The attack stops at the first
point that is misclassified: use `predicted` of these rows, not the value of `score`.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from medadv_jax.attacks import Attack
from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.attacks.from_config import restricted_attack_from_config
from medadv_jax.config import Config
from medadv_jax.evaluation.model_under_test import ModelUnderTest
from medadv_jax.evaluation.predictions import SCHEMA, prediction_rows, read_table, record_schema
from medadv_jax.evaluation.predictor import scores

EPSILONS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 1.0)  # the paper's search, none, and every image
STEPS = (1, 2, 5, 20)
SCHEMA = SCHEMA.append(pa.field("num_steps", pa.int32()))
EVALUATION = "pgd"
_ALSO = "apgd"  # along the radii, if the evaluation runs it


def curve_attack(config: Config, epsilon: float | None = None, steps: int = 0) -> Attack:
    """Returns PGD as in the evaluation, at another radius or of other steps if these are given."""
    return restricted_attack_from_config(
        config, "pgd", steps or config.eval.num_steps, epsilon,
        keep_best=True, num_restarts=config.eval.restarts,
    )  # fmt: skip


def curve_attacks(config: Config) -> list[Attack]:
    """Returns the attacks of both curves.

    The radii have `config.eval.num_steps`; the numbers of steps, among them twice that, have
    `config.attack.epsilon`.
    """
    here, steps = config.attack.epsilon, config.eval.num_steps
    points = {(epsilon, steps) for epsilon in _epsilons(config)}
    points |= {(here, number) for number in {*STEPS, steps, 2 * steps}}
    return [curve_attack(config, *point) for point in sorted(points)]


def _epsilons(config: Config) -> set[float]:
    """Returns the radii: in L∞ fixed ones, in L2 multiples of the run's own, and the diagonal."""
    here = config.attack.epsilon
    if config.attack.norm == "linf":
        return {*EPSILONS, here}
    diagonal = math.sqrt(3 * config.data.image_size**2)
    return {0.0, here / 3, 2 * here / 3, here, 4 * here / 3, 5 * here / 3, diagonal}


def searched_radii(config: Config) -> list[float]:
    """Returns the radii that APGD is run at too: none unless the evaluation runs it."""
    if _ALSO not in config.eval.attacks.split(","):
        return []
    return sorted(_epsilons(config) - {0.0, max(_epsilons(config))})


def curve_rows(
    model: ModelUnderTest,
    config: Config,
    advance: Callable[[int], None] = lambda runs: None,
) -> pa.Table:
    """Returns the rows of one defence under the adaptive attacker, on the images of `model`.

    PGD at all points; APGD at `searched_radii`. `advance` is told the number of runs done, as in
    `ModelUnderTest.attack`.
    """
    attacks = curve_attacks(config)
    found = model.attack([AttackJob(attack) for attack in attacks], advance=advance)
    tables = [
        _rows(model, EVALUATION, float(attack.epsilon), attack.num_steps, logits)
        for attack, logits in zip(attacks, found.logits, strict=True)
    ]
    search = restricted_attack_from_config(config, _ALSO, config.eval.apgd_steps)
    for epsilon in searched_radii(config):
        pixels = model.search(search, epsilon=epsilon, advance=advance).pixels
        tables.append(_rows(model, _ALSO, epsilon, search.num_steps, model.logits(pixels)))
    return pa.concat_tables(tables)


def _rows(
    model: ModelUnderTest, evaluation: str, epsilon: float, steps: int, logits: np.ndarray
) -> pa.Table:
    rows = prediction_rows(
        (model.defense, "adaptive", evaluation, epsilon), model.examples,
        scores(logits), logits.argmax(axis=1),
    )  # fmt: skip
    column = pa.array(np.full(len(model), steps), pa.int32())
    return rows.append_column(SCHEMA.field("num_steps"), column)


def read_curves(path: Path, num_classes: int = 2) -> pa.Table:
    """Returns the rows of a run of K classes so far, none if the file is missing."""
    return read_table(path, record_schema(num_classes, SCHEMA))
