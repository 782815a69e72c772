"""FAB and FMN, which look for small perturbations, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks.fab import Fab, to_hyperplane
from medadv_jax.attacks.fmn import Fmn
from medadv_jax.attacks.stepwise import Examples, StepwiseQueue, advance, start_batch

SHAPE = (6, 4, 3, 2)
KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), SHAPE, minval=0.2, maxval=0.8))
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(2), (3, *SHAPE[1:])))
ATTACKS = {"fab": Fab, "fmn": Fmn}


def linear(images, classes=2):
    return jnp.einsum("nhwc,khwc->nk", images - 0.5, jnp.asarray(WEIGHTS[:classes]))


def distances(labels, norm, classes=2):
    """Distance to the nearest boundary of a linear model far from the faces of [0, 1]."""
    logits, rows = np.asarray(linear(IMAGES, classes)), np.arange(len(labels))
    found = []
    for other in range(1, classes):
        target = (labels + other) % classes
        gradient = (WEIGHTS[target] - WEIGHTS[labels]).reshape(len(labels), -1)
        dual = np.abs(gradient).sum(1) if norm == "linf" else np.linalg.norm(gradient, axis=1)
        found.append((logits[rows, labels] - logits[rows, target]) / dual)
    return np.min(found, axis=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "classes"), [("fab", 2), ("fab", 3), ("fmn", 3)])
def test_distance_of_a_linear_model(name, classes, norm):
    """With ε = 0 no image is ever done, and the smallest perturbation is looked for."""
    labels = np.asarray(linear(IMAGES, classes).argmax(1), np.int32)
    attack, examples = ATTACKS[name](name, 0.0, norm, 60), Examples(IMAGES, labels, labels)
    state = jax.jit(lambda: start_batch(attack, examples, KEY))()
    step = jax.jit(lambda state: advance(attack, lambda x: linear(x, classes), state, examples))
    while not state.done.all():
        state = step(state)
    exact = distances(labels, norm, classes)
    assert (state.distance >= exact * (1 - 1e-3)).all()
    # FAB overshoots by 5 %; FMN shrinks by 5 % and less each step.
    assert (state.distance <= exact * 1.06 + 1e-4).all()
    np.testing.assert_array_equal(state.best, IMAGES)  # brought back to a ball of radius 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fab", "fmn"])
def test_comes_back_where_the_linearised_boundary_is_too_far(name, norm):
    """A saturating margin: its boundary is that of the linear model, its slope points beyond."""

    def saturating(images):
        logits = linear(images)
        lead = logits[:, 0] - logits[:, 1]
        lead = jnp.sign(lead) * (1 - jnp.exp(-jnp.abs(lead) / scale))
        return jnp.stack([lead, jnp.zeros_like(lead)], axis=1)

    logits = linear(IMAGES)
    scale = jnp.abs(logits[:, 0] - logits[:, 1]).max()
    labels = np.asarray(saturating(IMAGES).argmax(1), np.int32)
    attack, examples = ATTACKS[name](name, 0.0, norm, 60), Examples(IMAGES, labels, labels)
    step = jax.jit(lambda state: advance(attack, saturating, state, examples))
    state = step(jax.jit(lambda: start_batch(attack, examples, KEY))())
    first = state.distance  # of the first misclassified point
    while not state.done.all():
        state = step(state)
        first = jnp.where(jnp.isinf(first), state.distance, first)
    exact = distances(labels, norm)
    assert (first > exact * 1.1).any()  # else nothing has to come back
    assert (state.distance >= exact * (1 - 1e-3)).all()
    assert (state.distance <= exact * 1.06 + 1e-4).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fab", "fmn"])
def test_breaks_images_within_the_radius_and_no_others(name, norm):
    labels = np.asarray(linear(IMAGES).argmax(1), np.int32)
    exact = distances(labels, norm)
    epsilon = float(np.sort(exact)[2:4].mean())
    queue = StepwiseQueue(ATTACKS[name](name, epsilon, norm, 40), lambda _, x: linear(x), 4)
    found = queue.run(None, IMAGES, labels, None, KEY)
    np.testing.assert_array_equal(found.success, exact < epsilon)
    wrong = np.asarray(linear(found.pixels).argmax(1)) != labels
    np.testing.assert_array_equal(wrong, found.success)
    delta = np.abs(found.pixels - IMAGES).reshape(len(labels), -1)
    length = delta.max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert length.max() <= epsilon + 1e-6
    # Neither the order nor the company of an image matters.
    order = np.array([4, 2, 0])
    again = queue.run(None, IMAGES[order], labels[order], None, KEY)
    np.testing.assert_allclose(again.pixels, found.pixels[order], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_meets_the_plane_and_is_optimal(norm):
    """Against the KKT conditions: pixels inside the faces move by t·v, others touch a face."""
    rng = np.random.default_rng(0)
    project = jax.jit(lambda p, w, c: to_hyperplane(p, w, c, norm))
    for scale in (0.1, 0.5, 0.9):
        point, normal = rng.random((4, 5, 3)), rng.normal(size=(4, 5, 3))
        reach = np.where(normal > 0, 1 - point, -point)
        rise = scale * (normal * reach).sum()  # of what the box allows
        step = np.asarray(project(*(jnp.asarray(x, jnp.float32) for x in (point, normal, rise))))
        assert (normal * step).sum() == pytest.approx(rise, rel=1e-4)
        assert (point + step).min() >= -1e-6
        assert (point + step).max() <= 1 + 1e-6
        free = np.abs(step - reach) > 1e-5
        t = (step / (np.sign(normal) if norm == "linf" else normal))[free]
        np.testing.assert_allclose(t, t[0], rtol=1e-3)
        speed = np.ones_like(normal) if norm == "linf" else np.abs(normal)
        assert (np.abs(reach)[~free] <= t[0] * speed[~free] + 1e-4).all()
    # Out of reach: as far as the box allows.
    step = np.asarray(project(*(jnp.asarray(x, jnp.float32) for x in (point, normal, 2 * rise))))
    np.testing.assert_allclose(step, reach, atol=1e-6)
