"""Detectors and example images as records of a run."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.data.loader import make_loader
from medadv_jax.defenses.detectors import DETECTORS, threshold_at
from medadv_jax.distributed import make_mesh
from medadv_jax.evaluation import detection, example_images
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, Target
from medadv_jax.models.purifiers import create_purifier
from tests.helpers.tiny import SIZE, TinyNet, read_results, tiny_dataset

COUNT = 12


class Asked(NamedTuple):
    source: Source
    key: Any
    penalty: Any
    found: Any
    placed: int  # batches of images on the devices


class Spy(Predictor):
    """Remembers whom it attacked, and what came of it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked: list[Asked] = []

    def attack(self, attacks, source, batch, key, penalty=None):
        found = super().attack(attacks, source, batch, key, penalty)
        shape, dtype = batch["image"].shape, batch["image"].dtype
        placed = sum((x.shape, x.dtype) == (shape, dtype) for x in jax.live_arrays())
        self.asked.append(Asked(source, key, penalty, found, placed))
        return found


@pytest.fixture(scope="module")
def predictor():
    purifier = create_purifier("spatial", width=0.25)
    return Spy(Classifier(TinyNet(), purifier=purifier))


@pytest.fixture(scope="module")
def variables(predictor):
    """Half of the images on each side of the border, so that attacks have something to change."""
    variables = predictor.classifier.init(jax.random.key(3), SIZE)
    pixels = to_pixels(jnp.asarray(np.stack([*tiny_dataset(COUNT).source])))
    logits = np.asarray(predictor.logits(Target("bare", variables), pixels))
    params = variables["params"]
    bias = np.array([0.0, -np.median(logits[:, 1] - logits[:, 0])], np.float32)
    head = {"kernel": params["Dense_0"]["kernel"], "bias": bias}
    return variables | {"params": params | {"Dense_0": head}}


@pytest.fixture(scope="module")
def attacks():
    return [make_attack("fgsm", 0.2), make_attack("pgd", 0.2, step_size=0.04, num_steps=8)]


@pytest.fixture(scope="module")
def records(predictor, variables, attacks):
    dataset = tiny_dataset(COUNT)
    batches = list(make_loader(dataset, range(COUNT), 8, shuffle_seed=None))
    found = detection.Detection(predictor, variables, make_mesh(), seed=1)
    predictor.asked.clear()
    return found.measure(batches, batches, dataset.examples, attacks, attacks[1], 0.25, 10.0)


@pytest.fixture(scope="module")
def asked(records, predictor):
    return [*predictor.asked]  # other tests ask for more


@pytest.fixture(scope="module")
def scores_of(predictor, variables):
    """Returns a function: batches of pixels -> scores of the data set's images, (D, n)."""
    program = jax.jit(functools.partial(detection._all_scores, predictor.classifier))
    return lambda batches: np.concatenate([program(variables, x) for x in batches], 1)[:, :COUNT]


def rows(table, **key):
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in key.items())]


def test_there_is_a_score_for_each_detector_attack_and_image(records):
    assert records.schema == detection.SCHEMA
    for name in DETECTORS:
        assert len(rows(records, detector=name, split="validation")) == COUNT
        for threat_model, evaluation in (
            ("none", "clean"), ("oblivious", "fgsm"), ("oblivious", "pgd"), ("adaptive", "pgd"),
        ):  # fmt: skip
            of = rows(records, detector=name, threat_model=threat_model, evaluation=evaluation,
                      split="test")  # fmt: skip
            assert [row["example"] for row in of] == [f"e{i}" for i in range(COUNT)]


def test_one_batch_at_a_time_is_on_the_devices(asked):
    assert {each.placed for each in asked} == {1}


