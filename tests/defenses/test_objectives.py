"""Losses of training beside a float64 reading of their formulas; the attacks that go with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from medadv_jax.attacks.from_config import attack_from_config
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.free import move_points, random_points
from medadv_jax.defenses.from_config import adversarial_objective
from medadv_jax.defenses.mart import boosted_cross_entropy
from medadv_jax.defenses.objectives import Batch, Examples
from medadv_jax.defenses.single_step import fast_attack, noisy_fgsm
from medadv_jax.defenses.trades import kl_attack

BATCH, CLASSES, EPSILON = 6, 4, 0.05
KEY = jax.random.key(0)


class Answers:
    """In place of a classifier: its logits are its variables."""

    def train_logits(self, variables, pixels, key):
        del key
        assert len(pixels) == len(variables["logits"])
        return variables["logits"], {}


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def reading(name, logits, labels, weights, beta=0.0, smoothing=0.0):
    """The loss of a batch in float64, from logits (B, V, K) and weights (B, V)."""
    p, rows = softmax(logits), np.arange(len(labels))
    if name in ("mixed", "madry"):
        target = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
        return np.sum(weights * -(target[:, None] * np.log(p)).sum(axis=-1))
    clean, attacked = p[:, 0], p[:, 1]
    kl = (clean * np.log(clean / attacked)).sum(axis=-1)
    if name == "trades":
        target = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
        losses = -(target * np.log(clean)).sum(axis=-1) + beta * kl
    else:
        others = np.where(np.eye(CLASSES)[labels] > 0, -1, attacked).max(axis=-1)
        bce = -np.log(attacked[rows, labels]) - np.log(1 - others)
        losses = bce + beta * kl * (1 - clean[rows, labels])
    return np.sum(weights.sum(axis=1) * losses)


def slope(function, at):
    """The gradient by central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        found[place] = (function(at + step) - function(at - step)) / 2e-6
    return found


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [("mixed", 0.0), ("mixed", 0.2), ("madry", 0.0), ("madry", 0.1), ("trades", 0.0),
     ("trades", 0.1), ("mart", 0.0)],
)  # fmt: skip
def test_loss_and_gradient_are_those_of_the_formula(name, smoothing):
    config = default.get_config()
    config.train.update(objective=name, beta=2.5, label_smoothing=smoothing)
    objective = adversarial_objective(config)
    columns = 1 if name == "madry" else 2
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((BATCH, columns, CLASSES))
    labels, mask = rng.integers(0, CLASSES, BATCH), np.ones(BATCH)
    weights = rng.random((BATCH, columns))
    examples = Examples(jnp.zeros((BATCH, columns, 1, 1, 3)), jnp.asarray(weights, jnp.float32))
    batch = Batch(jnp.zeros((BATCH, 1, 1, 3)), jnp.asarray(labels), jnp.asarray(mask))

    def loss_fn(flat):
        return objective.loss(Answers(), {"logits": flat}, examples, batch, KEY)  # pyright: ignore

    flat = jnp.asarray(logits.reshape(-1, CLASSES), jnp.float32)
    value, gradient = jax.value_and_grad(lambda flat: loss_fn(flat).value)(flat)
    read = functools.partial(reading, name, labels=labels, weights=weights, beta=2.5,
                             smoothing=smoothing)  # fmt: skip
    np.testing.assert_allclose(value, read(logits), rtol=1e-5)
    expected = slope(read, logits).reshape(-1, CLASSES)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    right = (logits.argmax(axis=-1) == labels[:, None]).mean(axis=0)
    metrics = loss_fn(flat).metrics
    assert np.isclose(metrics["adversarial_accuracy"], right[-1])
    assert ("accuracy" in metrics) == (name != "madry")


def test_boosted_cross_entropy_is_finite_where_the_other_class_is_certain():
    logits = jnp.array([[-40.0, 60.0]])
    value, gradient = jax.value_and_grad(lambda z: boosted_cross_entropy(z, jnp.array([0]))[0])(
        logits
    )
    np.testing.assert_allclose(value, 200.0, rtol=1e-6)  # both terms are the gap of 100
    np.testing.assert_allclose(gradient, [[-2.0, 2.0]], rtol=1e-6)


