"""Check 7: it fails where the evaluation's own attacks are too weak, whatever they agree on."""

import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.evaluation.checks import prediction_checks, second_opinion
from medadv_jax.evaluation.checks.second_opinion import SecondOpinion, no_other_breaks_more
from tests.helpers.formula_case import (
    COUNT,
    DISTANCES,
    EPSILON,
    LABELS,
    SIDE,
    Formula,
    checks_of,
    formula_config,
    linear,
    make_model,
    predictions_of,
    rounded,
    two_logits,
    with_transfer,
)

SIGNS = np.where(LABELS == 1, 1, -1)
LEFT = DISTANCES > EPSILON
STEEP, CAP = 100.0, 0.08


def gorge(variables, pixels):
    """Misclassifies an image far along the first channel, but only in a gorge of four pixels.

    Steps of fixed length jump from wall to wall of the gorge: PGD does not get in, with twice the
    steps neither. The third channel says which class the walls protect.
    """
    along = pixels[..., 0].mean(axis=(1, 2)) - 0.5
    wall = STEEP * jnp.abs(pixels[:, 0, :4, 1] - 0.5).sum(axis=-1) / CAP
    own = jnp.tanh(1000.0 * (pixels[..., 2].mean(axis=(1, 2)) - 0.5))
    return two_logits(variables["scale"] * (along + own * CAP * wall / (1 + wall)))


def gorge_images():
    """Images 1/255 away from the bottom's boundary, and half a wall's height from the bottom."""
    images = np.full((COUNT, SIDE, SIDE, 3), 0.5, np.float32)
    images[..., 0] += SIGNS[:, None, None] / 255
    images[:, 0, :4, 1] += np.random.default_rng(0).uniform(0.004, 0.024, (COUNT, 4))
    images[..., 2] += 0.2 * SIGNS[:, None, None]
    return np.round(images * 255).astype(np.float32) / 255


def test_fixed_steps_that_agree_with_each_other_are_found_out():
    """The demo's hybrid in small: every check that repeats PGD passes, another algorithm breaks."""
    config = formula_config(eval__num_steps=15)
    checks = checks_of(make_model(Formula(gorge), config, gorge_images()), config)
    repeats = {number: checks[number].verdict for number in (1, 2, 3, 4, 5, 6, 8, 9, 10)}
    assert {*repeats.values()} == {"pass"}, repeats
    assert checks[7].verdict == "fail"
    assert (checks[7].value or 0) > 0.5


def stepped(variables, pixels):
    """The mean, in steps that hide the gradient."""
    return two_logits(variables["scale"] * (rounded(pixels).mean(axis=(1, 2, 3)) - 0.5))


def test_square_breaks_what_hides_its_gradient():
    config = formula_config(eval__attacks="pgd,apgd", eval__second_queries=300)
    shade = 0.01 + 1e-3 * np.random.default_rng(0).random((COUNT, SIDE, SIDE, 3))
    images = (0.5 + SIGNS[:, None, None, None] * shade).astype(np.float32)
    model = make_model(Formula(stepped), config, images)
    predictions = predictions_of(model, config)[1]
    second = second_opinion.ask(model, second_opinion.other_attacks(config), predictions)
    assert second.left == COUNT  # the gradient shows nothing
    assert second.broken["fmn"] == 0
    assert second.broken["square"] > 0.5 * COUNT


def test_attacks_of_another_kind_find_nothing_beside_an_optimum():
    """Only what the evaluation leaves is attacked, and of a linear model it leaves nothing."""
    config = formula_config(eval__attacks="pgd,apgd", eval__second_queries=20)
    model = make_model(Formula(linear), config)
    attacks = second_opinion.other_attacks(config)
    assert [attack.name for attack in attacks] == ["fmn", "square"]
    done = []
    predictions = predictions_of(model, config)[1]
    second = second_opinion.ask(model, attacks, predictions, done.append)
    assert second == SecondOpinion({"fmn": 0, "square": 0}, int(LEFT.sum()), COUNT)
    assert sum(done) == 2 * COUNT


def test_algorithm_is_another_than_those_that_ran():
    def names(ran):
        return [a.name for a in second_opinion.other_attacks(formula_config(eval__attacks=ran))]

    assert names("fgsm,pgd") == names("fab") == ["apgd"]
    assert names("autoattack") == names("pgd,apgd_t") == ["fmn", "square"]


@pytest.mark.parametrize(("broken", "verdict"), [(0, "pass"), (2, "pass"), (3, "fail")])
def test_more_than_one_image_in_a_hundred_fails(healthy, broken, verdict):
    columns = prediction_checks.columns_of(healthy.predictions, "base")
    second = SecondOpinion({"apgd": broken}, 150, 200)
    assert no_other_breaks_more("base", columns, EPSILON, second).verdict == verdict


def test_transfer_that_breaks_what_adaptive_attacks_leave(healthy):
    order = np.arange(COUNT)
    for fallen, verdict in (
        (~LEFT, "pass"), (LEFT & (order == COUNT - 1), "warn"), (LEFT & (order > COUNT - 6), "fail")
    ):  # fmt: skip
        columns = prediction_checks.columns_of(with_transfer(healthy.predictions, fallen), "base")
        none = SecondOpinion({"fmn": 0}, 10, COUNT)
        result = no_other_breaks_more("base", columns, EPSILON, none)
        assert result.verdict == verdict, result.explanation
