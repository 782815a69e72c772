"""Model folders of a whole run: written, moved, loaded without it, and refused when damaged."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import medadv_jax
from medadv_jax.data.loader import load_dataset
from medadv_jax.deployment import description as descriptions
from medadv_jax.deployment import model_folder
from medadv_jax.deployment.card import card_text
from medadv_jax.errors import UserError
from medadv_jax.evaluation.predictions import read_predictions, to_columns
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.experiment.run import run as run_experiment
from tests.helpers.tiny import make_model, tiny_config

HOSTILE = ('a|b"\n---\nx: &y', "<script>alert(1)</script>\u202e\x85")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_config()
    config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.defenses, config.train.epochs = "base,autoencoder", 1
    config.purifier.width, config.purifier.name = 0.25, "spatial"
    config.train.attacks = config.eval.attacks = "fgsm"
    config.detector.run, config.detector.images = True, 4
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "x"
    with pytest.MonkeyPatch.context() as patch:  # compiles long; tests/evaluation tests it
        patch.setattr(Evaluation, "measure_detectors", lambda self: None)
        run_experiment(config, folder)
    return folder


@pytest.fixture
def folder(run, tmp_path):
    """A model folder far from its run."""
    return Path(shutil.copytree(run / "models/autoencoder", tmp_path / "moved"))


def stored(run: Path, defense: str) -> dict[str, np.ndarray]:
    columns = to_columns(read_predictions(run / "predictions.parquet"))
    rows = (columns["defense"] == defense) & (columns["evaluation"] == "clean")
    return {name: values[rows] for name, values in columns.items()}


def images_of(config, examples) -> np.ndarray:
    dataset = load_dataset(config.data)
    place = {example.id: i for i, example in enumerate(dataset.examples)}
    return np.stack([dataset.source[place[name]] for name in examples])


@pytest.mark.parametrize("defense", ["base", "autoencoder"])
def test_a_moved_folder_predicts_as_the_run_did(defense, run, config, tmp_path):
    """Without the run; in any batch size; from bytes or floats."""
    rows = stored(run, defense)
    images = images_of(config, rows["example"])
    away = shutil.copytree(run / "models" / defense, tmp_path / "away")
    model = medadv_jax.load(away)
    for given, size in ((images, 32), (images, 5), (images / np.float32(255), 32)):
        found = model.predict(given, batch_size=size)
        np.testing.assert_allclose(found.probability[:, 1], rows["score"], atol=1e-6)
        np.testing.assert_array_equal(found.label, rows["predicted"])
    assert model.classes == ("negative", "positive")
    assert model.image_size == 32
    assert model.card["evaluation"]["results"][0]["n"] == len(images)


def test_detectors_are_calibrated_on_validation_images(run, config):
    """The threshold is the score of the first image that may not be flagged."""
    splits = json.loads((run / "splits.json").read_text())
    images = images_of(config, splits["validation"])
    for defense, names in (("base", 1), ("autoencoder", 3)):
        model = medadv_jax.load(run, defense=defense)
        found = model.predict(images)
        assert len(found.flagged) == len(found.scores) == names
        allowed = int(config.detector.false_positive_rate * len(images) + 1e-9)
        for name, scores in found.scores.items():
            limit = model.description.detectors[name]
            np.testing.assert_allclose(np.sort(scores)[-1 - allowed], limit, rtol=1e-3, atol=1e-7)


def test_logits_are_those_of_the_probabilities_and_differentiable(folder):
    model = medadv_jax.load(folder)
    pixels = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3))
    logits, (bpda,) = jax.jit(model.logits)(pixels), model.surrogates()
    np.testing.assert_allclose(jax.nn.softmax(logits), model.predict(pixels).probability, atol=1e-6)
    np.testing.assert_allclose(jax.jit(bpda)(pixels), logits, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: model.logits(x)[:, 0].sum()))(pixels)
    assert float(jnp.abs(gradient).max()) > 0


def test_each_batch_size_is_compiled_once(folder):
    model = medadv_jax.load(folder)
    for count in (0, 1, 7, 8, 9, 33):
        assert len(model.predict(np.zeros((count, 32, 32, 3), np.uint8), 8).label) == count
    programs: Any = model._logits
    assert programs._cache_size() == 1


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.int64),
        np.full((2, 32, 32, 3), 255.0),
        np.full((2, 32, 32, 3), np.nan),
    ],
)
def test_images_that_would_be_misread_are_refused(images, folder):
    with pytest.raises(ValueError, match=r"^images (of|from)"):
        medadv_jax.load(folder).predict(images)


def test_a_run_of_an_earlier_version_loads_and_stays_as_it_is(run, tmp_path):
    old = Path(shutil.copytree(run, tmp_path / "old"))
    shutil.rmtree(old / "models")
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    model = medadv_jax.load(old, defense="autoencoder")
    assert before == {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    new = medadv_jax.load(run, defense="autoencoder")
    images = np.zeros((2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(
        model.predict(images).probability, new.predict(images).probability
    )
    assert model.description.weights["tensors"] == new.description.weights["tensors"]
    assert model.predict(images).flagged == {}


def test_a_second_run_writes_again_only_what_is_damaged(run, config, tmp_path, monkeypatch):
    again = Path(shutil.copytree(run, tmp_path / "again"))
    base, other = again / "models/base", again / "models/autoencoder"
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    kept = (base / "model.json").stat().st_mtime_ns
    flip(other / "model.safetensors", 4000)
    monkeypatch.setattr(Evaluation, "measure_detectors", lambda self: None)
    run_experiment(config, again)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before
    assert (base / "model.json").stat().st_mtime_ns == kept
    assert {path.name for path in (again / "models").iterdir()} == {"base", "autoencoder"}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def edit(folder: Path, seal: bool = True, **fields) -> None:
    """Changes fields of `model.json`, with a right SHA-256 if `seal`."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    content.update(fields)
    del content["sha256"]
    digest = model_folder._seal(content) if seal else "0" * 64
    path.write_text(json.dumps(content | {"sha256": digest}))