# Attacks


SLOPES = np.random.default_rng(2).choice([-1.0, 1.0], (8, 8, 3)).astype("f")


def linear(pixels):
    height = jnp.einsum("nhwc,hwc->n", pixels - 0.5, jnp.asarray(SLOPES))
    return jnp.stack([-height, height], axis=-1) / 20


IMAGES = jnp.asarray(np.random.default_rng(3).uniform(0.3, 0.7, (BATCH, 8, 8, 3)), jnp.float32)
LABELS = jnp.arange(BATCH) % 2
UPHILL = np.where(np.arange(BATCH)[:, None, None, None] % 2, -1, 1) * SLOPES


def test_kl_attack_reaches_a_corner_of_the_ball():
    """Of a linear function, the divergence is largest at one of two corners."""
    config = default.get_config()
    config.attack.epsilon = EPSILON
    attack = attack_from_config(config, "pgd", 5)
    found = kl_attack(linear, IMAGES, LABELS, KEY, attack=attack, loop="fori_loop")
    assert found.shape == (BATCH, 1, 8, 8, 3)
    way = np.asarray(found[:, 0] - IMAGES) * SLOPES
    assert len({*np.sign(way.mean(axis=(1, 2, 3)))}) == 2  # the start decides which corner
    np.testing.assert_allclose(np.abs(way), EPSILON, rtol=1e-5)
    assert np.ptp(np.sign(way), axis=(1, 2, 3)).max() == 0
    part = kl_attack(linear, IMAGES[3:], LABELS[3:], KEY, attack=attack, loop="unrolled")
    np.testing.assert_array_equal(found[3:], part)  # neither place in the batch nor loop matters


def test_fast_is_a_long_step_from_a_random_point_cut_to_the_ball():
    found = fast_attack(EPSILON, "linf")(linear, IMAGES, LABELS, KEY)
    way = np.asarray(found - IMAGES) * UPHILL / EPSILON
    # 1.25 from a uniform point of [-1, 1], cut at 1.
    assert way.min() >= 0.25 - 1e-5
    assert way.max() <= 1 + 1e-5
    np.testing.assert_allclose((way < 0.9999).mean(), 0.75 / 2, atol=0.05)


def test_noisy_fgsm_is_not_cut_to_the_ball():
    found = noisy_fgsm(linear, IMAGES, LABELS, KEY, epsilon=EPSILON, norm="linf")[:, 0]
    way = np.asarray(found - IMAGES) * UPHILL / EPSILON
    # 1 from a uniform point of [-2, 2].
    np.testing.assert_allclose([way.min(), way.max(), way.mean()], [-1, 3, 1], atol=0.1)


def test_free_starts_in_the_ball_and_moves_uphill_within_it():
    ball = {"epsilon": EPSILON, "norm": "linf"}
    start = random_points(linear, IMAGES, LABELS, KEY, **ball)
    assert np.abs(start[:, 0] - IMAGES).max() <= EPSILON + 1e-6
    assert np.abs(start[:, 0] - IMAGES).mean() > 0.4 * EPSILON
    moved = move_points(start, jnp.asarray(UPHILL, jnp.float32)[:, None], IMAGES, **ball)
    expected = np.clip((start[:, 0] - IMAGES) / EPSILON + UPHILL, -1, 1)
    np.testing.assert_allclose((moved[:, 0] - IMAGES) / EPSILON, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, (1 + 3 * 5) / 4 + 2),
        ({"assignment": "all"}, 1 + 3 * 5 + 5),
        ({"objective": "madry", "attacks": "pgd"}, 5 + 1),
        ({"objective": "trades"}, 5 + 2),
        ({"objective": "trades", "weight_perturbation": 0.01}, 5 + 4),
        ({"objective": "madry", "method": "fast"}, 1 + 1),
        ({"objective": "madry", "method": "free", "replays": 3}, 3),
    ],
)
def test_gradient_passes_are_counted(fields, passes):
    config = default.get_config()
    config.train.update(**fields)
    assert adversarial_objective(config).passes == passes
    assert get_defense("base").make_objective(config).passes == 1
