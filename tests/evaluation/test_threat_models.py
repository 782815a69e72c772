"""Who knows what: gradients through a purifier, around it, and without it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.lanes import LOOPS
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.attacks.run import run_attacks
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.defenses import get_defense
from medadv_jax.evaluation.predictor import Penalty, Predictor, worst_logits
from medadv_jax.evaluation.threat_models import Source, Target, Threat, threats
from tests.helpers.tiny import SIZE, TinyNet, tiny_dataset


class Identity(nn.Module):
    @nn.compact
    def __call__(self, pixels):
        return pixels + self.param("zero", nn.initializers.zeros, ())


class Halve(nn.Module):
    @nn.compact
    def __call__(self, pixels):
        return pixels * self.param("factor", lambda key: jnp.float32(0.5))


class Rounding(nn.Module):
    """Masks gradients: a staircase is flat almost everywhere."""

    @nn.compact
    def __call__(self, pixels):
        return jnp.round(pixels * 50 + self.param("zero", nn.initializers.zeros, ())) / 50


def made(purifier, seed=3):
    classifier = Classifier(TinyNet(), purifier=purifier)
    return classifier, classifier.init(jax.random.key(seed), SIZE)


@pytest.fixture(scope="module")
def batch():
    dataset = tiny_dataset(16)
    return {"image": jnp.asarray(np.stack([*dataset.source])), "label": jnp.asarray(dataset.labels)}


def gradient(classifier, variables, pixels, kind):
    return jax.grad(lambda x: classifier.logits(variables, x, kind)[:, 1].sum())(pixels)


def test_bpda_is_the_purifier_forwards_and_the_identity_backwards(batch):
    classifier, variables = made(Halve())
    pixels = to_pixels(batch["image"])
    full, bpda = (jax.jit(classifier.logits, static_argnames="gradient")(
        variables, pixels, gradient=kind) for kind in ("full", "bpda"))  # fmt: skip
    np.testing.assert_array_equal(full, bpda)
    at_purified = gradient(classifier, variables, classifier.purify(variables, pixels), "bare")
    np.testing.assert_allclose(
        gradient(classifier, variables, pixels, "bpda"), at_purified, rtol=1e-5, atol=1e-8
    )
    # And the full gradient is the chain rule's: half of it.
    np.testing.assert_allclose(
        gradient(classifier, variables, pixels, "full"), 0.5 * at_purified, rtol=1e-5, atol=1e-8
    )


def test_unknown_gradient_is_refused(batch):
    classifier, variables = made(Halve())
    with pytest.raises(ValueError, match="known are full, bpda, bare"):
        classifier.logits(variables, to_pixels(batch["image"]), "none")


def attacked(classifier, variables, batch, kind, name="pgd"):
    predictor = Predictor(classifier)
    attack = make_attack(name, 0.05, num_steps=4)
    return predictor.attack([attack], Source(kind, variables), batch, jax.random.key(0))[0]


def test_adaptive_attack_on_an_identity_is_the_attack_on_the_bare_classifier(batch):
    classifier, variables = made(Identity())
    expected = attacked(Classifier(TinyNet()), variables, batch, "bare")
    for kind in ("full", "bpda"):
        found = attacked(classifier, variables, batch, kind)
        # Signs of gradients: the same but where a gradient is zero to rounding.
        assert np.mean(np.abs(found - expected) > 1e-5) < 1e-3


def test_oblivious_examples_do_not_depend_on_the_purifier(batch):
    classifier, variables = made(Halve())
    other = variables | {"purifier": {"factor": jnp.float32(0.1)}}
    first, second = (attacked(classifier, v, batch, "bare") for v in (variables, other))
    np.testing.assert_array_equal(first, second)
    # While those of the adaptive attacker do.
    first, second = (attacked(classifier, v, batch, "full") for v in (variables, other))
    assert np.mean(first != second) > 0.1


class Brightness(nn.Module):
    """Class 1 where an image is bright: every pixel counts the same."""

    @nn.compact
    def __call__(self, images, train=False):
        self.param("unused", nn.initializers.zeros, ())
        score = 10 * images.mean((1, 2, 3))
        return jnp.stack([-score, score], axis=-1)


def test_masked_gradients_look_strong_and_fall_to_bpda(batch):
    """Planted: rounding stops the plain gradient, whatever the network behind it."""
    classifier = Classifier(Brightness(), purifier=Rounding())
    variables = classifier.init(jax.random.key(0), SIZE)
    grey = np.linspace(114, 139, 8).astype(np.uint8).reshape(8, 1, 1, 1)
    images = jnp.asarray(np.broadcast_to(grey, (8, SIZE, SIZE, 3)))
    labels = jnp.argmax(classifier.logits(variables, to_pixels(images)), -1)
    assert set(np.asarray(labels)) == {0, 1}
    assert variables["batch_stats"] == {}  # though the network has none
    predictor, right = Predictor(classifier), {}
    for kind in ("full", "bpda"):
        attack, source = make_attack("bim", 0.1, num_steps=5), Source(kind, variables)
        batch = {"image": images, "label": labels}
        (found,) = predictor.attack([attack], source, batch, jax.random.key(0))
        answers = predictor.logits(Target("full", variables), found)
        right[kind] = float(np.mean(jnp.argmax(answers, -1) == labels))
    assert right == {"full": 1.0, "bpda": 0.0}


def test_predictor_gives_the_logits_of_what_is_deployed(batch):
    classifier, variables = made(Halve())
    predictor, pixels = Predictor(classifier), to_pixels(batch["image"])
    full, bare = (predictor.logits(Target(d, variables), pixels) for d in ("full", "bare"))
    bare_of_half = predictor.logits(Target("bare", variables), 0.5 * pixels)
    np.testing.assert_allclose(full, bare_of_half, rtol=1e-5, atol=1e-6)
    assert (np.abs(full - bare) > 1e-3).all()


def test_the_worse_of_two_sources_counts_for_each_example():
    # Sources × one attack × three examples × classes; the labels are 0.
    first = [[[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]
    second = [[[0.0, 1.0], [0.0, 5.0], [3.0, 0.0]]]
    worst = worst_logits(jnp.array([first, second]), jnp.zeros(3, jnp.int32))
    # Wrong beats correct; of two wrong ones the larger loss.
    np.testing.assert_array_equal(worst[0], [[0.0, 1.0], [0.0, 5.0], [0.0, 1.0]])


def test_adaptive_accuracy_is_at_most_that_of_either_source(batch):
    classifier, variables = made(Halve())
    predictor = Predictor(classifier)
    attacks, key = [make_attack("pgd", 0.2, num_steps=3)], jax.random.key(0)
    target, columns = Target("full", variables), {}
    sources = {kind: Source(kind, variables) for kind in ("full", "bpda")}
    for name, used in (*((k, (s,)) for k, s in sources.items()), ("both", (*sources.values(),))):
        threat = Threat((name,), used)
        columns[name] = predictor.evaluate(attacks, [threat], target, batch, key)[:, 1]
    wrong = {n: np.asarray(x).argmax(-1) != np.asarray(batch["label"]) for n, x in columns.items()}
    np.testing.assert_array_equal(wrong["both"], wrong["full"] | wrong["bpda"])
    losses = {n: np.asarray(cross_entropy(x, batch["label"])) for n, x in columns.items()}
    same = wrong["full"] == wrong["bpda"]
    larger = np.maximum(losses["full"], losses["bpda"])
    np.testing.assert_allclose(losses["both"][same], larger[same])


def sources_of(name, base):
    return {
        threat.names: [source.gradient for source in threat.sources]
        for threat in threats(get_defense(name), {}, base)
    }


def test_threat_models_of_each_defence():
    assert sources_of("base", None) == {("adaptive",): ["bare"]}
    assert sources_of("adversarial", {}) == {("transfer",): ["bare"], ("adaptive",): ["bare"]}
    # Without its purifier the network of `autoencoder` is the base one: one attack, two names.
    assert sources_of("autoencoder", {}) == {
        ("transfer", "oblivious"): ["bare"], ("adaptive",): ["full", "bpda"],
    }  # fmt: skip
    assert sources_of("hybrid", {}) == {
        ("transfer",): ["bare"], ("oblivious",): ["bare"], ("adaptive",): ["full", "bpda"],
    }  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
def test_a_penalty_turns_the_step_where_it_outweighs_the_loss(loop):
    """Linear loss g·x, penalty λ·v·x: the sign of g - λ·v is the whole step.

    All images are misclassified from the start, and the penalty counts in what is strongest too:
    without it the start would be stronger than the end.
    """
    g, v = jax.random.normal(jax.random.key(1), (2, 3, 3, 3))
    v = -jnp.abs(v)
    attacks = [make_attack("fgsm", 0.1, loss="margin", keep_best=keep) for keep in (False, True)]
    pixels, labels = jnp.full((2, 3, 3, 3), 0.5), jnp.zeros(2, jnp.int32)

    def logits_fn(x):
        score = 100 + jnp.einsum("bhwc,hwc->b", x, g)
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)

    def penalty(x):
        return 2.0 * jnp.einsum("bhwc,hwc->b", x, v)

    found = run_attacks(attacks, logits_fn, pixels, labels, loop=loop, penalty_fn=penalty)
    expected = 0.5 + 0.1 * np.sign(np.asarray(g - 2.0 * v))
    for adversarial in found:
        np.testing.assert_allclose(adversarial[0], expected, atol=1e-6)


def test_a_penalty_has_a_program_of_its_own_for_all_weights(batch):
    classifier, variables = made(Halve())
    predictor, attacks = Predictor(classifier), [make_attack("fgsm", 0.1)]

    def attacked(penalty):
        source = Source("bare", variables)
        return predictor.attack(attacks, source, batch, jax.random.key(0), penalty)[0]

    before = to_pixels(batch["image"])
    plain = attacked(None)
    assert (plain > before).any()
    traced = []

    def brightness(variables, x):
        traced.append(x.shape)
        return x.sum((1, 2, 3))

    darker = attacked(Penalty(brightness, 1e6))
    assert (darker < before).all()
    compiled = len(traced)
    np.testing.assert_array_equal(attacked(Penalty(brightness, 0.0)), plain)
    assert (attacked(Penalty(brightness, -1e6)) > before).all()
    assert len(traced) == compiled  # all weights share one program
