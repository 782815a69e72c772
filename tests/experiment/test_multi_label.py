"""A run of several labels an image, from generated files to an area for each label."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

import medadv_jax
from medadv_jax import models
from medadv_jax.data.chest_xray14 import FINDINGS
from medadv_jax.data.phantoms.findings import write_chest_xray14
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import run as run_experiment
from medadv_jax.experiment.validate import check_classes
from medadv_jax.files import read_metrics
from medadv_jax.report.read_runs import load_run
from tests.helpers.tiny import TinyNet, tiny_config


def _config(folder):
    config = tiny_config()
    config.data.name, config.data.split = "chest_xray14", "official"
    config.data.dir, config.data.cache_dir = str(folder / "nih"), str(folder / "cache")
    config.defenses, config.eval.attacks = "base", "none"
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_chest_xray14(folder / "nih", 150, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        for _ in range(2):  # the second finds all done
            run_experiment(_config(folder), folder / "run", Console(file=io.StringIO()))
        yield folder / "run"


def test_results_are_the_areas_of_the_recorded_probabilities(run):
    table = pq.read_table(run / "label_predictions.parquet").to_pandas()
    splits = json.loads((run / "splits.json").read_text())
    assert {*table["example"]} == {*splits["test"]}
    assert table["score"].between(0, 1).all()
    named = {i: splits["attributes"]["findings"][i].split("|") for i in splits["test"]}
    for row in table.itertuples():
        assert row.label == (row.finding in named[row.example])
    with (run / "label_results.csv").open() as file:
        lines = {line["finding"]: line for line in csv.DictReader(file)}
    assert [*lines] == [*FINDINGS, "mean"]
    areas = []
    for name in FINDINGS:
        mine = table[table["finding"] == name]
        assert int(lines[name]["positives"]) == mine["label"].sum()
        if mine["label"].nunique() == 1:
            assert lines[name]["auc"] == ""
            continue
        areas.append(roc_auc_score(mine["label"], mine["score"]))
        assert float(lines[name]["auc"]) == pytest.approx(areas[-1], abs=1e-12)
    assert len(areas) > 8
    assert float(lines["mean"]["auc"]) == pytest.approx(np.mean(areas))


def test_best_checkpoint_is_that_of_the_largest_mean_area(run):
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "validation_loss" in line]
    assert len(lines) == 2
    assert all(0 <= line["validation_mean_auc"] <= 1 for line in lines)
    assert lines[1]["loss"] < lines[0]["loss"]


def test_model_and_report_say_in_one_line_what_they_cannot(run):
    with pytest.raises(UserError, match="only starts another run"):
        medadv_jax.load(run)
    with pytest.raises(UserError, match=r"label_results\.csv, no page"):
        load_run(run)
    assert (run / "models/base/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("defenses", "base,adversarial"), ("eval.attacks", "pgd"), ("eval.checks", True),
        ("detector.run", True), ("eval.threshold", "youden"), ("train.class_weights", "balanced"),
        ("train.sampling", "balanced"), ("train.label_smoothing", 0.1),
    ],
)  # fmt: skip
def test_what_is_not_defined_for_several_labels_is_refused(tmp_path, field, value):
    config = _config(tmp_path)
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=f"config.{field}=.*has several labels an image"):
        check_classes(config, FINDINGS, multi_label=True)


def test_ordinary_data_need_attacks():
    config = tiny_config()
    config.eval.attacks = "none"
    with pytest.raises(UserError, match=r"eval\.attacks=none: must be names of attacks"):
        check_classes(config, ("a", "b"))
