"""Whole runs, with a small network in place of ResNet50, and the command line around them."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medadv_jax import models
from medadv_jax.config import load_config
from medadv_jax.errors import UserError
from medadv_jax.evaluation.predictions import read_predictions
from medadv_jax.experiment.run import run as run_experiment
from medadv_jax.models.pretrained import download
from medadv_jax.training.checkpoints import Checkpoints
from tests.helpers.tiny import TinyNet, age_config, read_results, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny_network(monkeypatch):
    for name in models.MODELS:
        monkeypatch.setitem(models.MODELS, name, TinyNet)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def run(config, workdir):
    text = io.StringIO()
    run_experiment(config, workdir, Console(file=text, width=120))
    return text.getvalue()


@pytest.mark.usefixtures("tiny_network")
def test_a_run_leaves_all_its_files_and_is_not_repeated(tmp_path, cache_dir):
    config = tiny_config()
    config.data.cache_dir = cache_dir
    workdir = tmp_path / "run"
    text = run(config, workdir)
    names = {path.name for path in workdir.iterdir()} - {".lock"}
    assert names == {
        "config.json", "splits.json", "checkpoints", "metrics.jsonl", "tensorboard",
        "predictions.parquet", "results.csv", "pictures.npz", "report", "digests.json",
        "networks.json", "attack_record.json", "per_class.csv", "models",
        "training_cost.json", "inference_cost.json", "calibration.parquet", "uncertainty.csv",
    }  # fmt: skip
    start = text.splitlines()[0]
    assert start.startswith(f"{workdir}: ")
    assert f"{jax.devices()[0].device_kind} (cpu), medadv_jax 0.1.0, jax {jax.__version__}" in start
    epochs = dict(re.findall(r"^train (\w+): epoch 2/2 .*?(validation_\w+) ", text, re.MULTILINE))
    assert epochs == {
        "base": "validation_accuracy", "adversarial": "validation_adversarial_accuracy"
    }  # fmt: skip
    ends = re.findall(r"^([a-z ]+): \d+ [a-z]+ in \d+ s$", text, re.MULTILINE)
    assert ends[-12:] == [
        "train base", "train adversarial", "evaluate base", "apgd base", "evaluate adversarial",
        "apgd adversarial", "pictures", "cost", "calibrate base", "calibrate adversarial", "models",
        "report",
    ]  # fmt: skip
    assert "these accuracies mean nothing" in text  # 12 test images

    rows = read_results(workdir / "results.csv")
    attacks = ("fgsm", "pgd", "bim", "mifgsm")
    adaptive = (*attacks, "apgd")
    expected = [("base", "none", "clean")] + [("base", "adaptive", a) for a in adaptive]
    expected += [("adversarial", "none", "clean")]
    expected += [("adversarial", "transfer", a) for a in attacks]
    expected += [("adversarial", "adaptive", a) for a in adaptive]
    assert [(r["defense"], r["threat_model"], r["evaluation"]) for r in rows] == expected
    splits = json.loads((workdir / "splits.json").read_text())
    table = read_predictions(workdir / "predictions.parquet")
    assert table.num_rows == 16 * int(rows[0]["n"])
    assert {*table["example"].to_pylist()} == {*splits["test"]}
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["config"]["train"]["epochs"] == 2
    assert saved["versions"]["jax"] == jax.__version__
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(v) for line in lines for v in line.values() if not isinstance(v, str))
    assert {line["defense"] for line in lines} == {"base", "adversarial"}

    before = (workdir / "results.csv").read_text()
    text = run(config, workdir)
    for stage in ("train base", "train adversarial", "evaluate base", "evaluate adversarial"):
        assert f"{stage}: done before" in text
    assert (workdir / "results.csv").read_text() == before
    config.attack.epsilon = 0.02
    with pytest.raises(UserError, match=r"config.attack.epsilon=0.02 \(there: 0.03\)"):
        run(config, workdir)


@pytest.mark.usefixtures("tiny_network")
def test_interrupted_run_goes_on_to_the_same_end(tmp_path, cache_dir, monkeypatch):
    config = tiny_config()
    config.data.cache_dir = cache_dir
    run(config, tmp_path / "whole")

    saves = []
    save = Checkpoints.save

    def interrupted(self, epochs, state, metrics):
        save(self, epochs, state, metrics)
        saves.append(epochs)
        if len(saves) == 3:  # in the middle of the adversarial stage
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    monkeypatch.setattr(Checkpoints, "save", save)
    text = run(config, tmp_path / "cut")
    assert "train base: done before" in text
    assert "train adversarial: going on after epoch 1" in text
    whole, cut = (tmp_path / name / "results.csv" for name in ("whole", "cut"))
    assert whole.read_text() == cut.read_text()


@pytest.mark.usefixtures("tiny_network")
def test_a_run_of_an_earlier_version_goes_on(tmp_path, cache_dir):
    config = tiny_config()
    config.data.cache_dir, config.defenses, config.train.epochs = cache_dir, "base", 1
    run(config, tmp_path)
    names = ("results.csv", "predictions.parquet")
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    age_config(tmp_path)
    assert "train base: done before" in run(config, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    config.model.conv_impl = "plain"  # the field that had another name is still compared
    with pytest.raises(UserError, match=r"config.model.conv_impl=plain \(there: auto\)"):
        run(config, tmp_path)


def write_pictures(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)


def pneumonia_names():
    for person in range(12):
        yield f"train/PNEUMONIA/person{person}_bacteria_{person}.jpeg"
        yield f"train/PNEUMONIA/person{person}_virus_{person + 40}.jpeg"
        yield f"train/NORMAL/IM-{person:04}-0001.jpeg"
        yield f"test/NORMAL/NORMAL2-IM-{person:04}-0001.jpeg"


def breakhis_names():
    for case in range(10):
        for number in range(3):
            yield f"benign/SOB_B_A-14-{case + 100}-40-{number:03}.png"
            yield f"malignant/SOB_M_DC-14-{case + 200}AB-100-{number:03}.png"


CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py") if path.stem[0] != "_")


def test_there_is_a_config_for_each_network_and_data_set():
    networks = ("inception", "resnet", "vgg16", "vgg19")
    assert [f"{data}_{n}" for data in ("breakhis", "pneumonia") for n in networks] == CONFIGS


@pytest.mark.parametrize("name", ["demo", *CONFIGS])
@pytest.mark.usefixtures("tiny_network")
def test_every_config_runs_when_shrunken(name, tmp_path, cache_dir):
    """All four defences; the networks themselves are tested in tests/models."""
    config = importlib.import_module(f"configs.{name}").get_config()
    small = tiny_config()
    names = pneumonia_names() if name.startswith("pneumonia") else breakhis_names()
    for section in ("train", "eval", "attack", "detector"):
        config[section].update(small[section])
    config.data.image_size, config.data.phantom_images = 32, 80
    config.model.weights, config.model.head = "none", "auto"  # nothing is fetched
    config.data.dir, config.data.cache_dir = str(tmp_path / "data"), cache_dir
    config.train.epochs, config.train.batch_size = 1, 8
    config.train.num_steps = config.eval.num_steps = 1
    config.purifier.epochs = 1
    everything = name == "demo"
    if not everything:
        config.train.attacks = config.eval.attacks = "pgd"  # compiles sooner
    config.eval.checks = config.detector.run = everything
    write_pictures(tmp_path / "data", names)
    text = run(config, tmp_path / "run")
    assert "these accuracies mean nothing" in text
    rows = read_results(tmp_path / "run" / "results.csv")
    assert {row["defense"] for row in rows} == {*config.defenses.split(",")}
    left = {path.name for path in (tmp_path / "run").iterdir()}
    extra = {"self_checks.json", "curves.parquet", "detection.parquet", "detection.csv"}
    assert left & extra == (extra if everything else set())
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert ('<h2 id="self-checks"' in page) == everything


def test_resnet_trains_attacks_and_scores_one_shrunken_step(tmp_path, cache_dir):
    config = tiny_config()
    config.data.cache_dir = cache_dir
    config.model.width = 0.125
    config.model.conv_impl = "plain"  # compiles sooner; tests/models shows the forms to be equal
    config.train.epochs, config.train.num_steps, config.eval.num_steps = 1, 1, 1
    config.train.attacks = config.eval.attacks = "pgd"
    config.eval.keep_best = False  # then validation and evaluation share a program
    config.train.batch_size = 32
    run(config, tmp_path / "run")
    rows = read_results(tmp_path / "run" / "results.csv")
    assert [row["evaluation"] for row in rows] == ["clean", "pgd", "clean", "pgd", "pgd"]


@pytest.mark.usefixtures("tiny_network")
def test_batch_larger_than_the_data_is_refused_before_any_work(tmp_path, cache_dir):
    config = tiny_config()
    config.data.cache_dir = cache_dir
    for batch_size, what in ((96, "80 images there are"), (72, "training images")):
        config.train.batch_size = batch_size
        with pytest.raises(
            UserError, match=f"batch_size={batch_size}: must be at most the .*{what}"
        ):
            run(config, tmp_path / str(batch_size))
    assert not (tmp_path / "96").exists()


def test_weights_that_cannot_be_had_stop_the_run_before_its_data(tmp_path, monkeypatch):
    """In one line: the file, where it belongs, and how to start without."""

    def unreachable(url):
        raise OSError("no network")

    monkeypatch.setattr(download, "_ask", unreachable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(ROOT / "configs" / "pneumonia_vgg16.py")
    config.data.dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("weights torchvision/vgg16: cannot be fetched (no network)")
    target = tmp_path / "home/.cache/medadv_jax/weights/vgg16-397923af.pth"
    assert f"put it at {target}" in message
    assert message.endswith("; for a fresh start --config.model.weights=none")
    assert "\n" not in message
    config.model.weights = str(tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"own.pth: No such file.*; for a fresh start --config.mod"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--config=configs/demo.py", "--config.train.epoch=3"],
            "did you mean config.train.epochs?",
        ),
        (["--config=configs/demo.py", "--config.attack.epsilon=-1"], "must be at least 0"),
        (
            [
                "--config=configs/pneumonia_resnet.py",
                "--config.data.dir=nowhere",
                "--config.model.weights=none",
            ],
            "nowhere",
        ),
    ],
)
def test_command_line_answers_in_one_line(arguments, line, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), *arguments, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert not (tmp_path / "run").exists()