DAMAGE = {
    "no model.json": (lambda f: (f / "model.json").unlink(), "neither a run directory nor"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "No such file"),
    "a byte of the weights": (lambda f: flip(f / "model.safetensors", -5), "its SHA-256 is not"),
    "a byte of their header": (lambda f: flip(f / "model.safetensors", 20), "its SHA-256 is not"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "its SHA-256 is not"),
    "a byte of model.json": (lambda f: flip(f / "model.json", 300), "model.json: no model folder"),
    "an edited model.json": (lambda f: edit(f, False, logit_bias=0.1), "its SHA-256 is another"),
    "model.json is a list": (lambda f: (f / "model.json").write_text("[]"), "no model folder"),
    "model.json is deep": (lambda f: (f / "model.json").write_text("[" * 10**5), "no model folder"),
    "a newer version": (lambda f: edit(f, schema_version=99), "update medadv_jax"),
    "an older unknown one": (lambda f: edit(f, schema_version=-1), "no model folder"),
    "three classes": (lambda f: edit(f, classes=["a", "b", "c"]), "where the network has"),
    "one class": (lambda f: edit(f, classes=["a"]), "classes"),
    "twice a class": (lambda f: edit(f, classes=["a", "a"]), "classes"),
    "another network": (lambda f: edit(f, network={"name": "nothing"}), "no 'width'"),
    "an unknown network": (
        lambda f: edit(
            f, network={"name": "no", "width": 1, "dtype": "float32", "options": {}}
        ),
        "model 'no' is unknown",
    ),
    "no purifier": (lambda f: edit(f, purifier=None), "where the network has"),
    "a huge image": (lambda f: edit(f, image_size=10**9), "image_size"),
    "an unknown fit": (lambda f: edit(f, fit="stretch"), "fit"),
    "a bias that is text": (lambda f: edit(f, logit_bias="2"), "logit_bias"),
    "an unknown detector": (lambda f: edit(f, detectors={"x": 1}), "detectors"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_one_line(name, folder):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        medadv_jax.load(folder)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("path", "defense", "message"),
    [
        ("nowhere", None, "neither a run directory nor a model folder"),
        ("", None, "the run has base, autoencoder; give one"),
        ("", "hybrid", "the run has base, autoencoder; give one"),
        ("models/base", "autoencoder", "a model of defence base, not autoencoder"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(path, defense, message, run):
    with pytest.raises(UserError, match=message):
        medadv_jax.load(run / path, defense=defense)


def test_a_folder_of_an_earlier_schema_is_migrated(folder, monkeypatch):
    """As if this were version 2, which calls a field of version 1 otherwise."""
    edit(folder, whites=4095)

    def second(content):
        return content | {"white": content.pop("whites")}

    monkeypatch.setattr(descriptions, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(descriptions, "MIGRATIONS", {1: second})
    assert medadv_jax.load(folder).description.white == 4095


def test_any_number_of_classes_and_any_names(tmp_path):
    """Names from data come back as they are, and are no markup in the card."""
    names = (*HOSTILE, "c", "d", "e")
    model = make_model(names)
    model.save(tmp_path / "model")
    loaded = medadv_jax.load(tmp_path / "model")
    assert loaded.classes == names
    assert loaded.predict(np.zeros((2, 32, 32, 3), np.uint8)).probability.shape == (2, 5)
    text = (tmp_path / "model/README.md").read_text()
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "\n---\nx" not in text


def test_front_matter_is_yaml_whatever_the_names():
    result = {"threat_model": "none", "evaluation": "clean", "epsilon": 0.0, "n": 9,
              "accuracy": 0.5, "low": 0.2, "high": 0.8}  # fmt: skip
    attacked = [
        {**result, "threat_model": threat, "evaluation": "worst", "epsilon": 0.03}
        for threat in ("transfer", "oblivious", "adaptive")
    ]
    counts = {"images": 9, "groups": 3, "by_class": {"0": 4, "1": 5}}
    found = {"defense": HOSTILE[0], "dataset": HOSTILE[1], "attack": {"norm": "linf"},
             "split": {"done": "patient", "counts": {"test": counts}},
             "results": [result, *attacked], "self_checks": None}  # fmt: skip
    text = card_text(dataclasses.replace(make_model(HOSTILE).description, evaluation=found))
    _, front, _ = text.split("---\n", 2)
    content = yaml.safe_load(front)
    assert content["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    names = [each["name"] for each in content["model-index"][0]["results"][0]["metrics"]]
    assert names == ["clean accuracy", "robust accuracy, adaptive attacker, epsilon 0.03"]
    assert content["pipeline_tag"] == "image-classification"
    assert "0.500" in text


def test_a_threshold_decides_between_two_classes():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    logits = make_model("ab").logits_of(images)[0]
    gap = float(logits[0] - logits[1])
    for bias, label in ((gap + 1e-3, 1), (gap - 1e-3, 0)):
        model = make_model("ab", logit_bias=bias)
        assert model.predict(images).label == label
        moved = model.logits(jnp.zeros((1, 32, 32, 3)))[0, 1]
        np.testing.assert_allclose(moved, logits[1] + bias, rtol=1e-5, atol=1e-6)
