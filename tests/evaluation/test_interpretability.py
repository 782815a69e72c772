"""How far saliency maps move: the two numbers, and their records."""

import numpy as np
import pytest

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.interpretability import (
    movement_rows,
    rank_correlation,
    top_intersection,
)

MAP = np.arange(20.0).reshape(4, 5)


def test_rank_correlation_sees_order_alone():
    assert rank_correlation(MAP, np.exp(MAP)) == pytest.approx(1)
    assert rank_correlation(MAP, -MAP) == pytest.approx(-1)
    swapped = np.array([[1.0, 0.0, 2.0, 3.0]])  # 1 - 6 Σd² / (n (n² - 1)) = 1 - 12 / 60
    assert rank_correlation(np.array([[0.0, 1, 2, 3]]), swapped) == pytest.approx(0.8)
    assert rank_correlation(MAP, np.zeros_like(MAP)) is None


def test_top_intersection_is_the_share_of_common_places():
    moved = MAP.copy()
    moved[3, 4] = -1  # the strongest place of all is now the weakest
    assert top_intersection(MAP, moved, 0.2) == 3 / 4
    assert top_intersection(MAP, -MAP, 0.5) == 0
    assert top_intersection(MAP, MAP) == 1
    assert top_intersection(MAP[:1, :2], MAP[:1, :2][:, ::-1]) == 0  # at least one place


def test_records_hold_a_row_for_each_image():
    examples = [Example(f"e{i}", i, "g", 0, "", "") for i in range(2)]
    clean = np.stack([MAP, np.zeros_like(MAP)])
    key = ("base", "grad_cam", "pgd", 0.03)
    table = movement_rows(
        key, examples, np.array([0, 1]), np.array([1, 1]), clean, np.stack([MAP, MAP])
    ).to_pydict()
    assert table["rank_correlation"] == [pytest.approx(1), None]
    assert table["top_intersection"] == [1, 0]
    assert table["places"] == [20, 20]
    assert table["example"] == ["e0", "e1"]
