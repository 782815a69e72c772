"""Self-checks that read records: each fails on a fault that was planted."""

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medadv_jax.evaluation import robustness_curves
from medadv_jax.evaluation.checks import prediction_checks
from medadv_jax.evaluation.predictions import SCHEMA
from tests.helpers.formula_case import (
    COUNT,
    DISTANCES,
    EPSILON,
    LABELS,
    Formula,
    formula_config,
    formula_images,
    make_model,
    two_logits,
    with_transfer,
)

# 4


def test_accuracy_that_rises_with_the_radius():
    many, some = np.ones(64, bool), np.arange(64) % 4 > 0
    labels = np.arange(64) % 2
    falling = {(0.0, 4): many, (0.01, 4): some, (0.01, 8): many, (1.0, 4): ~many}
    check_4 = prediction_checks.larger_radius_breaks_more
    assert check_4("base", falling, labels, 4).verdict == "pass"
    assert check_4("base", dict(reversed(falling.items())), labels, 4).verdict == "pass"
    rising = {(0.0, 4): some, (0.01, 4): many, (1.0, 4): ~many}
    result = check_4("base", rising, labels, 4)
    assert result.verdict == "fail"
    assert result.value == 0.25
    assert check_4("base", {(0.0, 4): many, (1.0, 4): labels == 0}, labels, 4).verdict == "pass"
    assert check_4("base", {(0.0, 4): many, (1.0, 4): some}, labels, 4).verdict == "fail"
    patch = check_4("base", {(0.0, 4): many, (1.0, 4): some}, labels, 4, reaches_all=False)
    assert patch.verdict == "pass"
    assert "end at" not in patch.explanation


# 5


def two_walls(variables, pixels):
    """Misclassifies where both halves of the image have moved; the gradient shows one."""
    del variables
    signed = (pixels - 0.5) * np.sign(np.asarray(formula_images(np.ones(2))[1] - 0.5))[None]
    halves = signed.reshape(signed.shape[0], 2, -1).mean(axis=2)
    sign = jnp.sign(halves.sum(axis=1))
    return two_logits(sign * (10 * jnp.max(halves * sign[:, None], axis=1) - 0.45))


def test_too_few_steps():
    images = formula_images(np.full(COUNT, 0.05))
    for steps, verdict in ((1, "fail"), (4, "pass")):
        config = formula_config(eval__num_steps=steps)
        model = make_model(Formula(two_walls), config, images)
        correct = prediction_checks.curve_correct(
            prediction_checks.columns_of(robustness_curves.curve_rows(model, config), "base")
        )
        result = prediction_checks.enough_steps(
            "base", correct, EPSILON, steps, correct[EPSILON, steps]
        )
        assert result.verdict == verdict, result.explanation


def test_restarts_that_break_more():
    correct = np.ones(64, bool)
    points = {(EPSILON, 4): correct, (EPSILON, 8): correct}
    broken = [np.arange(64) >= count for count in (0, 1, 8)]
    verdicts = [
        prediction_checks.enough_steps("base", points, EPSILON, 4, r).verdict for r in broken
    ]
    assert verdicts == ["pass", "warn", "fail"]


# 7


# 12


def is_complete(predictions, planted=("pass", "planted")):
    return prediction_checks.is_complete("base", predictions, EPSILON, planted)


def test_robust_number_that_lacks_what_belongs_to_it(healthy):
    predictions = healthy.predictions
    faults = {
        "no clean accuracy": predictions.filter(pc.field("threat_model") == "adaptive"),
        "no adaptive attack": predictions.filter(pc.field("threat_model") == "none"),
        "other images": predictions.slice(0, predictions.num_rows - 1),
        "other images than clean: transfer pgd": with_transfer(predictions, LABELS > 1).slice(
            0, 3 * COUNT - 1
        ),
        "unknown threat model": predictions.set_column(
            1, "threat_model", pa.array(["none"] * COUNT + ["white-box"] * COUNT)
        ),
    }
    assert is_complete(predictions).verdict == "pass"
    for text, table in faults.items():
        result = is_complete(table)
        assert result.verdict == "fail"
        assert text in result.explanation


def test_robust_number_says_what_belongs_to_it(healthy):
    mine = healthy.predictions
    other = mine.set_column(0, "defense", pa.array(["adversarial"] * mine.num_rows))
    left = (DISTANCES > EPSILON).mean()
    text = is_complete(pa.concat_tables([mine, other])).explanation
    for part in (
        "clean 1.000", f"adaptive {left:.3f}", f"n = {COUNT}", f"{1 - left:.3f} of all",
        "ε = 0.03", "pgd", "McNemar against adversarial p = 1",
    ):  # fmt: skip
        assert part in text


def test_another_radius_is_no_part_of_the_number(healthy):
    attacked = healthy.predictions.filter(pc.field("threat_model") == "adaptive")
    further = {"epsilon": np.full(COUNT, 0.5), "predicted": 1 - attacked["label"].to_numpy()}
    columns = {name: attacked[name] for name in SCHEMA.names} | further
    more = pa.table(columns, schema=SCHEMA)
    both = pa.concat_tables([healthy.predictions, more])
    assert is_complete(both).explanation == is_complete(healthy.predictions).explanation


def test_classifier_that_never_looks_is_named(healthy):
    column = pa.array(np.ones(2 * COUNT), pa.int32())
    always = healthy.predictions.drop("predicted").append_column("predicted", column)
    result = is_complete(always)
    assert result.verdict == "warn"
    assert "one class always" in result.explanation
