"""A run with a restricted attacker, saved images, saliency maps and a universal perturbation."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medadv_jax import models
from medadv_jax.attacks import parse_restriction
from medadv_jax.evaluation.predictions import read_arrays, read_table, to_columns
from medadv_jax.experiment.run import run
from tests.helpers.tiny import TinyNet, read_results, tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the config and the directory of a run of one network."""
    config, folder = tiny_config(), tmp_path_factory.mktemp("run")
    config.data.cache_dir = str(folder / "cache")
    config.defenses, config.train.epochs = "base", 1
    config.attack.mask, config.attack.epsilon = "0.1", 0.3
    config.eval.attacks, config.eval.queries = "pgd,square,universal", 5
    config.eval.saliency_images = config.eval.save_images = 4
    config.eval.universal_images, config.eval.universal_epochs = 16, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, config.model.name, TinyNet)
        run(config, folder / "run", Console(file=io.StringIO()))
    return config, folder / "run"


def test_rows_are_called_by_what_attackers_may_change(finished):
    rows = read_results(finished[1] / "results.csv")
    assert [row["evaluation"] for row in rows] == [
        "clean", "pgd_patch", "square_patch", "universal_patch",
    ]  # fmt: skip


def test_the_universal_perturbation_is_one_array_within_epsilon(finished):
    config, folder = finished
    (delta,) = read_arrays(folder / "universal.npz").values()
    assert delta.shape == (32, 32, 3)
    assert 0.2 < np.abs(delta).max() <= config.attack.epsilon + 1e-6
    images = folder / "attacked_images/base"
    moved = np.load(images / "universal_patch.npy") - np.load(images / "clean.npy")
    inside = (np.load(images / "universal_patch.npy") % 1) != 0  # elsewhere cut to [0, 1]
    expected = np.broadcast_to(delta, moved.shape)
    np.testing.assert_allclose(moved[inside], expected[inside], atol=1e-6)


def test_saved_images_are_attacked_within_the_patch(finished):
    folder = finished[1] / "attacked_images/base"
    clean, box = np.load(folder / "clean.npy"), parse_restriction("0.1").box(32, 32)
    outside = np.ones((32, 32), bool)
    outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
    for name in ("pgd_patch", "square_patch", "universal_patch"):
        found = np.load(folder / f"{name}.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[:, outside], clean[:, outside])
        assert np.abs(found - clean).max() <= 0.3 + 1e-6
    rows = list(csv.DictReader((folder / "images.csv").read_text().splitlines()))
    assert len(rows) == 4 * 4
    for number, row in enumerate(rows):
        png = np.asarray(Image.open(folder / row["png"]))
        pixels = np.load(folder / f"{row['images']}.npy")[number % 4]
        assert np.abs(png / 255 - pixels).max() <= 0.5 / 255 + 1e-6


def test_saved_predictions_are_those_of_the_evaluation(finished):
    folder = finished[1]
    columns = to_columns(read_table(folder / "predictions.parquet"))
    known = {
        (name, example): predicted
        for name, example, predicted in zip(
            columns["evaluation"], columns["example"], columns["predicted"], strict=True
        )
    }
    text = (folder / "attacked_images/base/images.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        assert int(row["predicted"]) == known[row["images"], row["example"]]


def test_records_of_saliency_and_uncertainty_are_in_the_report(finished):
    folder = finished[1]
    columns = to_columns(read_table(folder / "interpretability.parquet"))
    assert len(columns["example"]) == 2 * 2 * 4  # methods, changes, images
    assert set(columns["evaluation"]) == {"pgd_patch", "noise"}
    assert (columns["top_intersection"] <= 1).all()
    maps = read_arrays(folder / "saliency_maps.npz")
    assert maps["base/attacked/integrated_gradients"].shape == (2, 32, 32)
    rows = list(csv.DictReader((folder / "uncertainty.csv").read_text().splitlines()))
    assert len(rows) == len(read_results(folder / "results.csv"))
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    assert "How far saliency maps move" in page
    assert "Abstention and prediction sets" in page
