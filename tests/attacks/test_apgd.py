"""APGD against a reading of its paper in numpy, closed forms and invariances."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medadv_jax.attacks.apgd import Apgd, windows
from medadv_jax.attacks.losses import dlr, targeted_dlr
from medadv_jax.attacks.stepwise import (
    Examples,
    StepwiseQueue,
    advance,
    start_batch,
    target_classes,
)

SHAPE = (6, 4, 3, 2)
KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), SHAPE, minval=0.2, maxval=0.8))
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(2), SHAPE[1:]))


def linear(images):
    """Two logits ±w·x around the mean of the images; the optimum of an attack is known."""
    score = jnp.einsum("nhwc,hwc->n", images - 0.5, WEIGHTS)
    return jnp.stack([score, -score], axis=-1)


def rugged(images):
    """Class 0 always wins; the loss has many hills, so that steps overshoot and are halved."""
    flat = images.reshape(images.shape[0], -1)
    waves = jnp.sin(12 * flat) + jnp.cos(5 * flat) + flat @ jnp.ones((flat.shape[1], 1)) / 9
    return jnp.stack([jnp.full(flat.shape[0], 99.0), waves.mean(axis=1)], axis=-1)


def curved(images):
    """A smooth network with four classes."""
    flat = images.reshape(images.shape[0], -1)
    hidden = jnp.tanh(flat @ jax.random.normal(jax.random.key(3), (flat.shape[1], 16)))
    return hidden @ jax.random.normal(jax.random.key(4), (16, 4))


def labels_of(logits_fn, images=IMAGES):
    return np.asarray(logits_fn(jnp.asarray(images)).argmax(-1), np.int32)


def run(attack, logits_fn, images, labels, key=KEY):
    return np.asarray(jax.jit(lambda x, y: attack(logits_fn, x, y, key))(images, labels))


def croce_hein(function, start, image, epsilon, norm, num_steps):
    """Algorithm 1 of Croce & Hein (2020) for one image; yields the points of the gradients."""

    def project(z):
        delta = z - image
        if norm == "l2":
            delta = delta * min(1, epsilon / max(np.linalg.norm(delta), 1e-30))
        return np.clip(image + np.clip(delta, -epsilon, epsilon), 0, 1).astype(np.float32)

    checkpoints, p = [0], [0, 0.22]
    while p[-1] <= 1:
        checkpoints.append(math.ceil(round(p[-1] * num_steps, 6)))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    eta, x, previous, rises = 2 * epsilon, start, start, []
    f, g = function(x)
    yield x
    f_max, x_max, g_max, f_last = f, x, g, f
    f_at_check, eta_at_check = f, eta
    for k in range(num_steps):
        direction = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
        z = project(x + np.float32(eta) * direction)
        alpha = 0.75 if k else 1
        x, previous = project(x + alpha * (z - x) + (1 - alpha) * (x - previous)), x
        f, g = function(x)
        yield x
        rises.append(f > f_last)
        f_last = f
        if f > f_max:
            f_max, x_max, g_max = f, x, g
        if k + 1 in checkpoints:
            window = k + 1 - checkpoints[checkpoints.index(k + 1) - 1]
            first = sum(rises[-window:]) < 0.75 * window
            second = eta == eta_at_check and f_max == f_at_check
            eta_at_check, f_at_check = eta, f_max
            if first or second:
                eta, x, g, f_last = eta / 2, x_max, g_max, f_max


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5)])
def test_apgd_is_croce_and_hein_step_by_step(norm, epsilon):
    attack = Apgd("apgd", epsilon, norm, 40, loss="margin")
    labels = np.zeros(SHAPE[0], np.int32)
    examples = Examples(IMAGES, labels, labels)
    state = jax.jit(lambda: start_batch(attack, examples, KEY))()
    step = jax.jit(lambda state: advance(attack, rugged, state, examples))

    @jax.jit
    def function(x):
        return jax.value_and_grad(lambda x: rugged(x[None])[0, 1] - 99.0)(x)

    def host(x):
        return jax.device_get(function(x))

    papers = [
        croce_hein(host, start, image, epsilon, norm, 40)
        for start, image in zip(np.asarray(state.point), IMAGES, strict=True)
    ]
    sizes = []
    for points in zip(*papers, strict=True):
        np.testing.assert_allclose(state.point, points, atol=2e-4)  # of steps up to 2 ε
        sizes.append(np.asarray(state.step_size))
        state = step(state)
    assert state.done.all()
    assert not state.success.any()
    assert (sizes[-1] <= epsilon / 2).all()  # halved at least twice
    assert len({*sizes[-1].tolist()}) > 1  # by each image's own loss


def test_checkpoints_are_those_of_the_paper():
    expected = [22, 41, 57, 70, 80, 87, 93, 99]
    assert np.flatnonzero(windows(100)).tolist() == expected
    assert windows(100)[expected].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    assert windows(1).tolist() == [0, 1]
    assert windows(7).sum() == np.flatnonzero(windows(7))[-1]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.05)])
def test_optimum_of_a_linear_model(norm, epsilon, loss):
    """Images that the budget cannot move across the boundary end at the optimum, others fall."""
    labels = labels_of(linear)
    adversarial = run(Apgd("apgd", epsilon, norm, 30, loss=loss), linear, IMAGES, labels)
    away = np.where(labels == 0, -1.0, 1.0)[:, None, None, None]
    unit = np.sign(WEIGHTS) if norm == "linf" else WEIGHTS / np.linalg.norm(WEIGHTS)
    optimum = (IMAGES + epsilon * away * unit).astype(np.float32)
    breakable = labels_of(linear, optimum) != labels
    assert 0 < breakable.sum() < len(labels)
    np.testing.assert_array_equal(labels_of(linear, adversarial) != labels, breakable)
    np.testing.assert_allclose(adversarial[~breakable], optimum[~breakable], atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_stays_in_ball_and_depends_on_nothing_else(norm):
    labels = labels_of(curved)
    attack = Apgd("apgd", 0.2, norm, 10)
    compiled = jax.jit(lambda x, y: attack(curved, x, y, KEY))
    whole = np.asarray(compiled(IMAGES, labels))
    delta = np.abs(whole - IMAGES).reshape(len(labels), -1)
    length = delta.max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert length.max() <= 0.2 + 1e-6
    assert length.min() > 0.05
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(compiled(IMAGES[order], labels[order]), whole[order], atol=1e-5)
    padded = np.concatenate([IMAGES[:2], np.zeros_like(IMAGES[2:])])
    np.testing.assert_allclose(compiled(padded, labels)[:2], whole[:2], atol=1e-5)
    # The queue gives the same, with fewer rows than images.
    queue = StepwiseQueue(attack, lambda _, x: curved(x), 4)
    queued = queue.run(None, IMAGES, labels, None, KEY)
    np.testing.assert_allclose(queued.pixels, whole, atol=1e-5)
    np.testing.assert_array_equal(queued.success, labels_of(curved, whole) != labels)
    assert queued.passes <= len(labels) * 11


def test_two_devices_find_what_one_finds():
    labels, attack = labels_of(curved), Apgd("apgd", 0.1, num_steps=4)
    found = []
    for count in (1, 2):
        sharding = NamedSharding(Mesh(jax.devices()[:count], ("data",)), PartitionSpec("data"))
        queue = StepwiseQueue(
            attack, lambda _, x: curved(x), 4, lambda tree, s=sharding: jax.device_put(tree, s)
        )
        found.append(queue.run(None, IMAGES, labels, None, KEY))
    np.testing.assert_allclose(found[0].pixels, found[1].pixels, atol=1e-5)
    assert found[0].passes == found[1].passes


def test_fallen_images_cost_no_more_gradients():
    """Wrong images take one gradient each, images out of reach all of them."""
    labels = labels_of(linear)
    attack = Apgd("apgd", 0.0, num_steps=20)
    queue = StepwiseQueue(attack, lambda _, x: linear(x), 4)
    wrong = np.where(np.arange(6) < 4, 1 - labels, labels)
    found = queue.run(None, IMAGES, wrong, None, KEY)
    np.testing.assert_array_equal(found.success, np.arange(6) < 4)
    assert found.passes == 4 * 1 + 2 * 21
    np.testing.assert_array_equal(found.pixels, IMAGES)


def test_targeted_dlr_aims_at_each_class_in_turn():
    labels = labels_of(curved)
    targets = np.asarray(target_classes(curved(IMAGES), jnp.asarray(labels), 9))
    assert targets.shape == (6, 3)
    assert (np.sort(np.c_[targets, labels], axis=1) == np.arange(4)).all()
    attack = Apgd("apgd_t", 0.15, num_steps=15, loss="dlr", num_targets=9)
    plain = Apgd("apgd", 0.15, num_steps=15)
    broken = labels_of(curved, run(attack, curved, IMAGES, labels)) != labels
    assert (broken >= (labels_of(curved, run(plain, curved, IMAGES, labels)) != labels)).all()
    assert broken.any()


def test_dlr_ignores_scale_and_refuses_two_classes():
    logits, labels = jax.random.normal(KEY, (5, 6)), jnp.arange(5)
    np.testing.assert_allclose(dlr(logits * 50 + 3, labels), dlr(logits, labels), rtol=1e-4)
    ranked = np.sort(np.asarray(logits[0]))[::-1]
    own = float(logits[0, 0])
    other = ranked[0] if own != ranked[0] else ranked[1]
    assert dlr(logits, labels)[0] == pytest.approx(
        (other - own) / (ranked[0] - ranked[2]), rel=1e-4
    )
    targets = jnp.arange(1, 6)
    expected = (logits[0, 1] - own) / (ranked[0] - (ranked[2] + ranked[3]) / 2)
    assert targeted_dlr(logits, labels, targets)[0] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="at least 3 classes"):
        run(Apgd("apgd", 0.1, loss="dlr"), linear, IMAGES, labels_of(linear))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0 must be at least 0"),
        ({"norm": "l3"}, "known are l2, linf"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"loss": "hinge"}, "known are cross_entropy, dlr, margin"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Apgd(**({"name": "apgd", "epsilon": 0.1} | arguments))
