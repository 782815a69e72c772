"""Self-checks that run the classifier: each fails on a fault that was planted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.evaluation import robustness_curves
from medadv_jax.evaluation.checks import attack_checks
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, evaluation_attacks
from tests.helpers.formula_case import (
    COUNT,
    DISTANCES,
    EPSILON,
    Formula,
    formula_config,
    formula_images,
    height,
    linear,
    make_model,
    rounded,
    two_logits,
)


@pytest.fixture(scope="module")
def config():
    return formula_config()


@pytest.fixture(scope="module")
def pgd(config):
    return robustness_curves.curve_attack(config)


def found(model, config):
    """Returns what the extra attacks find, beside PGD as in the evaluation."""
    pgd = robustness_curves.curve_attack(config)
    left = model.attack([AttackJob(pgd)]).logits[0].argmax(axis=1) == model.labels
    return attack_checks.find(model, config, left)


# 1


def darken(pixels):
    return 0.9 * pixels


@pytest.mark.parametrize(
    ("source", "verdict"), [("full", "pass"), ("bpda", "pass"), ("bare", "fail")]
)
def test_attack_that_leaves_out_the_purifier(config, source, verdict):
    model = make_model(Formula(linear, darken), config, sources=(source,))
    assert attack_checks.attacks_deployed(model, EPSILON).verdict == verdict


def test_attack_on_other_weights(config):
    model = make_model(Formula(linear), config)
    others = Source("full", {"scale": np.full((), 90.0, np.float32)})
    object.__setattr__(model, "sources", (others,))
    assert attack_checks.attacks_deployed(model, EPSILON).verdict == "fail"


def test_attack_that_sees_no_number(config):
    model = make_model(
        Formula(lambda variables, pixels: linear(variables, pixels) * jnp.nan), config
    )
    assert attack_checks.attacks_deployed(model, EPSILON).verdict == "fail"


# 2


class Faulty(Predictor):
    """Attacks with one fault."""

    fault = ""

    def attack(self, attacks, source, batch, key, penalty=None):
        pixels = np.array(super().attack(attacks, source, batch, key, penalty))
        clean = np.asarray(batch["image"]) / np.float32(255)
        if self.fault == "too far":
            pixels = clean + (pixels - clean) * 1.01
        if self.fault == "out of range":
            pixels[0, 0, 0, 0] = clean[0, 0, 0] = -1e-3
        if self.fault == "no number":
            pixels[0, 0, 0, 0, 0] = np.nan
        if self.fault == "moves variables":
            source.variables["scale"] += 1
        return pixels


@pytest.fixture(scope="module")
def faulty(config):
    images = formula_images()
    images[0, 0, 0] = 0.0  # at the edge of the pixel range
    return make_model(Formula(linear), config, images, predictor=Faulty)


@pytest.mark.parametrize("fault", ["", "too far", "out of range", "no number"])
def test_attack_that_leaves_its_bounds(faulty, config, fault, monkeypatch):
    monkeypatch.setattr(faulty.predictor, "fault", fault)
    again = attack_checks.evaluate_again(faulty, evaluation_attacks(config))
    still = np.asarray(jax.nn.softmax(faulty.logits(faulty.images))[:, 1])
    result = attack_checks.stays_within(faulty, again, still)
    assert result.verdict == ("fail" if fault else "pass"), result.explanation
    json.dumps(result)


def test_epsilon_zero_that_changes_a_bit(faulty, config):
    again = attack_checks.evaluate_again(faulty, evaluation_attacks(config))
    still = np.asarray(jax.nn.softmax(faulty.logits(faulty.images))[:, 1])
    assert attack_checks.stays_within(faulty, again, still).verdict == "pass"
    still = np.where(np.arange(COUNT) == 7, np.nextafter(still, np.float32(0)), still)
    assert attack_checks.stays_within(faulty, again, still).verdict == "fail"


# 3


def trapped(variables, pixels):
    """Small steps turn back at a wall; one large step leaps over it."""
    del variables
    high = height(pixels)
    way = jnp.abs(high) - 0.05  # images stand at ±0.05
    near = jnp.where(way > -0.004, 1 + 50 * way, 0.8 + 50 * (-0.004 - way))
    return two_logits(jnp.sign(high) * jnp.where(way > -0.02, near, way - 1))


def test_weak_attack_that_is_stronger_than_strong_ones(config):
    images = formula_images(np.full(COUNT, 0.05))
    model = make_model(Formula(trapped), config, images)
    result = attack_checks.stronger_breaks_more(model, found(model, config))
    assert result.verdict == "fail", result.explanation
    assert result.value == 1  # FGSM breaks all, BIM none


# 6


def gradient_of_nan(variables, pixels):
    """The slope of a root at 0, for images whose first pixel is black."""
    return linear(variables, pixels) + jnp.sqrt(pixels[:, 0, 0, :1])


@pytest.mark.parametrize("function", [gradient_of_nan, linear])
def test_gradient_that_is_no_number(config, function):
    images = formula_images()
    images[3, 0, 0, 0] = 0.0
    model = make_model(Formula(function), config, images)
    result = attack_checks.has_gradients(model)
    assert result.verdict == ("pass" if function is linear else "fail")


def test_gradient_that_is_zero(config):
    verdicts = {
        sources: attack_checks.has_gradients(
            make_model(Formula(linear, rounded), config, sources=sources)
        ).verdict
        for sources in (("full",), ("full", "bpda"), ("bpda",))
    }
    assert verdicts == {("full",): "fail", ("full", "bpda"): "warn", ("bpda",): "pass"}


# 8


class Guessing(Predictor):
    """Adds another noise to the logits each time."""

    def logits(self, target, pixels):
        noise = np.random.default_rng().normal(size=(pixels.shape[0], 1)).astype(np.float32)
        return super().logits(target, pixels) + noise


def test_random_logits(config):
    model = make_model(Formula(linear), config, predictor=Guessing)
    assert attack_checks.is_the_same_again(model, config).verdict == "fail"


def test_random_start_that_is_always_the_same(healthy, config, monkeypatch):
    sweep = healthy.model.queue
    starts = sweep.starts
    monkeypatch.setattr(
        sweep, "starts", lambda images, epsilon, _, *rest: starts(images, epsilon, 0, *rest)
    )
    assert attack_checks.is_the_same_again(healthy.model, config).verdict == "fail"


# 9


def test_probabilities_in_place_of_logits(config, pgd):
    model = make_model(
        Formula(lambda variables, pixels: jax.nn.softmax(linear(variables, pixels))), config
    )
    result = attack_checks.are_logits(model, pgd, found(model, config))
    assert result.verdict == "fail"
    assert "probabilities" in result.explanation


def test_logits_of_half_precision(config, pgd):
    model = make_model(
        Formula(lambda variables, pixels: linear(variables, pixels).astype(jnp.bfloat16)), config
    )
    result = attack_checks.are_logits(model, pgd, found(model, config))
    assert result.verdict == "fail"
    assert "bfloat16" in result.explanation


def test_logits_so_steep_that_the_loss_is_flat(config, pgd):
    model = make_model(Formula(lambda variables, pixels: 1e4 * linear(variables, pixels)), config)
    findings = found(model, config)
    assert findings.correct.pgd.mean() > 0.8  # float32 rounds the gradient of cross-entropy to 0
    for other in (
        findings.correct.tempered,
        findings.correct.margin,
    ):  # either sees it
        np.testing.assert_array_equal(other, DISTANCES > EPSILON)
    assert attack_checks.are_logits(model, pgd, findings).verdict == "fail"


# 10


def beside_others(variables, pixels):
    """As with BatchNorm on the batch's statistics."""
    return linear(variables, pixels) - 0.1 * linear(variables, pixels).mean(axis=0, keepdims=True)


