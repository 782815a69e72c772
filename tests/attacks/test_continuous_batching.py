"""The attack queue against the attack loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import make_attack, run_attacks
from medadv_jax.attacks.continuous_batching import AttackJob, AttackQueue

COUNT, SIDE, EPSILON = 11, 8, 0.03
KEY = jax.random.key(7)


def curved(variables, pixels, gradient):
    """A smooth network with real curvature; gradients other than "plain" flip its logits."""
    hidden = jnp.tanh(pixels.reshape(pixels.shape[0], -1) @ variables[0])
    return hidden @ variables[1] * (1.0 if gradient == "plain" else -1.0)


@pytest.fixture(scope="module")
def variables():
    keys = jax.random.split(jax.random.key(3))
    return (
        jax.random.normal(keys[0], (SIDE * SIDE * 3, 16)), jax.random.normal(keys[1], (16, 3))
    )  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return np.asarray(jax.random.uniform(jax.random.key(4), (COUNT, SIDE, SIDE, 3)))


@pytest.fixture(scope="module")
def labels(variables, images):
    """The predicted classes, so that every image is classified correctly."""
    return predicted(variables, images).astype(np.int32)


def predicted(variables, pixels):
    return np.asarray(curved(variables, jnp.asarray(pixels), "plain").argmax(1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_queue_finds_what_the_loop_finds(norm, variables, images, labels):
    radius = EPSILON if norm == "linf" else 0.3
    options = {"norm": norm, "keep_best": True, "early_stop": True}
    attacks = [
        make_attack("pgd", radius, num_steps=5, num_restarts=3, **options),
        make_attack("bim", radius / 3, num_steps=3, **options),
        make_attack("mifgsm", 2 * radius, num_steps=4, **options),
        make_attack("fgsm", radius, norm=norm),
        make_attack("bim", 0.9, step_size=0.9, num_steps=3, norm=norm),  # overshoots, keeps no best
    ]
    expected = jax.jit(
        lambda x, y, k: run_attacks(attacks, lambda p: curved(variables, p, "plain"), x, y, k)
    )(images, labels, KEY)
    # 4 slots for 11 images of five attacks: every slot changes hands, the last ones stay empty.
    found = AttackQueue(curved, 4, norm).run(
        variables, images, labels, [AttackJob(attack) for attack in attacks], KEY, "plain"
    )
    for attack, one, other in zip(attacks, found, np.asarray(expected), strict=True):
        fallen = predicted(variables, one) != labels
        np.testing.assert_array_equal(fallen, predicted(variables, other) != labels)
        assert fallen.any()
        # Of several starts that break an image the queue keeps the first, the loop the strongest.
        same = ~fallen if attack.num_restarts > 1 else np.ones(COUNT, bool)
        np.testing.assert_allclose(one[same], other[same], atol=2e-5, err_msg=attack.name)


def test_images_that_a_job_leaves_out_are_unchanged(variables, images, labels):
    active = labels == labels[0]
    assert not active.all()
    attack = make_attack("bim", EPSILON, num_steps=2, keep_best=True)
    jobs = [AttackJob(attack, active=active), AttackJob(attack)]
    found = AttackQueue(curved, 4).run(variables, images, labels, jobs, KEY, "plain")
    moved = (found != images[None]).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(moved[0], active)
    assert moved[1].all()
    np.testing.assert_array_equal(found[0][active], found[1][active])


def test_starts_are_the_random_starts_of_the_loop(images, labels, variables):
    """A step of length 0 leaves an image at its start."""
    still = make_attack("pgd", EPSILON, step_size=0.0, num_steps=1)
    expected = still(lambda p: curved(variables, p, "plain"), images, labels, KEY)
    queue = AttackQueue(curved, COUNT)
    np.testing.assert_allclose(queue.starts(images, EPSILON, 0, KEY), expected, atol=1e-7)
    assert np.abs(queue.starts(images, EPSILON, 1, KEY) - expected).max() > EPSILON / 2
