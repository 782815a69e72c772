"""All twelve checks: a healthy classifier passes, one that hides its gradient does not."""

import json

import pytest

from medadv_jax.evaluation.checks.result import NAMES, check, judge
from medadv_jax.evaluation.checks.run_all import (
    read_self_checks,
    write_self_checks,
)
from tests.helpers.formula_case import (
    Formula,
    checks_of,
    formula_config,
    linear,
    make_model,
    rounded,
)


@pytest.fixture(scope="module")
def checks(healthy):
    return checks_of(healthy.model, formula_config())


@pytest.mark.parametrize("number", sorted({*NAMES} - {11, 13, 14}))
def test_healthy_classifier_passes(checks, number):
    found = checks[number]
    assert found.verdict == "pass", found.explanation
    assert found.defense == "base"
    assert found.name == NAMES[number]
    assert found.value == pytest.approx(0, abs=1e-4)
    assert "\n" not in found.explanation


def test_accuracy_that_no_radius_brings_down():
    """A purifier that rounds hides the gradient: even ε = 1 breaks nothing."""
    config = formula_config(eval__attacks="pgd,apgd", eval__second_queries=300)
    checks = checks_of(make_model(Formula(linear, rounded), config), config)
    assert checks[4].verdict == "fail"
    # Nor do the others let it pass.
    assert checks[6].verdict == "fail"
    assert checks[7].verdict == "fail"
    assert checks[12].verdict == "fail"


def test_judge_needs_certainty_to_fail():
    assert [judge(count, 64, 0.005) for count in (0, 1, 2, 3, 64)] == [
        "pass", "warn", "warn", "fail", "fail",
    ]  # fmt: skip
    assert judge(5, 1000, 0.005) == "pass"
    assert judge(6, 1000, 0.005) == "warn"


def test_file_comes_back_and_names_what_failed(tmp_path):
    path = tmp_path / "self_checks.json"
    assert read_self_checks(path) == []
    checks = [check(3, "base", "warn", None, "why"), check(1, "base", "pass", 0.0, "why")]
    write_self_checks(path, checks)
    assert read_self_checks(path) == checks[::-1]
    assert json.loads(path.read_text())["headline"] == "trusted"
    checks += [
        check(n, d, "fail", 1.0, "why") for n, d in ((6, "base"), (6, "hybrid"), (11, "all"))
    ]
    write_self_checks(path, checks)
    content = json.loads(path.read_text())
    assert content["headline"] == (
        "not to be trusted, because “gradients are there” fails (base, hybrid); "
        "“nothing leaks between splits” fails (all)"
    )
    assert content["checks"][0].keys() == {
        "number", "name", "defense", "verdict", "value", "explanation",
    }  # fmt: skip
