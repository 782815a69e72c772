"""Transfer and votes of several networks, against formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.data.loader import make_loader
from medadv_jax.data.splits import Example
from medadv_jax.evaluation import ensemble
from medadv_jax.evaluation.ensemble import EvaluationSetup, TrainedModel, make_ensemble
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Target
from tests.helpers.formula_case import SIDE, Formula, height, two_logits
from tests.helpers.tiny import tiny_dataset

PIXELS = np.random.default_rng(0).random((9, SIDE, SIDE, 3)).astype(np.float32)


def tilted(variables, pixels):
    return two_logits(variables["scale"] * height(pixels) + variables["bias"])


def make_trained(number, scale, bias, deployed="full"):
    formula: Any = Formula(tilted, lambda pixels: 0.5 + 0.5 * pixels)
    predictor = Predictor(formula)
    variables = {"scale": np.float32(scale), "bias": np.float32(bias)}
    return TrainedModel(f"run{number}", "base", predictor, Target(deployed, variables))


@pytest.fixture(scope="module")
def trained():
    return (
        make_trained(0, 300, 0.2),
        make_trained(1, 500, -0.1),
        make_trained(2, -100, 0.3, "bare"),
    )


def ensemble_logits(trained, word):
    variables = [model.target.variables for model in trained]
    return np.asarray(make_ensemble(trained).logits(variables, jnp.asarray(PIXELS), word))


def test_votes_are_what_numpy_makes_of_the_models_logits(trained):
    single = np.stack([
        jax.nn.softmax(m.predictor.logits(m.target, jnp.asarray(PIXELS))) for m in trained
    ])  # fmt: skip
    np.testing.assert_allclose(np.exp(ensemble_logits(trained, "mean")), single.mean(0), rtol=1e-5)
    for word in ("log", "bpda"):
        found = ensemble_logits(trained, word)
        np.testing.assert_allclose(found, np.log(single).mean(0), rtol=1e-4)
    votes = np.eye(2)[single.argmax(2)].mean(0)
    assert {*votes[:, 0].round(2).tolist()} >= {0.33, 0.67}  # they disagree
    majority = ensemble_logits(trained, "majority")
    np.testing.assert_array_equal(majority.argmax(1), votes.argmax(1))
    np.testing.assert_allclose(np.exp(majority), votes, atol=2e-3)


def test_equal_votes_are_decided_by_the_mean_probability(trained):
    found = ensemble_logits(trained[1:], "majority")
    mean = ensemble_logits(trained[1:], "mean")
    votes = [m.predictor.logits(m.target, jnp.asarray(PIXELS)).argmax(1) for m in trained[1:]]
    equal = np.asarray(votes[0] != votes[1])
    assert equal.sum() > 2
    np.testing.assert_array_equal(found.argmax(1)[equal], mean.argmax(1)[equal])


def test_gradient_goes_through_each_model_as_it_is_deployed(trained):
    """The trained with a purifier see half of a pixel's change, and with BPDA all of it."""
    variables = [model.target.variables for model in trained]

    def gradient(word):
        def total(pixels):
            return make_ensemble(trained).logits(variables, pixels, word)[:, 0].sum()

        return np.asarray(jax.grad(total)(jnp.asarray(PIXELS)))

    rise = np.asarray(jax.grad(lambda p: height(p).sum())(jnp.asarray(PIXELS)))

    def expected(factor):
        parts = []
        for model, share in zip(trained, (factor, factor, 1.0), strict=True):
            scale = float(model.target.variables["scale"])
            answers = model.predictor.logits(model.target, jnp.asarray(PIXELS))
            other = np.asarray(jax.nn.softmax(answers))[:, 1]
            slope = -2 * scale * share * other
            parts.append(slope[:, None, None, None] * rise)
        return np.mean(parts, axis=0)

    np.testing.assert_allclose(gradient("log"), expected(0.5), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient("bpda"), expected(1.0), rtol=1e-3, atol=1e-5)


