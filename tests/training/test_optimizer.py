"""Optimizers beside steps computed by hand; the average of weights; resuming with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.distributed import put_batch
from medadv_jax.training.optimizer import OptimizerOptions, make_optimizer, running_average
from medadv_jax.training.state import WithAverage
from tests.training.test_trainer import Fit, Parts, assert_trees_close, stop_and_resume

PARAMS = {"kernel": np.array([[1.0, -2.0]], "f"), "bias": np.array([4.0], "f")}
GRADIENTS = {"kernel": np.array([[0.5, 0.25]], "f"), "bias": np.array([-1.0], "f")}


def steps_of(count=1, rate=0.1, schedule="constant", total=10, epoch_steps=1, **options):
    """Every update of `count` steps with the same gradients and parameters."""
    optimizer = make_optimizer(rate, schedule, total, OptimizerOptions(**options), epoch_steps)
    state, updates = optimizer.init(PARAMS), []
    for _ in range(count):
        update, state = optimizer.update(GRADIENTS, state, PARAMS)
        updates.append(update)
    return updates


def test_first_step_of_each_optimizer_is_that_of_its_paper():
    # Adam's first step: both moments are corrected to the gradient, so it is rate · sign.
    (adam,) = steps_of(name="adam")
    np.testing.assert_allclose(adam["kernel"], [[-0.1, -0.1]], rtol=1e-5)
    np.testing.assert_allclose(adam["bias"], [0.1], rtol=1e-5)
    # AdamW: in addition - rate · decay · kernel, and nothing for the bias.
    (adamw,) = steps_of(name="adamw", weight_decay=0.5)
    np.testing.assert_allclose(adamw["kernel"], [[-0.1 - 0.05, -0.1 + 0.1]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adamw["bias"], adam["bias"])
    # SGD: velocity = momentum · velocity + gradient + decay · kernel.
    first, second = steps_of(2, name="sgd", weight_decay=0.5, momentum=0.8)
    np.testing.assert_allclose(first["kernel"], [[-0.1, 0.075]], rtol=1e-5)
    np.testing.assert_allclose(first["bias"], [0.1], rtol=1e-5)
    np.testing.assert_allclose(second["kernel"], 1.8 * first["kernel"], rtol=1e-5)


def test_gradients_are_clipped_together():
    norm = np.sqrt(0.5**2 + 0.25**2 + 1)
    (clipped,) = steps_of(name="sgd", momentum=0.0, clip_norm=0.5)
    np.testing.assert_allclose(
        clipped["kernel"], -0.1 * GRADIENTS["kernel"] * 0.5 / norm, rtol=1e-5
    )
    (whole,) = steps_of(name="sgd", momentum=0.0, clip_norm=2.0)
    np.testing.assert_allclose(whole["bias"], [0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate_rises_and_then_follows_the_schedule(schedule, expected):
    updates = steps_of(
        8, 1.0, schedule, 8, epoch_steps=2, name="sgd", momentum=0.0, warmup_epochs=2.0
    )
    np.testing.assert_allclose([u["bias"][0] for u in updates], expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_plain_adam_is_as_it_was(schedule):
    """The state that checkpoints of earlier versions hold."""
    state = make_optimizer(0.001, schedule, 5).init(PARAMS)
    size = 2 * sum(array.size for array in PARAMS.values())
    counters = 1 if schedule == "constant" else 2
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(state)) == size + counters


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_shape_of_the_state_does_not_depend_on_the_steps(warmup):
    options = OptimizerOptions("adamw", 0.1, 0.9, 1.0, warmup)
    trees = [
        jax.tree.structure(make_optimizer(0.1, "constant", n, options, n).init(PARAMS))
        for n in (1, 50)
    ]
    assert trees[0] == trees[1]


# The average of the weights


def test_average_of_three_values_is_the_weighted_mean():
    average = np.float32(100)  # what was there before does not count
    for count, value in enumerate([1.0, 5.0, 2.0], start=1):
        average = running_average(average, jnp.float32(value), 0.5, jnp.int32(count))
    np.testing.assert_allclose(average, (0.25 * 1 + 0.5 * 5 + 1 * 2) / 1.75, rtol=1e-5)
    constant = jnp.float32(0.1)
    for count in (1, 2, 3):
        assert running_average(constant, constant, 0.9, jnp.int32(count)) == constant


def test_step_averages_parameters_and_statistics_and_trains_as_without():
    averaged, plain = Parts("base", ema=0.6), Parts("base")
    key, states = jax.random.key(1), []
    state, other = averaged.state(), plain.state()
    for batch in averaged.batches(40):
        state, _ = averaged.step(state, put_batch(averaged.mesh, batch), key)
        other, _ = plain.step(other, put_batch(plain.mesh, batch), key)
        states.append(jax.device_get(other.variables()))
    assert len(averaged.traces) == 1
    assert_trees_close(state.variables(), states[-1], rtol=0, atol=0)
    weights = np.array([0.36, 0.6, 1.0]) / 1.96
    expected = jax.tree.map(lambda *x: sum(w * a for w, a in zip(weights, x, strict=True)), *states)
    assert expected["batch_stats"]
    assert_trees_close(state.deployed(), expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(other.deployed(), other.variables(), rtol=0, atol=0)


@functools.cache
def averaged_parts():
    return Parts("base", ema=0.6)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_stopped_with_an_average_goes_on_to_the_same_bits(tmp_path, monkeypatch, count):
    parts = averaged_parts()
    found = stop_and_resume(parts, tmp_path, monkeypatch, count)
    (whole, best), (resumed, resumed_best) = found
    assert isinstance(whole.opt_state, WithAverage)
    assert_trees_close(whole, resumed, rtol=0, atol=0)
    assert best == resumed_best


def test_what_is_validated_is_the_average(tmp_path):
    fit, seen = Fit(tmp_path), []
    fit.parts = averaged_parts()
    fit.validate = lambda variables: seen.append(jax.device_get(variables)) or {
        "accuracy": 0.5, "loss": 1.0,
    }  # fmt: skip
    last, _ = fit(1)
    assert_trees_close(seen[-1], last.deployed(), rtol=0, atol=0)
    differs = jax.tree.map(lambda a, b: np.any(a != b), seen[-1], last.variables())
    assert all(jax.tree.leaves(differs))
