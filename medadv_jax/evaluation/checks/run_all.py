"""Can these numbers be trusted? Thirteen checks, each with its number and a line of explanation.

    checks = run_self_checks(model, config, curves, predictions)       # of each defence
    checks.append(check_splits(splits, examples, predictions, training, hashes))     # of the run
    write_self_checks(path, checks)

Checks 4, 5 and 12 read records (`prediction_checks.py`), 11 the splits (`split_checks.py`); 7 asks
attacks of another kind (`second_opinion.py`); 13 reads the training curves, where attacks of one
step were trained against (`overfitting_check.py`); the others run the classifier
(`attack_checks.py`).
They cover the faults of robustness claims that were refuted later (Athalye et al. 2018; Carlini et
al. 2019, "On evaluating adversarial robustness"; Zimmermann et al. 2022, "Increasing confidence in
adversarial robustness evaluations").
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from medadv_jax.attacks.restriction import FREE
from medadv_jax.config import Config
from medadv_jax.evaluation.checks import attack_checks, prediction_checks
from medadv_jax.evaluation.checks.overfitting_check import overfitting_checks
from medadv_jax.evaluation.checks.result import (
    Check,
    headline,
    read_self_checks,
    write_self_checks,
)
from medadv_jax.evaluation.checks.second_opinion import SecondOpinion, no_other_breaks_more
from medadv_jax.evaluation.checks.split_checks import check_splits, difference_hashes
from medadv_jax.evaluation.model_under_test import ModelUnderTest
from medadv_jax.evaluation.predictions import read_scores
from medadv_jax.evaluation.robustness_curves import curve_attack
from medadv_jax.evaluation.threat_models import evaluation_attacks

__all__ = [
    "Check",
    "check_splits",
    "difference_hashes",
    "overfitting_checks",
    "read_self_checks",
    "run_self_checks",
    "verdict_lines",
    "write_self_checks",
]

PARTS = 3  # of `run_self_checks`: two kinds of extra attacks, and the checks themselves


def run_self_checks(
    model: ModelUnderTest,
    config: Config,
    curves: pa.Table,
    predictions: pa.Table,
    second: SecondOpinion,
    record: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Returns the checks 1 to 10 and 12 of one defence.

    Args:
      model: the defended classifier, and the images to check it on.
      config: of the run.
      curves: rows of `curves.parquet`; those of this defence are on the model's images.
      predictions: rows of `predictions.parquet`, of this defence and those evaluated before.
      second: what attacks of another kind than the evaluation's did.
      record: of the searching attacks on this defence, by name; see `write_attack_record`.
      advance: called after each of `PARTS` parts.
    """
    defense, pgd = model.defense, curve_attack(config)
    epsilon, steps = float(pgd.epsilon), pgd.num_steps
    mine = prediction_checks.columns_of(curves, defense)
    correct = prediction_checks.curve_correct(mine)
    still = read_scores(mine)[(mine["epsilon"] == 0) & (mine["num_steps"] == steps)]
    records = prediction_checks.columns_of(predictions, defense)
    findings = attack_checks.find(model, config, correct[epsilon, steps])
    advance()
    evaluated = attack_checks.evaluate_again(model, evaluation_attacks(config) or [pgd])
    advance()
    planted, restarted = attack_checks.finds_planted(findings), findings.correct.restarts
    checks = [
        attack_checks.attacks_deployed(model, epsilon),
        attack_checks.stays_within(model, evaluated, still, record),
        attack_checks.stronger_breaks_more(model, findings),
        prediction_checks.larger_radius_breaks_more(
            defense, correct, model.labels, steps, reaches_all=pgd.restriction == FREE
        ),
        prediction_checks.enough_steps(defense, correct, epsilon, steps, restarted),
        attack_checks.has_gradients(model),
        no_other_breaks_more(defense, records, epsilon, second),
        attack_checks.is_the_same_again(model, config),
        attack_checks.are_logits(model, pgd, findings),
        attack_checks.changes_nothing_else(model, evaluated),
        prediction_checks.is_complete(defense, predictions, epsilon, planted),
    ]
    advance()
    return checks


def verdict_lines(path: Path) -> list[str]:
    """Returns what the self-checks say, one line for the whole and one for each that fails."""
    if not path.exists():
        return ["self-checks: not run (eval.checks=False)"]
    checks = read_self_checks(path)
    passed = sum(check.verdict == "pass" for check in checks)
    verdict = f"{headline(checks)}; {passed} of {len(checks)} pass"
    lines = [f"self-checks of the measurement: {verdict}"]
    return lines + [
        f"{c.verdict}: {c.number} {c.name}, {c.defense or 'run'}: {c.explanation}"
        for c in checks
        if c.verdict != "pass"
    ]
