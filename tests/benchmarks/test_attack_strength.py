"""The comparison of our evaluation attacks with other libraries, as measured and as published."""

import json
from pathlib import Path

from benchmarks.strength_records import table, write

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks/attack_strength.json"


def test_page_shows_the_measured_table():
    page = (ROOT / "docs/evaluation.md").read_text()
    assert table(json.loads(FILE.read_text())["records"]) in page


def test_ours_are_as_strong():
    """Within one image of a hundred of every library, or stronger, at a telling radius.

    All but untargeted DLR, which no set of attacks for fixed classifiers contains.
    """
    records = json.loads(FILE.read_text())["records"]
    ours = {_of(r): r["robust"] for r in records if r["implementation"] == "medadv_jax"}
    theirs = [r for r in records if r["implementation"] != "medadv_jax"]
    assert {r["classes"] for r in theirs} == {2, 10}
    assert {r["norm"] for r in theirs} == {"linf", "l2"}
    assert all(20 <= robust <= 80 for robust in ours.values())
    compared = [r for r in theirs if r["robust"] is not None and r["attack"] != "apgd_dlr"]
    assert {r["attack"] for r in compared} >= {"apgd_ce", "apgd_t", "fab", "fab_t", "fmn"}
    weaker = [r for r in compared if ours[_of(r)] > r["robust"] + 1]
    assert weaker == []


def _of(record):
    return record["attack"], record["task"], record["norm"]


def test_later_records_replace_those_of_the_same_attack(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])

    def record(attack, robust):
        place = {"task": "digits", "classes": 10, "norm": "l2", "epsilon": 1.2}
        of = {"attack": attack, "implementation": "medadv_jax", "error": None}
        return place | of | {"robust": robust}

    path, subject = tmp_path / "x.json", {"task": "digits", "accuracy": 1.0}
    write(path, 100, [subject], [record("square", 50), record("fab", 49)])
    found = write(path, 100, [subject], [record("square", 48), record("apgd_ce", 40)])
    assert [(r["attack"], r["robust"]) for r in found] == [
        ("apgd_ce", 40), ("fab", 49), ("square", 48),
    ]  # fmt: skip
    content = json.loads(path.read_text())
    assert content["records"] == found
    assert content["networks"] == [subject]
    lines = table(found).splitlines()
    assert lines[0] == "| attack | implementation | digits, L2, ε = 1.2 |"
    assert lines[-1] == "| `square` | medadv_jax | 48 |"


def test_a_failed_attack_is_named():
    record = {"task": "a", "norm": "linf", "epsilon": 0.1, "attack": "apgd_dlr", "robust": None}
    assert "| `apgd_dlr` | art | IndexError |" in table(
        [record | {"implementation": "art", "error": "IndexError: …"}]
    )
