"""Each of the twelve checks passes on a healthy case, and fails on a fault that was planted."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from subjects import (
    COUNT,
    DISTANCES,
    LABELS,
    Formula,
    formula_config,
    formula_images,
    height,
    linear,
    make_subject,
    predictions_of,
    two_logits,
)  # fmt: skip

from medadv_jax import curves, model_checks, record_checks, results
from medadv_jax.evaluate import Predictor, Source, evaluation_attacks
from medadv_jax.self_checks import (
    check_splits,
    difference_hashes,
    read_self_checks,
    run_self_checks,
    write_self_checks,
)  # fmt: skip
from medadv_jax.splits import Example
from medadv_jax.verdicts import NAMES, check, judge

EPSILON = 0.03


@pytest.fixture(scope="module")
def config():
    return formula_config()


@pytest.fixture(scope="module")
def pgd(config):
    return curves.curve_attack(config)


@pytest.fixture(scope="module")
def healthy(config):
    """A linear classifier, under attacks that reach its optimum."""
    subject = make_subject(Formula(linear), config)
    rows, predictions = predictions_of(subject, config)
    checks = run_self_checks(subject, config, rows, predictions)
    return SimpleNamespace(
        subject=subject, predictions=predictions, rows=rows,
        checks={each.number: each for each in checks},
    )  # fmt: skip


@pytest.mark.parametrize("number", sorted({*NAMES} - {11}))
def test_healthy_classifier_passes(healthy, number):
    found = healthy.checks[number]
    assert found.verdict == "pass", found.explanation
    assert found.defense == "base"
    assert found.name == NAMES[number]
    assert found.value == pytest.approx(0, abs=1e-4)
    assert "\n" not in found.explanation


def found(subject, pgd):
    """Returns what the extra attacks find, and the curve's verdict on the evaluation's PGD."""
    left = subject.attack([curves.Job(pgd)]).logits[0].argmax(axis=1) == subject.labels
    return model_checks.find(subject, pgd, left)


# 1


def darken(pixels):
    return 0.9 * pixels


@pytest.mark.parametrize(
    ("source", "verdict"), [("full", "pass"), ("bpda", "pass"), ("bare", "fail")]
)
def test_attack_that_leaves_out_the_purifier(config, source, verdict):
    subject = make_subject(Formula(linear, darken), config, sources=(source,))
    assert model_checks.attacks_deployed(subject, EPSILON).verdict == verdict


def test_attack_on_other_weights(config):
    subject = make_subject(Formula(linear), config)
    others = Source("full", {"scale": np.full((), 90.0, np.float32)})
    object.__setattr__(subject, "sources", (others,))
    assert model_checks.attacks_deployed(subject, EPSILON).verdict == "fail"


def test_attack_that_sees_no_number(config):
    subject = make_subject(
        Formula(lambda variables, pixels: linear(variables, pixels) * jnp.nan), config
    )
    assert model_checks.attacks_deployed(subject, EPSILON).verdict == "fail"


# 2


class Faulty(Predictor):
    """Attacks with one fault."""

    fault = ""

    def attack(self, attacks, source, batch, key, penalty=None):
        pixels = np.array(super().attack(attacks, source, batch, key, penalty))
        clean = np.asarray(batch["image"]) / np.float32(255)
        if self.fault == "too far":
            pixels = clean + (pixels - clean) * 1.01
        if self.fault == "out of range":
            pixels[0, 0, 0, 0] = clean[0, 0, 0] = -1e-3
        if self.fault == "no number":
            pixels[0, 0, 0, 0, 0] = np.nan
        if self.fault == "moves variables":
            source.variables["scale"] += 1
        return pixels


@pytest.mark.parametrize("fault", ["", "too far", "out of range", "no number"])
def test_attack_that_leaves_its_bounds(healthy, config, fault):
    faulty = type("Faulty", (Faulty,), {"fault": fault})
    images = formula_images()
    images[0, 0, 0] = 0.0  # at the edge of the pixel range
    subject = make_subject(Formula(linear), config, images, predictor=faulty)
    again = model_checks.evaluate_again(subject, evaluation_attacks(config))
    still = np.asarray(jax.nn.softmax(subject.logits(images))[:, 1])
    result = model_checks.stays_within(subject, again, still)
    assert result.verdict == ("fail" if fault else "pass"), result.explanation
    json.dumps(result)


def test_epsilon_zero_that_changes_a_bit(healthy, config):
    again = model_checks.evaluate_again(healthy.subject, evaluation_attacks(config))
    still = np.asarray(jax.nn.softmax(healthy.subject.logits(healthy.subject.images))[:, 1])
    assert model_checks.stays_within(healthy.subject, again, still).verdict == "pass"
    still = np.where(np.arange(COUNT) == 7, np.nextafter(still, np.float32(0)), still)
    assert model_checks.stays_within(healthy.subject, again, still).verdict == "fail"


# 3


def trapped(variables, pixels):
    """Small steps turn back at a wall; one large step leaps over it."""
    del variables
    high = height(pixels)
    way = jnp.abs(high) - 0.05  # images stand at ±0.05
    near = jnp.where(way > -0.004, 1 + 50 * way, 0.8 + 50 * (-0.004 - way))
    return two_logits(jnp.sign(high) * jnp.where(way > -0.02, near, way - 1))


def test_weak_attack_that_is_stronger_than_strong_ones(config, pgd):
    images = formula_images(np.full(COUNT, 0.05))
    subject = make_subject(Formula(trapped), config, images)
    result = model_checks.stronger_breaks_more(subject, found(subject, pgd))
    assert result.verdict == "fail", result.explanation
    assert result.value == 1  # FGSM breaks all, BIM none


# 4


def rounded(pixels):
    return jnp.round(pixels * 64) / 64


def test_accuracy_that_no_radius_brings_down(config):
    """A purifier that rounds hides the gradient: even ε = 1 breaks nothing."""
    subject = make_subject(Formula(linear, rounded), config)
    rows, predictions = predictions_of(subject, config)
    checks = {c.number: c for c in run_self_checks(subject, config, rows, predictions)}
    assert checks[4].verdict == "fail"
    # Nor do the others let it pass.
    assert checks[6].verdict == "fail"
    assert checks[7].verdict == "fail"
    assert checks[12].verdict == "fail"


def test_accuracy_that_rises_with_the_radius():
    many, some = np.ones(64, bool), np.arange(64) % 4 > 0
    labels = np.arange(64) % 2
    falling = {(0.0, 4): many, (0.01, 4): some, (0.01, 8): many, (1.0, 4): ~many}
    check_4 = record_checks.larger_radius_breaks_more
    assert check_4("base", falling, labels, 4).verdict == "pass"
    assert check_4("base", dict(reversed(falling.items())), labels, 4).verdict == "pass"
    rising = {(0.0, 4): some, (0.01, 4): many, (1.0, 4): ~many}
    result = check_4("base", rising, labels, 4)
    assert result.verdict == "fail"
    assert result.value == 0.25
    assert check_4("base", {(0.0, 4): many, (1.0, 4): labels == 0}, labels, 4).verdict == "pass"
    assert check_4("base", {(0.0, 4): many, (1.0, 4): some}, labels, 4).verdict == "fail"


# 5


def two_walls(variables, pixels):
    """Misclassifies where both halves of the image have moved; the gradient shows one."""
    del variables
    signed = (pixels - 0.5) * np.sign(np.asarray(formula_images(np.ones(2))[1] - 0.5))[None]
    halves = signed.reshape(signed.shape[0], 2, -1).mean(axis=2)
    sign = jnp.sign(halves.sum(axis=1))
    return two_logits(sign * (10 * jnp.max(halves * sign[:, None], axis=1) - 0.45))


def test_too_few_steps(pgd):
    images = formula_images(np.full(COUNT, 0.05))
    for steps, verdict in ((1, "fail"), (4, "pass")):
        config = formula_config(eval__num_steps=steps)
        subject = make_subject(Formula(two_walls), config, images)
        rights = record_checks.curve_rights(
            record_checks.columns_of(curves.curve_rows(subject, config), "base")
        )
        result = record_checks.enough_steps("base", rights, EPSILON, steps, rights[EPSILON, steps])
        assert result.verdict == verdict, result.explanation


def test_restarts_that_break_more():
    right = np.ones(64, bool)
    rights = {(EPSILON, 4): right, (EPSILON, 8): right}
    broken = [np.arange(64) >= count for count in (0, 1, 8)]
    verdicts = [record_checks.enough_steps("base", rights, EPSILON, 4, r).verdict for r in broken]
    assert verdicts == ["pass", "warn", "fail"]


# 6


def gradient_of_nan(variables, pixels):
    """The slope of a root at 0, for images whose first pixel is black."""
    return linear(variables, pixels) + jnp.sqrt(pixels[:, 0, 0, :1])


@pytest.mark.parametrize("function", [gradient_of_nan, linear])
def test_gradient_that_is_no_number(config, function):
    images = formula_images()
    images[3, 0, 0, 0] = 0.0
    subject = make_subject(Formula(function), config, images)
    result = model_checks.has_gradients(subject)
    assert result.verdict == ("pass" if function is linear else "fail")


def test_gradient_that_is_zero(config):
    verdicts = {
        sources: model_checks.has_gradients(
            make_subject(Formula(linear, rounded), config, sources=sources)
        ).verdict
        for sources in (("full",), ("full", "bpda"), ("bpda",))
    }
    assert verdicts == {("full",): "fail", ("full", "bpda"): "warn", ("bpda",): "pass"}


# 7


def with_transfer(predictions, fallen):
    """Adds records of a transfer attack that breaks these images."""
    attacked = predictions.filter(pc.field("threat_model") == "adaptive")
    columns = {name: attacked[name].to_numpy(zero_copy_only=False) for name in results.SCHEMA.names}
    right = np.where(fallen, 1 - columns["label"], columns["label"])
    columns |= {"predicted": right, "threat_model": ["transfer"] * len(right)}
    return pa.concat_tables([predictions, pa.table(columns, schema=results.SCHEMA)])


def test_transfer_that_breaks_what_white_boxes_leave(healthy):
    order = np.arange(COUNT)
    left = DISTANCES > EPSILON
    for fallen, verdict in (
        (~left, "pass"), (left & (order == COUNT - 1), "warn"), (left & (order > COUNT - 6), "fail")
    ):  # fmt: skip
        columns = record_checks.columns_of(with_transfer(healthy.predictions, fallen), "base")
        result = record_checks.no_other_breaks_more("base", columns, EPSILON, None, COUNT)
        assert result.verdict == verdict, result.explanation


def stepped(variables, pixels):
    """The mean, in steps that hide the gradient."""
    return two_logits(variables["scale"] * (rounded(pixels).mean(axis=(1, 2, 3)) - 0.5))


def test_search_without_gradients_that_breaks_what_white_boxes_leave(config, pgd):
    signs = np.where(LABELS == 1, 1, -1)[:, None, None, None]
    images = (0.5 + 0.01 * signs * np.ones_like(formula_images())).astype(np.float32)
    everyone = np.ones(COUNT, bool)
    subject = make_subject(Formula(stepped), config, images)
    assert found(subject, pgd).left.sum() > 0.9 * COUNT  # the gradient shows nothing
    result = model_checks.without_gradients(subject, pgd, everyone)
    assert result is not None
    fallen, attacked, _ = result
    assert attacked == COUNT
    assert fallen > 0.5 * COUNT
    columns = {name: np.zeros(0) for name in (*results.KEYS, "example", "label", "predicted")}
    check_7 = record_checks.no_other_breaks_more
    assert check_7("base", columns, EPSILON, (fallen, attacked, "it"), COUNT).verdict == "fail"
    assert check_7("base", columns, EPSILON, (0, attacked, "it"), COUNT).verdict == "pass"


# 8


class Guessing(Predictor):
    """Answers with another noise each time."""

    def logits(self, target, pixels):
        noise = np.random.default_rng().normal(size=(pixels.shape[0], 1)).astype(np.float32)
        return super().logits(target, pixels) + noise


def test_random_answers(config, pgd):
    subject = make_subject(Formula(linear), config, predictor=Guessing)
    assert model_checks.is_the_same_again(subject, pgd).verdict == "fail"


def test_random_start_that_is_always_the_same(healthy, pgd, monkeypatch):
    sweep = healthy.subject.sweep
    starts = sweep.starts
    monkeypatch.setattr(sweep, "starts", lambda *given: starts(*given[:3], 0, given[4]))
    assert model_checks.is_the_same_again(healthy.subject, pgd).verdict == "fail"


# 9


def test_probabilities_in_place_of_logits(config, pgd):
    subject = make_subject(
        Formula(lambda variables, pixels: jax.nn.softmax(linear(variables, pixels))), config
    )
    result = model_checks.are_logits(subject, found(subject, pgd))
    assert result.verdict == "fail"
    assert "probabilities" in result.explanation


def test_logits_of_half_precision(config, pgd):
    subject = make_subject(
        Formula(lambda variables, pixels: linear(variables, pixels).astype(jnp.bfloat16)), config
    )
    result = model_checks.are_logits(subject, found(subject, pgd))
    assert result.verdict == "fail"
    assert "bfloat16" in result.explanation


def test_logits_so_steep_that_the_loss_is_flat(config, pgd):
    subject = make_subject(
        Formula(lambda variables, pixels: 1e4 * linear(variables, pixels)), config
    )
    findings = found(subject, pgd)
    assert findings.left.mean() > 0.8  # float32 rounds the gradient of cross-entropy to 0
    for other in (findings.tempered, findings.margin):  # either of which sees over it
        np.testing.assert_array_equal(other, DISTANCES > EPSILON)
    assert model_checks.are_logits(subject, findings).verdict == "fail"


# 10


def beside_others(variables, pixels):
    """As with BatchNorm on the batch's statistics."""
    return linear(variables, pixels) - 0.1 * linear(variables, pixels).mean(axis=0, keepdims=True)


