"""The detectors' scores against independent code, and thresholds and rates by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from medadv_jax.classifier import Classifier
from medadv_jax.defenses.detectors import (
    DETECTORS,
    detection_summary,
    reduce_depth,
    smooth_median,
    threshold_at,
)
from medadv_jax.errors import UserError
from tests.helpers.tiny import SIZE, TinyNet

every_detector = pytest.mark.parametrize("name", sorted(DETECTORS))


class Darken(nn.Module):
    """A purifier that multiplies by its only parameter."""

    @nn.compact
    def __call__(self, pixels):
        return pixels * self.param("factor", nn.initializers.ones, ())


@functools.cache
def random_pixels(count=3):
    drawn = np.random.default_rng(0).uniform(0.0, 1.0, (count, SIZE, SIZE, 3))
    return jnp.asarray(drawn.astype(np.float32))


@functools.cache
def classifier_and_variables(factor=1.0):
    classifier = Classifier(TinyNet(), purifier=Darken())
    variables = jax.jit(classifier.init, static_argnums=1)(jax.random.key(0), SIZE)
    # A network whose answers depend on the image by more than rounding.
    variables["params"] = jax.tree.map(lambda leaf: 1.5 * leaf, variables["params"])
    return classifier, {**variables, "purifier": {"factor": jnp.float32(factor)}}


def probabilities(pixels):
    """What the network without purifier says, (B, 2) float64."""
    classifier, variables = classifier_and_variables()
    logits = np.asarray(classifier.logits(variables, jnp.asarray(pixels), "bare"), np.float64)
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True)


def scores(name, pixels, factor=1.0):
    classifier, variables = classifier_and_variables(factor)
    result = DETECTORS[name](classifier, variables, pixels)
    assert result.shape == pixels.shape[:1]
    assert result.dtype == jnp.float32
    return np.asarray(result)


def test_reconstruction_is_the_mean_change_of_a_pixel():
    pixels = np.asarray(random_pixels())
    expected = 0.25 * pixels.mean((1, 2, 3))
    assert_allclose(scores("reconstruction", random_pixels(), 0.75), expected, rtol=1e-5)


def test_disagreement_is_the_distance_of_both_answers():
    first, second = probabilities(random_pixels()), probabilities(0.5 * random_pixels())
    expected = np.abs(first - second).sum(-1)
    assert expected.min() > 0.01
    assert_allclose(scores("disagreement", random_pixels(), 0.5), expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["reconstruction", "disagreement"])
def test_a_purifier_that_changes_nothing_suspects_nothing(name):
    assert_array_equal(scores(name, random_pixels()), np.zeros(3))


def squeezed(pixels):
    """Both squeezers, in numpy and scipy."""
    pixels = np.asarray(pixels)
    # Level k of 31 is nearest between k - ½ and k + ½.
    depth = np.searchsorted((np.arange(31) + 0.5) / 31, pixels) / np.float32(31)
    median = scipy.ndimage.median_filter(pixels, size=(1, 2, 2, 1), mode="reflect")
    return depth.astype(np.float32), median


def test_squeezers_are_those_of_numpy_and_scipy():
    depth, median = squeezed(random_pixels())
    assert_allclose(reduce_depth(random_pixels()), depth, atol=1e-6)
    assert_array_equal(smooth_median(random_pixels()), median)
    assert len(np.unique(np.asarray(reduce_depth(jnp.linspace(0.0, 1.0, 999)), np.float16))) == 32


def test_squeezing_is_the_largest_distance_to_the_squeezed_images():
    distances = [
        np.abs(probabilities(random_pixels()) - probabilities(other)).sum(-1)
        for other in squeezed(random_pixels())
    ]
    assert np.max(distances) > 0.01
    # Both squeezers have their say, or the largest would prove nothing.
    few = random_pixels(), scores("squeezing", random_pixels())
    assert_allclose(few[1], np.max(distances, axis=0), rtol=1e-3, atol=1e-5)


def test_squeezing_needs_no_purifier_and_the_others_say_so():
    classifier, variables = classifier_and_variables()
    bare = Classifier(classifier.network)
    expected = scores("squeezing", random_pixels(), factor=0.5)
    assert_array_equal(DETECTORS["squeezing"](bare, variables, random_pixels()), expected)
    for name in ("reconstruction", "disagreement"):
        with pytest.raises(UserError, match=f"'{name}' needs a purifier.*'squeezing'"):
            DETECTORS[name](bare, variables, random_pixels())


@every_detector
def test_an_attacker_can_follow_the_score(name):
    """Its gradient leads to lower scores, for each image and through the rounding too."""
    classifier, variables = classifier_and_variables(0.5)

    @jax.jit
    def run(pixels):
        values = DETECTORS[name](classifier, variables, pixels)
        gradient = jax.grad(lambda x: DETECTORS[name](classifier, variables, x).sum())(pixels)
        return values, gradient

    # Images whose score is more than what rounding makes of any image.
    pixels = random_pixels()[np.flatnonzero(run(random_pixels())[0] > 0.05)]
    values, gradient = run(pixels)
    assert len(pixels) > 1
    assert np.all(np.abs(np.asarray(gradient)).max((1, 2, 3)) > 0)
    lowest = values
    for step in 0.008 * 0.6 ** np.arange(12.0, dtype=np.float32):
        pixels = jnp.clip(pixels - step * jnp.sign(run(pixels)[1]), 0.0, 1.0)
        lowest = np.minimum(lowest, run(pixels)[0])
    assert np.all(lowest < 0.97 * values)


def test_rounding_has_the_gradient_of_the_identity():
    gradient = jax.grad(lambda x: jnp.vdot(reduce_depth(x), jnp.arange(3.0)))(jnp.full(3, 0.3))
    assert_array_equal(gradient, jnp.arange(3.0))


@pytest.mark.parametrize(
    ("values", "rate", "threshold"),
    [
        (range(20), 0.05, 18.0),  # one of twenty
        (range(20), 0.099, 18.0),  # two would be too many
        (range(20), 0.0, 19.0),
        (range(100), 0.29, 70.0),  # 0.29 × 100 is below 29 in binary
        ([1, 2, 5, 5], 0.25, 5.0),  # either both fives or none
        ([1, 2, 5, 5], 0.5, 2.0),
        ([3, 3, 3, 3], 0.9, 3.0),
    ],
)
def test_threshold_by_hand(values, rate, threshold):
    shuffled = np.random.default_rng(0).permutation(np.array(list(values), np.float32))
    assert threshold_at(shuffled, rate) == threshold


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.3, 0.999])
def test_threshold_keeps_its_promise_and_is_the_lowest_that_does(rate):
    values = np.random.default_rng(1).integers(0, 30, 173).astype(np.float64)  # many ties
    threshold = threshold_at(values, rate)
    assert np.mean(values > threshold) <= rate
    lower = values[values < threshold]
    assert lower.size == 0 or np.mean(values > lower.max()) > rate


def test_summary_by_hand():
    summary = detection_summary(np.array([0.1, 0.2, 0.3, 0.6]), np.array([0.2, 0.5, 0.9]), 0.3)
    # Of 12 pairs the attacked image wins 1 + 3 + 4, and one is even.
    assert summary == {
        "auc": pytest.approx((1 + 0.5 + 3 + 4) / 12),
        "true_positive_rate": pytest.approx(2 / 3),
        "false_positive_rate": 0.25,
    }


def test_equal_scores_are_worth_nothing():
    summary = detection_summary(np.full(7, 0.4), np.full(5, 0.4), 0.4)
    assert summary == {"auc": 0.5, "true_positive_rate": 0.0, "false_positive_rate": 0.0}


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates_are_told(rate):
    with pytest.raises(UserError, match=r"false_positive_rate=.*below 1"):
        threshold_at(np.arange(3.0), rate)


@pytest.mark.parametrize("broken", [np.array([]), np.array([0.1, np.nan])])
def test_scores_that_are_no_numbers_are_told(broken):
    good = np.arange(3.0)
    for call in (
        lambda: threshold_at(broken, 0.05),
        lambda: detection_summary(broken, good, 0.5),
        lambda: detection_summary(good, broken, 0.5),
    ):
        with pytest.raises(ValueError, match=f"{len(broken)} scores"):
            call()
