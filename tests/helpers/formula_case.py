"""Classifiers that are formulas: what an attack on them can do is known exactly."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medadv_jax.data.splits import Example
from medadv_jax.distributed import make_mesh
from medadv_jax.evaluation.checks import run_all, second_opinion
from medadv_jax.evaluation.model_under_test import ModelUnderTest, make_attack_programs
from medadv_jax.evaluation.predictions import SCHEMA, prediction_rows, to_columns
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.robustness_curves import curve_rows
from medadv_jax.evaluation.threat_models import Source, Target
from tests.helpers.tiny import tiny_config

SIDE, COUNT, EPSILON = 8, 48, 0.03
WEIGHTS = np.where(np.random.default_rng(1).random((SIDE, SIDE, 3)) < 0.5, -1, 1) / (SIDE**2 * 3)
# How far every pixel must go before an image is misclassified; from 0.5 to grey levels of 8 bits.
DISTANCES: np.ndarray = (np.arange(COUNT) // 2 + 0.5) / 255
LABELS = (np.arange(COUNT) % 2).astype(np.int32)


def formula_config(**fields):
    """Returns a config at the paper's radius; `fields`: "section.name" with "__" for the dot."""
    config = tiny_config()
    config.data.image_size = SIDE
    config.eval.num_steps, config.eval.attacks, config.eval.apgd_steps = 4, "fgsm,pgd", 100
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def height(pixels):
    """How far along the weights images stand, in pixels: (N, H, W, 3) -> (N,)."""
    return jnp.einsum("nhwc,hwc->n", pixels - 0.5, jnp.asarray(WEIGHTS, jnp.float32))


def two_logits(value):
    return jnp.stack([-value, value], axis=-1)


def linear(variables, pixels):
    """Misclassifies an image as soon as all pixels may go further than its distance."""
    return two_logits(variables["scale"] * height(pixels))


def rounded(pixels):
    """A purifier whose staircase hides the gradient."""
    return jnp.round(pixels * 64) / 64


@dataclasses.dataclass(frozen=True)
class Formula:
    """In place of `Classifier`; `purify` stands before the formula unless gradients are "bare"."""

    function: Callable[..., Any]
    purify: Callable[[jax.Array], jax.Array] = lambda pixels: pixels

    def logits(self, variables, pixels, gradient="full"):
        pure = pixels if gradient == "bare" else self.purify(pixels)
        if gradient == "bpda":
            pure = pixels + jax.lax.stop_gradient(pure - pixels)
        return self.function(variables, pure)

    def folded(self):
        return self

    def fold(self, variables):
        return variables


def formula_images(distances: np.ndarray = DISTANCES) -> np.ndarray:
    signs = np.where(LABELS == 1, 1, -1)[: len(distances), None, None, None]
    images = 0.5 + signs * distances[:, None, None, None] * np.sign(WEIGHTS)
    return images.astype(np.float32)


def make_model(
    classifier, config, images=None, sources=("full",), deployed="full", predictor=Predictor
):
    variables = {"scale": np.full((), 100.0, np.float32)}
    mesh = make_mesh()
    made = predictor(classifier)
    examples = [Example(f"e{i}", int(label), f"g{i}", 0, "", str(i)) for i, label in
                enumerate(LABELS)]  # fmt: skip
    queue, searching = make_attack_programs(made, config.attack.norm, 16, mesh, 2)
    return ModelUnderTest(
        defense="base",
        predictor=made,
        queue=queue,
        searching=searching,
        target=Target(deployed, variables),
        sources=tuple(Source(source, variables) for source in sources),
        images=formula_images() if images is None else images,
        labels=LABELS,
        examples=tuple(examples),
        seed=config.seed,
    )


def predictions_of(model, config):
    """Returns records of an evaluation by the model's own curves: clean, and PGD."""
    rows = curve_rows(model, config)
    names = [*SCHEMA.names]
    columns = to_columns(rows)
    here = (columns["epsilon"] == config.attack.epsilon) & (
        columns["num_steps"] == config.eval.num_steps
    )
    attacked = rows.select(names).filter(pa.array(here))
    logits = model.logits(model.images)
    clean = prediction_rows(
        (model.defense, "none", "clean", 0.0), model.examples,
        np.asarray(jax.nn.softmax(logits)[:, 1]), logits.argmax(axis=1),
    )  # fmt: skip
    return rows, pa.concat_tables([clean, attacked])


class Case(NamedTuple):
    """A model under test, and the records of its curves and its evaluation."""

    model: ModelUnderTest
    rows: pa.Table
    predictions: pa.Table


def healthy_case() -> Case:
    """Returns a linear classifier, under attacks that reach its optimum."""
    config = formula_config()
    model = make_model(Formula(linear), config)
    return Case(model, *predictions_of(model, config))


def with_transfer(predictions, fallen):
    """Adds records of a transfer attack that breaks these images."""
    attacked = predictions.filter(pc.field("threat_model") == "adaptive")
    columns = {name: attacked[name].to_numpy(zero_copy_only=False) for name in SCHEMA.names}
    right = np.where(fallen, 1 - columns["label"], columns["label"])
    columns |= {"predicted": right, "threat_model": ["transfer"] * len(right)}
    return pa.concat_tables([predictions, pa.table(columns, schema=SCHEMA)])


def checks_of(model, config):
    """Returns the self-checks of a model under its own evaluation, number -> check."""
    curves, predictions = predictions_of(model, config)
    attacks = second_opinion.other_attacks(config)
    second = second_opinion.ask(model, attacks, predictions)
    found = run_all.run_self_checks(model, config, curves, predictions, second)
    return {check.number: check for check in found}