def test_fooled_are_those_correct_before_and_wrong_now(
    records, asked, predictor, variables, scores_of
):
    dataset = tiny_dataset(COUNT)
    clean = to_pixels(jnp.asarray(np.stack([*dataset.source])))
    oblivious = [each for each in asked if each.penalty is None]
    for each in oblivious:  # the network alone, from the seed's random starts
        assert each.source.gradient == "bare"
        assert each.key == jax.random.key(1)
    batches = [each.found[1] for each in oblivious]  # PGD
    target = Target("bare", variables)
    right = [
        np.asarray(predictor.logits(target, x)).argmax(-1)[:COUNT] == dataset.labels
        for x in (clean, jnp.concatenate(batches))
    ]
    assert not any(row["fooled"] for row in rows(records, threat_model="none"))
    for number, name in enumerate(DETECTORS):
        of = rows(records, detector=name, threat_model="oblivious", evaluation="pgd")
        np.testing.assert_array_equal([r["fooled"] for r in of], right[0] & ~right[1])
        assert any(r["fooled"] for r in of)
        np.testing.assert_allclose([r["score"] for r in of], scores_of(batches)[number], rtol=1e-4)
        # What was wrong before cannot be fooled.
        of = rows(records, detector=name, threat_model="adaptive")
        assert not any(r["fooled"] for r, before in zip(of, right[0], strict=True) if not before)


def test_adaptive_attacker_tries_three_weights_of_the_score(records, asked, scores_of):
    attempts = [each for each in asked if each.penalty is not None]
    assert {each.source.gradient for each in attempts} == {"bare"}
    assert len(attempts) == len(DETECTORS) * 3 * 2  # weights × batches
    for number, name in enumerate(DETECTORS):
        mine = attempts[6 * number : 6 * number + 6]
        validation = [row["score"] for row in rows(records, detector=name, split="validation")]
        weights = [each.penalty.weight for each in mine]
        expected = np.repeat([10.0, 1.0, 0.0], 2) / threshold_at(np.array(validation), 0.25)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        pixels = [each.found[0] for each in mine]
        tried = [scores_of(pixels[i : i + 2])[number] for i in (0, 2, 4)]
        stored = [row["score"] for row in rows(records, detector=name, threat_model="adaptive")]
        apart = np.abs(np.array(tried) - np.array(stored)) / np.abs(stored)
        assert (apart.min(axis=0) < 1e-4).all()  # each image's is of one of its attempts


def test_adaptive_attacker_lowers_the_score(records):
    """With so large a weight its examples score lower than those of the oblivious attacker."""
    for name in DETECTORS:
        means = {
            threat: np.mean([
                row["score"]
                for row in rows(records, detector=name, threat_model=threat, evaluation="pgd")
            ])
            for threat in ("oblivious", "adaptive")
        }  # fmt: skip
        assert means["adaptive"] < means["oblivious"]


def test_of_several_attempts_the_one_that_fools_at_the_lowest_score_counts():
    fooled = np.array([[True, False, False], [True, True, False], [False, False, False]])
    scores = np.array([[0.5, 0.1, 0.3], [0.4, 0.9, 0.2], [0.0, 0.0, 0.4]])
    found, lowest = detection._best_for_attacker(fooled, scores)
    np.testing.assert_array_equal(found, [True, True, False])
    np.testing.assert_array_equal(lowest, [0.4, 0.9, 0.2])


def made(scores, fooled, **key):
    n = len(scores)
    columns = {name: [value] * n for name, value in key.items()}
    columns |= {"example": [f"e{i}" for i in range(n)], "fooled": fooled, "score": scores}
    return pa.table({name: columns[name] for name in detection.SCHEMA.names}, detection.SCHEMA)


def test_summary_by_hand(tmp_path):
    key = {"detector": "squeezing", "threat_model": "none", "evaluation": "clean"}
    clean, nobody = [0.1, 0.2, 0.3, 0.4], [False] * 4
    table = pa.concat_tables([
        made(clean, nobody, **key, split="validation"),
        made([0.0, 0.35, 0.4, 0.5], nobody, **key, split="test"),
        # Of three attacked images two are fooled; the third does not count.
        made([0.45, 0.31, 0.0], [True, True, False],
             **key | {"threat_model": "oblivious", "evaluation": "pgd"}, split="test"),
        made([0.2], [False], **key | {"threat_model": "adaptive", "evaluation": "pgd"},
             split="test"),
    ])  # fmt: skip
    oblivious, adaptive = detection.summarize(table, 0.25)
    assert oblivious["threshold"] == pytest.approx(0.3)  # a quarter of validation lies above
    assert (oblivious["n_clean"], oblivious["n_attacked"]) == (4, 2)
    assert oblivious["true_positive_rate"] == 1.0
    assert oblivious["false_positive_rate"] == 0.75  # on test images it is another share
    assert oblivious["auc"] == 4 / 8  # of 4 × 2 pairs
    assert adaptive["false_positive_rate"] == 0.75
    assert adaptive["n_attacked"] == 0
    assert adaptive["auc"] is None
    detection.write_summary(tmp_path / "detection.csv", [oblivious, adaptive])
    written = read_results(tmp_path / "detection.csv")
    assert [row["auc"] for row in written] == ["0.5", ""]


