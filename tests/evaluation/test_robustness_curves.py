"""Curves against closed forms, and attacks on a model under test."""

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.evaluation import robustness_curves
from medadv_jax.evaluation.checks.prediction_checks import columns_of, curve_correct
from medadv_jax.evaluation.model_under_test import choose_examples, is_correct, margins
from medadv_jax.evaluation.predictions import write_table
from tests.helpers.formula_case import (
    COUNT,
    DISTANCES,
    EPSILON,
    LABELS,
    SIDE,
    Formula,
    formula_config,
    formula_images,
    linear,
    make_model,
)


@pytest.fixture(scope="module")
def config():
    return formula_config()


@pytest.fixture(scope="module")
def table(healthy):
    return healthy.rows


def accuracies(table, defense):
    """Returns the accuracy at each (epsilon, number of steps)."""
    points = curve_correct(columns_of(table, defense))
    return {point: float(correct.mean()) for point, correct in points.items()}


def test_accuracy_is_the_closed_form_at_every_radius_and_number_of_steps(table):
    found = accuracies(table, "base")
    # 4 steps of the evaluation and twice that, beside those of every curve.
    expected = {(e, 4) for e in robustness_curves.EPSILONS} | {
        (EPSILON, s) for s in (1, 2, 4, 5, 8, 20)
    }
    assert found.keys() == expected
    for (epsilon, _), accuracy in found.items():
        assert accuracy == pytest.approx((epsilon < DISTANCES).mean())


def test_rows_name_each_example_once_at_each_point_and_come_back(table, tmp_path):
    assert table.schema == robustness_curves.SCHEMA
    path = tmp_path / "curves.parquet"
    assert robustness_curves.read_curves(path).num_rows == 0
    write_table(path, table)
    assert robustness_curves.read_curves(path).equals(table)
    assert pq.read_table(path)["num_steps"].type == "int32"
    points = zip(table["epsilon"].to_pylist(), table["num_steps"].to_pylist(), strict=True)
    rows = [*zip(points, table["example"].to_pylist(), strict=True)]
    assert len({*rows}) == len(rows) == 12 * COUNT
    assert {*table["threat_model"].to_pylist()} == {"adaptive"}


def test_accuracies_are_of_one_defence(table):
    wrong = 1 - table["label"].to_numpy()
    other = pa.table(
        {name: table[name] for name in table.column_names}
        | {"defense": ["hybrid"] * len(wrong), "predicted": wrong}, schema=robustness_curves.SCHEMA
    )  # fmt: skip
    both = pa.concat_tables([table, other])
    assert accuracies(both, "base") == accuracies(table, "base")
    assert {*accuracies(both, "hybrid").values()} == {0.0}


def test_own_radius_and_steps_are_on_both_axes():
    config = formula_config(attack__epsilon=0.025, eval__num_steps=7, eval__restarts=3)
    points = {
        (attack.epsilon, attack.num_steps) for attack in robustness_curves.curve_attacks(config)
    }
    assert {(0.025, 7), (0.025, 14), (0.0, 7), (1.0, 7), (0.03, 7), (0.025, 1)} <= points
    for attack in robustness_curves.curve_attacks(config):
        assert attack.step_size == pytest.approx(2.5 * attack.epsilon / attack.num_steps)
        assert (attack.norm, attack.keep_best, attack.num_restarts) == ("linf", True, 3)
    config.attack.norm = "l2"
    attacks = robustness_curves.curve_attacks(config)
    assert {attack.norm for attack in attacks} == {"l2"}
    diagonal = np.linalg.norm(np.ones((SIDE, SIDE, 3)))
    thirds = [0.025 * k / 3 for k in range(6)]
    found = sorted({float(attack.epsilon) for attack in attacks})
    np.testing.assert_allclose(found, [*thirds, float(diagonal)])


