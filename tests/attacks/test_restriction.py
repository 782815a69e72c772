"""Restricted attackers: a patch, one pixel, grey changes, under every attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import ATTACKS, make_attack, parse_restriction, run_attacks
from medadv_jax.attacks.continuous_batching import AttackJob, AttackQueue
from medadv_jax.attacks.restriction import FREE, Restriction, make_ball

SHAPE = (4, 10, 12, 3)
KEY = jax.random.key(0)
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(2), SHAPE[1:]))
LABELS = jnp.zeros(SHAPE[0], jnp.int32)
COLOURED = jax.random.uniform(jax.random.key(1), SHAPE)
GREY = jnp.broadcast_to(COLOURED[..., :1], SHAPE)
NAMES = ("fgsm", "mifgsm", "apgd", "fab", "fmn", "square")  # all kinds of loops and starts
PATCH, PIXEL = parse_restriction("0.1@0.2,0.9"), parse_restriction("pixel")
GREY_PATCH = PATCH._replace(grey=True)
EPSILON = {"linf": 0.3, "l2": 1.0}


def linear(images, lead=9.0):
    """Class 0 leads by `lead` on grey 0.5."""
    score = jnp.einsum("nhwc,hwc->n", images - 0.5, jnp.asarray(WEIGHTS)) / 10
    return jnp.stack([jnp.full_like(score, lead), score], axis=-1)


def inside(restriction):
    """Returns the pixels (H, W) of the patch."""
    box, mask = restriction.box(*SHAPE[1:3]), np.zeros(SHAPE[1:3], bool)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


@functools.cache
def compiled(name, norm, restriction):
    """Returns (images, lead) -> adversarial images."""
    attack = make_attack(name, EPSILON[norm], num_steps=10, norm=norm, restriction=restriction)

    def run(images, lead):
        return attack(lambda x: linear(x, lead), images, LABELS, KEY)

    return jax.jit(run)


def check_bounds(name, norm, restriction):
    """With lead 9 no image falls, with 0.1 many do."""
    outside = ~inside(restriction)
    for lead in (9.0, 0.1):
        found = np.asarray(compiled(name, norm, restriction)(COLOURED, lead))
        np.testing.assert_array_equal(found[:, outside], np.asarray(COLOURED)[:, outside])
        assert found.min() >= 0
        assert found.max() <= 1
        delta = (found - COLOURED).reshape(len(found), -1)
        length = np.linalg.norm(delta, np.inf if norm == "linf" else 2, axis=1)
        assert length.max() <= EPSILON[norm] + 1e-6
        if lead == 9 and name not in ("fab", "fmn"):  # these give images back that stand
            assert length.min() > 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_grey_patches_stay_in_the_mask_and_change_all_channels_alike(name, norm):
    check_bounds(name, norm, GREY_PATCH)
    for lead in (9.0, 0.1):
        found = np.asarray(compiled(name, norm, GREY_PATCH)(GREY, lead))
        np.testing.assert_array_equal(found, np.repeat(found[..., :1], 3, axis=-1))
        delta = np.asarray(compiled(name, norm, GREY_PATCH)(COLOURED, lead) - COLOURED)
        np.testing.assert_allclose(delta, np.repeat(delta[..., :1], 3, axis=-1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "norm", "restriction"),
    [("pgd", "linf", PATCH), ("square", "l2", PATCH), ("bim", "linf", PIXEL),
     ("square", "linf", PIXEL), ("square", "l2", PIXEL)],
)  # fmt: skip
def test_patches_and_pixels_in_colour_stay_in_the_mask(name, norm, restriction):
    check_bounds(name, norm, restriction)


def test_the_parts_of_autoattack_are_restricted():
    attack = make_attack("autoattack", 0.1, restriction=PIXEL)
    for num_classes in (2, 3):
        assert {part.restriction for part in attack.components(num_classes)} == {PIXEL}


@pytest.mark.parametrize("name", ["bim", "mifgsm"])
def test_the_optimum_of_a_linear_function_is_reached_within_the_restriction(name):
    images = jnp.full(SHAPE, 0.5)
    for restriction in (Restriction(grey=True), GREY_PATCH):
        attack = make_attack(name, 0.1, num_steps=10, restriction=restriction)
        found = attack(linear, images, LABELS, KEY)
        slope = WEIGHTS.mean(-1, keepdims=True) + 0 * WEIGHTS if restriction.grey else WEIGHTS
        expected = 0.5 + 0.1 * np.sign(slope) * inside(restriction)[..., None]
        np.testing.assert_allclose(found, np.broadcast_to(expected, SHAPE), atol=1e-6)


def test_square_finds_the_best_of_one_grey_pixel():
    images = jnp.full(SHAPE, 0.5)
    attack = make_attack("square", 0.1, num_steps=20, restriction=PIXEL._replace(grey=True))
    found = np.asarray(attack(linear, images, LABELS, KEY))
    slope = WEIGHTS.mean(-1, keepdims=True)
    expected = 0.5 + 0.1 * np.sign(slope) * inside(PIXEL)[..., None]
    np.testing.assert_allclose(found, np.broadcast_to(expected, SHAPE), atol=1e-6)


def test_the_queue_restricts_as_lanes_do():
    attack = make_attack("pgd", 0.1, num_steps=3, restriction=PATCH, keep_best=True)
    queue = AttackQueue(lambda _, x, gradient: linear(x), 2)
    found = queue.run(None, np.asarray(COLOURED), np.zeros(4, int), [AttackJob(attack)], KEY)[0]
    np.testing.assert_allclose(found, attack(linear, COLOURED, LABELS, KEY), atol=1e-6)
    start = queue.starts(np.asarray(COLOURED)[:2], 0.1, 0, KEY, PATCH)
    outside = ~inside(PATCH)
    np.testing.assert_array_equal(start[:, outside], np.asarray(COLOURED)[:2, outside])
    other = AttackJob(make_attack("pgd", 0.1))
    with pytest.raises(ValueError, match="share a restriction"):
        queue.run(None, np.asarray(COLOURED), np.zeros(4, int), [AttackJob(attack), other], KEY)


def test_attacks_of_one_batch_share_a_restriction():
    attacks = [make_attack("bim", 0.1), make_attack("fgsm", 0.1, restriction=PATCH)]
    with pytest.raises(ValueError, match="share norm, restriction"):
        run_attacks(attacks, linear, COLOURED, LABELS, KEY)


def test_without_a_restriction_nothing_is_added():
    points = jnp.ones((2, 3))
    assert FREE.restrict_gradient(points) is points
    assert FREE.point(points, points) is points
    assert type(make_ball("linf")).__name__ == "LInf"
    assert all(make_attack(name, 0.1).restriction == FREE for name in ATTACKS)


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        ("pixel", (5, 6, 1, 1)),
        ("pixel@0,0", (0, 0, 1, 1)),
        ("pixel@1,1", (9, 11, 1, 1)),
        ("0.075", (4, 5, 3, 3)),  # 9 of 120 pixels
        ("0.075@0.2,0.5", (1, 5, 3, 3)),
        ("0.99", (0, 1, 10, 10)),  # a square
        ("none", (0, 0, 10, 12)),
    ],
)
def test_masks(mask, box):
    assert parse_restriction(mask).box(10, 12) == box


@pytest.mark.parametrize(
    "mask", ["", "1", "0", "-0.1", "nan", "patch", "0.1@", "0.1@2,0", "0.1@0.5"]
)
def test_impossible_masks_are_refused(mask):
    with pytest.raises(ValueError, match="must be none, pixel, or the share"):
        parse_restriction(mask)
