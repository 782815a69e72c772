"""A run's classifiers on other images: the numbers, the record, and what the report shows."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import medadv_jax
from medadv_jax import models
from medadv_jax.errors import UserError
from medadv_jax.evaluation.statistics import wilson_interval
from medadv_jax.experiment.evaluate_elsewhere import evaluate_elsewhere
from medadv_jax.report.elsewhere import elsewhere_table
from tests.helpers.tiny import TinyNet, make_model


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory with one model folder, whose training image is `known`."""
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    folder = tmp_path / "run"
    evaluation = {"defense": "base", "attack": {"norm": "linf", "radius": 0.02}}
    make_model(("normal", "odd"), evaluation=evaluation).save(folder / "models/base")
    (folder / "config.json").write_text(json.dumps({"config": {"defenses": "base"}}))
    splits = {"train": ["known"], "validation": [], "test": []}
    (folder / "splits.json").write_text(json.dumps(splits))
    rng = np.random.default_rng(0)
    for name in ("normal/1.png", "normal/known.png", "odd/2.png", "odd/3.png", "odd/4.png"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "scans/odd/5.png").write_bytes(b"no image")
    return folder


def _measure(run, path=None, **options):
    options = {"attacks": "fgsm", "check_images": 0, **options}
    return evaluate_elsewhere(path or run / "models/base", run.parent / "scans", **options)


def test_record_and_table_hold_what_the_model_says_of_the_images(run, tmp_path):
    result = _measure(run, output=tmp_path / "out.csv")["base"]
    model = medadv_jax.load(run / "models/base")
    files = ["normal/1.png", "normal/known.png", "odd/2.png", "odd/3.png", "odd/4.png"]
    said = model.predict(np.stack([model.read(run.parent / "scans" / name) for name in files]))
    assert result.labels.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(result.predicted, said.label)
    assert result.epsilon == 0.02  # the radius that the model was evaluated at
    with (tmp_path / "out.csv").open() as file:
        assert [line["example"] for line in csv.DictReader(file)] == files
    (record,) = json.loads((run / "elsewhere.json").read_text())
    every, unseen = record["rows"]
    right = said.label == result.labels
    assert (record["data"], record["part"], record["unreadable"]) == ("scans", "all", 1)
    assert (every["n"], every["patients"], every["accuracy"]) == (5, None, right.mean())
    assert (every["low"], every["high"]) == wilson_interval(int(right.sum()), 5)
    assert every["attacked_accuracy"] == result.robust_accuracy
    assert (record["of_training_patients"], unseen["n"]) == (1, 4)
    assert unseen["accuracy"] == np.delete(right, 1).mean()
    table = elsewhere_table(run)
    assert table is not None
    assert table.rows[0][:4] == ("scans (all)", "base", "all", 5)


def test_the_same_measurement_again_takes_the_place_of_the_first(run):
    for options in ({}, {"epsilon": 0.0}, {}):
        _measure(run, run, **options)  # the run directory: all its classifiers
    found = json.loads((run / "elsewhere.json").read_text())
    assert [record["epsilon"] for record in found] == [0.0, 0.02]
    assert found[0]["rows"][0]["attacked_accuracy"] == found[0]["rows"][0]["accuracy"]


def test_where_all_images_are_of_training_patients_there_is_no_row_of_others(run):
    splits = {"train": ["1", "known", "2"], "validation": ["3", "4"], "test": []}
    (run / "splits.json").write_text(json.dumps(splits))
    _measure(run)
    (record,) = json.loads((run / "elsewhere.json").read_text())
    assert record["of_training_patients"] == 5
    assert [row["images"] for row in record["rows"]] == ["all"]


def test_a_model_folder_alone_is_evaluated_without_a_record(run, capsys):
    (run / "models/base").rename(run.parent / "alone")
    assert [*_measure(run, run.parent / "alone")] == ["base"]
    assert "nothing is recorded" in capsys.readouterr().out
    assert elsewhere_table(run) is None


def test_other_classes_and_attacks_are_refused(run):
    (run.parent / "scans/odd").rename(run.parent / "scans/strange")
    with pytest.raises(UserError, match="the class strange is none of the model"):
        _measure(run)
    with pytest.raises(UserError, match="--attacks=nothing"):
        _measure(run, attacks="nothing")
