"""A sample of `make fuzz`."""

import pytest

from tools import fuzz


@pytest.mark.parametrize(("kind", "count"), [("images", 150), ("weights", 50)])
def test_mutated_files_end_in_a_value_or_in_the_error_meant_for_them(kind, count):
    found, wrong, peak = fuzz.fuzz(kind, count, seed=1)
    assert wrong == []
    assert sum(found.values()) == count
    assert {outcome for _, outcome in found} == {"read", "refused"}
    assert 0 < peak * 1024 < fuzz.MEMORY


def test_what_goes_wrong_is_told(monkeypatch):
    """Crashes, hangs and other errors of a worker do not go unnoticed."""
    lines = {0: ["0\tpng\tread", "1\tpng\tBAD KeyError: a", "died: ended with -11"], 3: ["peak\t7"]}
    monkeypatch.setattr(fuzz, "_lines", lambda kind, seed, first, last: iter(lines[first]))
    found, wrong, peak = fuzz.fuzz("images", 5, seed=0)
    assert wrong == ["images 1: png: BAD KeyError: a", "images 2: died: ended with -11"]
    assert (found["png", "read"], found["png", "BAD"], peak) == (1, 1, 7)
