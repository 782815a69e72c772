"""What the compiled step does with each objective: perturbed weights, statistics, replays, and what
devices tell each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medadv_jax.classifier import to_pixels
from medadv_jax.defenses.objectives import Batch
from medadv_jax.defenses.weight_perturbation import perturb_weights
from medadv_jax.distributed import put_batch
from tests.helpers.hlo import COLLECTIVE, computations, reachable
from tests.training.test_trainer import Parts, assert_trees_close, stop_and_resume

KEY = jax.random.key(1)


def make_parts(rate=0.1, devices=1, epsilon=0.03, **fields):
    """Plain descent, one attack, no augmentation."""
    return Parts(
        "adversarial", devices, optax.sgd(rate), epsilon=epsilon, augmented=False,
        **{"attacks": "pgd", **fields},
    )  # fmt: skip


def step_once(parts):
    """Returns the state before and after one step, and its metrics."""
    batch = put_batch(parts.mesh, next(iter(parts.batches(16))))
    before = jax.device_get(parts.state())
    after, metrics = parts.step(parts.state(), batch, KEY)
    return before, jax.device_get(after), jax.device_get(metrics)


def examples_of(parts, variables):
    """What the first step trains on: examples and inputs."""
    batch = next(iter(parts.batches(16)))
    label, mask = (jnp.asarray(batch[name]) for name in ("label", "mask"))
    inputs = Batch(to_pixels(jnp.asarray(batch["image"])), label, mask)
    key = jax.random.split(jax.random.fold_in(KEY, 0), 3)[1]
    objective = parts.defense.make_objective(parts.config)
    logits_fn = parts.classifier.logits_fn(variables)
    return objective, objective.make_examples(logits_fn, *inputs, key), inputs


# Weight perturbation


def test_perturbation_has_its_norm_and_direction():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 3, 4, 5)).astype("f"), "bias": np.ones(5, "f"),
              "dead": np.ones((2, 2), "f")}  # fmt: skip
    gradients = {"kernel": 1e-9 * rng.standard_normal((3, 3, 4, 5)).astype("f"),
                 "bias": np.ones(5, "f"), "dead": np.zeros((2, 2), "f")}  # fmt: skip
    moved = perturb_weights(params, gradients, 0.02)
    change = np.asarray(moved["kernel"], float) - params["kernel"]
    np.testing.assert_allclose(
        np.linalg.norm(change), 0.02 * np.linalg.norm(params["kernel"]), rtol=1e-4
    )
    uphill = gradients["kernel"] / np.linalg.norm(gradients["kernel"])
    np.testing.assert_allclose(change / np.linalg.norm(change), uphill, atol=1e-4)
    for name in ("bias", "dead"):
        np.testing.assert_array_equal(moved[name], params[name])


def test_perturbation_is_undone_exactly():
    before, after, _ = step_once(make_parts(rate=0.0, weight_perturbation=0.5))
    assert_trees_close(after.params, before.params, rtol=0, atol=0)


def test_gradient_is_that_at_the_worst_weights_and_statistics_those_of_the_weights():
    perturbed, plain = make_parts(weight_perturbation=0.1), make_parts()
    before, after, metrics = step_once(perturbed)
    _, other, others = step_once(plain)
    assert_trees_close(after.batch_stats, other.batch_stats, rtol=0, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-6)
    variables = before.variables()
    objective, examples, inputs = examples_of(perturbed, variables)

    @jax.jit
    def gradient(params):
        def loss(params):
            own = {**params, "batch_stats": before.batch_stats}
            return objective.loss(
                perturbed.classifier, own, examples, inputs, KEY
            ).value  # fmt: skip

        return jax.grad(loss)(params)

    worst = perturb_weights(before.params, gradient(before.params), 0.1)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, gradient(worst))
    assert_trees_close(after.params, expected, rtol=0, atol=2e-6)
    differs = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, other.params)
    assert max(jax.tree.leaves(differs)) > 1e-4  # so the comparison would tell


# Statistics of clean and of attacked images


def test_dual_norm_with_identical_batches_equals_plain():
    """Attacks of radius 0 change nothing: both halves have the statistics of the whole."""
    results = []
    for dual_norm in ("none", "attacked", "clean"):
        results.append(step_once(make_parts(epsilon=0.0, dual_norm=dual_norm))[1])
    for other in results[1:]:
        assert_trees_close(other.params, results[0].params, rtol=0, atol=1e-6)
        assert_trees_close(other.batch_stats, results[0].batch_stats, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dual_norm", "column"), [("attacked", 1), ("clean", 0)])
def test_deployed_statistics_are_those_of_the_named_images(dual_norm, column):
    parts = make_parts(dual_norm=dual_norm, objective="trades")
    before, after, _ = step_once(parts)
    variables = before.variables()
    _, examples, _ = examples_of(parts, variables)
    stats = [
        parts.classifier.train_logits(variables, examples.images[:, each], KEY)[1]
        for each in (column, 1 - column)
    ]
    assert_trees_close(after.batch_stats, stats[0], rtol=0, atol=1e-6)
    differs = jax.tree.map(lambda a, b: np.abs(a - b).max(), stats[0], stats[1])
    assert max(jax.tree.leaves(differs)) > 1e-5


# Replays


def test_free_updates_with_each_replay_and_counts_them():
    parts = make_parts(objective="madry", method="free", replays=3)
    before, after, _ = step_once(parts)
    assert after.step == 3
    assert len(parts.traces) == 1
    variables = before.variables()
    objective, examples, inputs = examples_of(parts, variables)
    params, stats, points = before.params, before.batch_stats, examples.images
    assert objective.replay is not None

    @jax.jit
    def gradient(params, stats, points):
        def loss(params, points):
            own = {**params, "batch_stats": stats}
            found = objective.loss(
                parts.classifier, own, examples._replace(images=points), inputs, KEY
            )
            return found.value, found.batch_stats

        return jax.grad(loss, (0, 1), has_aux=True)(params, points)

    for _ in range(3):
        (by_params, by_points), stats = gradient(params, stats, points)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, by_params)
        points = objective.replay.move(points, by_points, inputs.images)
    assert_trees_close(after.params, params, rtol=0, atol=1e-5)
    assert_trees_close(after.batch_stats, stats, rtol=0, atol=1e-5)


# One program, one reduction


OBJECTIVES = [
    {"objective": "madry", "method": "fast"},
    # Not trades: at its start the divergence's gradient is rounding, and so are its signs.
    {"objective": "mart", "dual_norm": "attacked", "weight_perturbation": 0.01, "ema": 0.5},
    {"objective": "mixed", "method": "noise", "label_smoothing": 0.1},
]


@pytest.mark.parametrize("fields", OBJECTIVES, ids=lambda fields: fields["objective"])
def test_two_devices_equal_one_in_one_trace(fields):
    states = []
    for devices in (1, 2):
        parts = make_parts(devices=devices, **fields)
        states.append(parts.run(40)[0])
        assert parts.step._cache_size() == 1
    assert_trees_close(states[0].params, states[1].params, rtol=0, atol=1e-5)
    assert_trees_close(states[0].batch_stats, states[1].batch_stats, rtol=0, atol=1e-5)


def reductions(**fields):
    """How many kernels a step reduces over devices outside its loops, and collectives inside."""
    parts = make_parts(devices=2, num_steps=3, **fields)
    batch = put_batch(parts.mesh, next(iter(parts.batches(16))))
    program = parts.step.lower(parts.state(), batch, KEY).compile().as_text()
    text = {name: "\n".join(lines) for name, lines in computations(program).items()}
    bodies = re.findall(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)", program)
    inside = reachable(text, [name for pair in bodies for name in pair])
    assert any(" convolution(" in text[name] for name in inside)
    within = sum(len(COLLECTIVE.findall(text[name])) for name in inside)
    lines = "\n".join(text[name] for name in text.keys() - inside).splitlines()
    results = [line.split(" all-reduce")[0] for line in lines if COLLECTIVE.search(line)]
    return sum(len(re.findall(r"f32\[\d+,", result)) for result in results), within


def test_weight_perturbation_reduces_gradients_once_more_and_the_attack_nothing():
    """The network has three kernels. XLA may reduce them in several calls."""
    for objective in ("mixed", "trades"):
        assert reductions(objective=objective) == (3, 0)
        assert reductions(objective=objective, weight_perturbation=0.01) == (6, 0)


# Resuming


@functools.cache
def resumed_parts(kind):
    fields = {
        "trades": {"objective": "trades", "weight_perturbation": 0.01},
        "free": {"objective": "madry", "method": "free", "replays": 2},
    }[kind]
    return Parts("adversarial", ema=0.6, attacks="pgd", **fields)


@pytest.mark.parametrize("kind", ["trades", "free"])
def test_stopped_within_an_epoch_goes_on_to_the_same_bits(tmp_path, monkeypatch, kind):
    parts = resumed_parts(kind)
    found = stop_and_resume(parts, tmp_path, monkeypatch, 4)
    (whole, best), (resumed, resumed_best) = found
    assert whole.step == 6 * parts.updates
    assert_trees_close(whole, resumed, rtol=0, atol=0)
    assert best == resumed_best
