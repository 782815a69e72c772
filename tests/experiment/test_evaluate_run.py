"""The classifiers of a finished run under other attacks, beside the run's own records."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medadv_jax import models
from medadv_jax.errors import UserError
from medadv_jax.evaluation.predictions import read_predictions
from medadv_jax.experiment.evaluate_run import evaluate_run
from medadv_jax.experiment.run import run as run_experiment
from tests.helpers.tiny import TinyNet, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the undefended network, and of the same network behind a purifier."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        config = tiny_config()
        config.data.cache_dir = str(folder / "cache")
        config.defenses, config.eval.attacks = "base,autoencoder", "fgsm"
        config.train.epochs, config.attack.epsilon = 1, 0.01
        config.train.learning_rate = 0.02
        run_experiment(config, folder / "run", Console(file=io.StringIO()))
        yield folder / "run"


def test_results_are_those_of_the_deployed_classifiers(run, tmp_path, capsys):
    output = tmp_path / "results.csv"
    results = evaluate_run(run, attacks="fgsm", output=output, check_images=0)
    shown = capsys.readouterr().out
    assert [*results] == ["base", "autoencoder"]
    table = read_predictions(run / "predictions.parquet").to_pylist()
    lines = [*csv.DictReader(output.read_text().splitlines())]
    for name, result in results.items():
        mine = [row for row in table if row["defense"] == name]
        clean = {row["example"]: row for row in mine if row["threat_model"] == "none"}
        adaptive = {row["example"]: row for row in mine if row["threat_model"] == "adaptive"}
        found = [line for line in lines if line["defense"] == name]
        assert [line["example"] for line in found] == [*clean]
        for line in found:
            row = clean[line["example"]]
            assert (int(line["label"]), int(line["predicted"])) == (row["label"], row["predicted"])
            row = adaptive[line["example"]]
            survives = row["predicted"] == row["label"] and line["broken_by"] != "clean"
            assert int(line["fgsm"]) == survives
        assert f"robust accuracy  {result.robust_accuracy:.3f}" in shown
    # Each image meets two gradients of FGSM, and two of BPDA where a purifier left it standing.
    for name, result in results.items():
        count = int(np.sum(result.predicted == result.labels))
        passes, robust = result.records[0].passes, int(result.robust.sum())
        assert count > 0
        assert passes == 2 * count if name == "base" else passes >= 2 * (count + robust)


def test_a_part_of_the_images_at_another_radius(run):
    results = evaluate_run(run, ["base"], "pgd", 0.0, 6, check_images=8)
    result = results["base"]
    assert (len(result.labels), result.epsilon) == (6, 0.0)
    assert sorted(result.labels) == [0, 0, 0, 1, 1, 1]
    assert result.robust_accuracy == result.accuracy


def test_what_the_run_lacks_is_refused(run, tmp_path):
    cases: tuple[tuple[Any, str], ...] = (
        ((tmp_path,), "config.json is missing"),
        ((run, ["hybrid"]), "--defense=hybrid: .* has base, autoencoder"),
        ((run, [], "nothing"), "--attacks=nothing, .*: unknown attack 'nothing'"),
        ((run, [], "pgd", -1.0), "--epsilon=-1: .*at least 0"),
    )
    for arguments, text in cases:
        with pytest.raises(UserError, match=text):
            evaluate_run(*arguments)


def test_errors_of_the_script_are_one_line(tmp_path):
    for flags, text in (
        ([], "--run is missing"),
        ([f"--run={tmp_path}"], "config.json is missing"),
    ):
        done = subprocess.run(
            [sys.executable, "scripts/evaluate.py", *flags],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert text in done.stderr