def test_example_images_are_attacked_and_scored_as_deployed(predictor, variables, attacks):
    dataset = tiny_dataset(COUNT)
    chosen = example_images.choose(dataset.examples, [11, 3, 1, 0, 5, 7, 2])
    assert chosen == [0, 2, 11, 3, 1]  # of each class at most three, as they come
    batch = next(make_loader(dataset, chosen, 8, shuffle_seed=None))
    targets = {"base": Target("bare", variables),
               "autoencoder": Target("full", variables)}  # fmt: skip
    key = jax.random.key(0)
    arrays = example_images.take(predictor, attacks, attacks[1], targets, batch, key)
    np.testing.assert_array_equal(
        arrays["images"] * 255, np.stack([dataset.source[i] for i in chosen])
    )
    for name, target in targets.items():
        adversarial = arrays[f"{name}/adversarial"]
        source = Source(target.deployed, variables)  # adaptive
        expected = predictor.attack(attacks, source, batch, key)[1][: len(chosen)]
        np.testing.assert_array_equal(adversarial, expected)
        for kind, pixels in (("clean", arrays["images"]), ("adversarial", adversarial)):
            expected = jax.nn.softmax(predictor.logits(target, pixels), axis=-1)[:, 1]
            np.testing.assert_allclose(arrays[f"{name}/score_{kind}"], expected, atol=1e-5)
    assert arrays["label"].tolist() == [dataset.examples[i].label for i in chosen]
    assert (arrays["attack"], arrays["epsilon"]) == ("pgd", 0.2)
    assert "base/purified" not in arrays
    purified = predictor.classifier.purify(variables, arrays["autoencoder/adversarial"])
    np.testing.assert_allclose(arrays["autoencoder/purified"], purified, atol=1e-5)


def test_every_attack_is_kept_on_one_image_of_each_class(predictor, variables, attacks):
    dataset = tiny_dataset(COUNT)
    batch = next(make_loader(dataset, [0, 2, 1], 8, shuffle_seed=None))  # of classes 0, 0, 1
    targets = {"base": Target("bare", variables),
               "autoencoder": Target("full", variables)}  # fmt: skip
    arrays = example_images.take(
        predictor, attacks, attacks[1], targets, batch, key := jax.random.key(0)
    )
    assert (arrays["first"].tolist(), arrays["attacks"].tolist()) == (
        [0, 2], [attack.name for attack in attacks]
    )  # fmt: skip
    assert "base/oblivious" not in arrays
    gradients = {"base/adaptive": "bare", "autoencoder/oblivious": "bare",
                 "autoencoder/adaptive": "full"}  # fmt: skip
    for kept, gradient in gradients.items():
        expected = predictor.attack(attacks, Source(gradient, variables), batch, key)[:, [0, 2]]
        np.testing.assert_allclose(arrays[kept], expected, atol=5e-4)  # float16
        target = targets[kept.split("/")[0]]
        for number, pixels in enumerate(expected):
            score = jax.nn.softmax(predictor.logits(target, pixels), axis=-1)[:, 1]
            np.testing.assert_allclose(arrays[f"{kept}_score"][number], score, atol=1e-5)
    clean = predictor.classifier.purify(variables, arrays["images"][[0, 2]])
    np.testing.assert_allclose(arrays["autoencoder/reconstructed"], clean, atol=1e-5)
