"""Groups of awkward sizes still fill every part as asked."""

import numpy as np
import pytest

from medadv_jax.data.group_split import assign_groups, hash_shuffle, split_count

SHARES = (0.70, 0.15, 0.15)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1000, [700, 150, 150]), (43, [31, 6, 6]), (20, [14, 3, 3]), (3, [1, 1, 1])],
)
def test_split_count(count, expected):
    assert split_count(count, SHARES) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([14, 14, 14], [14, 14, 14]),  # what fits into train alone still goes to all three
        ([3, 3, 2, 2, 2, 2, 2, 2, 2], [14, 3, 3]),  # the first draw leaves test short by one
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_hard_packings(sizes, expected, seed):
    counts = {
        f"{label}-{i}": size * np.eye(2, dtype=int)[label]
        for label in (0, 1)
        for i, size in enumerate(sizes)
    }
    quotas = np.array([split_count(sum(sizes), SHARES)] * 2).T
    part_of = assign_groups(counts, quotas, quotas, seed)
    filled = np.zeros_like(quotas)
    for group, part in part_of.items():
        filled[part] += counts[group]
    assert filled.T.tolist() == [expected, expected]


def test_a_shuffle_depends_on_names_and_purpose_alone():
    names = [f"n{i}" for i in range(30)]
    drawn = hash_shuffle(names, "a")
    assert sorted(drawn) == sorted(names) != drawn
    assert hash_shuffle(names[::-1], "a") == drawn != hash_shuffle(names, "b")
    assert hash_shuffle(names[:10], "a") == [name for name in drawn if name in names[:10]]