def test_worst_attack_counts_in_the_matrix(trained):
    examples = [Example(f"e{i}", 0, "g", 0, "", "") for i in range(3)]
    right, wrong = [2.0, 0.0], [0.0, 2.0]
    tables = [
        ensemble._rows(trained[0], trained[1], ("transfer", attack, 0.1), examples, np.array(rows))
        for attack, rows in (("fgsm", [right, wrong, right]), ("pgd", [right, right, wrong]))
    ]
    lines = ensemble.transfer_matrix(pa.concat_tables(tables))
    assert lines == [["made on", "run1/base"], ["run0/base", "0.3333"]]


class Marked:
    """Makes examples of its own mark, and is fooled by those of one other alone."""

    def __init__(self, mark, fooled_by, deployed):
        self.mark, self.fooled_by, self.deployed = mark, fooled_by, deployed

    def attack(self, attacks, source, batch, key):
        assert source.gradient == self.deployed  # whose gradients go through all that is deployed
        return jnp.full((len(attacks), *batch["image"].shape), self.mark, jnp.float32)

    def logits(self, target, pixels):
        fooled = pixels.mean(axis=(1, 2, 3)) == self.fooled_by
        return jnp.stack([~fooled, fooled], axis=-1).astype(jnp.float32)


def test_each_model_is_tried_on_the_examples_of_each_other():
    predictors: list[Any] = [Marked(2.0, 3.0, "bare"), Marked(3.0, 9.0, "full")]
    pair = [
        TrainedModel(f"run{i}", "base", p, Target(p.deployed, {})) for i, p in enumerate(predictors)
    ]
    batches = make_loader(tiny_dataset(6), range(6), 4, shuffle_seed=None)
    attacks = [make_attack("fgsm", 0.1)]
    done: list[int] = []
    setup = EvaluationSetup(
        attacks, tiny_dataset(6), batches, jax.device_put, 0, advance=done.append
    )
    table = ensemble.transfer_rows(pair, setup)
    assert done == [4, 2]
    fooled = {(row["source_run"], row["run"]) for row in table.to_pylist() if row["predicted"] == 1}
    assert fooled == {("run1", "run0")}
    assert table.num_rows == 6 * (2 + 4)


class Worded(Predictor):
    """Makes examples of the number of a gradient, and is fooled by those of one."""

    words, fooled_by = ("mean", "log", "bpda"), ""

    def attack(self, attacks, source, batch, key, penalty=None):
        assert key == jax.random.key(7)
        mark = 2.0 + self.words.index(source.gradient)
        return jnp.full((len(attacks), *batch["image"].shape), mark, jnp.float32)

    def logits(self, target, pixels):
        fooled = pixels.mean(axis=(1, 2, 3)) == 2.0 + self.words.index(self.fooled_by)
        return jnp.stack([~fooled, fooled], axis=-1).astype(jnp.float32)


@pytest.mark.parametrize("word", Worded.words)
def test_worst_of_the_gradients_counts_in_votes(word, trained, monkeypatch):
    monkeypatch.setattr(ensemble, "Predictor", type("Fooled", (Worded,), {"fooled_by": word}))
    dataset, attacks = tiny_dataset(6), [make_attack("fgsm", 0.1), make_attack("bim", 0.1)]
    for whom, words in ((trained, Worded.words), (trained[2:], ("mean", "log"))):
        batches = make_loader(dataset, range(6), 4, shuffle_seed=None)
        setup = EvaluationSetup(attacks, dataset, batches, jax.device_put, 7)
        table = ensemble.ensemble_rows(whom, setup)
        assert table.num_rows == 2 * 3 * 6  # votes × (clean and attacks) × images
        for row in table.to_pylist():  # BPDA is for those who have a purifier
            fooled = word in words and row["evaluation"] != "clean"
            assert row["label"] == 1 or row["predicted"] == fooled
