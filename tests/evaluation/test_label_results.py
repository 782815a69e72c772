"""The area under the ROC curve of each label, against scikit-learn."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from medadv_jax.evaluation.label_results import mean_auc, mean_auc_and_loss, result_lines
from medadv_jax.evaluation.predictor import Predictions

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (60, 3))
LABELS[:, 2] = 0  # has no area
SCORES = RNG.random((60, 3)).round(1) + 0.3 * LABELS  # with ties
NAMES = ("a", "b", "c")


def _table(labels, scores):
    return pa.table({
        "example": [f"e{i}" for i in range(60) for _ in NAMES],
        "group": [f"g{i // 2}" for i in range(60) for _ in NAMES],
        "finding": [name for _ in range(60) for name in NAMES],
        "label": labels.ravel(),
        "score": scores.ravel(),
    })  # fmt: skip


def test_each_label_has_its_own_area():
    a, b, c, mean = result_lines(_table(LABELS, SCORES), NAMES)
    for k, (name, n, positives, auc, low, high) in enumerate((a, b)):
        assert (name, n, positives) == (NAMES[k], 60, LABELS[:, k].sum())
        assert auc == pytest.approx(roc_auc_score(LABELS[:, k], SCORES[:, k]), abs=1e-12)
        assert auc is not None
        assert low is not None
        assert high is not None
        assert 0 < low < auc < high < 1
    assert c == ("c", 60, 0, None, None, None)
    areas = [roc_auc_score(LABELS[:, k], SCORES[:, k]) for k in (0, 1)]
    assert mean == ("mean", 60, None, pytest.approx(np.mean(areas)), None, None)
    assert mean_auc(LABELS, SCORES) == pytest.approx(np.mean(areas))


def test_unknown_labels_are_left_out():
    labels = LABELS.copy()
    labels[:20, 0] = -1
    line = next(iter(result_lines(_table(labels, SCORES), NAMES)))
    assert line[:4] == (
        "a",
        40,
        LABELS[20:, 0].sum(),
        roc_auc_score(LABELS[20:, 0], SCORES[20:, 0]),
    )
    areas = [
        roc_auc_score(LABELS[20:, 0], SCORES[20:, 0]),
        roc_auc_score(LABELS[:, 1], SCORES[:, 1]),
    ]
    assert mean_auc(labels, SCORES) == pytest.approx(np.mean(areas))


def test_without_an_area_there_is_chance():
    assert mean_auc(np.zeros((4, 2), int), np.ones((4, 2))) == 0.5


def test_loss_that_chooses_a_checkpoint_is_that_of_the_training():
    logits = np.array([[[2.0, -1.0]], [[0.0, 3.0]]])
    found = mean_auc_and_loss(Predictions(np.arange(2), np.array([[1, 0], [0, -1]]), logits))
    expected = np.log1p(np.exp([-2.0, -1.0, 0.0])).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["mean_auc"] == 1.0
