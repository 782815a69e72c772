"""The Square Attack: bounds, monotony, draws of each image's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks.square import Square, _bump, _sides
from medadv_jax.attacks.stepwise import Examples, StepwiseQueue, advance, start_batch

SHAPE = (5, 12, 10, 3)
KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), SHAPE, minval=0.3, maxval=0.7))
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(2), SHAPE[1:]))
LABELS = np.zeros(SHAPE[0], np.int32)


def linear(images):
    """Class 0 leads by 9: no image falls."""
    score = jnp.einsum("nhwc,hwc->n", images - 0.5, jnp.asarray(WEIGHTS)) / 10
    return jnp.stack([jnp.full_like(score, 9.0), score], axis=-1)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 1.0)])
def test_margin_falls_within_the_ball_towards_the_optimum(norm, epsilon):
    attack, examples = Square("square", epsilon, norm, 300), Examples(IMAGES, LABELS, LABELS)
    state = jax.jit(lambda: start_batch(attack, examples, KEY))()
    step = jax.jit(lambda state: advance(attack, linear, state, examples))
    margins = []
    while not state.done.all():
        state = step(state)
        margins.append(np.asarray(state.margin))
    assert len(margins) == 300
    assert (np.diff(margins, axis=0) <= 0).all()
    dual = np.abs(WEIGHTS).sum() if norm == "linf" else np.linalg.norm(WEIGHTS)
    clean = 9 - np.asarray(linear(IMAGES))[:, 1]
    share = (clean - margins[-1]) / (epsilon * dual / 10)  # of the largest possible change
    assert (share < 1 + 1e-4).all()
    assert (share > (0.5 if norm == "linf" else 0.25)).all()
    delta = np.asarray(state.best - IMAGES).reshape(len(LABELS), -1)
    length = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert length.max() <= epsilon + 1e-6
    assert length.min() > 0.9 * epsilon  # nearly all of the budget: faces of [0, 1] cost a little


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 1.0)])
def test_draws_are_each_images_own(norm, epsilon):
    queue = StepwiseQueue(Square("square", epsilon, norm, 8), lambda _, x: linear(x), 2)
    whole = queue.run(None, IMAGES, LABELS, None, KEY)
    assert whole.passes == 5 * 8
    part = queue.run(None, IMAGES[[3, 1]], LABELS[:2], None, KEY)
    np.testing.assert_allclose(part.pixels, whole.pixels[[3, 1]], atol=1e-6)
    deltas = (whole.pixels - IMAGES).reshape(5, -1)
    assert np.abs(np.corrcoef(deltas)[~np.eye(5, dtype=bool)]).max() < 0.5


def test_squares_shrink_by_the_schedule():
    sides = _sides(5000, 100, 100, odd=False)
    shares = (sides / 100) ** 2
    for query, halvings in ((0, 0), (5, 0), (6, 1), (26, 2), (101, 3), (251, 4), (4100, 9)):
        assert shares[query] == pytest.approx(0.8 / 2**halvings, rel=0.1), query
    odd = _sides(5000, 8, 9, odd=True)
    assert (odd % 2 == 1).all()
    assert odd.min() == 3
    assert odd.max() <= 8


def test_bump_has_two_signs_and_length_one():
    bump = _bump(5, 7, 6)
    np.testing.assert_allclose(np.linalg.norm(bump, axis=(1, 2)), 1, rtol=1e-6)
    np.testing.assert_array_equal(bump[0, :5, :5], bump[1, :5, :5].T)
    assert (bump[0, :2, :5] > 0).all()
    assert (bump[0, 2:5, :5] < 0).all()
    assert not bump[:, 5:].any()
