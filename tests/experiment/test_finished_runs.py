"""Finished runs evaluated against each other, compared with their own records."""

import csv
import io
import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from medadv_jax import models
from medadv_jax.data.loader import load_dataset, make_loader
from medadv_jax.distributed import put_batch
from medadv_jax.errors import UserError
from medadv_jax.evaluation import ensemble
from medadv_jax.evaluation.ensemble import EvaluationSetup
from medadv_jax.evaluation.predictions import read_predictions
from medadv_jax.evaluation.threat_models import evaluation_attacks
from medadv_jax.experiment import finished_runs
from medadv_jax.experiment.run import run as run_experiment
from medadv_jax.files import write_json
from tests.helpers.tiny import TinyNet, read_results, tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one split; the second has learned at another rate."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        for name, rate in (("one", 0.001), ("two", 0.02)):
            config = tiny_config()
            config.data.cache_dir = str(folder / "cache")
            config.defenses, config.eval.attacks, config.eval.checks = "base", "pgd", False
            config.train.epochs = 1
            config.train.learning_rate, config.attack.epsilon = rate, 0.004
            run_experiment(config, folder / name, Console(file=io.StringIO()))
        yield folder


@pytest.fixture(scope="module")
def together(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        finished_runs.evaluate_runs([runs / "one", runs / "two"], runs / "together")
    return runs


KEYS = ("defense", "threat_model", "evaluation", "example")


def test_own_examples_give_the_records_of_the_run(together):
    table = pq.read_table(together / "together" / "transfer.parquet")
    assert table.schema == ensemble.TRANSFER_SCHEMA
    for run in ("one", "two"):
        own = table.filter(
            (pc.field("run") == run) & pc.field("threat_model").isin(["none", "adaptive"])
        )
        expected = read_predictions(together / run / "predictions.parquet")
        found = {
            tuple(row[k] for k in KEYS): (row["score"], row["predicted"]) for row in own.to_pylist()
        }
        assert len(found) == own.num_rows == expected.num_rows
        for row in expected.to_pylist():
            assert found[tuple(row[k] for k in KEYS)] == (row["score"], row["predicted"])


def test_matrix_is_derived_from_the_records(together):
    lines = [*csv.reader((together / "together" / "transfer.csv").read_text().splitlines())]
    assert [line[0] for line in lines] == ["made on", "clean", "one/base", "two/base"]
    assert lines[0][1:] == ["one/base", "two/base"]
    rows = pq.read_table(together / "together" / "transfer.parquet").to_pylist()
    right = [
        row["label"] == row["predicted"]
        for row in rows
        if (row["source_run"], row["run"], row["threat_model"]) == ("one", "two", "transfer")
    ]
    assert float(lines[2][2]) == pytest.approx(np.mean(right), abs=1e-4)


def test_twins_vote_as_each_of_them(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        config, test, made = finished_runs.load_runs([runs / "one"])
        (model,) = finished_runs.load_models([runs / "one"], made)
    dataset = load_dataset(config.data)
    indices = [i for i, example in enumerate(dataset.examples) if example.id in test]
    setup = EvaluationSetup(
        evaluation_attacks(config), dataset,
        make_loader(dataset, indices, made[0].eval_batch(), shuffle_seed=None),
        lambda batch: put_batch(made[0].mesh, batch), config.seed, config.attack.loop,
    )  # fmt: skip
    table = ensemble.ensemble_rows([model, model], setup)
    expected = read_predictions(runs / "one" / "predictions.parquet").to_pylist()
    for vote in ensemble.VOTES:
        mine = table.filter(pc.field("defense") == f"base/{vote}").to_pylist()
        found = {(r["threat_model"], r["evaluation"], r["example"]): r for r in mine}
        assert len(found) == len(mine) == len(expected)
        for row in expected:
            other = found[row["threat_model"], row["evaluation"], row["example"]]
            assert other["predicted"] == row["predicted"]
            if vote == "mean":  # the second of two gradients may find a little more
                assert other["score"] == pytest.approx(row["score"], abs=2e-3)


def test_votes_are_kept_as_a_run_keeps_its_predictions(together):
    folder = together / "together"
    table = read_predictions(folder / "predictions.parquet")
    rows = read_results(folder / "results.csv")
    assert [(row["defense"], row["evaluation"]) for row in rows] == [
        (f"base/{vote}", name) for vote in ensemble.VOTES for name in ("clean", "pgd")
    ]
    assert {row["model"] for row in rows} == {"committee of 2"}
    assert table.num_rows == 4 * int(rows[0]["n"])
    content = json.loads((folder / "runs.json").read_text())
    assert [path.split("/")[-1] for path in content["runs"]] == ["one", "two"]
    assert content["images"] == int(rows[0]["n"])


def test_where_images_lie_and_how_they_are_augmented_may_differ(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    ignored = shutil.ignore_patterns("checkpoints")
    folder = shutil.copytree(runs / "two", tmp_path / "two", ignore=ignored)
    content = json.loads((folder / "config.json").read_text())
    content["config"]["data"]["dir"] = "elsewhere"
    content["config"]["data"]["augment"]["shift"] = 0.25
    write_json(folder / "config.json", content)
    _, _, made = finished_runs.load_runs([runs / "one", folder])
    assert len(made) == 2


def test_a_run_of_an_earlier_version_is_evaluated(runs, tmp_path, monkeypatch):
    """Its config lacks later fields, and has others under their old name."""
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    folder = shutil.copytree(
        runs / "two", tmp_path / "two", ignore=shutil.ignore_patterns("checkpoints")
    )
    content = json.loads((folder / "config.json").read_text())
    del content["config"]["deterministic"], content["config"]["eval"]["images"]
    content["config"]["model"]["forms"] = content["config"]["model"].pop("conv_impl")
    write_json(folder / "config.json", content)
    config, _, _ = finished_runs.load_runs([folder, runs / "one"])
    expected, _, _ = finished_runs.load_runs([runs / "one"])
    assert config.to_dict()["model"] == expected.to_dict()["model"]
    assert (config.deterministic, config.eval.images) == (False, 0)


def test_runs_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints", "networks.json")
    folders = [shutil.copytree(runs / "one", tmp_path / n / "x", ignore=ignored) for n in "ab"]
    made: Any = [
        SimpleNamespace(target=lambda defense: None, predictor=None, sha256=lambda defense, n=n: n)
        for n in "ab"
    ]
    names = [model.run for model in finished_runs.load_models(folders, made)]
    assert names == [str(folder) for folder in folders]
    other = shutil.copytree(folders[1], tmp_path / "y", ignore=ignored)
    assert [m.run for m in finished_runs.load_models([folders[0], other], made)] == ["x", "y"]


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        shutil.copytree(runs / "two", folder, ignore=shutil.ignore_patterns("checkpoints"))
        change(folder)
        return folder

    def other_radius(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["attack"]["epsilon"] = 0.02
        write_json(folder / "config.json", content)

    def other_images(folder):
        content = json.loads((folder / "splits.json").read_text())
        content["test"] = content["validation"]
        write_json(folder / "splits.json", content)

    def another_defense(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["defenses"] = "base,adversarial"
        write_json(folder / "config.json", content)

    for folder, text in (
        (tmp_path, "config.json is missing"),
        (changed("unfinished", another_defense), "adversarial is not evaluated yet"),
        (changed("radius", other_radius), "config.attack.epsilon=0.02, and 0.004 in"),
        (changed("images", other_images), "tests other images"),
        (changed("begun", lambda f: (f / "predictions.parquet").unlink()), "predictions.parquet"),
    ):
        with pytest.raises(UserError, match=text):
            finished_runs.load_runs([runs / "one", folder])
    with pytest.raises(UserError, match="no run"):
        finished_runs.evaluate_runs([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_is_no_second_network_and_another_checkpoint_has_no_records(
    runs, tmp_path, monkeypatch
):
    """Two votes of one network would look like agreement."""
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    copied = shutil.copytree(runs / "one", tmp_path / "copy")
    both = [runs / "one", copied]
    with pytest.raises(UserError, match=r"copy: a copy of .*one; give each run once"):
        finished_runs.load_models(both, finished_runs.load_runs(both)[2])
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(runs / "two" / "checkpoints", copied / "checkpoints")
    with pytest.raises(UserError, match="another checkpoint of base"):
        finished_runs.load_models([copied], finished_runs.load_runs([copied])[2])


def test_images_that_changed_under_their_names_are_refused(runs, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(runs / "one", folder)
    content = json.loads((folder / "splits.json").read_text())
    content["md5"][content["train"][0]] = "another"  # not evaluated
    write_json(folder / "splits.json", content)
    dataset = load_dataset(finished_runs.load_runs([folder])[0].data)
    finished_runs.refuse_changed_images(folder, dataset)
    content["md5"][content["test"][0]] = "another"
    write_json(folder / "splits.json", content)
    said = f"1 test images have another content now, as {content['test'][0]}"
    with pytest.raises(UserError, match=said):
        finished_runs.evaluate_runs([folder], tmp_path / "out")
    config = tiny_config()
    config.data.cache_dir, config.reuse = str(runs / "cache"), str(folder)
    config.defenses, config.eval.attacks, config.train.epochs = "base", "pgd", 1
    with pytest.raises(
        UserError, match=r"changed/splits\.json: the run began with other images: 1"
    ):
        run_experiment(config, tmp_path / "reuses", Console(file=io.StringIO()))
