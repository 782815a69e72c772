"""Searching attacks on a deployed classifier: whose word counts, and what the record says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.autoattack import AutoAttackResult, Stage
from medadv_jax.evaluation.checks import attack_checks
from medadv_jax.evaluation.predictor import scores
from medadv_jax.evaluation.searching import read_attack_record, write_attack_record
from tests.helpers.formula_case import (
    COUNT,
    DISTANCES,
    EPSILON,
    Formula,
    formula_config,
    linear,
    make_model,
)

KEY = jax.random.key(0)
APGD = make_attack("apgd", EPSILON, num_steps=10)


@pytest.fixture(scope="module")
def model():
    return make_model(Formula(linear), formula_config())


def test_one_program_serves_every_radius(model):
    """And finds the closed form: an image stands where its distance is larger than the radius."""
    for epsilon in (0.01, EPSILON, 0.05):
        found = model.search(APGD, epsilon=epsilon)
        np.testing.assert_array_equal(found.correct, epsilon < DISTANCES)
        assert np.abs(found.pixels - model.images).max() <= epsilon + 1e-6
    assert len(model.searching._queues) == 1


def test_only_the_deployed_classifier_says_what_is_broken(model):
    """An attack may believe otherwise, as its classifier is equal up to rounding only."""
    stubborn = model.logits(model.images)
    found = model.searching.run(
        APGD, model.sources, model.images, model.labels, KEY, lambda x: stubborn[: len(x)]
    )
    assert found.correct.all()
    np.testing.assert_array_equal(found.pixels, model.images)


def test_a_second_gradient_is_tried_on_what_the_first_left():
    """The full gradient of a staircase is zero; BPDA's is not."""
    steps = Formula(linear, purify=lambda pixels: jnp.round(pixels * 512) / 512)
    config = formula_config()
    blind = make_model(steps, config).search(APGD)
    both = make_model(steps, config, sources=("full", "bpda")).search(APGD)
    assert blind.correct.sum() > both.correct.sum()
    step = 1 / 512  # by which rounding may move a boundary
    assert not both.correct[(DISTANCES + step) < EPSILON].any()
    assert both.correct[(DISTANCES - step) > EPSILON].all()
    assert both.stages[0].passes > blind.stages[0].passes


def test_record_says_which_part_broke_what_and_by_how_much_it_went_too_far(model, tmp_path):
    pixels = model.images.copy()
    pixels[3, 0, 0, 0] += 2 * EPSILON
    pixels[5, 0, 0, 1] = -0.25
    broken_by = np.full(COUNT, -2)
    broken_by[[0, 3]], broken_by[5] = 0, -1
    stages = (Stage("apgd_ce", COUNT - 1, 2, 40, 1.5), Stage("square", COUNT - 3, 0, 7, 0.5))
    found = AutoAttackResult(pixels, broken_by == -2, broken_by, stages)
    path = tmp_path / "attack_record.json"
    assert read_attack_record(path) == {}
    attack = make_attack("autoattack", EPSILON)
    for defense in ("base", "hybrid"):
        write_attack_record(path, defense, model.examples, model.images, attack, found)
    record = read_attack_record(path)
    assert record.keys() == {"base", "hybrid"}
    mine = record["base"]["autoattack"]
    assert mine["broken_by"] == {"e0": "apgd_ce", "e3": "apgd_ce"}
    assert mine["parts"][1] == stages[1]._asdict()
    assert mine["outside"] == 0.25
    gone = float(np.abs(pixels - model.images).max()) - EPSILON
    assert mine["exceeds"] == pytest.approx(gone)


def test_record_of_an_attack_that_left_its_ball_fails_check_2(model):
    again = attack_checks.evaluate_again(model, [make_attack("fgsm", EPSILON)])
    still = scores(model.logits(model.images))
    for exceeds, outside, verdict in ((0.0, 0.0, "pass"), (1e-3, 0.0, "fail"), (0.0, 1e-3, "fail")):
        record = {"apgd": {"exceeds": exceeds, "outside": outside}}
        assert attack_checks.stays_within(model, again, still, record).verdict == verdict
