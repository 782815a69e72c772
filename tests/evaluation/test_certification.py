import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medadv_jax.defenses.smoothing import LEVELS, make_noise
from medadv_jax.evaluation.certificates import (
    ABSTAINS,
    Settings,
    SmoothedAttack,
    certified_correct,
    linf_radius,
)
from medadv_jax.evaluation.certification import (
    NoisyCounter,
    certified_radius,
    certify,
    lower_bound,
)
from medadv_jax.evaluation.smoothed_attack import attack_smoothed

SHAPE = (4, 4, 3)
KEY = jax.random.key(0)
QUICK = Settings(selection=20, draws=500)


def linear(weights: np.ndarray, offset: float):
    """Returns a classifier of two classes: the side of a plane."""

    def logits_fn(variables, pixels):
        z = pixels.reshape(len(pixels), -1) @ variables["w"] + variables["b"]
        return jnp.stack([jnp.zeros_like(z), z], axis=-1)

    variables = {"w": jnp.asarray(weights.ravel(), jnp.float32), "b": jnp.float32(offset)}
    return logits_fn, variables


def images_and_plane(seed: int = 0, count: int = 6):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    weights = rng.normal(size=SHAPE)
    offset = -float(np.median(images.reshape(count, -1) / LEVELS @ weights.ravel()))
    return images, weights, offset


def counter(logits_fn, variables, sigma: float, **options):
    return NoisyCounter(logits_fn, variables, make_noise(sigma), 2, **options)


@pytest.mark.parametrize("sigma", [0.05, 0.12, 0.25, 0.5, 1.0])
def test_radius_of_a_linear_classifier_is_below_margin_over_norm_and_close(sigma):
    images, weights, offset = images_and_plane()
    logits_fn, variables = linear(weights, offset)
    margins = images.reshape(len(images), -1) / LEVELS @ weights.ravel() + offset
    exact = np.abs(margins) / np.linalg.norm(weights)
    settings = Settings(selection=50, draws=4000)
    found = {
        c.image: c for c in certify(counter(logits_fn, variables, sigma), images, settings, KEY)
    }
    assert sorted(found) == list(range(len(images)))
    largest = certified_radius(lower_bound(4000, 4000, 0.001), sigma)
    for i, certificate in found.items():
        assert certificate.radius <= exact[i] + 1e-6
        if certificate.predicted != ABSTAINS:
            assert certificate.predicted == int(margins[i] > 0)
        # The bound's own width, on the scale of p; rounding to levels adds a little noise.
        p = scipy.stats.norm.cdf(exact[i] / sigma)
        slack = certified_radius(float(max(p - 0.04, 0.5)), sigma)
        assert certificate.radius >= min(slack, largest) - 1e-9


def test_bound_covers_the_probability():
    rng, alpha = np.random.default_rng(1), 0.001
    for p in (0.5, 0.7, 0.95):
        counts = rng.binomial(100, p, size=10_000)
        bounds = {int(c): lower_bound(int(c), 100, alpha) for c in np.unique(counts)}
        missed = sum(bounds[int(c)] > p for c in counts)
        assert scipy.stats.binom.sf(missed - 1, 10_000, alpha) > 1e-4  # no more than α, as it seems
    assert lower_bound(0, 10, alpha) == 0
    assert lower_bound(10, 10, alpha) == pytest.approx(alpha ** (1 / 10))


def test_bound_is_the_smallest_probability_that_is_not_rejected():
    for count in (1, 37, 99):
        bound = lower_bound(count, 100, 0.01)
        assert scipy.stats.binom.sf(count - 1, 100, bound) == pytest.approx(0.01)


def test_counts_depend_on_neither_batch_order_nor_block():
    images, weights, offset = images_and_plane()
    function = linear(weights, offset)

    def certificates(order, **options):
        program = counter(*function, 0.5, **options)
        found = {c.image: c for c in certify(program, images[order], QUICK, KEY)}
        return {int(order[i]): found[i] for i in found}

    first = certificates(np.arange(6), slots=4, block=25)
    for order, options in (
        (np.arange(6)[::-1], {"slots": 4, "block": 25}),
        (np.array([3, 1]), {"slots": 8, "block": 25}),
        (np.arange(6), {"slots": 3, "block": 25}),
    ):
        for image, certificate in certificates(order, **options).items():
            assert certificate.predicted == first[image].predicted
            assert certificate.radius == first[image].radius
            np.testing.assert_array_equal(certificate.counts, first[image].counts)
            np.testing.assert_array_equal(certificate.selected, first[image].selected)
    # Another block may end another early one elsewhere, and promises the same.
    for image, certificate in certificates(np.arange(6), slots=4, block=7).items():
        assert (certificate.predicted, certificate.radius) == first[image][1:3]


