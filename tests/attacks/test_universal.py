"""Universal perturbations: one array within ε, the optimum of linear functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import parse_restriction
from medadv_jax.attacks.universal import Universal

SHAPE = (10, 4, 5, 3)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), SHAPE, minval=0.3, maxval=0.7))
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(2), SHAPE[1:]))
LABELS = np.zeros(len(IMAGES), np.int32)


def linear(weights, images):
    score = jnp.einsum("nhwc,hwc->n", images - 0.5, weights)
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_array_at_the_optimum_of_a_linear_function(norm):
    attack = Universal(0.1, norm, epochs=4, batch_size=4)
    done = []
    delta = attack.fit(linear, WEIGHTS, IMAGES, LABELS, advance=done.append)
    assert sum(done) == 4 * len(IMAGES)
    assert delta.shape == SHAPE[1:]
    unit = np.sign(WEIGHTS) if norm == "linf" else WEIGHTS / np.linalg.norm(WEIGHTS)
    np.testing.assert_allclose(delta, 0.1 * unit, atol=1e-6)
    moved = np.asarray(attack.apply(IMAGES[:3], delta)) - IMAGES[:3]
    np.testing.assert_allclose(moved, np.broadcast_to(delta, moved.shape), atol=1e-6)


def test_images_that_are_broken_already_do_not_decide():
    """Nine images want a step up, one image of a huge loss wants a step down."""

    def logits(_, images):
        up, down = images[..., 0].sum((1, 2)), images[..., 1].sum((1, 2))
        score = jnp.where(down > 15, 500 - 100 * up / 20, up / 20)  # the last image is lost
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)

    images = np.full(SHAPE, 0.5, np.float32)
    images[-1, ..., 1] = 0.95
    delta = Universal(0.1, epochs=2, batch_size=10).fit(logits, None, images, LABELS)
    np.testing.assert_allclose(delta[..., 0], 0.1, atol=1e-6)


def test_a_restricted_perturbation_is_a_grey_patch():
    restriction = parse_restriction("0.2", grey=True)
    attack = Universal(0.1, epochs=3, batch_size=5, restriction=restriction)
    delta = attack.fit(linear, WEIGHTS, IMAGES, LABELS)
    box, slope = restriction.box(4, 5), WEIGHTS.mean(-1, keepdims=True)
    expected = np.zeros(SHAPE[1:])
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    expected[rows, columns] = 0.1 * np.sign(slope)[rows, columns]
    np.testing.assert_allclose(delta, expected, atol=1e-6)
    white = np.ones(SHAPE, np.float32)
    moved = np.asarray(attack.apply(white, delta))
    np.testing.assert_array_equal(moved, np.repeat(moved[..., :1], 3, axis=-1))
    assert moved.max() <= 1


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="known are l2, linf"):
        Universal(0.1, "l1")
    with pytest.raises(ValueError, match="epochs=0"):
        Universal(0.1, epochs=0)
    with pytest.raises(ValueError, match="at most 1"):
        Universal(8)
