import itertools
from collections import Counter

import numpy as np
import pytest

from medadv_jax.report.paper import consistency
from medadv_jax.report.paper.consistency import IMPOSSIBLE, POSSIBLE, UNBALANCED, judge
from medadv_jax.report.paper.printed import ROWS, PaperRow


def printed(value):
    """Four decimals without trailing zeros, as in the paper."""
    return f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def row_of(tn, fp, fn, tp, auc=None):
    """The row of a confusion matrix; an AUC in the middle of what is possible if none is given."""
    tpr, fpr = tp / (tp + fn), fp / (tn + fp)
    if auc is None:
        pairs = (tp + fn) * (tn + fp)
        auc = round((tpr * (1 - fpr) + 1 - fpr * (1 - tpr)) / 2 * pairs) / pairs
    precision = tp / (tp + fp) if tp + fp else 0.0
    values = ((tn + tp) / (tn + fp + fn + tp), precision, tpr, auc, 2 * tp / (2 * tp + fp + fn))
    return PaperRow("test", "net", "base", "clean", *map(printed, values))


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ((45, 5, 4, 46), POSSIBLE),
        ((40, 7, 10, 43), UNBALANCED),  # 47 and 53, as in Table IV
        ((0, 50, 50, 0), POSSIBLE),
        ((50, 0, 50, 0), POSSIBLE),  # nothing is called positive: precision and F1 print 0
    ],
)
def test_rows_of_a_matrix_are_possible(counts, kind):
    verdict = judge(row_of(*counts))
    assert verdict.kind == kind
    assert verdict.counts is not None
    found = verdict.counts
    again = row_of(found.tn, found.fp, found.fn, found.tp)
    for metric in ("accuracy", "precision", "recall", "f1"):
        assert getattr(again, metric) == getattr(row_of(*counts), metric)


def test_any_matrix_there_is_is_possible():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tn, fp, fn, tp = rng.integers(1, rng.integers(3, 400), 4)
        if tn + fp + fn + tp <= consistency.MOST_IMAGES:
            assert judge(row_of(tn, fp, fn, tp)).kind != IMPOSSIBLE


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        # F1 as the plain mean of precision and recall, as in most rows of Table V under attack.
        (("0.75", "0.9", "0.5", "0.8", "0.7"), "precision and recall give an F1 of 0.6429"),
        # Recall 0.9 and precision 0.9 of balanced classes is an accuracy of 0.9, not 0.5; with few
        # positives it is more, and with many not less than 0.81.
        (("0.5", "0.9", "0.9", "0.8", "0.9"), "no counts give all five numbers"),
        # The area cannot be 0.1 where half the positives rank above nearly all negatives.
        (("0.74", "0.9608", "0.5", "0.1", "0.6577"), "no counts give all five numbers"),
    ],
)
def test_impossible_rows_are_found_out(numbers, reason):
    verdict = judge(PaperRow("test", "net", "base", "pgd", *numbers))
    assert (verdict.kind, verdict.counts) == (IMPOSSIBLE, None)
    assert verdict.reason == reason


def test_an_exhaustive_search_comes_to_the_same(monkeypatch):
    most = 14
    monkeypatch.setattr(consistency, "MOST_IMAGES", most)
    judge.cache_clear()
    counts = [
        c for c in itertools.product(range(most + 1), repeat=4)
        if sum(c) <= most and c[0] + c[1] and c[2] + c[3]
    ]  # fmt: skip
    by_numbers = {}
    for tn, fp, fn, tp in counts:
        row = row_of(tn, fp, fn, tp)
        pairs, tpr, fpr = (tp + fn) * (tn + fp), tp / (tp + fn), fp / (tn + fp)
        half = np.arange(2 * pairs + 1) / (2 * pairs)
        low, high = tpr * (1 - fpr), 1 - fpr * (1 - tpr)
        for area in half[(half >= low - 1e-12) & (half <= high + 1e-12)]:
            key = (row.accuracy, row.precision, row.recall, printed(area), row.f1)
            balanced = tp + fn == tn + fp
            by_numbers.setdefault(key, set()).add(balanced)
    rng = np.random.default_rng(1)
    keys = list(by_numbers)
    columns = list(zip(*keys, strict=True))
    known = []
    for fits in (True, False):
        of_kind = [key for key in keys if (True in by_numbers[key]) == fits]
        known += [of_kind[i] for i in rng.choice(len(of_kind), 60)]
    mixed = [tuple(str(rng.choice(c[:500])) for c in columns) for _ in range(120)]
    areas = [(*k[:3], str(rng.choice(columns[3])), k[4]) for k in known]
    kinds = Counter()
    for key in (*known, *mixed, *areas):
        expected = IMPOSSIBLE
        if key in by_numbers:
            expected = POSSIBLE if True in by_numbers[key] else UNBALANCED
        assert judge(PaperRow("test", "net", "base", "clean", *key)).kind == expected, key
        kinds[expected] += 1
    judge.cache_clear()
    assert all(kinds[kind] > 20 for kind in (POSSIBLE, UNBALANCED, IMPOSSIBLE))


def test_the_120_rows_of_the_paper():
    assert {table: len(rows) for table, rows in ROWS.items()} == {"IV": 60, "V": 60}
    for rows in ROWS.values():
        keys = {(r.model, r.defense, r.evaluation) for r in rows}
        assert len(keys) == 60
        assert (
            len({k[0] for k in keys}) * len({k[1] for k in keys}) * len({k[2] for k in keys}) == 60
        )
        assert all(0 <= r.value(m) <= 1 for r in rows for m in ("accuracy", "auc", "f1"))
    kinds = {t: Counter(judge(r).kind for r in rows) for t, rows in ROWS.items()}
    assert kinds["IV"] == {UNBALANCED: 55, POSSIBLE: 5}
    assert kinds["V"] == {IMPOSSIBLE: 52, UNBALANCED: 3, POSSIBLE: 5}
    sizes = {
        (v.counts.n, v.counts.tp + v.counts.fn)
        for v in map(judge, ROWS["IV"])
        if v.counts and v.kind == UNBALANCED
    }
    assert sizes == {(100, 53)}  # though the paper says 100 of each class
    lenient = Counter(judge(r, fewest_digits=3).kind for r in ROWS["V"])
    assert lenient[IMPOSSIBLE] == 44
