"""What a purifier is trained on and by what loss, against values known by hand."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import entropy

from medadv_jax.attacks import make_attack, run_assigned
from medadv_jax.classifier import Classifier
from medadv_jax.defenses.purification import (
    ERROR_UNIT,
    OBJECTIVES,
    kl_divergence,
    purification_inputs,
    purification_loss,
)
from medadv_jax.errors import UserError
from medadv_jax.models.purifiers import create_purifier
from tests.helpers.tiny import SIZE, TinyNet

NOISE, EPSILON = 0.02, 0.03
LABELS = jnp.array([0, 1, 0, 1])
EVERYONE = jnp.ones(4)
ATTACKS = [make_attack("fgsm", 0.01), make_attack("bim", EPSILON, num_steps=2)]


class Shift(nn.Module):
    """A purifier that adds its only parameter to every pixel."""

    @nn.compact
    def __call__(self, pixels):
        return pixels + self.param("shift", nn.initializers.zeros, ())


@functools.cache
def pixels():
    """Squares of one colour, which can be denoised, under the black border of an X-ray."""
    colours = np.random.default_rng(0).uniform(0.0, 1.0, (4, SIZE // 4, SIZE // 4, 3))
    drawn = colours.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    drawn[:, :4] = 0.0
    with jax.ensure_compile_time_eval():  # kept, so no tracer
        return jnp.asarray(drawn)


@functools.cache
def network_variables():
    with jax.ensure_compile_time_eval():
        variables = jax.jit(Classifier(TinyNet()).init, static_argnums=1)(jax.random.key(0), SIZE)
        # A network whose answers depend on the image by more than rounding.
        return {**variables, "params": jax.tree.map(lambda leaf: 2 * leaf, variables["params"])}


def bare_logits(images):
    return Classifier(TinyNet()).logits(network_variables(), images)


@functools.cache
def inputs_fn(objective, purified=False):
    """Returns the compiled (variables, mask, seed) -> inputs."""
    classifier = Classifier(TinyNet(), purifier=Shift() if purified else None)

    def run(variables, mask, seed):
        return purification_inputs(
            classifier.logits_fn(variables, "bare"),
            pixels(),
            LABELS,
            mask,
            jax.random.key(seed),
            attacks=ATTACKS,
            objective=objective,
            noise=NOISE,
            loop="fori_loop",
        )

    return jax.jit(run)


def make_inputs(objective, mask=EVERYONE, seed=0):
    return inputs_fn(objective)(network_variables(), mask, seed)


def test_reconstruction_sees_the_clean_images_alone():
    examples = make_inputs("reconstruction")
    assert_array_equal(examples.images, pixels()[:, None])
    assert_array_equal(examples.weights, np.full((4, 1), 0.25))


@pytest.mark.parametrize("objective", ["denoising", "guided"])
def test_the_others_see_clean_noisy_and_adversarial_images(objective):
    clean, noisy, adversarial = np.moveaxis(np.asarray(make_inputs(objective).images), 1, 0)
    images = np.asarray(pixels())
    assert_array_equal(clean, images)
    for corrupted, radius in ((noisy, NOISE), (adversarial, EPSILON)):  # the larger of the two
        assert 0 <= corrupted.min() < corrupted.max() <= 1
        assert np.abs(corrupted - images).max() <= radius + 1e-6
    # The noise is uniform where it does not meet 0 or 1: mean 0, variance radius²/3.
    free = (images > NOISE) & (images < 1 - NOISE)
    noise = (noisy - images)[free]
    spread = NOISE / math.sqrt(3)
    assert abs(noise.mean()) < 4 * spread / math.sqrt(noise.size)
    assert_allclose(noise.std(), spread, rtol=0.1)
    other = make_inputs(objective, seed=1).images[:, 1]
    assert np.abs(np.asarray(other) - noisy).max() > 0.5 * NOISE


def test_the_adversarial_column_is_the_attack_on_the_bare_network():
    adversarial = make_inputs("denoising").images[:, 2]
    expected = jax.jit(lambda images: run_assigned(ATTACKS, bare_logits, images, LABELS))(pixels())
    assert_allclose(adversarial, expected, atol=1e-6)
    radii = np.abs(np.asarray(adversarial - pixels())).max((1, 2, 3))
    assert_allclose(radii, [0.01, EPSILON, 0.01, EPSILON], rtol=1e-4)


def test_inputs_do_not_depend_on_the_purifier():
    first, second = (
        inputs_fn("denoising", purified=True)(
            {**network_variables(), "purifier": {"shift": jnp.float32(shift)}}, EVERYONE, 0
        )
        for shift in (0.0, 0.2)
    )
    assert_array_equal(first.images, second.images)
    assert_allclose(first.images, make_inputs("denoising").images, atol=1e-6)


def test_weights_are_equal_among_columns_and_sum_to_one():
    weights = make_inputs("guided", mask=jnp.array([1.0, 0.0, 1.0, 0.0])).weights
    assert_allclose(weights, np.repeat([[1 / 6], [0], [1 / 6], [0]], 3, axis=1), rtol=1e-6)


def loss_of(purifier_params, inputs, weights, objective, guidance=1.0, purifier=None):
    return purification_loss(
        Classifier(TinyNet(), purifier=purifier or Shift()),
        {**network_variables(), "purifier": purifier_params},
        inputs,
        pixels(),
        weights,
        objective=objective,
        guidance=guidance,
    )


@pytest.mark.parametrize("objective", ["reconstruction", "denoising"])
def test_error_is_the_weighted_square_in_units_of_eight_grey_levels(objective):
    offsets = np.array([[0.0, 0.1], [0.0, 0.2], [0.3, 0.0], [0.0, 0.0]])
    inputs = pixels()[:, None] + jnp.asarray(offsets, jnp.float32)[:, :, None, None, None]
    weights = np.array([[0.1, 0.2], [0.0, 0.3], [0.4, 0.0], [0.0, 0.0]])
    shift = 0.05
    loss, metrics = loss_of({"shift": shift}, inputs, jnp.float32(weights), objective)
    expected = np.sum(weights * (offsets + shift) ** 2)
    assert_allclose(loss, expected / (8 / 255) ** 2, rtol=1e-5)
    assert_allclose(metrics.pop("pixel_error"), math.sqrt(expected), rtol=1e-5)
    assert not metrics


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def test_divergence_is_scipys_and_nothing_for_equals():
    logits, others = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32) * 4
    expected = entropy(softmax(logits), softmax(others), axis=-1)
    assert_allclose(kl_divergence(jnp.array(logits), jnp.array(others)), expected, rtol=1e-4)
    assert_array_equal(kl_divergence(jnp.array(logits), jnp.array(logits)), np.zeros(5))
    # Sure answers neither overflow nor turn into NaN.
    sure, torn = jnp.array([200.0, -200.0]), jnp.zeros(2)
    assert_allclose(kl_divergence(sure, torn), math.log(2), rtol=1e-6)


def test_an_identity_purifier_costs_nothing_on_clean_images():
    loss, metrics = loss_of({"shift": 0.0}, pixels()[:, None], jnp.full((4, 1), 0.25), "guided")
    assert_allclose([loss, metrics["divergence"]], 0.0, atol=1e-12)


def test_guidance_adds_the_divergence_from_the_clean_answers():
    examples = make_inputs("guided")
    shift, guidance = 0.1, 3.0
    arguments = ({"shift": shift}, examples.images, examples.weights)
    loss, metrics = loss_of(*arguments, "guided", guidance)
    plain, _ = loss_of(*arguments, "denoising")
    clean = bare_logits(pixels())
    purified = [bare_logits(examples.images[:, column] + shift) for column in range(3)]
    expected = np.mean([entropy(softmax(clean), softmax(p), axis=-1) for p in purified])
    assert expected > 0.001
    assert_allclose(metrics["divergence"], expected, rtol=1e-3)
    assert_allclose(loss, plain + guidance * expected, rtol=1e-4)


def test_the_gradient_is_that_of_the_purifier():
    """Also by finite differences, through the network: the clean answers stay where they are."""
    examples = make_inputs("guided")

    @jax.jit
    def loss(shift):
        return loss_of({"shift": shift}, examples.images, examples.weights, "guided", 50.0)[0]

    at, step = 0.05, 5e-4
    slope = (loss(at + step) - loss(at - step)) / (2 * step)
    assert_allclose(jax.grad(loss)(at), slope, rtol=0.01)


def test_a_purifier_learns_to_denoise():
    unet = create_purifier("unet", width=0.5)
    examples = make_inputs("denoising")
    optimizer = optax.adam(0.001)

    @jax.jit
    def step(params, state):
        run = functools.partial(loss_of, purifier=unet)
        gradient, metrics = jax.grad(run, has_aux=True)(
            params, examples.images, examples.weights, "denoising"
        )
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, metrics["pixel_error"]

    params, errors = jax.jit(unet.init)(jax.random.key(0), pixels())["params"], []
    state = optimizer.init(params)
    for _ in range(60):
        params, state, error = step(params, state)
        errors.append(float(error))
    identity = np.square(np.asarray(examples.images - pixels()[:, None]))
    assert_allclose(errors[0], math.sqrt(identity.mean()), rtol=1e-3)
    assert errors[-1] < 0.8 * errors[0]


def test_unknown_objectives_are_told():
    with pytest.raises(UserError, match=f"'contrastive'.*{', '.join(OBJECTIVES)}"):
        make_inputs("contrastive")
    with pytest.raises(UserError, match="'contrastive'"):
        loss_of({"shift": 0.0}, pixels()[:, None], jnp.full((4, 1), 0.25), "contrastive")


def test_the_unit_is_about_the_radius_of_the_attacks():
    assert_allclose(ERROR_UNIT, EPSILON, rtol=0.05)
