"""Inputs that would be attacked wrongly are refused, by every way to call an attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import ATTACKS, EVALUATION_ATTACKS, make_attack, run_assigned, run_attacks
from medadv_jax.attacks.autoattack import AutoAttack, AutoAttackQueue
from medadv_jax.attacks.continuous_batching import AttackJob, AttackQueue
from medadv_jax.attacks.stepwise import StepwiseQueue

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (4, 2, 2, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 1, 0])
WEIGHTS = jnp.asarray(np.random.default_rng(1).standard_normal((12, 3)), jnp.float32)
FGSM = make_attack("fgsm", 0.05)


def logits_of(classes, pixels):
    return pixels.reshape(len(pixels), -1) @ WEIGHTS[:, :classes]


two = functools.partial(logits_of, 2)


def call(attack, logits_fn, images, labels):
    return attack(logits_fn, images, labels, KEY)


ENTRIES = {
    "Attack": functools.partial(call, FGSM),
    "run_attacks": lambda *arguments: run_attacks([FGSM], *arguments, KEY),  # pyright: ignore[reportCallIssue]
    "run_assigned": lambda *arguments: run_assigned([FGSM], *arguments, KEY),  # pyright: ignore[reportCallIssue]
    "StepwiseAttack": functools.partial(call, make_attack("apgd", 0.05, num_steps=1)),
    "AutoAttack": functools.partial(call, AutoAttack("autoattack", 0.05, num_steps=1, queries=1)),
}
# name -> (logits_fn, images, labels, part of the message, does it fail also when traced?)
WRONG = {
    "one logit": (functools.partial(logits_of, 1), IMAGES, LABELS, "at least 2 classes", True),
    "logits without classes": (lambda x: two(x)[:, 0], IMAGES, LABELS, r"must be \(4, K\)", True),
    "classes chosen": (lambda x: jnp.argmax(two(x), 1)[:, None], IMAGES, LABELS, "int32", True),
    "bytes": (two, (IMAGES * 255).astype(jnp.uint8), LABELS, "divide bytes by 255", True),
    "integers": (two, jnp.round(IMAGES).astype(jnp.int32), LABELS, "floats in", True),
    "one image": (two, IMAGES[0], LABELS[:2], r"must be \(B, H, W, C\)", True),
    "one-hot": (two, IMAGES, jax.nn.one_hot(LABELS, 2), "not one-hot", True),
    "one-hot integers": (two, IMAGES, jax.nn.one_hot(LABELS, 2, dtype=jnp.int32), "one-hot", True),
    "labels as floats": (two, IMAGES, LABELS.astype(jnp.float32), "integer classes", True),
    "labels in a column": (two, IMAGES, LABELS[:, None], "labels of shape", True),
    "too few labels": (two, IMAGES, LABELS[:2], "the 4 integer classes", True),
    "255": (two, IMAGES * 255, LABELS, r"must lie in \[0, 1\]", False),
    "normalised": (two, (IMAGES - 0.5) * 4, LABELS, "normalisation into logits_fn", False),
    "NaN": (two, IMAGES.at[0, 0, 0, 0].set(jnp.nan), LABELS, r"must lie in \[0, 1\]", False),
    "labels from 1": (two, IMAGES, LABELS + 1, "labels up to 2: must be below the 2", False),
    "negative label": (two, IMAGES, LABELS - 1, "labels from -1 to 0: must be at least 0", False),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused(entry, name):
    logits_fn, images, labels, message, _ = WRONG[name]
    with pytest.raises(ValueError, match=message):
        ENTRIES[entry](logits_fn, images, labels)


@pytest.mark.parametrize("entry", ENTRIES)
def test_shapes_and_dtypes_are_checked_also_under_jit(entry):
    for logits_fn, images, labels, message, traced in WRONG.values():
        if traced:
            attack = jax.jit(functools.partial(ENTRIES[entry], logits_fn))
            with pytest.raises(ValueError, match=message):
                attack.lower(images, labels)


@pytest.mark.parametrize("images", [np.asarray(IMAGES), IMAGES.astype(jnp.bfloat16), IMAGES * 1.0])
@pytest.mark.parametrize("labels", [np.asarray(LABELS, np.int64), LABELS.astype(jnp.uint8)])
def test_other_floats_and_integers_are_taken(images, labels):
    """And a binary network as two logits is attacked in the right direction, for both labels."""
    single = WEIGHTS[:, :1]

    def binary(pixels):
        logit = pixels.reshape(len(pixels), -1) @ single
        return jnp.concatenate([jnp.zeros_like(logit), logit], axis=1)

    moved = FGSM(binary, images, labels)
    change = (binary(moved) - binary(images))[:, 1].astype(jnp.float32)
    assert ((change > 0) == (np.asarray(labels) == 0)).all()
    assert (jnp.abs(change) > 0.05).all()


def queues(classes):
    """The ways to run many images, of a network with that many classes."""

    def of_variables(variables, pixels, gradient=""):
        del variables, gradient
        return logits_of(classes, pixels)

    auto = AutoAttack("autoattack", 0.05, num_steps=1, queries=1)
    return (
        lambda i, y: AttackQueue(of_variables, 4).run({}, i, y, [AttackJob(FGSM)], KEY),
        lambda i, y: StepwiseQueue(make_attack("apgd", 0.05, num_steps=1), of_variables, 4).run(
            {}, i, y, None, KEY
        ),
        lambda i, y: AutoAttackQueue(auto, of_variables, 2, 4).run({}, i, y, KEY),
    )


def test_queues_refuse_them_too():
    images, labels = np.asarray(IMAGES), np.asarray(LABELS)
    for run in queues(2):
        with pytest.raises(ValueError, match="divide bytes by 255"):
            run((images * 255).astype(np.uint8), labels)
        with pytest.raises(ValueError, match="not one-hot"):
            run(images, np.eye(2)[labels])
    for run in queues(1):
        with pytest.raises(ValueError, match="at least 2 classes"):
            run(images, labels)
    with pytest.raises(ValueError, match="must be below the 2 classes"):
        queues(2)[2](images, labels + 1)


@pytest.mark.parametrize("name", [*ATTACKS, *EVALUATION_ATTACKS])
@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_impossible_radii_are_refused(name, kind):
    with pytest.raises(ValueError, match=r"epsilon=8.0 must be at most 1 .*8/255 = 0.0314"):
        make_attack(name, kind(8))
    with pytest.raises(ValueError, match="must be at most 1e"):
        make_attack(name, kind(3e38), norm="l2")
    with pytest.raises(ValueError, match="epsilon=nan must be at least 0"):
        make_attack(name, kind("nan"), norm="l2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 3.0, "num_steps": 100}, "decay=3.0 must be smaller"),
        ({"decay": 1e308}, "decay=1e.308 must be at most"),
        ({"step_size": 3e38}, "step_size=3e.38 must be at most"),
        ({"num_steps": 10**20}, "num_steps=1.* must be an integer of at most 1,000,000"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_attack("mifgsm", 0.1, **options)


@pytest.mark.parametrize("epsilon", [100.0, 1e6])
def test_an_l2_ball_beyond_the_image_holds_the_best_corner(epsilon):
    """On a linear network the best point of the whole range is a corner, as for L∞ with ε = 1."""
    best = make_attack("bim", 1.0, step_size=1.0, num_steps=2)(two, IMAGES, LABELS)
    attack = make_attack("bim", epsilon, step_size=epsilon, num_steps=2, norm="l2")
    np.testing.assert_array_equal(attack(two, IMAGES, LABELS), best)
    assert jnp.isin(best, jnp.array([0.0, 1.0])).all()


def test_traced_radii_are_taken():
    moved = jax.jit(lambda e: make_attack("fgsm", e)(two, IMAGES, LABELS))(0.05)
    np.testing.assert_array_equal(moved, jax.jit(lambda: FGSM(two, IMAGES, LABELS))())