def test_answers_that_depend_on_the_batch(config):
    subject = make_subject(Formula(beside_others), config)
    again = model_checks.Evaluated([], [], [])
    assert model_checks.changes_nothing_else(subject, again).verdict == "fail"


def test_attack_that_moves_the_variables(config):
    faulty = type("Faulty", (Faulty,), {"fault": "moves variables"})
    subject = make_subject(Formula(linear), config, predictor=faulty)
    again = model_checks.evaluate_again(subject, evaluation_attacks(config))
    result = model_checks.changes_nothing_else(subject, again)
    assert result.verdict == "fail"
    assert "changed the variables" in result.explanation


# 11


def split_case():
    """Returns examples, the content of splits.json, lines of metrics.jsonl, hashes, records."""
    examples = [
        Example(f"e{i}", int(i % 2), f"g{i // 2}", 0, "", f"m{i}") for i in range(20)
    ]  # fmt: skip
    ids = [example.id for example in examples]
    splits = {"train": ids[:10], "validation": ids[10:14], "test": ids[14:]}
    training = [
        {"defense": "base", "epoch": 1, "images/s": 1.0, "validation_accuracy": 0.75},
        {"defense": "base", "epoch": 1, "loss": 1.0},
    ]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in ids]
    score = np.full(6, 0.5, np.float32)
    records = pa.concat_tables(
        results.prediction_rows((defense, "none", "clean", 0.0), examples[14:], score, score > 1)
        for defense in ("base", "adversarial")
    )
    return examples, splits, training, images, records


