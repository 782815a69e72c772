"""The page that answers the paper is what its command makes of the committed records."""

import re
import shutil
from pathlib import Path

import pytest

from medadv_jax.report import write_answers
from medadv_jax.report.paper.answers import answers, figures_named
from medadv_jax.report.paper.sentences import BOTH, CLAIMS
from medadv_jax.report.read_runs import load_run
from tests.helpers.synthetic_run import make_run

ROOT = Path(__file__).parents[3]


def test_the_committed_page_is_made_of_the_committed_records(tmp_path, monkeypatch):
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    command = re.search(r"scripts/report\.py --paper=(\S+) (.+)", page)
    assert command is not None
    shutil.copytree(ROOT / "docs/records", tmp_path / "docs/records")
    monkeypatch.chdir(tmp_path)
    written = write_answers([Path(run) for run in command[2].split()], Path(command[1]))
    assert written.read_text(encoding="utf-8") == page


def test_every_piece_has_a_row_and_runs_change_the_answers(tmp_path):
    nothing = answers([], "")
    for name in ("I", "II", "III", "IV", "V"):
        assert nothing.count(f"| Table {name} |") == 1
    for number in range(1, 19):
        assert nothing.count(f"| Figure {number} |") == 1
    assert nothing.count("\n| ") > sum(len(claim.datasets) for claim in CLAIMS)
    for claim in CLAIMS:
        assert nothing.count(f"| {claim.text} |") == len(claim.datasets)
    assert "| reproduced" not in nothing
    run = load_run(make_run(tmp_path / "x", dataset="breakhis", optional=False))
    found = answers([run], "")
    assert nothing.count("not reproduced:") == 0
    assert "0 of 15 accuracies" in found or re.search(r"\d+ of 15 accuracies", found)
    assert "160 test images; split by patient" in found


@pytest.mark.parametrize(
    ("where", "figures"),
    [("IV-A, Figs. 8 to 11", {8, 9, 10, 11}), ("IV-C, Figs. 16a, 17a", {16, 17}), ("IV-B", set())],
)
def test_figures_are_found_in_the_place_of_a_sentence(where, figures):
    assert figures_named(where) == figures


def test_sentences_are_about_the_papers_data_sets():
    assert {name for claim in CLAIMS for name in claim.datasets} == {*BOTH}
    assert len({(claim.text, name) for claim in CLAIMS for name in claim.datasets}) == sum(
        len(claim.datasets) for claim in CLAIMS
    )
