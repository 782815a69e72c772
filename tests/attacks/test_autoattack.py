"""The set of attacks: who breaks what, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks.autoattack import AutoAttack, AutoAttackQueue

COUNT, SIDE = 10, 6
KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (COUNT, SIDE, SIDE, 3)))
SIGNS = np.where(np.random.default_rng(0).random((SIDE, SIDE, 3)) < 0.5, -1, 1)
DISTANCES = np.arange(1, COUNT + 1) / 100  # how far every pixel must go before an image falls
EPSILON = 0.055


def signed_images():
    """Image i stands `DISTANCES[i]` in each pixel on the side of class 0."""
    return (0.5 - DISTANCES[:, None, None, None] * SIGNS).astype(np.float32)


def linear(scale, pixels):
    height = jnp.einsum("nhwc,hwc->n", pixels - 0.5, jnp.asarray(SIGNS, jnp.float32))
    return scale * jnp.stack([-height, height], axis=-1)


def masked(scale, pixels):
    """The same boundary behind a step function: no gradient anywhere."""
    return jnp.sign(linear(scale, pixels)) + 0.01 * jnp.round(linear(scale, pixels) * 4)


def small(**options):
    return AutoAttack("autoattack", EPSILON, num_steps=10, **options)


def test_breaks_exactly_the_images_within_reach():
    labels = np.where(np.arange(COUNT) == 1, 1, 0)  # the second is wrong from the start
    images = signed_images()
    queue = AutoAttackQueue(small(queries=20), linear, num_classes=2, slots=4)
    result = queue.run(1.0, images, labels, KEY)
    np.testing.assert_array_equal(result.correct, DISTANCES > EPSILON)
    np.testing.assert_array_equal(result.broken_by, [0, -1, 0, 0, 0, -2, -2, -2, -2, -2])
    assert np.abs(result.pixels - images).max() <= EPSILON + 1e-6
    np.testing.assert_array_equal(result.pixels[result.correct], images[result.correct])
    assert [stage.name for stage in result.stages] == ["apgd_ce", "apgd_margin", "fab", "square"]
    assert [stage.attacked for stage in result.stages] == [9, 5, 5, 5]
    assert [stage.broken for stage in result.stages] == [4, 0, 0, 0]
    assert result.stages[1].passes == 5 * 11
    assert result.stages[2].passes == 5 * 10
    assert result.stages[3].passes == 5 * 20
    assert all(stage.seconds > 0 for stage in result.stages)
    # The compiled form agrees, image by image.
    found = jax.jit(lambda x, y: small(queries=20)(lambda p: linear(1.0, p), x, y, KEY))(
        images, labels
    )
    wrong = np.asarray(linear(1.0, found)).argmax(1) != labels
    np.testing.assert_array_equal(wrong, ~result.correct)


def test_square_breaks_what_hides_its_gradients():
    labels = np.zeros(COUNT, int)
    queue = AutoAttackQueue(small(queries=400), masked, num_classes=2, slots=4)
    result = queue.run(1.0, signed_images(), labels, KEY)
    names = [stage.name for stage in result.stages]
    broken = {names[number] for number in result.broken_by if number >= 0}
    assert "square" in broken
    assert result.correct[DISTANCES > EPSILON].all()


def test_standard_aims_at_every_class():
    weights = jax.random.normal(jax.random.key(2), (SIDE * SIDE * 3, 4))

    def four(_, pixels):
        return jnp.tanh(pixels.reshape(len(pixels), -1) @ weights / 4)

    labels = np.asarray(four(None, IMAGES).argmax(1))
    attack = AutoAttack("autoattack", 0.05, num_steps=5, queries=5)
    result = AutoAttackQueue(attack, four, num_classes=4, slots=4).run(None, IMAGES, labels, KEY)
    first, targeted, fab, square = result.stages
    assert (first.name, targeted.name, fab.name) == ("apgd_ce", "apgd_t", "fab_t")
    assert 0 < result.correct.sum() < COUNT
    left = int(result.correct.sum())
    assert square.passes >= 5 * left
    assert targeted.passes >= 3 * 6 * left  # three targets, six gradients
    assert fab.passes >= 3 * 5 * left


def noisy(scale, pixels, keys):
    """Each draw tilts the boundary strongly: only the mean of many gradients is right."""
    tilt = jax.vmap(lambda key: jax.random.normal(key, (SIDE, SIDE, 3)))(keys)
    height = jnp.einsum("nhwc,nhwc->n", pixels - jax.lax.stop_gradient(pixels), 2 * tilt)
    return linear(scale, pixels) + scale * jnp.stack([-height, height], axis=-1)


def test_rand_averages_over_draws_of_each_image():
    labels, images = np.zeros(COUNT, int), signed_images()
    attack = small(version="rand")
    result = AutoAttackQueue(attack, noisy, num_classes=2, slots=5).run(1.0, images, labels, KEY)
    assert [stage.name for stage in result.stages] == ["apgd_cross_entropy", "apgd_margin"]
    assert result.correct[DISTANCES > EPSILON].all()
    assert not result.correct[DISTANCES < 0.6 * EPSILON].any()


@pytest.mark.parametrize(("version", "classes"), [("binary", 3), ("standard", 2)])
def test_version_that_does_not_fit_is_refused(version, classes):
    with pytest.raises(ValueError, match=f"does not fit {classes} classes"):
        small(version=version).components(classes)
    with pytest.raises(ValueError, match="known are auto, standard, binary, rand"):
        small(version="plus")