def split_verdict(examples, splits, training, images, records):
    hashes = dict(zip([e.id for e in examples], difference_hashes(images), strict=True))
    return check_splits(splits, examples, records, training, hashes)


def test_clean_splits_pass():
    result = split_verdict(*split_case())
    assert (result.verdict, result.value, result.defense) == ("pass", 0, "all")


FAULTS = ["id", "md5", "group", "look-alike", "not validation", "no validation", "examples"]


@pytest.mark.parametrize("fault", FAULTS)
def test_leaks(fault):
    examples, splits, training, images, records = split_case()
    if fault == "id":
        splits["validation"][0] = "e0"
    if fault == "md5":
        examples[15] = Example("e15", 1, "g7", 0, "", "m3")
    if fault == "group":
        examples[15] = Example("e15", 1, "g1", 0, "", "m15")
    if fault == "look-alike":  # another file of the same picture: brighter, and resaved
        images[15] = np.clip(images[3] * 0.8 + 20, 0, 255).astype(np.uint8)
    if fault == "not validation":  # a share of the 6 test images
        training[0]["validation_accuracy"] = 5 / 6
    if fault == "no validation":
        del training[0]["validation_accuracy"]
    if fault == "examples":
        records = records.slice(0, 11)
    result = split_verdict(examples, splits, training, images, records)
    assert result.verdict == "fail"
    assert "\n" not in result.explanation


