"""Five classes, each with pixels of its own: every optimum is known pixel by pixel.

Logit k is a weighted sum of the pixels of class k, and all classes have as many pixels and weights
of one size, so that within a ball each logit moves by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import medadv_jax
from medadv_jax.attacks import make_attack
from medadv_jax.attacks.autoattack import AutoAttack

CLASSES, SHAPE, EPSILON = 5, (5, 4, 3), 0.03
SIZE = int(np.prod(SHAPE))
OWNER = np.arange(SIZE).reshape(SHAPE) % CLASSES  # the class of each pixel
SIGNS = np.where(np.random.default_rng(0).random(SHAPE) < 0.5, -1, 1).astype(np.float32)
WEIGHTS = np.stack([SIGNS * (k == OWNER) for k in range(CLASSES)])
LABELS = np.arange(2 * CLASSES) % CLASSES


def linear(pixels):
    return jnp.einsum("nhwc,khwc->nk", pixels - 0.5, jnp.asarray(WEIGHTS))


def images():
    """The label's logit is the highest by far, and no other two are equal."""
    noise = np.random.default_rng(1).uniform(-0.05, 0.05, (len(LABELS), *SHAPE))
    return (0.5 + noise + 0.2 * WEIGHTS[LABELS]).astype(np.float32)


def directions(loss, targets):
    """(n, H, W, 3): +1 where a logit should rise, −1 where it should fall, by the weight's sign."""
    rises = np.zeros((len(LABELS), CLASSES))
    rows, others = np.arange(len(LABELS)), np.asarray(linear(images())).copy()
    others[rows, LABELS] = -np.inf
    if loss == "cross_entropy":  # every logit counts
        rises[:] = 1 if targets is None else -1
    rises[rows, others.argmax(1) if targets is None else targets] = 1
    rises[rows, LABELS] = -1
    return np.einsum("nk,khwc->nhwc", rises, WEIGHTS)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("norm", "loss"), [("linf", "cross_entropy"), ("linf", "margin"), ("l2", "margin")]
)
def test_optimum_of_five_classes(norm, loss, targeted):
    epsilon = EPSILON if norm == "linf" else 0.2
    targets = (LABELS + 2) % CLASSES if targeted else None
    attack = make_attack(
        "bim", epsilon, num_steps=5, norm=norm, loss=loss, targeted=targeted, keep_best=True
    )
    aims = LABELS if targets is None else targets
    found = jax.jit(lambda x, y: attack(linear, x, y))(images(), jnp.asarray(aims))
    best = directions(loss, targets)
    length = 1.0 if norm == "linf" else np.sqrt((best**2).sum(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found, images() + epsilon * best / length, atol=2e-6)


DISTANCES = 0.005 * np.arange(1, 26)  # between the label's pixels and those of the next class
REACH = 0.0305  # both may go this far: images below twice of it fall


def planted():
    """Images whose nearest class is another one for each, and `DISTANCES` away."""
    labels = np.arange(len(DISTANCES)) % CLASSES
    nearest = (labels + 1 + np.arange(len(DISTANCES)) // CLASSES % (CLASSES - 1)) % CLASSES
    heights = np.full((len(labels), CLASSES), -0.1)
    rows = np.arange(len(labels))
    heights[rows, labels], heights[rows, nearest] = DISTANCES, 0
    return (0.5 + np.einsum("nk,khwc->nhwc", heights, WEIGHTS)).astype(np.float32), labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_evaluate_finds_the_robust_accuracy_of_five_classes(norm):
    pixels, labels = planted()
    # ‖w_k − w_y‖ of the dual norm: all pixels of two classes.
    epsilon = REACH if norm == "linf" else REACH * np.sqrt(2 * SIZE / CLASSES)
    truth = DISTANCES > 2 * REACH
    attacks = [
        make_attack("apgd_t", epsilon, norm=norm, num_steps=20),
        AutoAttack("autoattack", epsilon, norm=norm, num_steps=20, queries=50),
        make_attack("pgd", epsilon, norm=norm, num_steps=20, keep_best=True),
    ]
    result = medadv_jax.evaluate(
        linear, pixels, labels, epsilon, norm=norm, attacks=attacks, progress=False
    )
    np.testing.assert_array_equal(result.correct[:, 0], truth)
    np.testing.assert_array_equal(result.robust, truth)
    assert result.accuracy == 1
    assert result.trusted, result.summary()
    predicted = np.asarray(linear(result.pixels)).argmax(axis=1)
    np.testing.assert_array_equal(predicted == labels, truth)
