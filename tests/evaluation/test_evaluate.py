"""`evaluate` on functions whose robust accuracy is known, and on defences that hide gradients."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import medadv_jax
from medadv_jax.attacks import make_attack, parse_restriction

COUNT, SHAPE, EPSILON = 24, (5, 4, 3), 0.0525
SIZE = int(np.prod(SHAPE))
_RNG = np.random.default_rng(0)
SIGNS = np.where(_RNG.random(SHAPE) < 0.5, -1, 1).astype(np.float32)
LABELS = np.arange(COUNT) % 2
# How far every pixel must go before an image crosses the boundary; no image is near its reach.
DISTANCES = 0.005 * np.arange(1, COUNT + 1)
TRUTH = DISTANCES > EPSILON


def planted_images():
    """Images at `DISTANCES` from the boundary of `height`, away from the borders of [0, 1]."""
    noise = _RNG.uniform(-0.1, 0.1, (COUNT, *SHAPE))
    noise -= SIGNS * np.einsum("nhwc,hwc->n", noise, SIGNS)[:, None, None, None] / SIZE
    side = (2 * LABELS - 1)[:, None, None, None]
    return (0.5 + noise + side * DISTANCES[:, None, None, None] * SIGNS).astype(np.float32)


IMAGES = planted_images()


def height(pixels):
    return jnp.einsum("nhwc,hwc->n", pixels - 0.5, jnp.asarray(SIGNS)) / 5


def pair(z):
    return jnp.stack([-z, z], axis=-1)


def honest(pixels):
    return pair(height(pixels))


def quantised(pixels):
    return honest(jnp.round(pixels * 64) / 64)


def saturated(pixels):
    return 1e4 * honest(pixels)


def probabilities(pixels):
    return jax.nn.softmax(honest(pixels))


def saturated_probabilities(pixels):
    return jax.nn.softmax(saturated(pixels))


def _noise(pixels):
    return np.random.default_rng().normal(0, 0.2, (len(pixels), 2)).astype(np.float32)


def noisy(pixels):
    shape = jax.ShapeDtypeStruct((len(pixels), 2), jnp.float32)
    return honest(pixels) + jax.pure_callback(_noise, shape, jax.lax.stop_gradient(pixels))


def frozen_noise(pixels):
    """Compiled, it repeats one draw for ever."""
    return honest(pixels) + _noise(pixels)


def step_purified(pixels):
    return honest(jnp.where(pixels > 0.5, jnp.ceil(pixels * 50), jnp.floor(pixels * 50)) / 50)


def straight_through(pixels):
    """The purifier taken for the identity in the backward pass."""
    shift = jax.lax.stop_gradient(step_purified(pixels) - honest(pixels))
    return honest(pixels) + shift


@jax.custom_jvp
def misleading(pixels):
    return honest(pixels)


misleading.defjvp(
    lambda primals, tangents: (
        honest(*primals),
        -jax.jvp(honest, primals, tangents)[1],
    )
)


def batch_centred(pixels):
    """As BatchNorm in training mode: an image's logits depend on the others."""
    z = height(pixels)
    return pair(z - 0.2 * z.mean())


def small_attacks(norm="linf", epsilon=EPSILON):
    return [
        make_attack("apgd", epsilon, norm=norm, num_steps=20, loss="margin"),
        make_attack("fmn", epsilon, norm=norm, num_steps=20),
        make_attack("square", epsilon, norm=norm, num_steps=400),
    ]


def evaluate(logits_fn, images=IMAGES, labels=LABELS, epsilon=EPSILON, **options):
    options.setdefault("attacks", small_attacks(options.get("norm", "linf"), epsilon))
    options = {"progress": False, "batch_size": 12, **options}
    return medadv_jax.evaluate(logits_fn, images, labels, epsilon, **options)