def test_logits_that_depend_on_the_batch(config):
    model = make_model(Formula(beside_others), config)
    again = attack_checks.Evaluated(pixels=[], attacks=[], changed=[])
    assert attack_checks.changes_nothing_else(model, again).verdict == "fail"


def test_attack_that_moves_the_variables(faulty, config, monkeypatch):
    monkeypatch.setattr(faulty.predictor, "fault", "moves variables")
    variables = faulty.target.variables
    monkeypatch.setitem(variables, "scale", variables["scale"].copy())  # put back at the end
    again = attack_checks.evaluate_again(faulty, evaluation_attacks(config))
    result = attack_checks.changes_nothing_else(faulty, again)
    assert result.verdict == "fail"
    assert "changed the variables" in result.explanation


# 12


def test_attack_that_is_too_weak_for_what_is_planted():
    config = formula_config(attack__relative_step=0.001)
    model = make_model(Formula(linear), config)
    findings = found(model, config)
    assert findings.planted.mean() > 0.8
    verdict, text = attack_checks.finds_planted(findings)
    assert verdict == "fail", text


def test_constant_classifier_has_nothing_planted(config):
    model = make_model(
        Formula(lambda variables, pixels: 0 * linear(variables, pixels) + jnp.array([[0.0, 1.0]])),
        config,
    )
    assert attack_checks.finds_planted(found(model, config))[0] == "warn"