def test_counts_do_not_depend_on_the_number_of_devices():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("one device")
    images, weights, offset = images_and_plane()
    mesh = Mesh(np.array(devices[:2]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    one, two = (
        list(certify(counter(*linear(weights, offset), 0.5, slots=4, put=put), images, QUICK, KEY))
        for put in (jax.device_put, lambda tree: jax.device_put(tree, sharding))
    )
    assert [c.counts.tolist() for c in one] == [c.counts.tolist() for c in two]


def test_it_abstains_at_a_tie_and_ends_early():
    images, weights, _ = images_and_plane(count=1)
    offset = -float(images[0].ravel() / LEVELS @ weights.ravel())  # on the plane itself
    settings = Settings(selection=100, draws=2000)
    (found,) = certify(counter(*linear(weights, offset), 0.25), images, settings, KEY)
    assert (found.predicted, found.radius) == (ABSTAINS, 0.0)
    assert found.calls <= 2100


def test_an_early_end_changes_no_verdict():
    # The class chosen by few draws is often the wrong one of three, so that many images abstain.
    def logits_fn(variables, pixels):
        values = pixels.reshape(len(pixels), -1)
        return jnp.stack([values[:, 0], values[:, 1], values[:, 2]], axis=-1)

    images = np.full((8, *SHAPE), 128, np.uint8)
    images[:, 0, 0, :] += np.arange(24, dtype=np.uint8).reshape(8, 3) % 7
    settings = Settings(selection=10, draws=300)
    program = NoisyCounter(logits_fn, {}, make_noise(0.1), 3, slots=4, block=10)
    early = {c.image: c for c in certify(program, images, settings, KEY)}
    assert any(c.calls < 310 for c in early.values())
    whole = NoisyCounter(logits_fn, {}, make_noise(0.1), 3, slots=1, block=300)
    for i, certificate in early.items():
        # All draws of the image, counted at once.
        counts = whole.count(images[i : i + 1], np.array([10]), np.array([310]), KEY)[0]
        selected = int(certificate.selected.argmax())
        bound = lower_bound(int(counts[selected]), 300, settings.alpha)
        assert (certificate.predicted == ABSTAINS) == (bound <= 0.5)


def test_floating_images_are_refused():
    images, weights, offset = images_and_plane()
    with pytest.raises(ValueError, match="uint8"):
        next(certify(counter(*linear(weights, offset), 0.5), images / 255.0, QUICK, KEY))


def test_certified_correct_needs_the_class_the_radius_and_a_certificate():
    predicted, radius = np.array([1, 1, 0, ABSTAINS]), np.array([0.6, 0.4, 0.9, 0.0])
    found = certified_correct(predicted, radius, np.array([1, 1, 1, 1]), 0.5)
    assert found.tolist() == [True, False, False, False]
    assert certified_correct(predicted, radius, np.ones(4, int), 0.0).tolist() == [1, 1, 0, 0]
    assert linf_radius(0.5, 12_288) == pytest.approx(0.00451, abs=1e-5)


def test_attack_moves_votes_only_beyond_the_margin_of_a_linear_classifier():
    images, weights, offset = images_and_plane(count=4)
    labels = (images.reshape(4, -1) / LEVELS @ weights.ravel() + offset > 0).astype(np.int32)
    margins = np.abs(images.reshape(4, -1) / LEVELS @ weights.ravel() + offset)
    distance = margins / np.linalg.norm(weights)
    function = linear(weights, offset)
    for factor, kept in ((0.3, True), (3.0, False)):
        radius = float(factor * distance.max())
        found = attack_smoothed(
            *function, images, labels, 0.1, SmoothedAttack(radius, 10, 8, 400), KEY, slots=4
        )
        farthest = int(distance.argmax())
        assert (found.counts[farthest].argmax() == labels[farthest]) == kept
        moved = (found.pixels - images / np.float32(LEVELS)).reshape(4, -1)
        assert np.linalg.norm(moved, axis=1).max() <= radius * (1 + 1e-5)
        assert found.counts.sum(axis=1).tolist() == [400] * 4


def test_images_have_draws_of_their_own():
    # Both have the same margin, as only the first pixel counts; the same draws would count alike.
    weights = np.zeros(SHAPE)
    weights[0, 0, 0] = 1
    images = np.full((2, *SHAPE), 128, np.uint8)
    images[1, 3, 3, 2] = 7
    program = counter(*linear(weights, -0.5), 0.25, slots=2, block=200)
    first, second = program.count(images, np.zeros(2), np.full(2, 200), KEY)
    assert first.sum() == second.sum() == 200
    assert first.tolist() != second.tolist()