def test_pictures_of_one_kind_are_no_copies():
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 3, 64)
    shape = 120 + 60 * np.sin(grid[:, None] + grid[None])  # what all of them share
    images = [
        np.clip(shape[..., None] + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        for _ in range(30)
    ]
    hashes = difference_hashes(images).astype(int)
    apart = (hashes[:, None] != hashes[None]).sum(axis=2)[np.triu_indices(30, 1)]
    assert apart.min() > 16


# 12


def is_complete(predictions, planted=("pass", "planted")):
    return record_checks.is_complete("base", predictions, EPSILON, planted)


def test_robust_number_that_lacks_what_belongs_to_it(healthy):
    predictions = healthy.predictions
    faults = {
        "no clean accuracy": predictions.filter(pc.field("threat_model") == "adaptive"),
        "no adaptive attack": predictions.filter(pc.field("threat_model") == "none"),
        "other images": predictions.slice(0, predictions.num_rows - 1),
        "other images than clean: transfer pgd": with_transfer(predictions, LABELS > 1).slice(
            0, 3 * COUNT - 1
        ),
        "unknown threat model": predictions.set_column(
            1, "threat_model", pa.array(["none"] * COUNT + ["white-box"] * COUNT)
        ),
    }
    assert is_complete(predictions).verdict == "pass"
    for text, table in faults.items():
        result = is_complete(table)
        assert result.verdict == "fail"
        assert text in result.explanation


def test_robust_number_says_what_belongs_to_it(healthy):
    mine = healthy.predictions
    other = mine.set_column(0, "defense", pa.array(["adversarial"] * mine.num_rows))
    left = (DISTANCES > EPSILON).mean()
    text = is_complete(pa.concat_tables([mine, other])).explanation
    for part in (
        "clean 1.000", f"adaptive {left:.3f}", f"n = {COUNT}", f"{1 - left:.3f} of all",
        "ε = 0.03", "pgd", "McNemar against adversarial p = 1",
    ):  # fmt: skip
        assert part in text


def test_classifier_that_never_looks_is_named(healthy):
    column = pa.array(np.ones(2 * COUNT), pa.int32())
    always = healthy.predictions.drop("predicted").append_column("predicted", column)
    result = is_complete(always)
    assert result.verdict == "warn"
    assert "one class always" in result.explanation


def test_attack_that_is_too_weak_for_what_is_planted():
    config = formula_config(attack__relative_step=0.001)
    subject = make_subject(Formula(linear), config)
    findings = found(subject, curves.curve_attack(config))
    assert findings.planted.mean() > 0.8
    verdict, text = model_checks.finds_planted(findings)
    assert verdict == "fail", text


def test_constant_classifier_has_nothing_planted(config, pgd):
    subject = make_subject(
        Formula(lambda variables, pixels: 0 * linear(variables, pixels) + jnp.array([[0.0, 1.0]])),
        config,
    )
    assert model_checks.finds_planted(found(subject, pgd))[0] == "warn"


# The file


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
