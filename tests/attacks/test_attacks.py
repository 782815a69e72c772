"""Attacks against closed forms, invariances and an independent reading of the papers."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import ATTACKS, lanes, make_attack, run_assigned, run_attacks
from medadv_jax.attacks.lanes import LOOPS
from medadv_jax.attacks.norms import BALLS, l1_normalize

SHAPE = (6, 5, 4, 3)  # images
EPSILON = 0.03


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), SHAPE, minval=0.2, maxval=0.8)


@pytest.fixture(scope="module")
def labels():
    return jnp.array([0, 1, 0, 1, 1, 0])


def run(attack, logits_fn, images, labels, key=None, loop="fori_loop"):
    """Runs an attack compiled."""
    return jax.jit(lambda x, y: attack(logits_fn, x, y, key, loop=loop))(images, labels)


def all_attacks(**options):
    """Returns every attack of the table as lanes of one call."""
    return functools.partial(run_attacks, [make_attack(name, **options) for name in ATTACKS])


def linear(images):
    """Two logits ±w·x: the loss of a class is monotone in w·x, so its optimum is known."""
    weights = jax.random.normal(jax.random.key(2), SHAPE[1:])
    score = jnp.einsum("nhwc,hwc->n", images, weights)
    return jnp.stack([score, -score], axis=-1)


def curved(images):
    """A smooth network with real curvature, each image alone."""
    flat = images.reshape(images.shape[0], -1)
    hidden = jnp.tanh(flat @ jax.random.normal(jax.random.key(3), (flat.shape[1], 16)))
    return hidden @ jax.random.normal(jax.random.key(4), (16, 3))


def loss(logits_fn, images, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_fn(images)), labels[:, None], 1)[:, 0]


@pytest.mark.parametrize("loop", LOOPS)
def test_linf_optimum_of_a_linear_model(loop, images, labels):
    attacks = all_attacks(epsilon=EPSILON, num_steps=5)
    results = run(attacks, linear, images, labels, jax.random.key(0), loop=loop)
    weights = jax.random.normal(jax.random.key(2), SHAPE[1:])
    away = jnp.where(labels == 0, -1.0, 1.0).reshape(-1, 1, 1, 1)
    optimum = images + EPSILON * away * jnp.sign(weights)[None]
    for name, adversarial in zip(ATTACKS, results, strict=True):
        np.testing.assert_allclose(adversarial, optimum, atol=1e-6, err_msg=name)


def test_l2_optimum_of_a_linear_model(images, labels):
    options = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 40, "norm": "l2"}
    results = run(all_attacks(**options), linear, images, labels, jax.random.key(0))
    weights = jax.random.normal(jax.random.key(2), SHAPE[1:])
    away = jnp.where(labels == 0, -1.0, 1.0).reshape(-1, 1, 1, 1)
    optimum = images + 0.1 * away * (weights / jnp.linalg.norm(weights.ravel()))[None]
    for name, adversarial in zip(ATTACKS, results, strict=True):
        np.testing.assert_allclose(adversarial, optimum, atol=2e-4, err_msg=name)


def test_targeted_reaches_the_optimum_of_the_target(images, labels):
    attack = make_attack("pgd", epsilon=EPSILON, targeted=True)
    leave = make_attack("pgd", epsilon=EPSILON)
    key = jax.random.key(0)
    # With two classes, to reach the other class is to leave one's own.
    np.testing.assert_array_equal(
        run(attack, linear, images, 1 - labels, key), run(leave, linear, images, labels, key)
    )


def test_fgsm_is_bim_with_one_step_of_epsilon(images, labels):
    fgsm = make_attack("fgsm", epsilon=EPSILON)
    bim = make_attack("bim", epsilon=EPSILON, step_size=EPSILON, num_steps=1)
    np.testing.assert_array_equal(
        run(fgsm, curved, images, labels), run(bim, curved, images, labels)
    )


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_epsilon_zero_is_the_identity(norm, images, labels):
    attacks = all_attacks(epsilon=0.0, step_size=0.1, norm=norm)
    for result in run(attacks, curved, images, labels, jax.random.key(0)):
        np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize("options", [{}, {"keep_best": True}, {"early_stop": True}])
@pytest.mark.parametrize("norm", sorted(BALLS))
def test_stays_in_ball_and_pixel_range(norm, options, labels):
    images = jnp.round(jax.random.uniform(jax.random.key(5), SHAPE))  # corners of the pixel range
    attacks = all_attacks(epsilon=0.3, step_size=0.2, num_steps=5, norm=norm, **options)
    results = run(attacks, curved, images, labels, jax.random.key(0))
    for name, adversarial in zip(ATTACKS, np.asarray(results), strict=True):
        delta = (adversarial - np.asarray(images)).reshape(len(images), -1)
        length = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
        assert adversarial.min() >= 0, name
        assert adversarial.max() <= 1, name
        assert length.max() <= 0.3 + 1e-6, name
        assert length.max() > 0.1, name  # it has moved


def test_result_depends_neither_on_batch_nor_order_nor_padding(images, labels):
    attack = functools.partial(run, all_attacks(epsilon=EPSILON), curved)
    key = jax.random.key(7)
    whole = attack(images, labels, key)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        attack(images[order], labels[order], key), whole[:, order], atol=1e-6
    )
    np.testing.assert_allclose(attack(images[2:3], labels[2:3], key), whole[:, 2:3], atol=1e-6)
    padded = attack(
        jnp.concatenate([images, jnp.zeros_like(images)]), jnp.concatenate([labels, labels]), key
    )
    np.testing.assert_allclose(padded[:, :6], whole, atol=1e-6)


def test_random_starts_differ_between_images_and_keys(images, labels):
    attack = make_attack("pgd", epsilon=EPSILON, step_size=0.0, num_steps=1)
    a = run(attack, curved, images, labels, jax.random.key(0)) - images
    b = run(attack, curved, images, labels, jax.random.key(1)) - images
    assert jnp.abs(a[0] - a[1]).max() > EPSILON / 2
    assert jnp.abs(a - b).max() > EPSILON / 2
    assert jnp.abs(a).max() > 0.9 * EPSILON  # fills the ball
    assert abs(a.mean()) < EPSILON / 10


def dong_et_al(gradient, images, epsilon, num_steps, decay):
    """Algorithm 1 of Dong et al. (2018), read in numpy, one image after another."""
    result = np.array(images, np.float64)
    for i, image in enumerate(result):
        momentum, point = np.zeros_like(image), image.copy()
        for _ in range(num_steps):
            g = gradient(point, i)
            momentum = decay * momentum + g / np.abs(g).sum()
            point = point + epsilon / num_steps * np.sign(momentum)
            point = np.clip(np.clip(point, image - epsilon, image + epsilon), 0, 1)
        result[i] = point
    return result


def test_mifgsm_is_dong_et_al(images, labels):
    compiled = jax.jit(jax.grad(lambda x, y: loss(curved, x, y).sum()))

    def gradient(point, i):
        one = jnp.asarray(point[None], jnp.float32)
        return np.asarray(compiled(one, labels[i : i + 1])[0], np.float64)

    for decay in (1.0, 0.5):
        attack = make_attack("mifgsm", epsilon=0.2, num_steps=6, decay=decay)
        expected = dong_et_al(gradient, images, 0.2, 6, decay)
        np.testing.assert_allclose(run(attack, curved, images, labels), expected, atol=1e-5)
    # The momentum matters here: without it the result is another one.
    plain = run(make_attack("mifgsm", epsilon=0.2, num_steps=6, decay=0.0), curved, images, labels)
    assert np.abs(plain - expected).max() > 0.01


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_zero_gradient_gives_no_nan(norm, images, labels):
    def constant(images):
        return jnp.zeros((images.shape[0], 2)) * images.sum()

    attacks = all_attacks(epsilon=EPSILON, norm=norm)
    results = run(attacks, constant, images, labels, jax.random.key(0))
    for name, adversarial in zip(ATTACKS, results, strict=True):
        assert jnp.isfinite(adversarial).all(), name
        if name != "pgd":  # which stays at its random start
            np.testing.assert_array_equal(adversarial, images, err_msg=name)


LANES = [("pgd",), ("fgsm", "pgd", "bim"), ("fgsm", "pgd", "mifgsm", "bim"), ("mifgsm",)]


@pytest.mark.parametrize("names", LANES)
@pytest.mark.parametrize("options", [{}, {"keep_best": True, "early_stop": True}])
def test_leaving_out_the_momentum_changes_no_bit(monkeypatch, names, options, images, labels):
    attacks = [make_attack(name, epsilon=EPSILON, num_steps=4, **options) for name in names]
    many = functools.partial(run_attacks, attacks)
    found = run(many, curved, images, labels, jax.random.key(0))
    monkeypatch.setattr(lanes, "needs_momentum", lambda attack: True)
    expected = run(many, curved, images, labels, jax.random.key(0))
    assert not np.array_equal(found, np.broadcast_to(images, found.shape))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("names", "norms"), [(("pgd", "bim"), 0), (("pgd", "mifgsm"), 1)])
def test_only_lanes_with_decay_compute_norms_of_gradients(names, norms, images, labels):
    attacks = [make_attack(name, epsilon=EPSILON, num_steps=4) for name in names]
    program = jax.make_jaxpr(functools.partial(run_attacks, attacks, linear))(
        images, labels, jax.random.key(0)
    )
    shapes = re.findall(r"f32\[(\d+(?:,\d+){4})\] = abs", str(program))
    assert [math.prod(map(int, shape.split(","))) for shape in shapes] == [360] * 2 * norms


def test_pixels_whose_gradient_is_not_a_number_stay(images, labels):
    def broken(images):
        flat = images.reshape(len(images), -1)
        first = jnp.where(flat[:, :1] > 2, flat[:, :1], jnp.sqrt(flat[:, :1] - 2))  # NaN
        return jnp.concatenate([first, flat.sum(1, keepdims=True)], axis=1)

    attacks = all_attacks(epsilon=EPSILON)
    assert jnp.isfinite(run(attacks, broken, images, labels, jax.random.key(0))).all()


def test_tiny_and_huge_gradients_keep_their_direction():
    gradient = jnp.array([[[1.0, -2.0, 0.5]]])
    for scale in (1e-36, 1e36):
        np.testing.assert_allclose(l1_normalize(gradient * scale), gradient / 3.5, rtol=1e-5)


def test_evaluation_attacks_run_beside_lanes(images, labels):
    names = ("fgsm", "apgd", "bim")
    attacks = [make_attack(name, epsilon=0.1, num_steps=3) for name in names]
    key = jax.random.key(3)
    together = run(functools.partial(run_attacks, attacks), curved, images, labels, key)
    for name, attack, result in zip(names, attacks, together, strict=True):
        alone = jax.jit(lambda x, y, a=attack: a(curved, x, y, key))(images, labels)
        np.testing.assert_allclose(result, alone, atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="a penalty can only"):
        run_attacks(attacks, curved, images, labels, key, penalty_fn=lambda x: x.sum((1, 2, 3)))


@pytest.mark.parametrize("loop", LOOPS)
def test_lanes_equal_attacks_run_alone(loop, images, labels):
    attacks = [
        make_attack("fgsm", epsilon=0.1),
        make_attack("pgd", epsilon=0.1, num_steps=4, num_restarts=2),
        make_attack("mifgsm", epsilon=0.05, num_steps=7, keep_best=True),
        make_attack("bim", epsilon=0.2, num_steps=4, early_stop=True),
    ]
    key = jax.random.key(3)
    together = run(functools.partial(run_attacks, attacks), curved, images, labels, key, loop=loop)
    for attack, result in zip(attacks, together, strict=True):
        np.testing.assert_allclose(result, run(attack, curved, images, labels, key), atol=1e-6)


def test_assigned_equals_each_attack_on_its_own_images(images, labels):
    attacks = [make_attack(name, epsilon=0.1, num_steps=4) for name in ("pgd", "fgsm", "mifgsm")]
    key = jax.random.key(3)
    mixed = run(functools.partial(run_assigned, attacks), curved, images, labels, key)
    for i, attack in enumerate(attacks):
        alone = run(attack, curved, images, labels, key)
        np.testing.assert_allclose(mixed[i::3], alone[i::3], atol=1e-6)
    with pytest.raises(ValueError, match="evenly"):
        run_assigned(attacks, curved, images[:4], labels[:4], key)


def test_finished_lanes_leave_the_batch(images, labels):
    seen = []

    def counting(images):
        seen.append(images.shape[0])
        return curved(images)

    attacks = [make_attack(name, epsilon=0.1, num_steps=3) for name in ("fgsm", "bim", "mifgsm")]
    jax.eval_shape(lambda x: run_attacks(attacks, counting, x, labels, loop="unrolled"), images)
    assert seen == [18, 12, 12]  # 6 images: three lanes for one step, two for two more


def test_an_epsilon_axis_is_one_compiled_call(images, labels):
    traces = []

    @jax.jit
    def sweep(epsilons):
        traces.append(1)
        attacks = [make_attack("pgd", e, num_steps=3) for e in epsilons]
        return run_attacks(attacks, curved, images, labels, jax.random.key(0))

    for scale in (1.0, 2.0):
        radii = scale * jnp.array([0.0, 0.01, 0.05])
        delta = jnp.abs(sweep(radii) - images[None]).max(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(delta, radii, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("targeted", [False, True])
def test_keep_best_never_loses_to_the_last_point(targeted, images, labels):
    options = {"epsilon": 0.5, "step_size": 0.4, "num_steps": 8}  # overshoots on purpose
    options["targeted"] = targeted
    last = run(make_attack("bim", **options), curved, images, labels)
    best = run(make_attack("bim", **options, keep_best=True), curved, images, labels)
    there_last = (curved(last).argmax(-1) == labels) == targeted
    there_best = (curved(best).argmax(-1) == labels) == targeted
    assert there_best.any()
    assert (there_best | ~there_last).all()
    same = there_best == there_last
    gain = loss(curved, best, labels) - loss(curved, last, labels)
    gain = -gain if targeted else gain
    assert (gain[same] >= -1e-6).all()
    assert gain.max() > 1e-3


def test_restarts_find_a_planted_pocket():
    """Only starts right of 0.5 see a gradient: one start misses half the images, 12 miss none."""
    images, labels = jnp.full((16, 1, 1, 1), 0.5) + 1e-4 * jnp.arange(16).reshape(-1, 1, 1, 1), 0

    def pocket(images):
        x = images[:, 0, 0, 0] - 0.51
        return jnp.stack([jnp.full_like(x, 0.05), jax.nn.relu(x)], axis=-1)

    labels = jnp.zeros(16, jnp.int32)
    counts = []
    for restarts in (1, 12):
        attack = make_attack("pgd", epsilon=0.1, num_steps=5, num_restarts=restarts)
        adversarial = run(attack, pocket, images, labels, jax.random.key(0))
        counts.append(int((pocket(adversarial).argmax(-1) == 1).sum()))
    assert counts[0] < 16
    assert counts[1] == 16


def test_early_stop_leaves_lost_examples_alone(images, labels):
    wrong = curved(images).argmax(-1) != labels
    assert wrong.any()
    assert (~wrong).any()
    attack = make_attack("bim", epsilon=EPSILON, early_stop=True)
    moved = jnp.abs(run(attack, curved, images, labels) - images).max(axis=(1, 2, 3)) > 0
    np.testing.assert_array_equal(moved, ~wrong)


def test_result_carries_no_gradient(images, labels):
    attack = make_attack("bim", epsilon=EPSILON, num_steps=2)

    def total(images):  # moves with its images, one to one, unless the gradient is stopped
        return attack(curved, images, labels).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(images), 0)


def test_margin_points_where_cross_entropy_points_with_two_classes(images, labels):
    key = jax.random.key(0)
    results = [
        run(make_attack("pgd", epsilon=EPSILON, loss=name), linear, images, labels, key)
        for name in ("cross_entropy", "margin")
    ]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "nope"},
            "known are apgd, .* bim, fab, fgsm, fmn, mifgsm, pgd, square",
        ),
        ({"epsilon": -0.1}, "epsilon=-0.1 must be at least 0"),
        ({"epsilon": float("nan")}, "epsilon=nan must be at least 0"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"norm": "l3"}, "known are l2, linf"),
        ({"loss": "dlr"}, "known are cross_entropy, margin"),
        ({"name": "bim", "num_restarts": 3}, "restarts without a random start"),
        ({"name": "apgd"}, "step_size=0.1: apgd chooses its steps itself"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_attack(**({"name": "pgd", "epsilon": 0.1, "step_size": 0.1} | arguments))


def test_bad_calls_are_named(images, labels):
    pgd, l2 = make_attack("pgd", epsilon=0.1), make_attack("bim", epsilon=0.1, norm="l2")
    with pytest.raises(ValueError, match="needs a key"):
        pgd(curved, images, labels)
    with pytest.raises(ValueError, match="share norm"):
        run_attacks([pgd, l2], curved, images, labels, jax.random.key(0))
    with pytest.raises(ValueError, match="known are fori_loop, unrolled"):
        pgd(curved, images, labels, jax.random.key(0), loop="while")