def flags(result):
    return {each.number for each in result.checks if each.verdict != "pass"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_model_has_its_analytic_robust_accuracy(norm):
    """Margin against ε·‖w‖₁ under L∞, ε·‖w‖₂ under L2; every check passes."""
    epsilon = EPSILON if norm == "linf" else EPSILON * np.sqrt(SIZE)
    result = evaluate(honest, norm=norm, epsilon=epsilon)
    np.testing.assert_array_equal(result.robust, TRUTH)
    assert result.correct.shape == (COUNT, 3)
    np.testing.assert_array_equal(result.correct[:, 0], TRUTH)
    assert (result.accuracy, result.robust_accuracy) == (1.0, TRUTH.mean())
    assert result.interval[0] < TRUTH.mean() < result.interval[1]
    assert [each.number for each in result.checks] == [1, 2, 4, 6, 7, 8, 9, 10, 12]
    assert flags(result) == set(), result.summary()
    assert result.trusted
    np.testing.assert_array_equal(result.broken_by == "apgd", ~TRUTH)
    np.testing.assert_array_equal(np.asarray(honest(result.pixels)).argmax(1) == LABELS, TRUTH)


# (function, numbers of the checks that must fail, is the robust accuracy right all the same?)
PLANTED = [
    (quantised, {6}, False),
    (saturated, {6}, True),
    (probabilities, {9}, True),
    (saturated_probabilities, {6, 9}, False),
    (noisy, {8}, False),
    (frozen_noise, {8}, False),
    (step_purified, {6, 7}, False),
    (misleading, {7}, False),
    (batch_centred, {10}, False),
]


@pytest.mark.parametrize(
    ("function", "failing", "broken"),
    PLANTED,
    ids=[getattr(case[0], "__name__", "") for case in PLANTED],
)
def test_planted_defence_is_broken_or_flagged(function, failing, broken):
    result = evaluate(function)
    failed = {each.number for each in result.checks if each.verdict == "fail"}
    assert failed >= failing, result.summary()
    assert not result.trusted
    if broken:
        np.testing.assert_array_equal(result.robust, TRUTH)


def test_surrogate_breaks_what_its_function_masks():
    result = evaluate(step_purified, surrogates=[straight_through])
    honest_limit = DISTANCES > EPSILON + 0.02  # a step of the purifier
    assert not result.robust[~TRUTH].any()
    assert result.robust[honest_limit].all()
    verdicts = {each.number: each.verdict for each in result.checks}
    assert verdicts[6] == verdicts[7] == "warn"  # the function's own gradients are masked
    assert verdicts[4] == "pass"


def test_accuracy_that_stays_above_chance_at_any_radius_is_flagged():
    result = evaluate(misleading, attacks="fgsm")
    assert 4 in flags(result)
    # Square is added where the evaluation lacks it.
    (check,) = (each for each in result.checks if each.number == 7)
    assert check.verdict == "fail"
    assert "apgd and square" in check.explanation


def test_always_the_same_class_is_flagged():
    result = evaluate(lambda pixels: pair(0 * height(pixels) + 1.0), attacks="fgsm")
    assert {6, 12} <= flags(result)


def test_coarse_logits_are_flagged():
    result = evaluate(lambda pixels: honest(pixels).astype(jnp.bfloat16), attacks="fgsm")
    assert 9 in flags(result)


def test_results_depend_on_neither_batch_nor_order():
    options = {"check_images": 0, "attacks": "pgd,apgd"}
    first = evaluate(honest, batch_size=5, **options)
    rows = np.random.default_rng(1).permutation(COUNT)
    second = evaluate(honest, IMAGES[rows], LABELS[rows], batch_size=24, **options)
    np.testing.assert_array_equal(first.correct[rows], second.correct)
    np.testing.assert_array_equal(first.broken_by[rows], second.broken_by)
    np.testing.assert_allclose(first.pixels[rows], second.pixels, atol=1e-6)


def three_classes(pixels):
    z = height(pixels)
    return jnp.stack([-z, z, 0.2 * z - 0.3], axis=-1)


def test_autoattack_says_which_part_broke_what():
    attack = make_attack("autoattack", EPSILON, num_steps=10, queries=30)
    labels = np.where(np.arange(COUNT) == 3, 2, LABELS)
    result = evaluate(three_classes, labels=labels, attacks=["fgsm", attack], check_images=0)
    assert result.attacks == ("fgsm", "autoattack")
    assert result.broken_by[3] == "clean"
    assert not result.correct[3].any()
    parts = [(record.attack, record.part) for record in result.records]
    names = ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert parts == [("fgsm", "fgsm"), *(("autoattack", name) for name in names)]
    assert [record.attacked for record in result.records[:2]] == [COUNT - 1] * 2
    assert all(record.passes > 0 for record in result.records if record.attacked)
    assert {*result.broken_by} <= {"", "clean", "fgsm", *names}
    np.testing.assert_array_equal(result.broken_by == "", result.robust)
    assert not result.trusted  # without checks


def keyed(pixels, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return honest(pixels) + 0.1 * noise


def test_randomised_classifier_is_averaged_over_draws():
    attack = make_attack("autoattack", EPSILON, version="rand", num_steps=10)
    result = evaluate(keyed, attacks=[attack])
    verdicts = {each.number: each.verdict for each in result.checks}
    assert verdicts[8] == "pass"
    assert not result.robust[DISTANCES < EPSILON - 0.02].any()
    assert result.robust[DISTANCES > EPSILON + 0.02].all()
    with pytest.raises(ValueError, match="version 'rand' alone"):
        evaluate(keyed, attacks=["pgd", attack])


class Training(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, pixels):
        return pair(height(self.norm(pixels)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": (IMAGES * 255).astype(np.uint8)}, "give pixels / 255"),
        ({"images": IMAGES * 2 - 1}, "not in [0, 1]; put normalisation inside"),
        ({"images": np.where(0.9 * IMAGES.max() < IMAGES, np.nan, IMAGES)}, "not in [0, 1]"),
        ({"images": IMAGES[0]}, "not (n, H, W, C)"),
        ({"labels": np.eye(2)[LABELS]}, "labels.argmax(axis=1)"),
        ({"labels": LABELS + 1}, "from 1 to 2, but logits_fn has classes 0 to 1"),
        ({"labels": LABELS[1:]}, "not integers (24,)"),
        ({"labels": LABELS / 2}, "not integers (24,)"),
        ({"logits_fn": height}, "one logit z for each image; return two"),
        ({"logits_fn": lambda x: height(x)[:, None]}, "one logit z for each image; return two"),
        ({"logits_fn": lambda x: x}, "not logits (12, K) for 12 images"),
        ({"logits_fn": lambda x: honest(x) / 0}, "the logits of image 0 are NaN or infinite"),
        ({"logits_fn": lambda x: np.asarray(x)[:, 0, 0, :2]}, "needs jax.pure_callback"),
        ({"logits_fn": Training()}, "put the model in evaluation mode"),
        ({"surrogates": [three_classes]}, "surrogate 1: returns 3 logits, logits_fn 2"),
        ({"attacks": "pgd,nothing"}, "unknown attack 'nothing'"),
        ({"attacks": "pgd,pgd"}, "a name stands twice"),
        ({"attacks": []}, "attacks: none"),
        ({"attacks": small_attacks(epsilon=0.1)}, "attack apgd: of ε = 0.1 (linf), not ε = 0.0525"),
        ({"attacks": [make_attack("pgd", EPSILON, restriction=parse_restriction("pixel"))]},
         "attack pgd: restricted"),
        ({"norm": "l7", "attacks": "pgd"}, "known are l2, linf"),
        ({"epsilon": -1.0, "attacks": "pgd"}, "at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)  # fmt: skip
def test_input_that_cannot_be_evaluated_is_refused(change, text):
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        evaluate(**{"logits_fn": honest, **change})
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_results_are_shown_and_written(tmp_path, capsys):
    result = evaluate(honest, attacks="fgsm,pgd", check_images=0, progress=True)
    assert "evaluate pgd: 24 runs in" in capsys.readouterr().out
    text = result.summary()
    assert f"robust accuracy  {TRUTH.mean():.3f}" in text
    assert "checks: not made" in text
    result.to_csv(tmp_path / "results.csv")
    rows = [*csv.DictReader((tmp_path / "results.csv").read_text().splitlines())]
    assert [*rows[0]] == ["image", "label", "predicted", "fgsm", "pgd", "broken_by"]
    assert [row["pgd"] for row in rows] == [str(int(each)) for each in TRUTH]
    assert rows[0]["broken_by"] == "fgsm"