def test_shift_moves_the_boundary_that_an_attack_stops_at(config):
    model = make_model(Formula(linear), config)
    attack = make_attack("bim", EPSILON, num_steps=4, keep_best=True)
    own = margins(model.logits(model.images), LABELS)
    nearer = np.where(LABELS == 1, own + 1, 0.0).astype(np.float32)  # class 1 is wrong already
    found = model.attack([AttackJob(attack, shift=nearer), AttackJob(attack, shift=0 * nearer)])
    moved = (found.pixels != model.images[None]).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(moved[0], LABELS == 0)
    assert moved[1].all()


def test_worst_of_two_gradients_counts(config):
    """The one gradient is blind, the other is not; and which comes first does not matter."""
    blind = Formula(linear, purify=lambda pixels: jnp.floor(pixels * 512) / 512)
    optimum = formula_images(DISTANCES - EPSILON)
    expected = is_correct(make_model(blind, config).logits(optimum), LABELS)
    lowest = []
    for sources in (("bpda",), ("full", "bpda"), ("bpda", "full")):
        model = make_model(blind, config, sources=sources)
        attack = make_attack("bim", EPSILON, num_steps=4, keep_best=True)
        found = model.attack([AttackJob(attack)]).logits[0]
        np.testing.assert_array_equal(is_correct(found, LABELS), expected)
        lowest.append(margins(found, LABELS)[expected])
    np.testing.assert_allclose(lowest[1], lowest[0], atol=1e-4)
    np.testing.assert_allclose(lowest[2], lowest[0], atol=1e-4)


def test_apgd_is_drawn_beside_pgd_where_the_evaluation_runs_it(config):
    searched = formula_config(eval__attacks="pgd,apgd", eval__apgd_steps=20)
    assert robustness_curves.searched_radii(config) == []
    assert robustness_curves.searched_radii(searched) == [0.01, 0.02, 0.03, 0.04, 0.05]
    rows = robustness_curves.curve_rows(make_model(Formula(linear), searched), searched)
    apgd = rows.filter(pc.field("evaluation") == "apgd")
    assert {*apgd["num_steps"].to_pylist()} == {20}
    for epsilon in robustness_curves.searched_radii(searched):
        at = apgd.filter(pc.field("epsilon") == epsilon)
        found = np.array(at["predicted"]) == np.array(at["label"])
        np.testing.assert_array_equal(found, epsilon < DISTANCES)


def test_examples_are_drawn_from_both_classes():
    labels = np.array([0] * 5 + [1] * 95)
    chosen = choose_examples(labels, 40, seed=0)
    assert len({*chosen}) == 40
    assert labels[chosen].sum() == 35
    labels = np.arange(100) % 2
    chosen = choose_examples(labels, 40, seed=0)
    assert labels[chosen].sum() == 20
    assert (np.diff(chosen) > 0).all()
    assert {*chosen} != {*choose_examples(labels, 40, seed=1)}
    np.testing.assert_array_equal(choose_examples(labels, 200, seed=0), np.arange(100))


def test_formula_images_lie_as_far_from_the_boundary_as_they_say():
    logits = np.asarray(linear({"scale": 1.0}, jnp.asarray(formula_images())))
    np.testing.assert_allclose(margins(logits, LABELS), 2 * DISTANCES, atol=1e-6)


def half_of_each(labels, count, seed):
    """As it was for two classes only: each gets half, the larger fills up."""
    rng = np.random.default_rng((seed, 5))
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    most = min(count, len(labels))
    first = min(len(classes[0]), max(most // 2, most - len(classes[1])))
    return np.sort(np.concatenate([classes[0][:first], classes[1][: most - first]]))


def test_images_of_two_classes_are_chosen_as_before():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        labels = (rng.random(rng.integers(1, 40)) < rng.random()).astype(np.int32)
        count = int(rng.integers(1, 45))
        expected = half_of_each(labels, count, seed)
        np.testing.assert_array_equal(choose_examples(labels, count, seed), expected)


def test_every_class_gets_as_many_images_as_it_has_up_to_its_share():
    labels = np.repeat([0, 1, 2, 3, 4], [2, 50, 9, 50, 50])
    chosen = choose_examples(labels, 52, seed=0)
    assert len({*chosen}) == 52
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [2, 13, 9, 14, 14])
