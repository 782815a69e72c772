"""A whole run of three classes: its records, numbers and report, counted again by hand."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from medadv_jax import data, models
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import run as run_experiment
from medadv_jax.experiment.validate import check_classes
from tests.helpers.many_classes import NAMES, ThreeClasses
from tests.helpers.tiny import TinyNet, read_results, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The directory of a run of one network on three classes, with curves and self-checks."""
    config = tiny_config()
    config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.data.phantom_images, config.defenses, config.train.epochs = 96, "base", 6
    config.train.learning_rate, config.attack.epsilon = 0.02, 0.02
    config.eval.attacks, config.eval.checks = "fgsm,pgd,apgd_t", True
    config.eval.second_images, config.attack.targeted = 6, "next"
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "phantoms", ThreeClasses)
        patch.setitem(models.MODELS, config.model.name, TinyNet)
        run_experiment(config, path, Console(file=io.StringIO()))
    return path


@pytest.fixture(scope="module")
def records(folder):
    """Columns of predictions.parquet, read without the package."""
    table = pq.read_table(folder / "predictions.parquet")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def rows_of(records, evaluation):
    return records["evaluation"] == evaluation


def test_records_hold_the_score_of_every_class(records):
    assert "score" not in records
    scores = np.stack([records[f"score_{k}"] for k in range(3)], axis=1)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(scores.argmax(axis=1), records["predicted"])
    assert {*records["label"]} == {0, 1, 2}
    assert len({*records["predicted"][rows_of(records, "clean")]}) > 1  # it has learned something


def test_numbers_of_the_classes_add_up_to_the_totals(folder, records):
    confusion = json.loads((folder / "confusion.json").read_text())
    assert confusion["classes"] == [*NAMES]
    with (folder / "per_class.csv").open() as file:
        per_class = [*csv.DictReader(file)]
    results = read_results(folder / "results.csv")
    names = [row["evaluation"] for row in results]
    assert names == ["clean", "fgsm_targeted", "pgd_targeted", "apgd_t"]
    assert len(per_class) == 3 * len(results)
    for row, matrix in zip(results, confusion["rows"], strict=True):
        classes = [c for c in per_class if c["evaluation"] == row["evaluation"]]
        assert [c["name"] for c in classes] == [*NAMES]
        counts, n = np.array(matrix["matrix"]), int(row["n"])
        rows = rows_of(records, row["evaluation"])
        label, predicted = records["label"][rows], records["predicted"][rows]
        for i, j in np.ndindex(3, 3):
            assert counts[i, j] == ((label == i) & (predicted == j)).sum()
        assert sum(int(c["n"]) for c in classes) == counts.sum() == n
        assert sum(int(c["tp"]) for c in classes) == np.trace(counts)
        assert float(row["accuracy"]) == np.trace(counts) / n
        for c in classes:
            assert sum(int(c[name]) for name in ("tn", "fp", "fn", "tp")) == n
        for metric in ("precision", "recall", "specificity", "f1", "auc"):
            values = [c[metric] for c in classes]
            if "" in values:
                assert row[metric] == ""
            else:
                assert float(row[metric]) == pytest.approx(np.mean([*map(float, values)]))
        balanced = np.mean([float(c["recall"]) for c in classes])
        assert float(classes[0]["balanced_accuracy"]) == pytest.approx(balanced)
        assert row["tn"] == row["tp"] == ""


def test_worst_case_of_the_report_is_that_of_an_independent_count(folder, records):
    right, clean = {}, {}
    for example, evaluation, label, predicted in zip(
        *(records[c] for c in ("example", "evaluation", "label", "predicted")), strict=True
    ):
        right[example] = right.get(example, True) and label == predicted
        if evaluation == "clean":
            clean[example] = label == predicted
    with (folder / "report" / "tables" / "headline.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["clean"]) == pytest.approx(np.mean([*clean.values()]))
    assert float(row["worst adaptive attack"]) == pytest.approx(np.mean([*right.values()]))
    assert sum(right.values()) < sum(clean.values())
    checks = json.loads((folder / "self_checks.json").read_text())["checks"]
    (complete,) = [c for c in checks if c["number"] == 12]
    assert f"adaptive {np.mean([*right.values()]):.3f}" in complete["explanation"]


def test_class_names_are_text_in_the_report(folder):
    page = (folder / "report" / "index.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    figures = [path.read_text() for path in (folder / "report" / "figures").glob("confusion.svg")]
    assert len(figures) == 1
    assert "costs $5 and $6" in figures[0]  # matplotlib notes the text that it draws
    assert "paper has two classes" in page


def test_fields_that_do_not_fit_the_classes_are_refused():
    config = tiny_config()
    check_classes(config, NAMES)
    for targeted in ("next", "2", "plain_text"):
        config.attack.targeted = targeted
        check_classes(config, NAMES)
    for targeted in ("3", "-1", "plain"):
        config.attack.targeted = targeted
        with pytest.raises(UserError, match=f"config.attack.targeted={targeted}: must be none"):
            check_classes(config, NAMES)
    config.attack.targeted, config.eval.threshold = "none", "youden"
    check_classes(config, NAMES[:2])
    with pytest.raises(UserError, match=r"config.eval.threshold=youden: must be argmax: .* 3"):
        check_classes(config, NAMES)
